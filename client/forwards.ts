// How forwards are written: `5432:db:5432`, `5353:dns:53/udp`, `/run/db.sock:db:5432`. Opens nothing.
import { type Authority, formatDestination, type Network, parseAuthority } from "../shared/address/authority.ts";
import { formatHostPort, splitHostPort } from "../shared/address/host_port.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { MalformedRequestError } from "../shared/tunnel/errors.ts";

/** A local address and its destination. */
export interface Forward {
  readonly network: Network;
  /** Address to listen on, `host:port`, whose port 0 lets the system choose; or the path of a Unix socket, which contains a slash. */
  readonly listen: string;
  readonly destination: Authority;
}

/** Whether a forward listens on a Unix socket. */
export function isUnix({ listen }: Forward): boolean {
  return listen.includes("/");
}

/** The destination of a forward, in the notation of allow-lists. */
export function destinationOf({ destination, network }: Forward): string {
  return formatDestination(destination, network);
}

/**
 * Parses `[ADDRESS:]PORT:HOST:PORT[/udp]`, as of ssh -L, or `/PATH:HOST:PORT`. IPv6 addresses are in brackets; without an address it is
 * 127.0.0.1.
 * @throws {ConfigError}
 */
export function parseForward(text: string): Forward {
  const fail = (why: string) => new ConfigError(`Cannot use the forward ${JSON.stringify(text)}: ${why}`);
  const [, path, address = "127.0.0.1", port, destination, network = "tcp"] =
    /^(?:(\.{0,2}\/[^:]+)|(?:(\[[^\]]*\]|[^:[\]/]+):)??([0-9]+)):(.+:[0-9]+)(?:\/(tcp|udp))?$/.exec(text) ?? [];
  if (destination === undefined) throw fail("it is not [ADDRESS:]PORT:HOST:PORT, such as 5432:db:5432, or /PATH:HOST:PORT");
  if (path !== undefined && network === "udp") throw fail("a Unix socket leads to TCP");
  try {
    const listen = path ?? formatHostPort(splitHostPort(`${address}:${port}`));
    return { network: network as Network, listen, destination: parseAuthority(destination) };
  } catch (cause) {
    if (!(cause instanceof RangeError || cause instanceof MalformedRequestError)) throw cause;
    throw fail(cause.message.replace(/^The target/, "the destination"));
  }
}

/** Longest file of forwards, in bytes. */
const MAX_FILE = 256 * 1024;

/**
 * Reads a file with a forward on each line; # begins a comment.
 * @throws {ConfigError}
 */
export async function readForwards(file: string): Promise<Forward[]> {
  let text;
  try {
    text = await readText(file, MAX_FILE);
  } catch (cause) {
    throw new ConfigError(`Cannot read --file ${file}: ${describeFileError(cause)}`, { cause });
  }
  const lines = text.split("\n").map((line) => line.replace(/(?:^|\s)#.*/, "").trim());
  return lines.flatMap((line, i) => {
    if (line === "") return [];
    try {
      return [parseForward(line)];
    } catch (cause) {
      if (!(cause instanceof ConfigError)) throw cause;
      throw new ConfigError(`${cause.message} (${file}:${i + 1})`, { cause });
    }
  });
}
