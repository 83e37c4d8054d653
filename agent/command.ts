// The agent as a command. It is given the network: it does not know which one.
import type { Service } from "../shared/cli/command.ts";
import type { Net } from "../shared/net/types.ts";
import { checkAgentOptions, startAgent } from "./agent.ts";
import { type AgentOptions, agentOptions } from "./options.ts";

/** `createNet` is called when it starts; the network's warnings go to the log. */
export function agentCommand(createNet: (options: { warn: (message: string) => void }) => Net): Service<AgentOptions> {
  return {
    name: "agent",
    description: "Connects to a reverse-http proxy and reaches the destinations that its clients ask for.",
    options: agentOptions,
    check: async (options) => void await checkAgentOptions(options),
    start: async (options, log) => {
      const agent = await startAgent(options, { log, net: createNet({ warn: (message) => log.warn(message) }) });
      return { close: () => agent.drain() };
    },
  };
}
