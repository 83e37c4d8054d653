// Local listeners whose connections are relayed to destinations behind an agent, for programs that know no proxy.
import { spawn } from "node:child_process";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { isLoopback, splitHostPort } from "../shared/address/host_port.ts";
import { Backoff } from "../shared/async/backoff.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import type { Terminal } from "../shared/cli/command.ts";
import { messageOf } from "../shared/log/error_message.ts";
import { NetError } from "../shared/net/errors.ts";
import type { ClientListener } from "../shared/net/listener.ts";
import type { Net } from "../shared/net/net.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { ForwardState, Monitor } from "./forward_monitor.ts";
import { type Forward, isUnix } from "./forwards.ts";
import { toNodeStream } from "./node_stream.ts";
import { ProxyConnections } from "./proxy_connections.ts";
import { type Access, checkFiles, openTunnel, reportUnreachableProxy } from "./tunnel.ts";
import { TunnelFailure } from "./tunnel_failure.ts";
import { joinStreams, listenUnix } from "./unix_socket.ts";

/** Time in milliseconds that open connections get to end after a stop signal. */
const GRACE_MS = 5_000;
/** Connections that wait for their tunnel; more are reset. */
const MAX_PENDING = 256;
/** UDP peers of a forward; datagrams of more are dropped. */
const MAX_PEERS = 1_024;
/** Time in milliseconds for which the datagrams of a peer without a tunnel are dropped: each would ask for one. */
const UDP_PAUSE_MS = 1_000;

export interface ForwardOptions {
  readonly forwards: readonly Forward[];
  /** Run by the shell once all listen, with their addresses in its environment. Default: none. */
  readonly command?: string;
  /** Time in milliseconds to wait for the first tunnel of each forward; 0: connections are relayed at once. */
  readonly waitMs: number;
}

/**
 * Listens and relays until a stop signal, or until the command has ended. Connections then get some seconds to end.
 * @param access called for each connection
 * @returns the exit code of the command, or 0
 * @throws {Error} if an address cannot be listened on
 * @throws {ConfigError} for files of `access` that cannot be used
 * @throws {TunnelFailure} if there is no tunnel after `waitMs`; at once if it is denied
 */
export async function serveForwards(
  net: Net,
  access: () => Access,
  { forwards, command, waitMs }: ForwardOptions,
  monitor: Monitor,
  terminal: Pick<Terminal, "env" | "stopped">,
): Promise<number> {
  await checkFiles(net, access());
  const stopped = terminal.stopped();
  const connections = new ProxyConnections(net, (line) => monitor.report(line));
  const relays = new Relays(net, access, connections, monitor);
  try {
    for (const forward of forwards) await relays.listen(forward);
    const waiting = waitMs === 0 ? undefined : waitForTunnels(net, access, connections, forwards, waitMs).then(() => true);
    if (waiting && !await Promise.race([waiting, stopped.then(() => false)])) return 0;
    relays.start();
    for (const { address, forward } of relays.states) {
      if (!isUnix(forward) && !isLoopback(address)) monitor.report(`anyone who can reach ${address} uses your credentials`);
    }
    // never rejects
    if (!waiting) {
      void reportUnreachableProxy(
        net,
        access,
        connections,
        (why) => monitor.report(`${why}; connections are reset until it can be reached`),
      );
    }
    return command === undefined ? await stopped.then(() => 0) : await runCommand(command, relays.states, terminal, stopped);
  } finally {
    await relays.close();
  }
}

/** Opens a tunnel for each forward, and closes it again. */
async function waitForTunnels(
  net: Net,
  access: () => Access,
  connections: ProxyConnections,
  forwards: readonly Forward[],
  waitMs: number,
): Promise<void> {
  const deadline = performance.now() + waitMs;
  await Promise.all(forwards.map(async ({ destination, network }) => {
    for (const backoff = new Backoff({ maxMs: 2_000 });;) {
      try {
        return (await openTunnel(net, access(), destination, { network, connections })).close();
      } catch (error) {
        const delay = backoff.next();
        const isFinal = !(error instanceof TunnelFailure) || error.kind === "denied";
        if (isFinal || performance.now() + delay > deadline) throw error;
        await sleep(delay);
      }
    }
  }));
}

interface State extends ForwardState {
  /** The local ends that the engine relays. */
  readonly relays: Set<Duplex>;
  /** Bytes of its relays that have ended, and of Unix sockets. */
  readonly ended: { aToB: number; bToA: number };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}

/** The listeners and their connections. */
class Relays {
  readonly states: State[] = [];
  readonly #closers: (() => Promise<void> | void)[] = [];
  readonly #open = new Set<Promise<void>>();
  #pending = 0;
  /** Resolves with whether connections are relayed, or closed. */
  readonly #started = Promise.withResolvers<boolean>();

  constructor(
    private readonly net: Net,
    private readonly access: () => Access,
    private readonly connections: ProxyConnections,
    private readonly monitor: Monitor,
  ) {}

