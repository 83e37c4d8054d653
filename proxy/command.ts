// The proxy as a command. It is given the network: it does not know which one.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkProxyOptions, startProxy } from "./proxy.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";

/** What the end takes besides the drain, in milliseconds. */
const CLOSE_MS = 10_000;

/**
 * `createNet` is called when it starts; the network's warnings go to the log.
 * @param stateDirectory where a certificate of its own is kept; without it, nowhere
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
