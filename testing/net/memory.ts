// deno-lint-ignore-file require-await -- networks answer with promises, this one at once
// The contract inside one process, without sockets, for tests of its users. Streams, heads, limits and ends behave as on the real network,
// with these exceptions. TLS: both sides must use it and share a protocol name; certificates, names and pins are not checked. Sessions:
// nothing is ever lost, so they never time out, statistics are zero, and a port without a listener refuses; over TLS they are the same as
// over QUIC, on TCP ports. There are no datagrams. Limits per address do not apply, because all peers are on one machine.
import { encodeHead } from "../../shared/http/head.ts";
import { printable } from "../../shared/net/printable.ts";
import { isIP } from "node:net";
import { NetError } from "../../shared/net/errors.ts";
import { MemoryRate } from "./rate.ts";
import { closed, MemoryDuplex, Pipe, readHead, readPreamble, RESET, splice } from "./stream.ts";
import type { HeadOptions, Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { ConnectedTunnel, Rate, RateOptions, Relayed, Spliced, SpliceOptions, SpliceResult } from "../../shared/net/relay.ts";
import type {
  AgentResponse,
  AgentSession,
  ConnectQuicOptions,
  ConnectSessionOptions,
  ConnectTlsLinkOptions,
  ListenQuicOptions,
  ListenSessionsOptions,
  ListenTlsLinkOptions,
  PeerCredit,
  RequestOptions,
  SessionClosed,
  SessionKind,
  SessionListener,
  SessionSettings,
  SessionStats,
  SessionTransport,
  WebSocketRequest,
} from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type {
  ConnectTcpOptions,
  Http2Connection,
  ListenTcpOptions,
  ResolveOptions,
  TcpListener,
  TcpSettings,
} from "../../shared/net/tcp.ts";
import type { ConnectedFlow, FlowOptions, ListenUdpOptions, ProbeUdpOptions, UdpListener } from "../../shared/net/udp.ts";

/** Bytes that one direction of a TCP connection has under way, unread. */
const TCP_WINDOW = 64 * 1024;
const FIRST_EPHEMERAL_PORT = 49_152;
/** The first byte of a SOCKS client. */
const SOCKS_VERSION = 5;
/** Time for the heads of connected clients after the listener has stopped accepting. */
const LAST_HEADS_MS = 500;

/**
 * Creates an isolated network: peers must share one. A name exists once a listener uses it; `localhost` is 127.0.0.1 and ::1.
 */
export function createMemoryNet(): Net {
  return new MemoryNet();
}

/** What arrived and waits to be accepted. */
class Inbox<T> {
  #items: T[] = [];
  #waiting: (() => void)[] = [];
  #closed = false;

  constructor(readonly drop: (item: T) => void) {}

  push(item: T): void {
    if (this.#closed) return this.drop(item);
    this.#items.push(item);
    this.#waiting.shift()?.();
  }

  /** `most` items or fewer, at least one; `null` once it is closed. */
  async take(most: number): Promise<T[] | null> {
    while (this.#items.length === 0) {
      if (this.#closed) return null;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return this.#items.splice(0, most);
  }

  /** Nothing more comes. */
  finish(): void {
    this.#closed = true;
    this.#waiting.splice(0).forEach((wake) => wake());
  }

  close(): void {
    this.#closed = true;
    this.#items.splice(0).forEach(this.drop);
    this.#waiting.splice(0).forEach((wake) => wake());
  }
}

/** Reads the heads of streams side by side. */
class HeadReader {
  readonly inbox = new Inbox<Incoming>(({ stream }) => stream.reset(RESET));
  #options: HeadOptions & Pick<ListenTcpOptions, "preamble">;
  /** How to fail those being read, the oldest first. */
  readonly #pending = new Set<(error: NetError) => void>();
  #lastHeads?: ReturnType<typeof setTimeout>;

  /** @param local the address of the listener */
  constructor(options: HeadOptions & Pick<ListenTcpOptions, "preamble">, readonly local?: string) {
    this.#options = options;
  }

  configure(options: HeadOptions): void {
    this.#options = { preamble: this.#options.preamble, ...options };
  }

  /** Never rejects. */
  async receive(stream: MemoryDuplex): Promise<void> {
    const { headLimit = 16_384, headTimeoutMs = 10_000, maxPendingHeads = 4_096 } = this.#options;
    let fail: (error: NetError) => void = () => {};
    const failed = new Promise<never>((_, reject) => fail = reject);
    const late = new NetError("head-timeout", "The head was not complete in time", { remote: true });
    const timer = setTimeout(() => fail(late), headTimeoutMs);
    this.#pending.add(fail);
    const [oldest] = this.#pending;
    if (this.#pending.size > maxPendingHeads) oldest?.(new NetError("limit", "Too many pending heads"));
    const socks: number[] = [];
    try {
      const head = await Promise.race([readPreamble(stream, this.#options.preamble, headLimit, socks), failed]);
      if (head === null) stream.abort(RESET);
      else this.inbox.push({ stream, head, local: head.charCodeAt(0) === SOCKS_VERSION ? this.local : undefined });
    } catch (error) {
      stream.stopReading();
      this.inbox.push({ stream, head: socks.length > 0 ? String.fromCharCode(...socks) : undefined, error: error as NetError });
    } finally {
      clearTimeout(timer);
      this.#pending.delete(fail);
      if (this.#lastHeads !== undefined) this.#finishAfterLast();
    }
  }

  /** No stream more: ends the inbox when those being read are done, or have failed. */
  finish(): void {
    this.#lastHeads ??= setTimeout(() => this.close(), LAST_HEADS_MS);
    this.#finishAfterLast();
  }

  #finishAfterLast(): void {
    if (this.#pending.size > 0) return;
    clearTimeout(this.#lastHeads);
    this.inbox.finish();
  }

  close(): void {
    clearTimeout(this.#lastHeads);
    this.inbox.close();
    for (const fail of this.#pending) fail(closed());
  }
}

interface Listener {
  readonly host: string;
  readonly port: number;
}

/** Who listens where, for one transport. */
class Ports<L extends Listener> {
  readonly listeners = new Set<L>();
  #next = FIRST_EPHEMERAL_PORT;

  /**
   * Adds what `make` makes of the host and port in `address`.
   * @throws {NetError} `invalid`, `address-in-use`
   */
  bind<M extends L>(address: string, make: (host: string, port: number) => M): M {
    const match = /^(?:\[([^\]]*)\]|([^:]*)):([0-9]{1,5})$/.exec(address);
    if (!match || Number(match[3]) > 65_535) throw new NetError("invalid", `Cannot listen on ${address}: it is not host:port`);
    const host = (match[1] ?? match[2]!).toLowerCase().replace(/^localhost$/, "127.0.0.1") || "::";
    const isTaken = (port: number) => [...this.listeners].some((l) => l.port === port && (covers(l.host, host) || covers(host, l.host)));
    let port = Number(match[3]);
    while (port === 0 || (match[3] === "0" && isTaken(port))) port = this.ephemeral();
    if (isTaken(port)) throw new NetError("address-in-use", `Cannot listen on ${address}: the address is in use`);
    const listener = make(host, port);
    this.listeners.add(listener);
    return listener;
  }

  free(listener: L): void {
    this.listeners.delete(listener);
  }

  ephemeral(): number {
    this.#next = this.#next < 65_535 ? this.#next + 1 : FIRST_EPHEMERAL_PORT;
    return this.#next;
  }

  /**
   * The listener that a connection to the name or address reaches, and at which of its addresses.
   * @throws {NetError} `refused`, `unreachable`, `unknown-host`
   */
  find(name: string, port: number): { listener: L; host: string } {
    const known = name.toLowerCase();
    const hosts = known === "localhost" ? ["127.0.0.1", "::1"] : [known];
    for (const host of hosts) {
      for (const listener of this.listeners) {
        if (listener.port === port && covers(listener.host, host)) return { listener, host };
      }
    }
    const fail = (code: "refused" | "unreachable" | "unknown-host", why: string) =>
      new NetError(code, `Cannot connect to ${formatAddress(name, port)}: ${why}`, { remote: code === "refused" });
    if (hosts.some(isLoopback) || [...this.listeners].some(({ host }) => host === known)) throw fail("refused", "no program listens there");
    throw isIP(known) ? fail("unreachable", "no route leads there") : fail("unknown-host", "the name is unknown");
  }

  /** Whether there is a listener on the name. */
  knows(name: string): boolean {
    return [...this.listeners].some(({ host }) => host === name.toLowerCase());
  }

  /**
   * The same for the first of several that leads to one.
   * @throws {NetError} as {@link find} does for the last, and `unknown-host` where there is none
   */
  findFirst(names: readonly string[], port: number): { listener: L; host: string } {
    let failure: unknown = new NetError("unknown-host", `Cannot connect to port ${port}: no address`);
    for (const name of names) {
      try {
        return this.find(name, port);
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }
}

/** Whether who listens on `listening` can be reached at `host`. */
function covers(listening: string, host: string): boolean {
  return listening === host || (isIP(host) > 0 && listening === "::") || (isIP(host) === 4 && listening === "0.0.0.0");
}

function isLoopback(host: string): boolean {
  return host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

function formatAddress(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The listener at `address` expects another protocol. */
function speaksOther(address: string, isTls: boolean): NetError {
  return new NetError(isTls ? "tls" : "reset", `Cannot connect to ${address}: it speaks another protocol`, { remote: true });
}

function checkDial(port: number, signal: AbortSignal | undefined): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new NetError("invalid", `Cannot connect to port ${port}: it is not 1 to 65535`);
  }
  checkSignal(signal);
}

function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new NetError("cancelled", "The call was cancelled");
}

async function copy(a: Duplex, b: Duplex, options: SpliceOptions): Promise<SpliceResult> {
  if (!(a instanceof MemoryDuplex && b instanceof MemoryDuplex)) {
    throw new NetError("invalid", "Cannot copy between streams of another network");
  }
  const { rates = [], ...others } = options;
  const own = rates.filter((rate) => rate instanceof MemoryRate);
  if (own.length < rates.length) throw new NetError("invalid", "Cannot copy at the rate of another network");
  return await splice(a, b, others, own);
}

/** Opens a session to the listener that has taken a WebSocket. */
type Arrive = (there: string, alpn: string[], transport: SessionTransport) => AgentSession;

class MemoryNet implements Net {
  readonly tcp = new Ports<MemoryTcpListener | MemorySessionListener>();
  readonly udp = new Ports<MemorySessionListener>();
  /** How to tell those that wait for a WebSocket, by the other end of their connection. */
  readonly webSockets = new Map<Duplex, (arrive: Arrive) => void>();
  /** Listeners that have no address. */
  readonly #unbound: SessionListener[] = [];
  readonly #connections = new Set<MemoryDuplex>();
  #closed = false;

  checkServerTls(): void {}

  checkClientTls(): void {}

  async listenTcp(options: ListenTcpOptions): Promise<TcpListener> {
    this.#checkOpen();
    checkListen(options);
    if (options.preamble === "client-hello") throw new NetError("invalid", "Cannot read a ClientHello: there is no TLS in memory");
    return this.tcp.bind(options.address, (host, port) => new MemoryTcpListener(this, host, port, options));
  }

  async listenUdp({ address }: ListenUdpOptions): Promise<UdpListener> {
    this.#checkOpen();
    throw new NetError("invalid", `Cannot listen on ${address}: this network has no datagrams`);
  }

  async connectTcp(options: ConnectTcpOptions): Promise<Duplex> {
    return this.#dialTcp(options).near;
  }

  /** @throws {NetError} */
  #dialTcp({ host, port, addresses = [host], tls, signal }: ConnectTcpOptions): { near: MemoryDuplex; far: MemoryDuplex } {
    this.#checkOpen();
    checkDial(port, signal);
    const { listener, host: address } = this.tcp.findFirst(addresses, port);
    if (listener instanceof MemorySessionListener) throw speaksOther(formatAddress(address, port), tls !== undefined);
    listener.checkTls(tls !== undefined);
    const onEnd = () => up.hasEnded && down.hasEnded && this.#connections.delete(near);
    const up: Pipe = new Pipe(TCP_WINDOW, { onEnd });
    const down: Pipe = new Pipe(TCP_WINDOW, { onEnd });
    const near = new MemoryDuplex("tcp", formatAddress(address, port), down, up);
    this.#connections.add(near);
    const far = new MemoryDuplex("tcp", formatAddress(address, this.tcp.ephemeral()), up, down);
    listener.arrive(far, tls !== undefined);
    return { near, far };
  }

  async connectHttp2({ host, port }: { host: string; port: number }): Promise<Http2Connection> {
    throw new NetError("not-http2", `Cannot speak HTTP/2 with ${host}:${port}: there is none in memory`);
  }

  async openHttp2Over(): Promise<Duplex> {
    throw new NetError("invalid", "Cannot begin HTTP/2: there is none in memory");
  }

  async openStandardStreams(): Promise<Duplex> {
    throw new NetError("invalid", "Cannot open standard input and output: this network has none");
  }

  async resolve(host: string, { signal }: ResolveOptions): Promise<string[]> {
    this.#checkOpen();
    checkSignal(signal);
    if (host.toLowerCase() === "localhost") return ["127.0.0.1", "::1"];
    // A name is its own address: a listener on it has no other.
    if (isIP(host) || this.tcp.knows(host) || this.udp.knows(host)) return [host];
    throw new NetError("unknown-host", `Cannot connect to ${host}: the name is unknown`);
  }

  async listenQuic(options: ListenQuicOptions): Promise<SessionListener> {
    this.#checkOpen();
    return this.udp.bind(options.address, (host, port) => new MemorySessionListener("quic", this, this.udp, host, port, options));
  }

  async connectQuic(options: ConnectQuicOptions): Promise<AgentSession> {
    return this.#connect(this.udp, options);
  }

  async listenTlsLink(options: ListenTlsLinkOptions): Promise<SessionListener> {
    this.#checkOpen();
    const listener = (host: string, port: number) => new MemorySessionListener("tls", this, this.tcp, host, port, options);
    if (options.address !== undefined) return this.tcp.bind(options.address, listener);
    const unbound = listener("", 0);
    this.#unbound.push(unbound);
    return unbound;
  }

  async connectTlsLink(options: ConnectTlsLinkOptions): Promise<AgentSession> {
    return options.webSocket ? await this.#connectWebSocket(options, options.webSocket) : this.#connect(this.tcp, options);
  }

  /** The request and its response are real; what follows is not on the connection. */
  async #connectWebSocket(options: ConnectTlsLinkOptions, request: WebSocketRequest): Promise<AgentSession> {
    const { alpn, transport = {}, signal } = options;
    const { authority, path, tlsServerName } = request;
    const { near, far } = this.#dialTcp({ ...options, tls: tlsServerName === undefined ? undefined : {} });
    const { promise: accepted, resolve } = Promise.withResolvers<Arrive>();
    const cancel = () => near.abort(RESET);
    signal?.addEventListener("abort", cancel, { once: true });
    this.webSockets.set(far, resolve);
    try {
      await near.write(encodeHead(`GET ${path} HTTP/1.1`, [
        ["Host", authority],
        ["Connection", "Upgrade"],
        ["Upgrade", "websocket"],
        ["Sec-WebSocket-Version", "13"],
        ["Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="],
      ]));
      const status = /^HTTP\/1.1 (.*)\r\n/.exec(await readHead(near, 16_384) ?? "")?.[1] ?? "none";
      if (status.startsWith("101 ")) return (await accepted)(near.remote, alpn, transport);
      const why = `the response to the WebSocket request for ${path} is ${status}`;
      throw new NetError("reset", `Cannot connect to ${near.remote}: ${why}`, { remote: true });
    } catch (error) {
      checkSignal(signal);
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.webSockets.delete(far);
    }
  }

  #connect(
    ports: Ports<MemorySessionListener> | Ports<MemoryTcpListener | MemorySessionListener>,
    { host, port, alpn, transport = {}, signal }: ConnectSessionOptions,
  ): AgentSession {
    this.#checkOpen();
    checkDial(port, signal);
    const { listener: found, host: address } = ports.find(host, port);
    const there = formatAddress(address, port);
    const listener = found instanceof MemoryTcpListener ? found.options.links : found;
    if (!(listener instanceof MemorySessionListener)) throw speaksOther(there, true);
    return listener.arrive(there, formatAddress(address, ports.ephemeral()), alpn, transport);
  }

  async probeUdp({ host, port, signal }: ProbeUdpOptions): Promise<NetError | undefined> {
    this.#checkOpen();
    checkDial(port, signal);
    try {
      this.udp.find(host, port);
    } catch (error) {
      if (error instanceof NetError && error.code !== "unknown-host") return error;
    }
    return undefined;
  }

  async splice(a: Duplex, b: Duplex, options: SpliceOptions = {}): Promise<SpliceResult> {
    return await copy(a, b, options);
  }

  async connectAndSplice(a: Duplex, connect: Omit<ConnectTcpOptions, "signal">, options: SpliceOptions = {}): Promise<ConnectedTunnel> {
    if (!(a instanceof MemoryDuplex)) throw new NetError("invalid", "Cannot copy between streams of another network");
    a.checkOpen();
    const b = await this.connectTcp({ ...connect, signal: options.signal });
    return { remote: b.remote, ended: this.splice(a, b, options) };
  }

  async connectUdp(_: Duplex, { port }: { port: number }, { signal }: FlowOptions = {}): Promise<ConnectedFlow> {
    this.#checkOpen();
    checkDial(port, signal);
    throw new NetError("unreachable", "Cannot open a flow: this network has no datagrams");
  }

  relayed(streams: readonly Duplex[]): (Relayed | undefined)[] {
    return streams.map((stream) => stream instanceof MemoryDuplex ? stream.relayed?.() : undefined);
  }

  createRate(options: RateOptions): Rate {
    return new MemoryRate(options);
  }

  limitBuffers(): void {} // its pipes are small

  bufferedBytes(): number {
    return 0;
  }

  stalledMs(): number {
    return 0;
  }

  close(): void {
    this.#closed = true;
    for (const listener of [...this.tcp.listeners, ...this.udp.listeners, ...this.#unbound]) void listener.close(0, ""); // never rejects
    for (const connection of this.#connections) connection.lose(closed(), closed());
  }

  #checkOpen(): void {
    if (this.#closed) throw closed("network");
  }
}

/** @throws {NetError} `invalid` */
function checkListen({ proxyProtocol }: TcpSettings): void {
  if (proxyProtocol?.length) throw new NetError("invalid", "Cannot listen for load balancers: there are none in memory");
}

class MemoryTcpListener implements TcpListener {
  readonly address: string;
  readonly #heads: HeadReader;

  constructor(readonly net: MemoryNet, readonly host: string, readonly port: number, public options: ListenTcpOptions) {
    this.address = formatAddress(host, port);
    this.#heads = new HeadReader(options, this.address);
  }

  /** @throws {NetError} `tls` */
  checkTls(wanted: boolean): void {
    if (wanted && !this.options.tls) throw new NetError("tls", `Cannot connect to ${this.address} over TLS: it speaks none`);
  }

  arrive(stream: MemoryDuplex, tls: boolean): void {
    if (tls || !this.options.tls) {
      return this.options.preamble === "none" ? this.#heads.inbox.push({ stream, local: this.address }) : void this.#heads.receive(stream);
    }
    this.#heads.inbox.push({ stream, error: new NetError("tls", "The TLS handshake failed: the client speaks none", { remote: true }) });
  }

  async accept(): Promise<Incoming[] | null> {
    return await this.#heads.inbox.take(Infinity);
  }

  setTls(): void {
    if (!this.options.tls) throw new NetError("invalid", `Cannot set certificates: ${this.address} listens without TLS`);
  }

  configure(settings: TcpSettings): void {
    const { address, preamble } = this.options;
    checkListen(settings);
    this.options = { address, preamble, ...settings };
    this.#heads.configure(settings);
  }

  startDraining(): void {} // there is no HTTP/2 in memory

  stopAccepting(): void {
    this.net.tcp.free(this);
    this.#heads.finish();
  }

  close(): void {
    this.net.tcp.free(this);
    this.#heads.close();
  }
}

class MemorySessionListener implements SessionListener {
  readonly address: string;
  readonly #inbox = new Inbox<MemorySession>((connection) => connection.close(0, ""));
  readonly #connections = new Set<MemorySession>();
  #accepting = true;

  constructor(
    readonly transport: SessionKind,
    readonly net: MemoryNet,
    readonly ports: { free(listener: MemorySessionListener): void },
    readonly host: string,
    readonly port: number,
    public options: Omit<ListenSessionsOptions, "address">,
  ) {
    this.address = port === 0 ? "" : formatAddress(host, port);
  }

  /** @throws {NetError} `refused`, `tls` */
  arrive(there: string, here: string, alpn: string[], transport: SessionTransport, kind = this.transport): AgentSession {
    const what = `Cannot connect to ${there}`;
    if (!this.#accepting) throw new NetError("refused", `${what}: it takes no connections`, { remote: true });
    const protocol = this.options.alpn.find((name) => alpn.includes(name));
    if (protocol === undefined) throw new NetError("tls", `${what}: it speaks none of ${alpn.join(", ")}`, { remote: true });
    const near = new MemorySession(kind, there, protocol, transport);
    const far = new MemorySession(kind, here, protocol, this.options.transport ?? {});
    [near.peer, far.peer] = [far, near];
    this.#connections.add(far);
    void far.closed.then(() => this.#connections.delete(far));
    this.#inbox.push(far);
    return near;
  }

  async accept(): Promise<AgentSession | null> {
    return (await this.#inbox.take(1))?.[0] ?? null;
  }

  setTls(): void {}

  configure(settings: SessionSettings): void {
    this.options = { ...this.options, ...settings };
  }

  acceptWebSocket(stream: Duplex, remote: string): void {
    if (!(stream instanceof MemoryDuplex)) throw new NetError("invalid", "Cannot use a stream of another network");
    if (this.transport === "quic") throw new NetError("invalid", "Cannot pass connections on to a QUIC listener");
    stream.give(() => {});
    this.net.webSockets.get(stream)?.((there, alpn, transport) => this.arrive(there, remote, alpn, transport, "websocket"));
  }

  stopAccepting(): void {
    this.#accepting = false;
    this.#inbox.close();
  }

  async close(code: number, reason: string): Promise<void> {
    for (const connection of this.#connections) connection.close(code, reason);
    this.stopAccepting();
    this.ports.free(this);
    await Promise.all([...this.#connections].map(({ closed }) => closed));
  }
}

/** One end of a session. */
class MemorySession implements AgentSession {
  readonly closed: Promise<SessionClosed>;
  peer!: MemorySession;
  readonly #arrived = new Inbox<MemoryDuplex>((stream) => stream.abort(RESET));
  /** Those that the peer opened. */
  readonly #streams = new Set<MemoryDuplex>();
  readonly #window: number;
  /** Streams that the peer may still open. */
  #credit: number;
  #waiting: (() => void)[] = [];
  /** How to give up those under way. */
  readonly #requests = new Set<(error: NetError) => void>();
  #heads?: HeadReader;
  #fault?: NetError;
  #end: (end: SessionClosed) => void = () => {};

  constructor(
    readonly transport: SessionKind,
    readonly remote: string,
    readonly alpn: string,
    { streamWindow = 96 << 10, maxPeerStreams = 16 }: SessionTransport,
  ) {
    this.#window = streamWindow;
    this.#credit = maxPeerStreams;
    this.closed = new Promise((resolve) => this.#end = resolve);
  }

  async openStream(): Promise<Duplex> {
    return await this.#open(() => false);
  }

  async #open(isGivenUp: () => boolean): Promise<MemoryDuplex> {
    while (!this.#fault && this.peer.#credit === 0) {
      await new Promise<void>((resolve) => this.peer.#waiting.push(resolve));
      if (isGivenUp()) this.peer.#wake();
      if (isGivenUp()) throw closed();
    }
    if (this.#fault) throw this.#fault;
    return this.peer.#receive(this);
  }

  #wake(): void {
    if (this.#credit > 0) this.#waiting.shift()?.();
  }

  /** A stream that `opener` opens: its end of it. */
  #receive(opener: MemorySession): MemoryDuplex {
    this.#credit--;
    const onEnd = () => {
      if (!up.hasEnded || !down.hasEnded) return;
      this.#streams.delete(far);
      this.#credit++;
      this.#wake();
    };
    const onStart = () => this.#fault || this.#arrived.push(far);
    const up: Pipe = new Pipe(this.#window, { onStart, onEnd });
    const down: Pipe = new Pipe(opener.#window, { onEnd });
    const far = new MemoryDuplex("session", this.remote, up, down);
    this.#streams.add(far);
    return new MemoryDuplex("session", opener.remote, down, up);
  }

  async acceptStream(): Promise<Duplex | null> {
    return (await this.#arrived.take(1))?.[0] ?? null;
  }

  async acceptRequests(options: HeadOptions = {}): Promise<Incoming[] | null> {
    if (!this.#heads) {
      this.#heads = new HeadReader(options);
      void this.#readHeads(this.#heads);
    }
    return await this.#heads.inbox.take(Infinity);
  }

  async #readHeads(heads: HeadReader): Promise<void> {
    for (let stream; (stream = (await this.#arrived.take(1))?.[0]);) void heads.receive(stream);
    heads.close();
  }

  async request(head: Uint8Array, options: RequestOptions): Promise<AgentResponse> {
    return await this.#sendRequest(head, options, options.signal);
  }

  async openTunnel(
    a: Duplex,
    head: Uint8Array,
    { established, ...options }: RequestOptions & { established: Uint8Array },
    splice: SpliceOptions = {},
  ): Promise<AgentResponse | Spliced> {
    if (!(a instanceof MemoryDuplex)) throw new NetError("invalid", "Cannot copy between streams of another network");
    a.checkOpen();
    const response = await this.#sendRequest(head, options, splice.signal, a);
    if (response.head !== String.fromCharCode(...established)) return response;
    return { ended: copy(a, response.stream, splice) };
  }

  cancelRequests(): void {
    for (const fail of this.#requests) fail(new NetError("cancelled", "The call was cancelled"));
  }

  async #sendRequest(
    head: Uint8Array,
    { timeoutMs, headLimit = 16_384 }: RequestOptions,
    signal?: AbortSignal,
    client?: MemoryDuplex,
  ): Promise<AgentResponse> {
    checkSignal(signal);
    let fail: (error: NetError) => void = () => {};
    const failed = new Promise<never>((_, reject) => fail = reject);
    let over = false;
    let abandon = () => {};
    const work = async () => {
      const stream = await this.#open(() => over);
      abandon = () => stream.abort(RESET);
      if (over) abandon();
      await stream.write(head);
      const response = await readHead(stream, headLimit);
      // no response at all: the reader knows whether it was an end or a reset
      if (response !== null) return { stream, head: response };
      await stream.read();
      throw new NetError("head-truncated", "The stream ended without a response", { remote: true });
    };
    const timer = setTimeout(() => fail(new NetError("timed-out", `No response within ${timeoutMs} ms`)), timeoutMs);
    const onAbort = () => fail(new NetError("cancelled", "The call was cancelled"));
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#requests.add(fail);
    client?.input.watch(({ read }) =>
      fail(read.remote ? new NetError("abandoned", `The peer disconnected: ${read.message}`, { remote: true }) : read)
    );
    try {
      return await Promise.race([work(), failed]);
    } catch (error) {
      over = true;
      abandon();
      throw error;
    } finally {
      clearTimeout(timer);
      client?.input.watch();
      this.#requests.delete(fail);
      signal?.removeEventListener("abort", onAbort);
    }
  }

  close(code: number, reason: string): void {
    if (this.#fault) return;
    const said = printable(reason);
    const there = new NetError("reset", `The connection was closed: ${said}`, { appCode: code, remote: true });
    this.#fault = closed("connection");
    this.peer.#fault = there;
    // those that the peer opened, and those that this side did
    for (const stream of [...this.#streams]) stream.lose(this.#fault, there);
    for (const stream of [...this.peer.#streams]) stream.lose(there, this.#fault);
    this.#settle({ code, reason, remote: false, cause: "application" });
    this.peer.#settle({ code, reason: said, remote: true, cause: "application" });
  }

  #settle(end: SessionClosed): void {
    this.#arrived.close();
    this.#heads?.close();
    this.#waiting.splice(0).forEach((wake) => wake());
    this.#end(end);
  }

  probe(): Promise<boolean> {
    return Promise.resolve(false); // no process is gone here
  }

  ping(): void {} // it would be acknowledged at once

  setConnectionWindow(): void {} // each stream has a window of its own here, and that is all

  peerCredit(): PeerCredit | undefined {
    return this.#fault ? undefined : { streams: this.peer.#credit, streamBytes: this.peer.#window };
  }

  stats(): SessionStats {
    const stats = { rttMs: 0, sentBytes: 0, receivedBytes: 0, sentPackets: 0, lostPackets: 0 };
    return this.transport !== "quic" ? stats : { ...stats, congestionWindow: 0, mtu: 0, pathChallenges: 0 };
  }
}