  /** @throws {Error} if the address cannot be listened on */
  async listen(forward: Forward): Promise<void> {
    const { listen, network } = forward;
    const { net } = this;
    const state: State = {
      forward,
      address: listen,
      open: 0,
      errors: 0,
      relays: new Set(),
      ended: { aToB: 0, bToA: 0 },
      bytes() {
        const all = [this.ended, ...net.relayed([...this.relays])].filter((relayed) => relayed !== undefined);
        return { sent: sum(all.map(({ aToB }) => aToB)), received: sum(all.map(({ bToA }) => bToA)) };
      },
    };
    if (isUnix(forward)) {
      const listener = await listenUnix(listen, (socket) => this.#track(this.#relaySocket(socket, state)));
      this.#closers.push(() => listener.close());
    } else {
      const listener = network === "udp"
        ? await this.net.listenUdp({ address: listen, maxPeers: MAX_PEERS })
        : await this.net.listenTcp({ address: listen, preamble: "none" });
      this.#closers.push(() => listener.close());
      state.address = listener.address;
      this.#track(this.#accept(listener, state));
    }
    this.states.push(state);
  }

  /** Relays from now on. */
  start(): void {
    this.monitor.listening(this.states);
    this.#started.resolve(true);
  }

  async #accept(listener: ClientListener, state: State): Promise<void> {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, error } of batch) {
        if (error !== undefined) stream.close();
        else this.#track(this.#relay(stream, state));
      }
    }
  }

  #track(task: Promise<void>): void {
    this.#open.add(task);
    void task.finally(() => this.#open.delete(task)); // never rejects
  }

  async #relay(local: Duplex, state: State): Promise<void> {
    const tunnel = await this.#openTunnel(state);
    if (tunnel === undefined) {
      if (state.forward.network === "udp") await sleep(UDP_PAUSE_MS);
      return discard(local);
    }
    state.relays.add(local);
    const { aToB, bToA, error, errorSide } = await this.net.splice(local, tunnel);
    state.relays.delete(local);
    state.ended.aToB += aToB;
    state.ended.bToA += bToA;
    this.#ended(state, aToB, bToA, errorSide === "b" ? error : undefined);
  }

  /** Relays a connection of a Unix socket, which has no reset: it is closed instead. */
  async #relaySocket(socket: Socket, state: State): Promise<void> {
    socket.on("error", () => {}); // reported below
    const tunnel = await this.#openTunnel(state);
    if (tunnel === undefined) return void socket.destroy();
    const { aToB, bToA, error, errorSide } = await joinStreams(socket, toNodeStream(tunnel), state.ended);
    this.#ended(state, aToB, bToA, errorSide === "b" ? error : undefined);
  }

  /** Never rejects: `undefined` without a tunnel. */
  async #openTunnel(state: State): Promise<Duplex | undefined> {
    const { destination, network } = state.forward;
    const isRefused = this.#pending >= MAX_PENDING;
    this.#pending++;
    try {
      if (isRefused) throw new Error(`more than ${MAX_PENDING} connections wait for a tunnel`);
      if (!await this.#started.promise) return undefined;
      const tunnel = await openTunnel(this.net, this.access(), destination, { network, connections: this.connections });
      state.open++;
      this.monitor.opened(state);
      return tunnel;
    } catch (error) {
      state.errors++;
      this.monitor.failed(state, messageOf(error));
      return undefined;
    } finally {
      this.#pending--;
    }
  }

  #ended(state: State, sent: number, received: number, error: Error | undefined): void {
    state.open--;
    if (error) state.errors++;
    this.monitor.closed(state, { sent, received, error: error?.message });
  }

  /** Stops listening, and waits for the connections, but no longer than some seconds. */
  async close(): Promise<void> {
    this.#started.resolve(false);
    await Promise.all(this.#closers.map((close) => close()));
    await withTimeout(GRACE_MS, this.#finished());
  }

  /** Resolves when no connection is left, also of those that a listener has delivered while it was closed. */
  async #finished(): Promise<void> {
    while (this.#open.size > 0) await Promise.all(this.#open);
  }
}

/** Resets a connection, unless the network has closed it with all others. */
function discard(stream: Duplex): void {
  try {
    stream.reset(1);
    stream.close();
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
  }
}

/**
 * Runs `command` with the shell, and returns its exit code. It has `FORWARD_ADDRESS`, `FORWARD_HOST` and `FORWARD_PORT` in its environment, and
 * those of further forwards as `FORWARD_ADDRESS_2` and so on. A Unix socket has no host and port. A stop signal is passed on.
 */
async function runCommand(
  command: string,
  states: readonly ForwardState[],
  { env }: Pick<Terminal, "env">,
  stopped: Promise<void>,
): Promise<number> {
  const addresses = states.flatMap(({ address, forward }, i) => {
    const suffix = i === 0 ? "" : `_${i + 1}`;
    const whole = [`FORWARD_ADDRESS${suffix}`, address];
    if (isUnix(forward)) return [whole];
    const { host, port } = splitHostPort(address);
    return [whole, [`FORWARD_HOST${suffix}`, host], [`FORWARD_PORT${suffix}`, String(port)]];
  });
  const child = spawn(command, { shell: true, stdio: "inherit", env: { ...env, ...Object.fromEntries(addresses) } as NodeJS.ProcessEnv });
  void stopped.then(() => child.kill());
  return await new Promise((resolve, reject) => {
    child.once("error", (cause) => reject(new Error(`Cannot run --exec: ${cause.message}`, { cause })));
    child.once("exit", (code, signal) => resolve(code ?? (signal === null ? 1 : FAILED_BY_SIGNAL)));
  });
}

/** Exit code of a command that a signal has ended: as in shells, but without the number of the signal. */
const FAILED_BY_SIGNAL = 128;
