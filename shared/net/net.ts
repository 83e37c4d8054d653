// The network contract. All policy is built on a `Net`; implementations are elsewhere.
import type { NetError } from "./errors.ts";
import type { SocketHandover } from "./handover.ts";
import type { ConnectedTunnel, Rate, RateOptions, Relayed, SpliceOptions, SpliceResult } from "./relay.ts";
import type {
  AgentSession,
  ConnectQuicOptions,
  ConnectTlsLinkOptions,
  ListenQuicOptions,
  ListenTlsLinkOptions,
  SessionListener,
} from "./session.ts";
import type { Duplex } from "./stream.ts";
import type { ConnectTcpOptions, Http2Connection, ListenTcpOptions, ResolveOptions, TcpListener } from "./tcp.ts";
import type { ClientTls, ServerTls } from "./tls.ts";
import type { ConnectedFlow, FlowOptions, ListenUdpOptions, ProbeUdpOptions, UdpListener } from "./udp.ts";

/** Options of {@link Net.shareAddresses}. */
export interface ShareAddressesOptions {
  /** A directory that only this user can enter, where the processes relay datagrams of QUIC to each other. */
  readonly directory: string;
  /** 0 to 255; no other process that shares the addresses has it. */
  readonly generation: number;
  /** Whether this process is the first: it fails if any other one has an address. */
  readonly isFirst: boolean;
}

