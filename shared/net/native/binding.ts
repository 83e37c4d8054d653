// Implements the network contract with the native engine: maps the addon's handles and batches to objects and promises.
import { availableParallelism } from "node:os";
import { printable } from "../printable.ts";
import { loadAddon } from "./addon.ts";
import { NetError, type NetErrorCode } from "../errors.ts";
import { PemError, type PemKind, readPem } from "../pem.ts";
import type {
  AddressLimit,
  AgentResponse,
  ClientTls,
  ConnectedTunnel,
  ConnectQuicOptions,
  ConnectTcpOptions,
  Duplex,
  HandshakeFailure,
  HeadOptions,
  Incoming,
  ListenQuicOptions,
  ListenTcpOptions,
  Net,
  PeerCredit,
  ProbeUdpOptions,
  QuicClosed,
  QuicConnection,
  QuicListener,
  QuicStats,
  QuicTransport,
  Rate,
  RateOptions,
  RequestOptions,
  ResolveOptions,
  ServerTls,
  Spliced,
  SpliceOptions,
  SpliceResult,
  TcpListener,
} from "../types.ts";

/** Options of the native network. */
export interface NativeNetOptions {
  /**
   * I/O threads. Default: one per two processors, 1 to 4; more cost wake-ups without a gain. All networks of a process share the threads of
   * the first.
   */
  threads?: number;
  /**
   * Called once if the system limits UDP buffers to less than needed, and once a minute while connections cannot be accepted for lack of
   * file descriptors or memory. Default: no warnings.
   */
  warn?: (message: string) => void;
  /** Path of the addon. Default: the one built with the sources, or embedded in the executable. */
  addon?: string;
  /**
   * Whether the process exists for this network alone. If so, its file descriptor limit is raised to the hard limit (getrlimit(2)), and free
   * memory is returned to the system once a minute. Default `false`.
   */
  ownsProcess?: boolean;
}

/**
 * Creates a network of system sockets with the engine's QUIC and TLS.
 * @throws {Error} if the addon cannot be loaded
 * @example
 * ```ts
 * import { createNativeNet, startProxy } from "@reverse-http/reverse-http";
 *
 * const net = createNativeNet({ warn: (message) => console.warn(message) });
 * const httpProxy = { listenAddress: "127.0.0.1:0" };
 * const agentServer = { listenAddress: "127.0.0.1:0" };
 * const proxy = await startProxy({ agentServer, httpProxy }, { net });
 * await proxy.close();
 * net.close(); // the proxy does not close a network that it was given
 * ```
 */
export function createNativeNet(options: NativeNetOptions = {}): Net {
  return openNative(options.addon).createNet(options);
}

/** The native engine as a program uses it. */
export interface Native {
  /** As {@link createNativeNet}. */
  createNet(options: NativeNetOptions): Net;
  /**
   * Sends `message` to the service manager at `socket`, a path or `@` and an abstract name (sd_notify(3)). Returns an error message, or
   * `undefined` on success.
   */
  notifySupervisor(socket: string, message: string): string | undefined;
}

/** Opens the engine in `file`; default as {@link NativeNetOptions.addon}. The addon is loaded on first use. */
export function openNative(file?: string): Native {
  let loaded: Addon | undefined;
  const addon = () => loaded ??= loadAddon(file) as Addon;
  return {
    createNet: (options) => new NativeNet(addon().Engine, options),
    notifySupervisor: (socket, message) => addon().notifySupervisor(socket, message) ?? undefined,
  };
}

interface Addon {
  readonly Engine: EngineConstructor;
  notifySupervisor(socket: string, message: string): string | null | undefined;
}

/** An error from the addon: code, message, application error code, whether the peer caused it. */
type RawError = [code: NetErrorCode, message: string, appCode: number | undefined, remote: boolean];
type PerAddress = { maxPendingPerAddress: number; exempt: readonly string[] };
type Heads = { limit: number; timeoutMs: number; maxPending: number; proxyProtocol: readonly string[] } & PerAddress;
/** Result of a relay: bytes per direction, error, and side of the error. */
type Copied = [aToB: number, bToA: number, fault: RawError | undefined, side: 0 | 1 | undefined];
/** A stream, and the response head received on it. */
type Answer = [stream: number, head: string];
type RawResult = [code: NetErrorCode, message: string] | null | undefined;

