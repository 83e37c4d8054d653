// The command by which clients reach this agent, from what its proxy says of itself.
import { formatHostPort, splitHostPort } from "../shared/address/host_port.ts";
import { shellWord } from "../shared/config/shell_word.ts";
import type { ClientAccess } from "../shared/link/message.ts";

/** A command, and a note on what else a client needs. */
export interface ClientAdvice {
  readonly command: string;
  readonly note?: string;
}

/**
 * Formats the command of a client. Everything in it is checked or quoted: it is meant to be pasted.
 * @param proxy `host:port` of the proxy as this agent reaches it, whose host is used if the proxy has sent only a port
 */
export function clientAdvice({ address, tls, pin, token }: ClientAccess, agentId: string, proxy: string): ClientAdvice {
  const { host, port } = splitHostPort(address);
  const target = formatHostPort({ host: host === "" ? splitHostPort(proxy).host : host, port });
  const flags = [
    `--proxy=${target}`,
    ...tls ? ["--tls.enable"] : [],
    ...pin === undefined ? [] : [`--tls.pin-sha256=${pin}`],
    `--agent-id=${agentId}`,
  ];
  const command = ["reverse-http", "connect", ...flags, "HOST:PORT"].map(shellWord).join(" ");
  if (!token) return { command };
  const invite = `reverse-http invite --client --agent-id=${shellWord(agentId)}`;
  return { command, note: `a client needs a token too; at the proxy, ${invite} prints one with all of this` };
}
