// Entry point of the executable reverse-http-agent.
import process from "node:process";
import { SERVICES } from "../services.ts";
import { run } from "../shared/cli/run.ts";
import { defaultStateDirectory } from "../shared/files/state_directory.ts";
import { openNative } from "../shared/net/native/binding.ts";
import { VERSION } from "../shared/version.ts";
import { agentCommand } from "./command.ts";

const native = openNative();
const stateDirectory = defaultStateDirectory(process.env, process.getuid?.());
await run({
  root: { ...agentCommand(native.createNet, { stateDirectory, environment: process.env }), name: "reverse-http-agent" },
  version: VERSION,
  family: SERVICES,
  notify: native.notifySupervisor,
}, process);