/** TLS settings for the engine, in DER. */
interface EngineServerTls {
  cert: Uint8Array[];
  key: Uint8Array;
  clientCa?: Uint8Array[];
  clientCrl?: Uint8Array[];
}

interface EngineClientTls extends Omit<ClientTls, "ca" | "cert" | "key"> {
  ca?: Uint8Array[];
  cert?: Uint8Array[];
  key?: Uint8Array;
}

interface Engine {
  hold(on: boolean): void;
  close(): void;
  held(): number[];
  stalledMs(): number;
  limitBuffers(bytes: number): void;
  bufferedBytes(): number;
  cancel(op: number): void;
  checkServerTls(tls: EngineServerTls): RawResult;
  checkClientTls(tls: EngineClientTls): RawResult;
  listenTcp(op: number, address: string, tls: EngineServerTls | undefined, heads: Heads): void;
  tcpAccept(op: number, listener: number): void;
  tcpSetTls(listener: number, tls: EngineServerTls): RawResult;
  tcpStopAccepting(listener: number): void;
  tcpClose(listener: number): void;
  connectTcp(
    op: number,
    host: string,
    port: number,
    addresses: readonly string[] | undefined,
    timeoutMs: number,
    tls: EngineClientTls | undefined,
  ): void;
  resolve(op: number, host: string, timeoutMs: number, isOwn: boolean): void;
  listenQuic(
    op: number,
    address: string,
    tls: EngineServerTls,
    alpn: string[],
    transport: QuicTransport,
    handshakes: { timeoutMs: number; maxPending: number; retryThreshold: number } & PerAddress,
  ): void;
  quicAccept(op: number, listener: number): void;
  quicSetTls(listener: number, tls: EngineServerTls): RawResult;
  quicStopAccepting(listener: number): void;
  quicClose(op: number, listener: number, code: number, reason: string): void;
  connectQuic(op: number, options: object): void;
  probeUdp(op: number, host: string, port: number, timeoutMs: number): void;
  openStream(op: number, connection: number): void;
  acceptStream(op: number, connection: number): void;
  acceptRequests(op: number, connection: number, heads: Heads): void;
  exchange(op: number, connection: number, head: Uint8Array, timeoutMs: number, headLimit: number): void;
  giveUpExchanges(connection: number): void;
  exchangeAndSplice(
    answeredOp: number,
    op: number,
    connection: number,
    head: Uint8Array,
    timeoutMs: number,
    headLimit: number,
    established: Uint8Array,
    a: number,
    prologue: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
    cancellable: boolean,
  ): void;
  closeConnection(connection: number, code: number, reason: string): void;
  setConnectionWindow(connection: number, bytes: number): void;
  peerCredit(connection: number): number[];
  connectionClosed(op: number, connection: number): void;
  connectionStats(connection: number): number[];
  read(op: number, stream: number): void;
  write(op: number, stream: number, data: Uint8Array): void;
  whenReset(op: number, stream: number): void;
  closeWrite(stream: number): void;
  reset(stream: number, code: number): void;
  stopRead(stream: number, code: number): void;
  closeStream(stream: number): void;
  createRate(bytesPerSecond: number, burst: number): number;
  takeFromRate(op: number, rate: number, bytes: number): void;
  closeRate(rate: number): void;
  splice(
    op: number,
    a: number,
    b: number,
    prologue: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
    cancellable: boolean,
  ): void;
  connectAndSplice(
    connectedOp: number,
    op: number,
    a: number,
    host: string,
    port: number,
    addresses: readonly string[] | undefined,
    timeoutMs: number,
    tls: EngineClientTls | undefined,
    prologue: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
  ): void;
}
type EngineConstructor = new (callback: (batch: unknown[]) => void, threads: number, ownsProcess: boolean) => Engine;

interface Pending {
  resolve(value: unknown): void;
  reject(error: NetError): void;
}

