// The command `agent`, for any network implementation.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkAgentOptions, startAgent } from "./agent.ts";
import { type AgentOptions, agentOptions } from "./options.ts";

/** Time for closing after the drain, in milliseconds. */
const CLOSE_MS = 10_000;

/** @param createNet called at start and for checks; the network's warnings are logged */
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
