// Connects standard input and output to a destination, for programs that start a command instead of a connection: ssh, git, rsync.
import { setTimeout as sleep } from "node:timers/promises";
import { type Authority, formatAuthority } from "../shared/address/authority.ts";
import { shellWord } from "../shared/config/shell_word.ts";
import type { StandardStreams } from "../shared/cli/standard_streams.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Duplex } from "../shared/net/types.ts";

/**
 * Time in milliseconds that standard input may be silent once the destination has finished: what waits for it to end would wait as long as
 * the program that holds it.
 */
const SILENCE_MS = 500;

/**
 * Copies in both directions until the destination has finished; each direction ends by itself. If the reader of the output is gone, both end.
 * @throws {NetError} if the tunnel breaks
 */
export async function relay(streams: StandardStreams, tunnel: Duplex): Promise<void> {
  const upload = new Upload(streams, tunnel);
  try {
    for (let data; (data = await tunnel.read()) !== null;) await streams.write(data);
  } catch (error) {
    tunnel.reset(1);
    if ((error as NodeJS.ErrnoException).code === "EPIPE") return;
    throw error;
  }
  await streams.closeWrite();
  await upload.untilSilent();
  tunnel.close();
}

/** The direction from standard input. */
class Upload {
  #movedAt = performance.now();
  #isDone = false;

  constructor(private readonly streams: StandardStreams, private readonly tunnel: Duplex) {
    void this.#run(); // never rejects
  }

  async #run(): Promise<void> {
    try {
      for (let data; (data = await this.streams.read()) !== null;) {
        await this.tunnel.write(data);
        this.#movedAt = performance.now();
      }
      this.tunnel.closeWrite();
    } catch (error) {
      // the destination takes no more, which the other direction finds out; what cannot be read is not complete
      if (!(error instanceof NetError)) this.tunnel.reset(1);
    }
    this.#isDone = true;
  }

  /** Waits until nothing has been sent for a while, also after the last bytes: until then they may not have left this process. */
  async untilSilent(): Promise<void> {
    if (this.#isDone) return; // the destination has probably finished because of that
    for (let left; (left = this.#movedAt + SILENCE_MS - performance.now()) > 0;) await sleep(left);
  }
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

/** Quotes a word for the shell that ssh starts; ssh replaces what follows a percent sign. */
function quote(word: string): string {
  return shellWord(word.replaceAll("%", "%%"));
}
