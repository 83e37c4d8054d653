// The command `proxy`. The network is an argument.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkProxyOptions, startProxy } from "./proxy.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";

/** Time in milliseconds that closing takes after the drain. */
const CLOSE_MS = 10_000;

/**
 * `createNet` is called at the start; the network's warnings go to the log.
 * @param stateDirectory for the self-signed certificate; by default it is not kept
 */
export function proxyCommand(
  createNet: (options: { warn: (message: string) => void; ownsProcess: boolean }) => Net,
  stateDirectory: string | undefined,
): Service<ProxyOptions> {
  return {
    name: "proxy",
    description: "Takes agents over QUIC and clients over HTTP, and brings clients to what the agents can reach.",
    options: proxyOptions,
    check: async (options) => {
      const net = createNet({ warn: () => {}, ownsProcess: false });
      try {
        await checkProxyOptions(options, { net, stateDirectory });
      } finally {
        net.close();
      }
    },
    start: async (options, log, supervisor) => {
      const net = createNet({ warn: (message) => log.warn(message), ownsProcess: true });
      const proxy = await startProxy(options, { log, net, stateDirectory, supervisor });
      return {
        closesWithinMs: options.drain.delay + options.drain.timeout + CLOSE_MS,
        reload: () => proxy.reload(),
        close: () => proxy.drain(),
      };
    },
  };
}
