// The command `lb`. The network is an argument.
import type { Service } from "../shared/cli/command.ts";
import { routeDiagnosis } from "../shared/frontend/forwards/check_route.ts";
import { checkWithNet, type CreateNet } from "../shared/cli/network.ts";
import { checkLoadBalancerOptions, startLoadBalancer } from "./lb.ts";
import { lbOptions, type LoadBalancerOptions } from "./options.ts";

/** Time in milliseconds that closing takes after the drain. */
const CLOSE_MS = 10_000;

/**
 * `createNet` is called for each check and at the start; the network's warnings go to the log.
 * @param stateDirectory for accounts and certificates by ACME
 */
export function lbCommand(createNet: CreateNet, stateDirectory: string | undefined): Service<LoadBalancerOptions> {
  return {
    name: "lb",
    description: "Run a load balancer: route each client to the proxy that its agent is connected to.",
    options: lbOptions,
    check: (options) => checkWithNet(createNet, (net) => checkLoadBalancerOptions(options, { net, stateDirectory }), options.threads),
    diagnosis: routeDiagnosis,
    start: async (options, log, context) => {
      const net = createNet({ warn: (message) => log.warn(message), threads: options.threads, ownsProcess: true });
      const lb = await startLoadBalancer(options, { log, net, ownsNet: true, stateDirectory, ...context, logLevel: log });
      let { drain } = options;
      return {
        get closesWithinMs() {
          return drain.delay + drain.timeout + CLOSE_MS;
        },
        closed: lb.closed,
        handedOver: lb.handedOver,
        reload: () => lb.reload(),
        async update(next) {
          const { tunnelsCut } = await lb.update(next);
          ({ drain } = next);
          return { tunnelsCut };
        },
        close: () => lb.drain(),
      };
    },
  };
}
