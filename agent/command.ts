// The command `agent`. The network is an argument.
import type { Service } from "../shared/cli/command.ts";
import { formatFindings } from "../shared/cli/findings.ts";
import { checkWithNet, type CreateNet } from "../shared/cli/network.ts";
import { type AgentDeps, checkAgentOptions, startAgent } from "./agent.ts";
import { checkLink } from "./check_link.ts";
import { requestCredentials } from "./credentials.ts";
import { expandJoin } from "./join.ts";
import { LearnedPins } from "./learned_pins.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { type AgentOptions, agentOptions } from "./options.ts";

/** Time for closing after the drain, in milliseconds. */
const CLOSE_MS = 10_000;

/** `createNet` is called for each check and at the start; the network's warnings go to the log. */
export function agentCommand(
  createNet: CreateNet,
  { stateDirectory, environment }: Pick<AgentDeps, "stateDirectory" | "environment"> = {},
): Service<AgentOptions> {
  return {
    name: "agent",
    description: "Run an agent: connect to proxies, and to the destinations that their clients request.",
    options: agentOptions,
    expansion: { option: "join", expand: expandJoin },
    check: (options) => checkWithNet(createNet, (net) => checkAgentOptions(options, { net, environment }), options.threads),
    diagnosis: {
      flag: "check-link",
      description:
        "Check what passes between this machine and the proxies, print a table, and exit: with 0 if the agent can connect, else 1.",
      run: async (options, { write }) => {
        let works = false;
        await checkWithNet(createNet, async (net) => {
          const access = await checkAgentOptions(options, { net, environment });
          const credentials = access.credentials ?? await requestCredentials(options.auth);
          const pins = await LearnedPins.open(options.stateDir || stateDirectory, silentLogger);
          const report = await checkLink({ net, options, ...access, pins, credentials });
          write(formatFindings(report.findings, report.summary));
          ({ works } = report);
        });
        return works;
      },
    },
    start: async (options, log, context) => {
      const net = createNet({ warn: (message) => log.warn(message), threads: options.threads, ownsProcess: true });
      const agent = await startAgent(options, { log, net, ownsNet: true, stateDirectory, environment, ...context, logLevel: log });
      let { drain } = options;
      return {
        get closesWithinMs() {
          return drain.timeout + CLOSE_MS;
        },
        closed: agent.closed,
        handedOver: agent.handedOver,
        reload: () => agent.reload(),
        async update(next) {
          const { tunnelsCut } = await agent.update(next);
          ({ drain } = next);
          return { tunnelsCut };
        },
        close: () => agent.drain(),
      };
    },
  };
}
