// The commands of clients. The network is an argument.
import { type Authority, parseAuthority } from "../shared/address/authority.ts";
import { CommandFailure, type Subcommand } from "../shared/cli/command.ts";
import type { CreateNet } from "../shared/cli/network.ts";
import { ConfigError, defineOptions, flagOf, type ValuesOf } from "../shared/config/option.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/types.ts";
import { MalformedRequestError } from "../shared/tunnel/errors.ts";
import { formatSshConfig, relay } from "./connect.ts";
import { type ClientOptions, clientOptions } from "./options.ts";
import { checkAccess, openTunnel, TunnelFailure, type TunnelFailureKind } from "./tunnel.ts";

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

/** @throws {ConfigError} */
function sshConfigOf(options: ClientOptions, target: string | undefined, flags: ReadonlyMap<string, string>): string {
  const { agentId } = options;
  if (agentId === undefined || /[\s"'\\*?!,]/.test(agentId)) {
    throw new ConfigError("Cannot print the configuration of ssh: --agent-id is required, without the signs \" ' \\ * ? ! and comma");
  }
  checkAccess(options);
  // what the environment and the profile set will be set there again
  const kept = [...flags].filter(([name]) => name !== "ssh-config" && name !== "agent-id").map(([name, text]) => `${flagOf(name)}=${text}`);
  const command = ["reverse-http", "connect", ...kept, `--agent-id=${agentId}`];
  return formatSshConfig(command, agentId, target === undefined ? undefined : parseDestination(target));
}

/** @throws {ConfigError} */
function parseDestination(text: string): Authority {
  try {
    return parseAuthority(text);
  } catch (cause) {
    if (!(cause instanceof MalformedRequestError)) throw cause;
    throw new ConfigError(`Cannot use the destination ${JSON.stringify(text)}: ${cause.message.replace(/^The target/, "it")}`, { cause });
  }
}

async function withNet(createNet: CreateNet, use: (net: Net) => Promise<void>): Promise<void> {
  const net = createNet({ warn: () => {}, ownsProcess: true });
  try {
    await use(net);
  } finally {
    net.close();
  }
}
