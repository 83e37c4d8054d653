// The executable reverse-http-proxy.
import process from "node:process";
import { SERVICES } from "../services.ts";
import { authCommand } from "../shared/cli/auth_command.ts";
import { run } from "../shared/cli/run.ts";
import { openNative } from "../shared/net/native/binding.ts";
import { defaultStateDirectory } from "../shared/files/state_directory.ts";
import { VERSION } from "../shared/version.ts";
import { proxyCommand } from "./command.ts";

const native = openNative();
const proxy = proxyCommand(native.createNet, defaultStateDirectory(process.env, process.getuid?.()));
await run({
  root: { ...proxy, name: "reverse-http-proxy", commands: [authCommand] },
  version: VERSION,
  family: SERVICES,
  notify: native.notifySupervisor,
}, process);
