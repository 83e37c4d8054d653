// The command line of reverse-http-agent.
import process from "node:process";
import { run } from "../shared/cli/run.ts";
import { createNativeNet } from "../shared/net/native.ts";
import { VERSION } from "../shared/version.ts";
import { checkAgentOptions, startAgent } from "./agent.ts";
import { type AgentOptions, agentOptions } from "./options.ts";

await run<AgentOptions>({
  name: "reverse-http-agent",
  description: "Connects to a reverse-http proxy and reaches the destinations that its clients ask for.",
  version: VERSION,
  options: agentOptions,
  check: async (options) => void await checkAgentOptions(options),
  start: (options, log) => startAgent(options, { log, net: createNativeNet({ warn: (message) => log.warn(message) }) }),
}, process);
