// Connects standard input and output to a destination, for programs that start a command instead of a connection: ssh, git, rsync.
import { type Authority, formatAuthority } from "../shared/address/authority.ts";
import { CommandFailure } from "../shared/cli/command.ts";
import { shellWord } from "../shared/config/shell_word.ts";
import type { Net } from "../shared/net/net.ts";
import type { Duplex } from "../shared/net/stream.ts";

/**
 * Relays between standard input and output and the tunnel to `target` until the destination has finished; each direction ends by itself. If
 * the reader of the output is gone, both end.
 * @throws {CommandFailure} if the tunnel breaks, or standard input or output fails
 */
export async function relay(net: Net, tunnel: Duplex, target: string): Promise<void> {
  const { error: cause, errorSide } = await net.splice(await net.openStandardStreams(), tunnel);
  if (cause === undefined || (errorSide === "a" && cause.code === "stopped")) return;
  throw new CommandFailure(1, errorSide === "a" ? cause.message : `The tunnel to ${target} broke: ${cause.message}`, { cause });
}

/**
 * The lines of ssh_config(5) for a destination behind an agent.
 * @param command the words of the command that connects, without the destination
 * @param agentId names the host, with the destination unless that is the agent's own machine
 */
export function formatSshConfig(command: readonly string[], agentId: string, destination: Authority | undefined): string {
  const { host, port } = destination ?? { host: "localhost", port: 22 };
  const name = destination === undefined ? agentId : `${host}.${agentId}`;
  return [
    `# ${formatAuthority({ host, port })} as the agent ${agentId} reaches it`,
    `Host ${name}`,
    `  HostName ${host}`,
    `  Port ${port}`,
    `  HostKeyAlias ${name}`,
    `  ProxyCommand ${command.map(quote).join(" ")} %h:%p`,
    "",
  ].join("\n");
}

/** Quotes a word for the shell that ssh starts; ssh expands percent signs. */
function quote(word: string): string {
  return shellWord(word.replaceAll("%", "%%"));
}
