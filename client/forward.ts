// Local listeners whose connections are relayed to destinations behind an agent, for programs that know no proxy.
import { spawn } from "node:child_process";
import { type Authority, formatAuthority, parseAuthority } from "../shared/address/authority.ts";
import { formatHostPort, isLoopback, splitHostPort } from "../shared/address/host_port.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import type { Terminal } from "../shared/cli/command.ts";
import { ConfigError } from "../shared/config/option.ts";
import type { Duplex, Net, TcpListener } from "../shared/net/types.ts";
import { MalformedRequestError } from "../shared/tunnel/errors.ts";
import { type Access, checkFiles, connectToProxy, openTunnel } from "./tunnel.ts";
import { messageOf } from "../shared/log/error_message.ts";

/** Time in milliseconds that open connections get to end after a stop signal. */
const GRACE_MS = 5_000;
/** Connections that wait for their tunnel; more are reset. */
const MAX_PENDING = 256;

/** A local address and what it leads to. */
export interface Forward {
  /** Address to listen on, `host:port`; port 0 lets the system choose. */
  readonly listen: string;
  readonly destination: Authority;
}

/**
 * Parses `[ADDRESS:]PORT:HOST:PORT`, as of ssh -L. IPv6 addresses are in brackets; without an address it is 127.0.0.1.
 * @throws {ConfigError}
 */
export function parseForward(text: string): Forward {
  const fail = (why: string) => new ConfigError(`Cannot use the forward ${JSON.stringify(text)}: ${why}`);
  const [, address = "127.0.0.1", port, destination] = /^(?:(\[[^\]]*\]|[^:[\]]+):)??([0-9]+):(.+:[0-9]+)$/.exec(text) ?? [];
  if (port === undefined || destination === undefined) throw fail("it is not [ADDRESS:]PORT:HOST:PORT, such as 5432:db:5432");
  try {
    const listen = formatHostPort(splitHostPort(`${address}:${port}`));
    return { listen, destination: parseAuthority(destination) };
  } catch (cause) {
    if (!(cause instanceof RangeError || cause instanceof MalformedRequestError)) throw cause;
    throw fail(cause.message.replace(/^The target/, "the destination"));
  }
}

/**
 * Listens and relays until a stop signal, or until `command` has ended. Connections then get some seconds to end.
 * @param command run by the shell once all listen, with their addresses in its environment. Default: none
 * @param access called for each connection
 * @returns the exit code of `command`, or 0
 * @throws {NetError} if an address cannot be listened on
 * @throws {ConfigError} for files of `access` that cannot be used, and of it
 */
export async function serveForwards(
  net: Net,
  access: () => Access,
  forwards: readonly Forward[],
  command: string | undefined,
  terminal: Pick<Terminal, "write" | "report" | "env" | "stopped">,
): Promise<number> {
  await checkFiles(net, access());
  const listeners: TcpListener[] = [];
  for (const { listen } of forwards) listeners.push(await net.listenTcp({ address: listen, preamble: "none" }));
  const relays = new Relays(net, access, terminal);
  const accepting = listeners.map((listener, i) => relays.accept(listener, forwards[i]!.destination));
  for (const [i, { destination }] of forwards.entries()) {
    const line = `${listeners[i]!.address} leads to ${formatAuthority(destination)}`;
    if (command === undefined) terminal.write(`${line}\n`);
    else terminal.report(line); // standard output is the command's
    if (!isLoopback(listeners[i]!.address)) terminal.report(`anyone who can reach ${listeners[i]!.address} uses your credentials`);
  }
  void reportUnreachableProxy(net, access, terminal); // never rejects
  const stopped = terminal.stopped();
  const exitCode = command === undefined ? await stopped.then(() => 0) : await runCommand(command, listeners, terminal, stopped);
  for (const listener of listeners) listener.close();
  await Promise.all(accepting);
  await relays.finish(GRACE_MS);
  return exitCode;
}

/** A listener is no proof that anything is behind it. Never rejects. */
async function reportUnreachableProxy(net: Net, access: () => Access, { report }: Pick<Terminal, "report">): Promise<void> {
  try {
    (await connectToProxy(net, access())).close();
  } catch (error) {
    report(`${messageOf(error)}; connections are reset until it can be reached`);
  }
}

/** The connections of all listeners. */
class Relays {
  readonly #open = new Set<Promise<void>>();
  #pending = 0;

  constructor(private readonly net: Net, private readonly access: () => Access, private readonly terminal: Pick<Terminal, "report">) {}

  /** Relays the connections of a listener until it is closed. */
  async accept(listener: TcpListener, destination: Authority): Promise<void> {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, error } of batch) {
        if (error !== undefined) stream.close();
        else this.#track(this.#relay(stream, destination));
      }
    }
  }

  #track(relay: Promise<void>): void {
    this.#open.add(relay);
    void relay.finally(() => this.#open.delete(relay));
  }

  /** Never rejects: without a tunnel the connection is reset, and the reason reported. */
  async #relay(local: Duplex, destination: Authority): Promise<void> {
    try {
      if (this.#pending >= MAX_PENDING) throw new Error(`more than ${MAX_PENDING} connections wait for a tunnel`);
      const access = this.access();
      this.#pending++;
      const tunnel = await openTunnel(this.net, access, destination).finally(() => this.#pending--);
      const { error, errorSide } = await this.net.splice(local, tunnel);
      if (error !== undefined && errorSide === "b") {
        this.terminal.report(`The tunnel to ${formatAuthority(destination)} broke: ${error.message}`);
      }
    } catch (error) {
      local.reset(1);
      local.close();
      this.terminal.report(messageOf(error));
    }
  }

  /** Waits until all have ended, but no longer than `graceMs`. */
  async finish(graceMs: number): Promise<void> {
    await withTimeout(graceMs, Promise.all(this.#open));
  }
}

/**
 * Runs `command` with the shell, and returns its exit code. It has `FORWARD_ADDRESS`, `FORWARD_HOST` and `FORWARD_PORT` in its environment, and
 * those of further forwards as `FORWARD_ADDRESS_2` and so on. A stop signal is passed on.
 */
async function runCommand(
  command: string,
  listeners: readonly TcpListener[],
  { env }: Pick<Terminal, "env">,
  stopped: Promise<void>,
): Promise<number> {
  const addresses = listeners.flatMap(({ address }, i) => {
    const { host, port } = splitHostPort(address);
    const suffix = i === 0 ? "" : `_${i + 1}`;
    return [[`FORWARD_ADDRESS${suffix}`, address], [`FORWARD_HOST${suffix}`, host], [`FORWARD_PORT${suffix}`, String(port)]];
  });
  const child = spawn(command, { shell: true, stdio: "inherit", env: { ...env, ...Object.fromEntries(addresses) } as NodeJS.ProcessEnv });
  void stopped.then(() => child.kill());
  return await new Promise((resolve, reject) => {
    child.once("error", (cause) => reject(new Error(`Cannot run --exec: ${cause.message}`, { cause })));
    child.once("exit", (code, signal) => resolve(code ?? (signal === null ? 1 : FAILED_BY_SIGNAL)));
  });
}

/** As shells do, without the number of the signal. */
const FAILED_BY_SIGNAL = 128;
