// The executable reverse-http: all services as commands, as the Go reverse-http is called.
import process from "node:process";
import { agentCommand } from "./agent/command.ts";
import { FAMILY } from "./family.ts";
import { proxyCommand } from "./proxy/command.ts";
import { lbCommand } from "./lb/command.ts";
import { authCommand } from "./shared/auth/command.ts";
import { run } from "./shared/cli/run.ts";
import { createNativeNet } from "./shared/net/native.ts";
import { defaultStateDirectory } from "./shared/tls/self_signed.ts";
import { VERSION } from "./shared/version.ts";

await run({
  root: {
    name: "reverse-http",
    description: "A reverse HTTP proxy over QUIC.",
    commands: [
      proxyCommand(createNativeNet, defaultStateDirectory(process.env, process.getuid?.())),
      agentCommand(createNativeNet),
      lbCommand(createNativeNet),
      authCommand,
    ],
  },
  version: VERSION,
  family: FAMILY,
}, process);