/** Default limit on a head, in bytes. */
const HEAD_LIMIT = 16_384;
/** Longest error message, in characters: it may quote a peer. */
const MAX_MESSAGE = 1_000;
/** Operation number of warnings. */
const WARNING = 0;

function toError([code, message, appCode, remote]: RawError): NetError {
  return new NetError(code, printable(inWords(message), MAX_MESSAGE), { appCode: appCode ?? undefined, remote });
}

/** Replaces debug formats in messages of rustls: foreign errors as `Other(OtherError(…))`, and times as seconds since 1970. */
const TLS_WORDS: Readonly<Record<string, string>> = {
  CaUsedAsEndEntity: "it is a CA certificate (CA:TRUE)",
  UnsupportedCertVersion: "it is not X.509 version 3",
};
const TLS_TIMES =
  /verification time (\d+) \(UNIX\), but (certificate|CRL) is not valid (before|after) (\d+) \(\d+ seconds (?:in future|ago)\)/;

function inWords(message: string): string {
  return message
    .replace(/Other\(OtherError\((.*?)\)\)/, (_, inner: string) => TLS_WORDS[inner] ?? inner)
    .replace(
      TLS_TIMES,
      (_, now: string, what: string, when: string, then: string) =>
        `the clock of this machine is at ${isoOf(now)}, and the ${what} is not valid ${when} ${isoOf(then)}`,
    );
}

function isoOf(seconds: string): string {
  const date = new Date(Number(seconds) * 1000);
  return Number.isNaN(date.getTime()) ? seconds : date.toISOString();
}

/** Wraps a callback of the program so that it never throws: the other operations of a batch must settle. */
function isolated<T>(callback: (value: T) => void): (value: T) => void {
  return (value) => {
    try {
      callback(value);
    } catch { /* the callback reports its own errors */ }
  };
}

function defaultThreads(): number {
  return Math.min(Math.max(Math.floor(availableParallelism() / 2), 1), 4);
}

/** Pending operations of the engine, by number. */
class Calls {
  readonly engine: Engine;
  readonly #pending = new Map<number, Pending>();
  #last = WARNING;

  constructor(engine: EngineConstructor, options: NativeNetOptions) {
    const warn = isolated(options.warn ?? (() => {}));
    this.engine = new engine((batch) => this.#settle(batch, warn), options.threads ?? defaultThreads(), options.ownsProcess ?? false);
  }

  /** Starts an operation and returns its result. */
  call<T>(start: (op: number, engine: Engine) => void): Promise<T> {
    return this.#call(start).promise as Promise<T>;
  }

  /**
   * As {@link call}, cancelled by `signal`.
   * @throws {NetError} `cancelled`
   */
  cancellable<T>(signal: AbortSignal | undefined, start: (op: number, engine: Engine) => void): Promise<T> {
    return signal === undefined ? this.call(start) : this.#callUntil(signal, start);
  }

  /** Starts an operation in two phases, each with a result. The second number cancels it. */
  callTwice<T, U>(
    signal: AbortSignal | undefined,
    start: (first: number, second: number, engine: Engine) => void,
  ): [Promise<T>, Promise<U>] {
    const second = this.#call(() => {});
    const first = this.#call((op, engine) => {
      try {
        start(op, second.op, engine);
      } catch (cause) {
        this.#settle([second.op, undefined, undefined], () => {});
        throw cause;
      }
    });
    return [first.promise as Promise<T>, (signal === undefined ? second.promise : this.#until<U>(signal, second)) as Promise<U>];
  }

  #callUntil<T>(signal: AbortSignal, start: (op: number, engine: Engine) => void): Promise<T> {
    return this.#until(signal, this.#call(start));
  }

