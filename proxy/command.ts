// The command `proxy`. The network is an argument.
import type { Service } from "../shared/cli/command.ts";
import { routeDiagnosis } from "../shared/frontend/forwards/check_route.ts";
import { checkWithNet, type CreateNet } from "../shared/cli/network.ts";
import { checkProxyOptions, startProxy } from "./proxy.ts";
import { optionsOfWorker } from "./workers/options.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";

/** Time in milliseconds that closing takes after the drain. */
const CLOSE_MS = 10_000;

/**
 * `createNet` is called for each check and at the start; the network's warnings go to the log.
 * @param stateDirectory for the self-signed certificate; by default it is not kept
 */
export function proxyCommand(createNet: CreateNet, stateDirectory: string | undefined): Service<ProxyOptions> {
  return {
    name: "proxy",
    description: "Run a proxy: accept agents and clients, and connect clients to destinations behind agents.",
    options: proxyOptions,
    check: (options) => checkWithNet(createNet, (net) => checkProxyOptions(options, { net, stateDirectory }), options.threads),
    diagnosis: routeDiagnosis,
    start: async (given, log, context) => {
      const { worker } = context;
      const own = (options: ProxyOptions) => worker ? optionsOfWorker(options, worker) : options;
      const options = own(given);
      const net = createNet({ warn: (message) => log.warn(message), threads: options.threads, ownsProcess: true });
      const proxy = await startProxy(options, { log, net, ownsNet: true, stateDirectory, ...context, logLevel: log });
      let { drain } = options;
      const { agentAddress: agents, agentTcpAddress: agentsTcp, clientAddress: clients, http2Address: http2 } = proxy;
      return {
        addresses: { agents, agentsTcp, clients, http2, socks: proxy.socksAddress, forwards: proxy.forwardAddresses },
        get closesWithinMs() {
          return drain.delay + drain.timeout + CLOSE_MS;
        },
        closed: proxy.closed,
        handedOver: proxy.handedOver,
        reload: () => proxy.reload(),
        async update(next) {
          const { tunnelsCut, agentsClosed } = await proxy.update(own(next));
          ({ drain } = next);
          return { tunnelsCut, agentsClosed };
        },
        close: () => proxy.drain(),
      };
    },
  };
}
