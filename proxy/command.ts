// The proxy as a command. It is given the network: it does not know which one.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkProxyOptions, startProxy } from "./proxy.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";

/**
 * `createNet` is called when it starts; the network's warnings go to the log.
 * @param stateDirectory where a certificate of its own is kept; without it, nowhere
 */
export function proxyCommand(
  createNet: (options: { warn: (message: string) => void }) => Net,
  stateDirectory: string | undefined,
): Service<ProxyOptions> {
  return {
    name: "proxy",
    description: "Takes agents over QUIC and clients over HTTP, and brings clients to what the agents can reach.",
    options: proxyOptions,
    check: async (options) => void await checkProxyOptions(options),
    start: async (options, log) => {
      const proxy = await startProxy(options, { log, net: createNet({ warn: (message) => log.warn(message) }), stateDirectory });
      return { close: () => proxy.drain() };
    },
  };
}
