// The executable reverse-http-agent.
import process from "node:process";
import { FAMILY } from "../family.ts";
import { run } from "../shared/cli/run.ts";
import { createNativeNet } from "../shared/net/native.ts";
import { VERSION } from "../shared/version.ts";
import { agentCommand } from "./command.ts";

await run({ root: { ...agentCommand(createNativeNet), name: "reverse-http-agent" }, version: VERSION, family: FAMILY }, process);
