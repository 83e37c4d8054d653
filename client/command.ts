// The commands of clients. The network is an argument.
import { CommandFailure, type Subcommand } from "../shared/cli/command.ts";
import type { CreateNet } from "../shared/cli/network.ts";
import { ConfigError, defineOptions, flagOf, type ValuesOf } from "../shared/config/option.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/types.ts";
import { formatSshConfig, relay } from "./connect.ts";
import { parseForward, serveForwards } from "./forward.ts";
import { expandJoin } from "./join.ts";
import { type ClientOptions, clientOptions } from "./options.ts";
import { checkAccess, openTunnel, parseDestination, TunnelFailure, type TunnelFailureKind } from "./tunnel.ts";

/** Exit codes of `connect`; 0: the tunnel has ended, 1: it broke, 2: invalid configuration. */
const EXIT_CODES: Readonly<Record<TunnelFailureKind, number>> = { "proxy": 3, "denied": 4, "no-agent": 5, "refused": 6, "unreachable": 7 };

const connectOptions = defineOptions({
  "ssh-config": { kind: "boolean", description: "Print the lines of ssh_config(5) that use this command, and exit." },
});

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
    async run({ sshConfig, ...options }, { write, streams }, { operands: [target], flags }) {
      if (sshConfig) return write(sshConfigOf(options, target, flags));
      if (target === undefined) throw new ConfigError("Cannot connect: the destination host:port is missing");
      const destination = parseDestination(target);
      const access = checkAccess(options);
      await withNet(createNet, async (net) => {
        try {
          await relay(streams, await openTunnel(net, access, destination));
        } catch (cause) {
          if (cause instanceof TunnelFailure) throw new CommandFailure(EXIT_CODES[cause.kind], cause.message, { cause });
          if (cause instanceof NetError) throw new CommandFailure(1, `The tunnel to ${target} broke: ${cause.message}`, { cause });
          throw cause;
        }
      });
    },
  };
}

const forwardOptions = defineOptions({
  "exec": {
    kind: "string",
    description:
      "Command for the shell, run once all addresses listen; its exit code is passed on. Its environment has FORWARD_ADDRESS, FORWARD_HOST and " +
      "FORWARD_PORT, and for further forwards FORWARD_ADDRESS_2 and so on.",
  },
});

/** `createNet` is called for each run. */
export function forwardCommand(createNet: CreateNet): Subcommand<ClientOptions & ValuesOf<typeof forwardOptions>> {
  return {
    name: "forward",
    description:
      "Listen on local addresses, and relay each connection to a destination behind an agent: 5432:db:5432 listens on 127.0.0.1:5432.",
    options: forwardOptions,
    profile: clientOptions,
    expansion: { option: "join", expand: expandJoin },
    operands: {
      name: "forward",
      description: "[ADDRESS:]PORT:HOST:PORT, as of ssh -L; port 0 lets the system choose, and is printed.",
      variadic: true,
    },
    async run({ exec, ...options }, terminal, { operands, reread }) {
      if (operands.length === 0) throw new ConfigError("Cannot forward: there is no forward; write 5432:db:5432");
      const forwards = operands.map(parseForward);
      checkAccess(options);
      const access = () => checkAccess((reread?.() ?? options) as ClientOptions);
      await withNet(createNet, async (net) => {
        const code = await serveForwards(net, access, forwards, exec, terminal);
        if (code !== 0) throw new CommandFailure(code, `The command of --exec has ended with ${code}`);
      });
    },
  };
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
  // what the environment and the profile set will be set there again
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
