// The executable reverse-http-lb.
import process from "node:process";
import { SERVICES } from "../services.ts";
import { run } from "../shared/cli/run.ts";
import { defaultStateDirectory } from "../shared/files/state_directory.ts";
import { openNative } from "../shared/net/native/binding.ts";
import { VERSION } from "../shared/version.ts";
import { lbCommand } from "./command.ts";

const native = openNative();
const lb = lbCommand(native.createNet, defaultStateDirectory(process.env, process.getuid?.()));
await run({ root: { ...lb, name: "reverse-http-lb" }, version: VERSION, family: SERVICES, notify: native.notifySupervisor }, process);