/** The network as the rest of the program sees it: listeners, connections, and the relay between two streams. */
export interface Net {
  /**
   * Checks settings as the listening methods do, without opening anything.
   * @throws {NetError} `tls`
   */
  checkServerTls(tls: ServerTls): void;
  /**
   * Checks settings as the connecting methods do, without opening anything.
   * @throws {NetError} `tls`, `invalid`
   */
  checkClientTls(tls: ClientTls): void;
  /**
   * Listens for TCP connections and reads the preamble of each.
   * @throws {NetError} `address-in-use`, `address-not-available`, `permission-denied`, `unknown-host`, `tls`, `invalid`
   */
  listenTcp(options: ListenTcpOptions): Promise<TcpListener>;
  /**
   * Listens for UDP datagrams. Each source address is a peer: its datagrams are read from a stream of capsules, as of
   * {@link Net.connectUdp}, and what is written there is sent to it. Up to 256 KiB of a peer wait to be read, then the oldest datagrams are
   * dropped. The end of either direction ends the stream; the peer's next datagram begins a new one, but not for a second if it was reset.
   * @throws {NetError} as {@link Net.listenTcp}
   */
  listenUdp(options: ListenUdpOptions): Promise<UdpListener>;
  /**
   * Connects to `host`, trying every address of the name with a staggered start (RFC 8305).
   * @throws {NetError} `refused`, `unreachable`, `unknown-host`, `name-timed-out`, `timed-out`, `tls`, `cancelled`, `invalid`
   */
  connectTcp(options: ConnectTcpOptions): Promise<Duplex>;
  /**
   * Connects to a server that speaks HTTP/2: with TLS it must select it by ALPN (RFC 7301), without it is known before (RFC 9113 §3.3).
   * Pings keep the connection alive; one that is not answered in 20 s ends it.
   * @throws {NetError} as {@link Net.connectTcp}, and `not-http2`
   */
  connectHttp2(options: Omit<ConnectTcpOptions, "addresses">): Promise<Http2Connection>;
  /**
   * Begins HTTP/2 on a stream whose other end speaks it (RFC 9113 §3.3), and returns the only stream of that connection. One request is written
   * to it in the form of HTTP/1.1, and its response is read in that form, both with trailers behind a chunked body. It does not wait for the
   * other end. The given stream must not be used any more. A read fails with `not-http2` if its other end speaks something else.
   * @throws {NetError} `closed`, `invalid`
   */
  openHttp2Over(stream: Duplex): Promise<Duplex>;
  /**
   * Opens standard input and output of the process as a stream, once. They are read from then on, and nothing else may use them. The end of
   * what is written closes standard output; if standard input is silent for 500 ms after that, it counts as ended. `stopped`: the reader of
   * standard output is gone, which ends both directions. A closed standard input has ended.
   * @throws {NetError} `limit`
   */
  openStandardStreams(): Promise<Duplex>;
  /**
   * Resolves `host` to all its addresses, at least one, with the resolver and the cache that connections use. IPv6 has a zone if it needs one;
   * an address resolves to itself. If one address family is slow, the other does not wait for it (RFC 8305 §3).
   * @throws {NetError} `unknown-host`, `name-timed-out`, `cancelled`
   */
  resolve(host: string, options: ResolveOptions): Promise<string[]>;
  /**
   * Listens for QUIC connections.
   * @throws {NetError} as {@link Net.listenTcp}
   */
  listenQuic(options: ListenQuicOptions): Promise<SessionListener>;
  /**
   * Connects over QUIC, trying every address of the name with a staggered start (RFC 8305).
   * @throws {NetError} as {@link Net.connectTcp}, and `closed` if the peer refused the connection
   */
  connectQuic(options: ConnectQuicOptions): Promise<AgentSession>;
  /**
   * Listens on TCP for sessions over TLS 1.3 (docs/protocol.md).
   * @throws {NetError} as {@link Net.listenTcp}
   */
  listenTlsLink(options: ListenTlsLinkOptions): Promise<SessionListener>;
  /**
   * Opens a session over TLS 1.3 on a TCP connection, or within a WebSocket, trying every address of the name with a staggered start (RFC 8305).
   * @throws {NetError} as {@link Net.connectTcp}, `closed` if the peer refused the connection, `outbound-proxy`, and `outbound-proxy-credentials`
   */
  connectTlsLink(options: ConnectTlsLinkOptions): Promise<AgentSession>;
  /**
   * Probes with datagrams, which no server answers, why a QUIC server is not reachable. Returns the system's ICMP error, `refused` or
   * `unreachable`, with a message that says what to do; `undefined` without one in `timeoutMs`. For diagnostics only: ICMP can be forged.
   * @throws {NetError} `cancelled`, `invalid`
   */
  probeUdp(options: ProbeUdpOptions): Promise<NetError | undefined>;
  /**
   * Relays in both directions until each has ended and peers of sessions have acknowledged everything, so that closing the connection truncates
   * nothing; then releases both streams. If one end resets or accepts no more, the relay ends within 2 s. Takes ownership of the streams:
   * calls made before complete first, later ones reject with `closed`, but `close()` and `reset()` still end the relay. Never rejects for
   * network errors: see {@link SpliceResult.error}.
   */
  splice(a: Duplex, b: Duplex, options?: SpliceOptions): Promise<SpliceResult>;
  /**
   * Connects as {@link Net.connectTcp}, then relays between `a` and the connection as {@link Net.splice}, without a round trip to JavaScript.
   * Takes ownership of `a`, and returns it unchanged if connecting fails. Both phases are cancelled by the signal in `options`, or when the
   * peer of `a` disconnects: it resets `a`, or, over TCP, has finished its direction for 1 s without sending a byte.
   * @throws {NetError} as {@link Net.connectTcp}, and `abandoned`
   */
  connectAndSplice(a: Duplex, connect: Omit<ConnectTcpOptions, "signal">, options?: SpliceOptions): Promise<ConnectedTunnel>;
  /**
   * Opens a UDP socket for the first address of `host` to which a route leads, then relays between its datagrams and the capsules of `a` (RFC
   * 9297, RFC 9298 §5): each datagram whole, of up to 65,507 bytes, or not at all. Up to 256 KiB wait for `a`, then the oldest are dropped.
   * Capsules of other types, and datagrams with a context id other than 0, are dropped; a malformed or longer one ends the flow with `reset`.
   * It also ends, without an error, when either direction of `a` ends. ICMP errors do not end it. Ownership of `a` and cancellation are those
   * of {@link Net.connectAndSplice}.
   * @throws {NetError} as {@link Net.connectTcp}, and `abandoned`
   */
  connectUdp(a: Duplex, connect: Omit<ConnectTcpOptions, "signal" | "tls">, options?: FlowOptions): Promise<ConnectedFlow>;
  /**
   * What the relays of `streams` have relayed so far, in the order of `streams`; `undefined` where none relays it as its `a`. It is a call to the
   * engine, not to each relay.
   */
  relayed(streams: readonly Duplex[]): (Relayed | undefined)[];
  /** Creates a rate limit that relays can share. */
  createRate(options: RateOptions): Rate;
  /**
   * Limits the bytes that all relays of the process may buffer: received but not forwarded, sent but not acknowledged; 0: no limit. From half
   * of it on, flow control windows stop growing; from nine tenths, the relays that buffer most end with `limit` until three quarters are used.
   */
  limitBuffers(bytes: number): void;
  /** Bytes buffered by relays that wait for a peer; 0 without a limit. */
  bufferedBytes(): number;
  /**
   * Milliseconds for which the I/O threads have not run; 0 while they run. Each call starts the measurement that the next one returns, so call
   * it regularly.
   */
  stalledMs(): number;
  /**
   * Shares the addresses of listeners that are opened from now on with other processes of this user (SO_REUSEPORT); the first call counts.
   * Missing where the system cannot distribute connections and datagrams over them.
   */
  readonly shareAddresses?: (options: ShareAddressesOptions) => void;
  /** Passes its listening sockets to another process. Missing if they are not the system's. */
  readonly handover?: SocketHandover;
  /** Closes all its listeners, connections and streams. All pending calls settle. */
  close(): void;
}
