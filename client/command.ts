// The commands of clients. The network is an argument.
import { CommandFailure, type Subcommand, type SubcommandLine, type Terminal } from "../shared/cli/command.ts";
import type { CreateNet } from "../shared/cli/network.ts";
import { ConfigError, flagOf, type ValuesOf } from "../shared/config/option.ts";
import type { Net } from "../shared/net/net.ts";
import { formatSshConfig, relay } from "./connect.ts";
import { serveForwards } from "./forward.ts";
import { JsonMonitor, LineMonitor, type Monitor } from "./forward_monitor.ts";
import { parseForward, readForwards } from "./forwards.ts";
import { expandJoin } from "./join.ts";
import { LiveMonitor } from "./live_monitor.ts";
import { type ClientOptions, clientOptions, connectOptions, forwardOptions, forwardProfile, socksProfile } from "./options.ts";
import { parseRoute } from "./routes.ts";
import { parseListen, serveSocks } from "./socks.ts";
import { type Access, checkAccess, openTunnel, parseDestination } from "./tunnel.ts";
import { TunnelFailure, type TunnelFailureKind } from "./tunnel_failure.ts";

/** Exit codes of `connect`; 0: the tunnel has ended, 1: it broke, 2: invalid configuration. */
const EXIT_CODES: Readonly<Record<TunnelFailureKind, number>> = { "proxy": 3, "denied": 4, "no-agent": 5, "refused": 6, "unreachable": 7 };

/** `createNet` is called for each run. */
export function connectCommand(createNet: CreateNet): Subcommand<ClientOptions & ValuesOf<typeof connectOptions>> {
  return {
    name: "connect",
    description:
      "Connect standard input and output to a destination behind an agent. Exit codes: 3 the proxy cannot be reached, 4 denied, 5 the agent is " +
      "not connected, 6 the destination refuses, 7 it cannot be reached.",
    options: connectOptions,
    profile: clientOptions,
    expansion: { option: "join", expand: expandJoin },
    operands: { name: "host:port", description: "Destination, as the agent reaches it." },
    async run({ sshConfig, ...options }, { write }, { operands: [target], flags }) {
      if (sshConfig) return write(sshConfigOf(options, target, flags));
      if (target === undefined) throw new ConfigError("Cannot connect: the destination host:port is missing");
      const destination = parseDestination(target);
      const access = checkAccess(options);
      await withNet(createNet, async (net) => {
        try {
          await relay(net, await openTunnel(net, access, destination), target);
        } catch (cause) {
          throw cause instanceof TunnelFailure ? failureOf(cause) : cause;
        }
      });
    },
  };
}

/** `createNet` is called for each run. */
export function forwardCommand(createNet: CreateNet): Subcommand<ValuesOf<typeof forwardProfile> & ValuesOf<typeof forwardOptions>> {
  return {
    name: "forward",
    description:
      "Listen on local addresses, and relay each connection to a destination behind an agent: 5432:db:5432 listens on 127.0.0.1:5432.",
    options: forwardOptions,
    profile: forwardProfile,
    expansion: { option: "join", expand: expandJoin },
    operands: {
      name: "forward",
      description: "[ADDRESS:]PORT:HOST:PORT, as of ssh -L, followed by /udp for UDP, or /PATH:HOST:PORT; port 0 lets the system choose.",
      variadic: true,
    },
    async run({ exec, file, wait, json, forwards: defaults, ...options }, terminal, { operands, reread }) {
      const given = [...operands.map(parseForward), ...file === undefined ? [] : await readForwards(file)];
      const forwards = given.length > 0 ? given : defaults.map(parseForward);
      if (forwards.length === 0) throw new ConfigError("Cannot forward: there is no forward; write 5432:db:5432");
      if (json && exec !== undefined) throw new ConfigError("Cannot use --json with --exec: standard output is the command's");
      const access = accessOf(options, reread);
      const monitor = createMonitor(terminal, json, exec !== undefined);
      try {
        await withNet(createNet, async (net) => {
          const code = await serveForwards(net, access, { forwards, command: exec, waitMs: wait }, monitor, terminal);
          if (code !== 0) throw new CommandFailure(code, `The command of --exec has ended with ${code}`);
        });
      } catch (cause) {
        throw cause instanceof TunnelFailure ? failureOf(cause) : cause;
      } finally {
        monitor.close();
      }
    },
  };
}

/** @param hasCommand whether standard output is a command's */
function createMonitor(terminal: Terminal, json: boolean, hasCommand: boolean): Monitor {
  if (json) return new JsonMonitor((line) => terminal.write(`${line}\n`));
  return terminal.screen && !hasCommand ? new LiveMonitor(terminal, terminal.screen) : new LineMonitor(terminal, !hasCommand);
}

/** `createNet` is called for each run. */
export function socksCommand(createNet: CreateNet): Subcommand<ValuesOf<typeof socksProfile>> {
  return {
    name: "socks",
    description: "Serve a local SOCKS 5 and HTTP proxy, which adds the credentials, for browsers and programs that cannot send them.",
    profile: socksProfile,
    expansion: { option: "join", expand: expandJoin },
    operands: {
      name: "address",
      description: "PORT or ADDRESS:PORT to listen on, by default 127.0.0.1:1080; port 0 lets the system choose.",
    },
    async run({ agentSuffix, map, ...options }, terminal, { operands: [address], reread }) {
      const listen = parseListen(address);
      const access = accessOf(options, reread);
      try {
        await withNet(createNet, (net) => serveSocks(net, access, { listen, agentSuffix, routes: map.map(parseRoute) }, terminal));
      } catch (cause) {
        throw cause instanceof TunnelFailure ? failureOf(cause) : cause; // a session that has ended
      }
    },
  };
}

/** The access of each connection, as the profile is then. @throws {ConfigError} for `options` */
function accessOf(options: ClientOptions, reread: SubcommandLine["reread"]): () => Access {
  checkAccess(options);
  return () => checkAccess((reread?.() ?? options) as ClientOptions);
}

function failureOf(cause: TunnelFailure): CommandFailure {
  return new CommandFailure(EXIT_CODES[cause.kind], cause.message, { cause });
}

/** @throws {ConfigError} */
function sshConfigOf(options: ClientOptions, target: string | undefined, flags: ReadonlyMap<string, string>): string {
  const { agentId } = options;
  if (agentId === undefined || /[\s"'\\*?!,]/.test(agentId)) {
    throw new ConfigError("Cannot print the configuration of ssh: --agent-id is required, without the signs \" ' \\ * ? ! and comma");
  }
  if (options.join !== undefined && !options.join.startsWith("file:")) {
    throw new ConfigError(
      "Cannot print the configuration of ssh with --join, which has a token: write file:NAME, or use reverse-http login",
    );
  }
  checkAccess(options);
  // the environment and the profile will apply there again
  const kept = [...flags].filter(([name]) => name !== "ssh-config" && name !== "agent-id").map(([name, text]) => `${flagOf(name)}=${text}`);
  const command = ["reverse-http", "connect", ...kept, `--agent-id=${agentId}`];
  return formatSshConfig(command, agentId, target === undefined ? undefined : parseDestination(target));
}

async function withNet(createNet: CreateNet, use: (net: Net) => Promise<void>): Promise<void> {
  const net = createNet({ warn: () => {}, ownsProcess: true });
  try {
    await use(net);
  } finally {
    net.close();
  }
}
