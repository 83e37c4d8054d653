// The command `lb`. The network is an argument.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkLoadBalancerOptions, startLoadBalancer } from "./lb.ts";
import { lbOptions, type LoadBalancerOptions } from "./options.ts";

/** Time in milliseconds that closing takes after the drain. */
const CLOSE_MS = 10_000;

/** `createNet` is called at the start; the network's warnings go to the log. */
export function lbCommand(
  createNet: (options: { warn: (message: string) => void; ownsProcess: boolean }) => Net,
): Service<LoadBalancerOptions> {
  return {
    name: "lb",
    description: "Takes clients over HTTP and brings each to the proxy that holds its agent.",
    options: lbOptions,
    check: async (options) => {
      const net = createNet({ warn: () => {}, ownsProcess: false });
      try {
        await checkLoadBalancerOptions(options, net);
      } finally {
        net.close();
      }
    },
    start: async (options, log, supervisor) => {
      const net = createNet({ warn: (message) => log.warn(message), ownsProcess: true });
      const lb = await startLoadBalancer(options, { log, net, supervisor });
      return { closesWithinMs: options.drain.delay + options.drain.timeout + CLOSE_MS, reload: () => lb.reload(), close: () => lb.drain() };
    },
  };
}
