// Implements the network contract with the native engine.
import { availableParallelism, platform } from "node:os";
import { NetError } from "../errors.ts";
import type { Net, ShareAddressesOptions } from "../net.ts";
import type { ConnectedTunnel, Rate, RateOptions, Relayed, SpliceOptions, SpliceResult } from "../relay.ts";
import type {
  AgentSession,
  ConnectQuicOptions,
  ConnectTlsLinkOptions,
  ListenQuicOptions,
  ListenSessionsOptions,
  ListenTlsLinkOptions,
  SessionListener,
} from "../session.ts";
import type { Duplex } from "../stream.ts";
import type { ConnectTcpOptions, Http2Connection, ListenTcpOptions, ResolveOptions, TcpListener } from "../tcp.ts";
import type { ClientTls, ServerTls } from "../tls.ts";
import type { ConnectedFlow, FlowOptions, ListenUdpOptions, ProbeUdpOptions, UdpListener } from "../udp.ts";
import { loadAddon } from "./addon.ts";
import { Calls, check, checkPort, checkSignal, toError } from "./calls.ts";
import type { Addon, Engine, EngineConstructor, EngineServerTls, RawError, RawFlowResult, RawSpliceResult } from "./engine.ts";
import { NativeHandover } from "./handover.ts";
import { NativeSessionListener, NativeTcpListener, NativeUdpListener } from "./listeners.ts";
import { ClientSettings, handshakes, heads, toEngineServerTls } from "./options.ts";
import { NativeSession, type OpenedSession } from "./sessions.ts";
import {
  beginSplice,
  NativeDuplex,
  NativeHttp2Connection,
  NativeRate,
  NO_STREAM,
  numbersOf,
  toFlowResult,
  toRelayed,
  toSpliceResult,
} from "./streams.ts";

