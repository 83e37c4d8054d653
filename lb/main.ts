// The executable reverse-http-lb.
import process from "node:process";
import { FAMILY } from "../family.ts";
import { run } from "../shared/cli/run.ts";
import { openNative } from "../shared/net/native.ts";
import { VERSION } from "../shared/version.ts";
import { lbCommand } from "./command.ts";

const native = openNative();
const lb = lbCommand(native.createNet);
await run({ root: { ...lb, name: "reverse-http-lb" }, version: VERSION, family: FAMILY, notify: native.notifySupervisor }, process);