  async #until<T>(signal: AbortSignal, { op, promise }: { op: number; promise: Promise<unknown> }): Promise<T> {
    const cancel = () => this.engine.cancel(op);
    if (signal.aborted) cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      return await promise as T;
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  #call(start: (op: number, engine: Engine) => void): { op: number; promise: Promise<unknown> } {
    const op = ++this.#last;
    const promise = new Promise<unknown>((resolve, reject) => {
      try {
        start(op, this.engine);
      } catch (cause) {
        // the addon throws for a value of the wrong type
        reject(new NetError("invalid", `Cannot make the call: ${cause instanceof Error ? cause.message : cause}`, { cause }));
        return;
      }
      this.#pending.set(op, { resolve, reject });
      if (this.#pending.size === 1) this.engine.hold(true);
    });
    return { op, promise };
  }

  #settle(batch: unknown[], warn: (message: string) => void): void {
    for (let i = 0; i < batch.length; i += 3) {
      const op = batch[i] as number;
      const fault = batch[i + 1] as RawError | undefined;
      if (op === WARNING) {
        warn(batch[i + 2] as string);
        continue;
      }
      const pending = this.#pending.get(op);
      this.#pending.delete(op);
      if (fault) pending?.reject(toError(fault));
      else pending?.resolve(batch[i + 2]);
    }
    if (this.#pending.size === 0) this.engine.hold(false);
  }
}

/** @throws {NetError} `tls` */
function toEngineServerTls({ cert, key, clientCa, clientCrl }: ServerTls): EngineServerTls {
  return {
    cert: derOf("certificate", cert, "chain"),
    key: derOf("private key", key, "private key")[0]!,
    clientCa: clientCa === undefined ? undefined : derOf("client CA", clientCa, "authorities"),
    clientCrl: clientCrl === undefined ? undefined : derOf("client CRL", clientCrl, "revocation lists"),
  };
}

/** Cache of parsed client settings, because one is used for many connections. */
class ClientSettings {
  readonly #parsed = new WeakMap<ClientTls, EngineClientTls>();

  /** @throws {NetError} `tls` */
  get(tls: ClientTls): EngineClientTls {
    const { ca, cert, key, ...others } = tls;
    const parsed = this.#parsed.get(tls) ?? {
      ...others,
      ca: ca === undefined ? undefined : derOf("CA", ca, "authorities"),
      cert: cert === undefined ? undefined : derOf("client certificate", cert, "chain"),
      key: key === undefined ? undefined : derOf("private key", key, "private key")[0],
    };
    this.#parsed.set(tls, parsed);
    return parsed;
  }
}

function derOf(what: string, pem: string, kind: PemKind): Uint8Array[] {
  try {
    return readPem(pem, kind).map(({ der }) => der);
  } catch (cause) {
    if (!(cause instanceof PemError)) throw cause;
    throw new NetError("tls", `Cannot read the ${what}: ${cause.message}`, { cause });
  }
}

/** Rejects an aborted signal before the operation starts; cancelled later, the operation could already be complete. */
function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new NetError("cancelled", "The call was cancelled before it started");
}

function check(verdict: RawResult): void {
  if (verdict) throw new NetError(verdict[0], inWords(verdict[1]));
}

function heads(options: HeadOptions, each?: AddressLimit, proxyProtocol: readonly string[] = []): Heads {
  return {
    limit: options.headLimit ?? HEAD_LIMIT,
    timeoutMs: options.headTimeoutMs ?? 10_000,
    maxPending: options.maxPendingHeads ?? 4_096,
    proxyProtocol,
    ...perAddress(each),
  };
}

function perAddress(limit: AddressLimit | undefined): PerAddress {
  return { maxPendingPerAddress: limit?.max ?? 0, exempt: limit?.exempt ?? [] };
}

class NativeNet implements Net {
  readonly #calls: Calls;
  readonly #clientTls = new ClientSettings();

  constructor(engine: EngineConstructor, options: NativeNetOptions) {
    this.#calls = new Calls(engine, options);
  }