/** Options of the native network. */
export interface NativeNetOptions {
  /**
   * I/O threads. 0 or missing: one for every two processors, 1 to 16; with more, two processors open as many tunnels and move fewer bytes.
   * All networks of a process share the threads of the first.
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

function defaultThreads(): number {
  return Math.min(Math.max(Math.floor(availableParallelism() / 2), 1), 16);
}

class NativeNet implements Net {
  readonly #calls: Calls;
  readonly #clientTls = new ClientSettings();
  readonly handover: NativeHandover;
  readonly shareAddresses?: (options: ShareAddressesOptions) => void;

  constructor(engine: EngineConstructor, options: NativeNetOptions) {
    const { warn = () => {}, threads = 0, ownsProcess = false } = options;
    this.#calls = new Calls(engine, { warn, threads: threads || defaultThreads(), ownsProcess });
    this.handover = new NativeHandover(this.#calls);
    // elsewhere one of the processes gets everything
    if (platform() === "linux") {
      this.shareAddresses = ({ directory, generation, isFirst }) => this.#calls.engine.shareAddresses(directory, generation, isFirst);
    }
  }

  checkServerTls(tls: ServerTls): void {
    check(this.#calls.engine.checkServerTls(toEngineServerTls(tls)));
  }

  checkClientTls(tls: ClientTls): void {
    check(this.#calls.engine.checkClientTls(this.#clientTls.get(tls)));
  }

  async listenTcp(options: ListenTcpOptions): Promise<TcpListener> {
    const tls = options.tls && toEngineServerTls(options.tls);
    const limits = heads(options, options.pendingHeadsPerAddress, options.proxyProtocol);
    const links = options.links && NativeSessionListener.idOf(options.links);
    const { preamble = "http" } = options;
    const [id, address] = await this.#calls.call<[number, string]>((op, engine) =>
      engine.listenTcp(op, options.address, tls, limits, preamble, links)
    );
    return new NativeTcpListener(this.#calls, id, address, preamble);
  }

  async listenUdp({ address, maxPeers = 32_768, socks5 }: ListenUdpOptions): Promise<UdpListener> {
    const [id, bound] = await this.#calls.call<[number, string]>((op, engine) =>
      engine.listenUdp(op, address, maxPeers, socks5?.host, socks5?.port)
    );
    return new NativeUdpListener(this.#calls, id, bound);
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

  async connectHttp2({ host, port, timeoutMs, tls, signal }: Omit<ConnectTcpOptions, "addresses">): Promise<Http2Connection> {
    checkSignal(signal);
    checkPort(port);
    const wanted = tls && this.#clientTls.get(tls);
    const start = (op: number, engine: Engine) => engine.connectHttp2(op, host, port, timeoutMs, wanted);
    const [id, remote] = await this.#calls.cancellable<[number, string]>(signal, start);
    return new NativeHttp2Connection(this.#calls, id, remote);
  }

  async openHttp2Over(stream: Duplex): Promise<Duplex> {
    if (!(stream instanceof NativeDuplex)) throw new NetError("invalid", "Cannot begin HTTP/2 on a stream of another network");
    const carrier = stream.give();
    return new NativeDuplex(this.#calls, await this.#calls.call<number>((op, engine) => engine.openHttp2Over(op, carrier)), stream.remote);
  }

  async openStandardStreams(): Promise<Duplex> {
    return new NativeDuplex(this.#calls, await this.#calls.call<number>((op, engine) => engine.openStandardStreams(op)), "");
  }

  async resolve(host: string, { timeoutMs, isConfigured = false, signal }: ResolveOptions): Promise<string[]> {
    checkSignal(signal);
    return await this.#calls.cancellable<string[]>(signal, (op, engine) => engine.resolve(op, host, timeoutMs, isConfigured));
  }

  async listenQuic(options: ListenQuicOptions): Promise<SessionListener> {
    const { address, alpn, transport = {}, retryThreshold } = options;
    return await this.#listen(
      options,
      (op, tls, engine) => engine.listenQuic(op, address, tls, alpn, transport, handshakes(options, retryThreshold)),
    );
  }

  async listenTlsLink(options: ListenTlsLinkOptions): Promise<SessionListener> {
    const { address, alpn, transport = {} } = options;
    return await this.#listen(
      options,
      (op, tls, engine) => engine.listenTlsLink(op, address, tls, alpn, transport, handshakes(options, 0)),
    );
  }

  async #listen(
    options: Omit<ListenSessionsOptions, "address">,
    start: (op: number, tls: EngineServerTls, engine: Engine) => void,
  ): Promise<SessionListener> {
    const tls = toEngineServerTls(options.tls);
    const [id, address] = await this.#calls.call<[number, string]>((op, engine) => start(op, tls, engine));
    return new NativeSessionListener(this.#calls, id, address, options.onHandshakeError ?? (() => {}));
  }

  async connectQuic(options: ConnectQuicOptions): Promise<AgentSession> {
    return await this.#connect(options, (op, wanted, engine) => engine.connectQuic(op, wanted));
  }

  async connectTlsLink(options: ConnectTlsLinkOptions): Promise<AgentSession> {
    return await this.#connect(options, (op, wanted, engine) => engine.connectTlsLink(op, wanted, options.webSocket));
  }

  async #connect(
    options: ConnectTlsLinkOptions,
    start: (op: number, wanted: object, engine: Engine) => void,
  ): Promise<AgentSession> {
    const { signal, host, port, serverName, tls, alpn, timeoutMs, transport = {}, outboundProxy } = options;
    checkSignal(signal);
    checkPort(port);
    if (outboundProxy) checkPort(outboundProxy.port);
    const wanted = { host, port, serverName, tls: this.#clientTls.get(tls), alpn, timeoutMs, transport, outboundProxy };
    const opened = await this.#calls.cancellable<OpenedSession>(signal, (op, engine) => start(op, wanted, engine));
    return new NativeSession(this.#calls, opened);
  }

  async probeUdp({ host, port, timeoutMs, signal }: ProbeUdpOptions): Promise<NetError | undefined> {
    checkSignal(signal);
    checkPort(port);
    const error = await this.#calls.cancellable<RawError | null>(signal, (op, engine) => engine.probeUdp(op, host, port, timeoutMs));
    return error ? toError(error) : undefined;
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
    return toSpliceResult(await this.#calls.cancellable<RawSpliceResult>(signal, start));
  }

  async connectAndSplice(a: Duplex, connect: Omit<ConnectTcpOptions, "signal">, options: SpliceOptions = {}): Promise<ConnectedTunnel> {
    const { host, port, addresses, timeoutMs, tls } = connect;
    const { initialDataToA, idleTimeoutMs, signal } = options;
    checkSignal(signal);
    checkPort(port);
    const wanted = tls && this.#clientTls.get(tls);
    const [remote, ended] = await beginSplice<string>(
      this.#calls,
      a,
      options,
      (first, second, id, rates, engine) =>
        engine.connectAndSplice(first, second, id, host, port, addresses, timeoutMs, wanted, initialDataToA, idleTimeoutMs ?? 0, rates),
    );
    return { remote, ended: ended.then(toSpliceResult) };
  }

  async connectUdp(
    a: Duplex,
    connect: Omit<ConnectTcpOptions, "signal" | "tls">,
    options: FlowOptions = {},
  ): Promise<ConnectedFlow> {
    const { host, port, addresses, timeoutMs } = connect;
    const { initialDataToA, idleTimeoutMs, datagrams, signal } = options;
    checkSignal(signal);
    checkPort(port);
    const [remote, ended] = await beginSplice<string, RawFlowResult>(
      this.#calls,
      a,
      options,
      (first, second, id, rates, engine) =>
        engine.connectAndRelayDatagrams(
          first,
          second,
          id,
          host,
          port,
          addresses,
          timeoutMs,
          datagrams ?? false,
          initialDataToA,
          idleTimeoutMs ?? 0,
          rates,
        ),
    );
    return { remote, ended: ended.then(toFlowResult) };
  }

  relayed(streams: readonly Duplex[]): (Relayed | undefined)[] {
    const ids = streams.map((stream) => stream instanceof NativeDuplex ? stream.id : NO_STREAM);
    return toRelayed(this.#calls.engine.relayed(ids));
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
