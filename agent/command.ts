// The agent as a command. It is given the network: it does not know which one.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkAgentOptions, startAgent } from "./agent.ts";
import { type AgentOptions, agentOptions } from "./options.ts";

/** What the end takes besides the drain, in milliseconds. */
const CLOSE_MS = 10_000;

/** `createNet` is called when it starts; the network's warnings go to the log. */
export function agentCommand(
  createNet: (options: { warn: (message: string) => void; ownsProcess: boolean }) => Net,
): Service<AgentOptions> {
  return {
    name: "agent",
    description: "Connects to a reverse-http proxy and reaches the destinations that its clients ask for.",
    options: agentOptions,
    check: async (options) => {
      const net = createNet({ warn: () => {}, ownsProcess: false });
      try {
        await checkAgentOptions(options, net);
      } finally {
        net.close();
      }
    },
    start: async (options, log, supervisor) => {
      const net = createNet({ warn: (message) => log.warn(message), ownsProcess: true });
      const agent = await startAgent(options, { log, net, supervisor });
      return { closesWithinMs: options.drain.timeout + CLOSE_MS, reload: () => agent.reload(), close: () => agent.drain() };
    },
  };
}