  checkServerTls(tls: ServerTls): void {
    check(this.#calls.engine.checkServerTls(toEngineServerTls(tls)));
  }

  checkClientTls(tls: ClientTls): void {
    check(this.#calls.engine.checkClientTls(this.#clientTls.get(tls)));
  }

  async listenTcp(options: ListenTcpOptions): Promise<TcpListener> {
    const tls = options.tls && toEngineServerTls(options.tls);
    const [id, address] = await this.#calls.call<[number, string]>((op, engine) =>
      engine.listenTcp(op, options.address, tls, heads(options, options.pendingHeadsPerAddress, options.proxyProtocol))
    );
    return new NativeTcpListener(this.#calls, id, address);
  }

  async connectTcp(options: ConnectTcpOptions): Promise<Duplex> {
    const { host, port, addresses, timeoutMs, tls, signal } = options;
    checkSignal(signal);
    checkPort(port);
    const wanted = tls && this.#clientTls.get(tls);
    const start = (op: number, engine: Engine) => engine.connectTcp(op, host, port, addresses, timeoutMs, wanted);
    const [id, remote] = await this.#calls.cancellable<[number, string]>(signal, start);
    return new NativeDuplex(this.#calls, id, remote);
  }

  async resolve(host: string, { timeoutMs, isOwn = false, signal }: ResolveOptions): Promise<string[]> {
    checkSignal(signal);
    return await this.#calls.cancellable<string[]>(signal, (op, engine) => engine.resolve(op, host, timeoutMs, isOwn));
  }

  async listenQuic(options: ListenQuicOptions): Promise<QuicListener> {
    const handshakes = {
      timeoutMs: options.handshakeTimeoutMs ?? 10_000,
      maxPending: options.maxPendingHandshakes ?? 4_096,
      retryThreshold: options.retryThreshold ?? 256,
      ...perAddress(options.pendingHandshakesPerAddress),
    };
    const tls = toEngineServerTls(options.tls);
    const [id, address] = await this.#calls.call<[number, string]>((op, engine) =>
      engine.listenQuic(op, options.address, tls, options.alpn, options.transport ?? {}, handshakes)
    );
    return new NativeQuicListener(this.#calls, id, address, options.onHandshakeError ?? (() => {}));
  }

  async connectQuic(options: ConnectQuicOptions): Promise<QuicConnection> {
    const { signal, host, port, serverName, tls, alpn, timeoutMs } = options;
    checkSignal(signal);
    checkPort(port);
    const wanted = { host, port, serverName, tls: this.#clientTls.get(tls), alpn, timeoutMs, transport: options.transport ?? {} };
    const opened = await this.#calls.cancellable<OpenedConnection>(signal, (op, engine) => engine.connectQuic(op, wanted));
    return new NativeQuicConnection(this.#calls, opened);
  }

  async probeUdp({ host, port, timeoutMs, signal }: ProbeUdpOptions): Promise<NetError | undefined> {
    checkSignal(signal);
    checkPort(port);
    const fault = await this.#calls.cancellable<RawError | null>(signal, (op, engine) => engine.probeUdp(op, host, port, timeoutMs));
    return fault ? toError(fault) : undefined;
  }

  async splice(a: Duplex, b: Duplex, options: SpliceOptions = {}): Promise<SpliceResult> {
    if (!(a instanceof NativeDuplex && b instanceof NativeDuplex)) {
      throw new NetError("invalid", "Cannot copy between streams of another network");
    }
    const { initialDataToA, idleTimeoutMs, rates, signal } = options;
    const limits = numbersOf(rates);
    const [aId, bId] = [a.give(), b.give()];
    const start = (op: number, engine: Engine) =>
      engine.splice(op, aId, bId, initialDataToA, idleTimeoutMs ?? 0, limits, signal !== undefined);
    return toSpliceResult(await this.#calls.cancellable<Copied>(signal, start));
  }

  async connectAndSplice(a: Duplex, connect: Omit<ConnectTcpOptions, "signal">, options: SpliceOptions = {}): Promise<ConnectedTunnel> {
    const { host, port, addresses, timeoutMs, tls } = connect;
    const { initialDataToA, idleTimeoutMs, signal } = options;
    checkSignal(signal);
    checkPort(port);
    const wanted = tls && this.#clientTls.get(tls);
    const [remote, ended] = await beginCopy<string>(
      this.#calls,
      a,
      options,
      (first, second, id, rates, engine) =>
        engine.connectAndSplice(first, second, id, host, port, addresses, timeoutMs, wanted, initialDataToA, idleTimeoutMs ?? 0, rates),
    );
    return { remote, ended: ended.then((copied) => toSpliceResult(copied!)) };
  }

  createRate({ bytesPerSecond, burst }: RateOptions): Rate {
    return new NativeRate(this.#calls, this.#calls.engine.createRate(bytesPerSecond, burst));
  }

  limitBuffers(bytes: number): void {
    this.#calls.engine.limitBuffers(bytes);
  }

  bufferedBytes(): number {
    return this.#calls.engine.bufferedBytes();
  }

  stalledMs(): number {
    return this.#calls.engine.stalledMs();
  }

  close(): void {
    this.#calls.engine.close();
  }
}

/**
 * Starts a relay of `a` that follows another operation. Returns that operation's result, the end of the relay, and `a`, whose ownership is
 * restored if the operation fails.
 * @throws {NetError} `invalid`, `closed`, and as the operation
 */
async function beginCopy<T>(
  calls: Calls,
  a: Duplex,
  { rates, signal }: SpliceOptions,
  start: (first: number, second: number, id: number, rates: number[] | undefined, engine: Engine) => void,
): Promise<[first: T, ended: Promise<Copied | undefined>, a: NativeDuplex]> {
  if (!(a instanceof NativeDuplex)) throw new NetError("invalid", "Cannot copy between streams of another network");
  const limits = numbersOf(rates);
  const id = a.give();
  const [first, ended] = calls.callTwice<T, Copied | undefined>(signal, (op, second, engine) => start(op, second, id, limits, engine));
  try {
    return [await first, ended, a];
  } catch (cause) {
    a.takeBack();
    ended.catch(() => {}); // fails for the same reason
    throw cause;
  }
}

/** The engine would truncate the port to 16 bits. */
function checkPort(port: number): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new NetError("invalid", `Cannot connect to port ${port}: it is not 1 to 65535`);
  }
}

function toSpliceResult([aToB, bToA, fault, side]: Copied): SpliceResult {
  return { aToB, bToA, error: fault && toError(fault), errorSide: side === undefined ? undefined : side === 0 ? "a" : "b" };
}

/** @throws {NetError} `invalid` */
function numbersOf(rates: readonly Rate[] | undefined): number[] | undefined {
  return rates && rates.length > 0 ? rates.map(numberOf) : undefined;
}

/** @throws {NetError} `invalid` */
function numberOf(rate: Rate): number {
  if (!(rate instanceof NativeRate)) throw new NetError("invalid", "Cannot copy at the rate of another network");
  return rate.id;
}

class NativeRate implements Rate {
  readonly #calls: Calls;

  constructor(calls: Calls, readonly id: number) {
    this.#calls = calls;
  }

  async take(bytes: number): Promise<void> {
    await this.#calls.call((op, engine) => engine.takeFromRate(op, this.id, bytes));
  }

  close(): void {
    this.#calls.engine.closeRate(this.id);
  }
}

class NativeDuplex implements Duplex {
  readonly #calls: Calls;
  readonly #id: number;
  /** `given`: a relay owns the stream, which can still be closed. */
  #state: "open" | "given" | "closed" = "open";

  constructor(calls: Calls, id: number, readonly remote: string) {
    this.#calls = calls;
    this.#id = id;
  }

  async read(): Promise<Uint8Array | null> {
    this.#checkOpen();
    return await this.#calls.call<Uint8Array | null>((op, engine) => engine.read(op, this.#id));
  }

  async write(data: Uint8Array): Promise<void> {
    this.#checkOpen();
    await this.#calls.call((op, engine) => engine.write(op, this.#id, data));
  }

  async whenReset(signal: AbortSignal): Promise<NetError> {
    checkSignal(signal);
    this.#checkOpen();
    return toError(await this.#calls.cancellable<RawError>(signal, (op, engine) => engine.whenReset(op, this.#id)));
  }

  closeWrite(): void {
    if (this.#state === "open") this.#calls.engine.closeWrite(this.#id);
  }

  reset(code: number): void {
    if (this.#state !== "closed") this.#calls.engine.reset(this.#id, code);
  }

  stopRead(code: number): void {
    if (this.#state !== "closed") this.#calls.engine.stopRead(this.#id, code);
  }

  close(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#calls.engine.closeStream(this.#id);
  }

  /**
   * Transfers ownership to a relay and returns the handle.
   * @throws {NetError} `closed`
   */
  give(): number {
    this.#checkOpen();
    this.#state = "given";
    return this.#id;
  }

  /** Restores the ownership when the relay has not started. */
  takeBack(): void {
    if (this.#state === "given") this.#state = "open";
  }

  #checkOpen(): void {
    if (this.#state !== "open") throw new NetError("closed", "Cannot use the stream: it is closed");
  }
}

/** A flat list of four values each: stream, remote, head, error. */
type IncomingBatch = [number, string, string | undefined, RawError | undefined][number][];

function toIncoming(calls: Calls, batch: IncomingBatch | null): Incoming[] | null {
  if (batch === null) return null;
  const all: Incoming[] = [];
  for (let i = 0; i < batch.length; i += 4) {
    const fault = batch[i + 3] as RawError | undefined;
    all.push({
      stream: new NativeDuplex(calls, batch[i] as number, batch[i + 1] as string),
      head: batch[i + 2] as string | undefined,
      error: fault && toError(fault),
    });
  }
  return all;
}

class NativeTcpListener implements TcpListener {
  readonly #calls: Calls;
  readonly #id: number;

  constructor(calls: Calls, id: number, readonly address: string) {
    this.#calls = calls;
    this.#id = id;
  }

  async accept(): Promise<Incoming[] | null> {
    return toIncoming(this.#calls, await this.#calls.call((op, engine) => engine.tcpAccept(op, this.#id)));
  }

  setTls(tls: ServerTls): void {
    check(this.#calls.engine.tcpSetTls(this.#id, toEngineServerTls(tls)));
  }

  stopAccepting(): void {
    this.#calls.engine.tcpStopAccepting(this.#id);
  }

  close(): void {
    this.#calls.engine.tcpClose(this.#id);
  }
}

/** Code and reason with which a listener has closed its connections. */
interface ListenerEnd {
  closedWith?: { code: number; reason: string };
}

class NativeQuicListener implements QuicListener {
  readonly #calls: Calls;
  readonly #id: number;
  readonly #onHandshakeError: (failure: HandshakeFailure) => void;
  readonly #end: ListenerEnd = {};

  constructor(
    calls: Calls,
    id: number,
    readonly address: string,
    onHandshakeError: (failure: HandshakeFailure) => void,
  ) {
    this.#calls = calls;
    this.#id = id;
    this.#onHandshakeError = isolated(onHandshakeError);
  }

  async accept(): Promise<QuicConnection | null> {
    for (;;) {
      const accepted = await this.#calls.call<OpenedConnection | [undefined, string, RawError, number] | null>((op, engine) =>
        engine.quicAccept(op, this.#id)
      );
      if (accepted === null) return null;
      if (accepted[0] !== undefined) return new NativeQuicConnection(this.#calls, accepted, this.#end);
      this.#onHandshakeError({ remote: accepted[1], error: toError(accepted[2]), count: accepted[3] });
    }
  }

  setTls(tls: ServerTls): void {
    check(this.#calls.engine.quicSetTls(this.#id, toEngineServerTls(tls)));
  }

  stopAccepting(): void {
    this.#calls.engine.quicStopAccepting(this.#id);
  }

  async close(code: number, reason: string): Promise<void> {
    this.#end.closedWith ??= { code, reason };
    await this.#calls.call((op, engine) => engine.quicClose(op, this.#id, code, reason));
  }
}

type OpenedConnection = [id: number, remote: string, alpn: string, certificate: Uint8Array | undefined];

class NativeQuicConnection implements QuicConnection {
  readonly remote: string;
  readonly alpn: string;
  readonly peerCertificate?: Uint8Array;
  readonly closed: Promise<QuicClosed>;
  readonly #calls: Calls;
  readonly #id: number;
  #closedWith?: { code: number; reason: string };

  constructor(calls: Calls, [id, remote, alpn, certificate]: OpenedConnection, listener: ListenerEnd = {}) {
    this.#calls = calls;
    this.#id = id;
    this.remote = remote;
    this.alpn = alpn;
    this.peerCertificate = certificate;
    this.closed = this.#whenClosed(listener);
  }

  async #whenClosed(listener: ListenerEnd): Promise<QuicClosed> {
    const call = this.#calls.call<[number, string, boolean, QuicClosed["cause"]]>((op, engine) => engine.connectionClosed(op, this.#id));
    const [code, reason, remote, cause] = await call;
    const local = cause === "application" && !remote ? this.#closedWith ?? listener.closedWith : undefined;
    return { code, reason: printable(reason), remote, cause, ...local };
  }

  async openStream(): Promise<Duplex> {
    const id = await this.#calls.call<number>((op, engine) => engine.openStream(op, this.#id));
    return new NativeDuplex(this.#calls, id, this.remote);
  }

  async acceptStream(): Promise<Duplex | null> {
    const id = await this.#calls.call<number | null>((op, engine) => engine.acceptStream(op, this.#id));
    return id === null ? null : new NativeDuplex(this.#calls, id, this.remote);
  }

  async request(head: Uint8Array, { timeoutMs, headLimit, signal }: RequestOptions): Promise<AgentResponse> {
    checkSignal(signal);
    const start = (op: number, engine: Engine) => engine.exchange(op, this.#id, head, timeoutMs, headLimit ?? HEAD_LIMIT);
    const answer = await this.#calls.cancellable<Answer>(signal, start);
    return this.#exchanged(answer);
  }

  #exchanged([stream, head]: Answer): AgentResponse {
    return { stream: new NativeDuplex(this.#calls, stream, this.remote), head };
  }

  async openTunnel(
    a: Duplex,
    head: Uint8Array,
    { timeoutMs, headLimit, established }: RequestOptions & { established: Uint8Array },
    options: SpliceOptions = {},
  ): Promise<AgentResponse | Spliced> {
    const { initialDataToA, idleTimeoutMs, signal } = options;
    checkSignal(signal);
    const [answer, ended, given] = await beginCopy<Answer | null>(
      this.#calls,
      a,
      options,
      (first, second, id, rates, engine) =>
        engine.exchangeAndSplice(
          first,
          second,
          this.#id,
          head,
          timeoutMs,
          headLimit ?? HEAD_LIMIT,
          established,
          id,
          initialDataToA,
          idleTimeoutMs ?? 0,
          rates,
          signal !== undefined,
        ),
    );
    if (answer === null) return { ended: ended.then((copied) => toSpliceResult(copied!)) };
    given.takeBack();
    return this.#exchanged(answer);
  }

  cancelRequests(): void {
    this.#calls.engine.giveUpExchanges(this.#id);
  }

  async acceptRequests(options: HeadOptions = {}): Promise<Incoming[] | null> {
    return toIncoming(this.#calls, await this.#calls.call((op, engine) => engine.acceptRequests(op, this.#id, heads(options))));
  }

  close(code: number, reason: string): void {
    this.#closedWith ??= { code, reason };
    this.#calls.engine.closeConnection(this.#id, code, reason);
  }

  setConnectionWindow(bytes: number): void {
    this.#calls.engine.setConnectionWindow(this.#id, bytes);
  }

  peerCredit(): PeerCredit | undefined {
    const [streams, streamBytes] = this.#calls.engine.peerCredit(this.#id);
    return streams === undefined || streamBytes === undefined ? undefined : { streams, streamBytes };
  }

  stats(): QuicStats {
    const [rttMs = 0, sentPackets = 0, lostPackets = 0, sentBytes = 0, receivedBytes = 0, congestionWindow = 0, mtu = 0] = this.#calls
      .engine
      .connectionStats(this.#id);
    return { rttMs, sentPackets, lostPackets, sentBytes, receivedBytes, congestionWindow, mtu };
  }
}
