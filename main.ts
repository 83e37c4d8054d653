// Entry point of the executable reverse-http: all services as commands, as in the Go original.
import process from "node:process";
import { agentsCommand, statusCommand, topCommand, tunnelsCommand } from "./admin/command.ts";
import { agentCommand } from "./agent/command.ts";
import { agentDoctor } from "./agent/doctor.ts";
import { clientDoctor } from "./client/doctor.ts";
import { lbDoctor } from "./lb/doctor.ts";
import { proxyDoctor } from "./proxy/doctor.ts";
import { connectCommand, forwardCommand, socksCommand } from "./client/command.ts";
import { loginCommand, logoutCommand } from "./client/login.ts";
import type { Subcommand } from "./shared/cli/command.ts";
import { SERVICES } from "./services.ts";
import { inviteCommand } from "./proxy/invite.ts";
import { proxyCommand } from "./proxy/command.ts";
import { lbCommand } from "./lb/command.ts";
import { authCommand } from "./shared/cli/auth_command.ts";
import { serviceCommand } from "./shared/cli/install/command.ts";
import { policyCommand } from "./shared/cli/policy_command.ts";
import { run } from "./shared/cli/run.ts";
import { openNative } from "./shared/net/native/binding.ts";
import { defaultStateDirectory } from "./shared/files/state_directory.ts";
import { VERSION } from "./shared/version.ts";

const native = openNative();
const stateDirectory = defaultStateDirectory(process.env, process.getuid?.());
await run({
  root: {
    name: "reverse-http",
    description: "A reverse HTTP proxy over QUIC.",
    commands: [
      proxyCommand(native.createNet, stateDirectory),
      agentCommand(native.createNet, { stateDirectory, environment: process.env }),
      lbCommand(native.createNet, stateDirectory),
      connectCommand(native.createNet) as Subcommand,
      forwardCommand(native.createNet) as Subcommand,
      socksCommand(native.createNet) as Subcommand,
      statusCommand as Subcommand,
      agentsCommand as Subcommand,
      tunnelsCommand as Subcommand,
      topCommand as Subcommand,
      loginCommand as Subcommand,
      logoutCommand as Subcommand,
      inviteCommand(stateDirectory) as Subcommand,
      {
        name: "doctor",
        description: "Check everything that a role needs, and suggest a remedy for each failure; exit code 1 if a check fails.",
        commands: [
          agentDoctor(native.createNet, { stateDirectory, environment: process.env }) as Subcommand,
          clientDoctor(native.createNet) as Subcommand,
          proxyDoctor(native.createNet, stateDirectory) as Subcommand,
          lbDoctor(native.createNet, stateDirectory) as Subcommand,
        ],
      },
      serviceCommand({ family: SERVICES }),
      authCommand,
      policyCommand,
    ],
  },
  version: VERSION,
  family: SERVICES,
  notify: native.notifySupervisor,
}, process);
