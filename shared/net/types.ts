// The network contract: listeners, connections and relays. All policy is built on a `Net`; implementations are elsewhere.
import type { NetError } from "./errors.ts";

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
   * Listens for UDP datagrams. Each source address is a peer: what it sends can be read from a stream of capsules, as of
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
  /** Passes its listening sockets to another process. Missing if they are not the system's. */
  readonly handover?: SocketHandover;
  /** Closes all its listeners, connections and streams. All pending calls settle. */
  close(): void;
}

/**
 * Passes the sockets of listeners between two processes, as descriptors over a Unix socket. Of QUIC, connections go with them: those of this
 * process go on when a successor reads the socket, which relays their packets.
 */
export interface SocketHandover {
  /**
   * Listens for channels at `path`, where nothing may be.
   * @throws {NetError} `address-in-use`, `permission-denied`
   */
  listen(path: string): Promise<ChannelListener>;
  /**
   * Connects to a process that listens at `path`.
   * @throws {NetError} `refused` if none does; `permission-denied`, also if it is another user's
   */
  connect(path: string): Promise<Channel>;
  /**
   * Sends copies of the sockets of all listeners, which go on.
   * @throws {NetError} `reset`, `closed`
   */
  send(channel: Channel): Promise<void>;
  /**
   * Receives what the other process sends. A listener that is opened later for an address, as the other process has written it, uses its
   * socket. No listener accepts until {@link setAccepting}. Returns the number of sockets.
   * @throws {NetError} `reset`, `closed`
   */
  receive(channel: Channel): Promise<number>;
  /** Lets listeners accept, or no longer: then their peers wait, or a successor accepts them. Nothing that is open is affected. */
  setAccepting(accepting: boolean): void;
  /** Closes received sockets that no listener uses. */
  dropUnused(): void;
}

/** Accepts channels of processes of the same user. */
export interface ChannelListener {
  /** Resolves with the next channel; with `null` once it is closed. */
  accept(): Promise<Channel | null>;
  /** Stops listening. Accepted channels stay open. */
  close(): void;
}

/** A connection with another process on this machine. */
export interface Channel {
  /** Id of the other process; `undefined` if the system does not tell. */
  readonly pid?: number;
  /**
   * Sends a message of up to 64 KiB.
   * @throws {NetError} `reset`, `closed`
   */
  send(message: string): Promise<void>;
  /**
   * Resolves with the next message; with `null` once the other process has closed the channel, or has ended.
   * @throws {NetError} `reset`, `closed`
   */
  receive(): Promise<string | null>;
  /** Closes the channel. The other process receives what was sent before. */
  close(): void;
}

/** A TCP connection or a stream of a session: two directions that end independently. Calls take effect in the order in which they are made. */
export interface Duplex {
  /** The peer's address, `host:port` or `[host]:port`; for a stream of a session that of the session. */
  readonly remote: string;
  /**
   * Returns the next bytes, or `null` when the peer has finished its direction. Over TLS, a FIN without close_notify is a clean end from a
   * client and a reset from a server.
   * @throws {NetError} `reset`, `closed`
   */
  read(): Promise<Uint8Array | null>;
  /**
   * Puts bytes back that were read: reads and relays return them first. For what follows a request that this program has read itself. The bytes
   * are copied before it returns.
   * @throws {NetError} `closed`
   */
  unread(data: Uint8Array): void;
  /**
   * Writes bytes, which are copied before it returns. Resolves when more may be written (backpressure).
   * @throws {NetError} `stopped`, `reset`, `closed`
   */
  write(data: Uint8Array): Promise<void>;
  /** Finishes the writing direction after all earlier writes (FIN of TCP or of the stream, TLS close_notify). */
  closeWrite(): void;
  /** Aborts at once: RESET_STREAM with `code` in a session; RST on TCP, which has no code and resets both directions. */
  reset(code: number): void;
  /** Stops reading at once: STOP_SENDING with `code` in a session. A pending `read` rejects with `closed`. */
  stopRead(code: number): void;
  /**
   * Resolves when the peer resets the stream, even without a pending read, with the error that reads get. Abort the signal before the stream
   * is closed or relayed.
   * @throws {NetError} `cancelled`, `closed`
   */
  whenReset(signal: AbortSignal): Promise<NetError>;
  /**
   * Closes both directions cleanly and releases the handle: written data is still sent (for up to 10 s), then the writing direction is
   * finished; a pending `read` rejects with `closed`. A TCP peer that is still sending has up to 2 s to read what was written to it before the
   * connection is reset.
   */
  close(): void;
}

/** An accepted stream with its preamble, or the error in reading that. */
export interface Incoming {
  /** Bytes after the preamble can be read from it. With an `error`, it can be written to and closed, but not read. */
  readonly stream: Duplex;
  /**
   * What was read, one character per byte (ISO 8859-1): a head including its empty line, or the messages of a SOCKS client, which begin with
   * a byte that no head begins with. With an `error` only what a SOCKS client has sent so far. In an association it is the header of the first
   * datagram for a destination. Missing with the {@link Preamble} `none`, and for other UDP peers.
   */
  readonly head?: string;
  /**
   * The name in a ClientHello (RFC 6066 §3), in lower case, without a final dot; missing if it has none, and without TLS unless
   * {@link Preamble} is `client-hello`.
   */
  readonly serverName?: string;
  /** The client's certificate, DER, verified as {@link ServerTls.clientCa} requires; missing if it presented none, and without TLS. */
  readonly peerCertificate?: Uint8Array;
  /** Whether it is a stream of HTTP/2; see {@link Preamble}. */
  readonly isHttp2?: boolean;
  /**
   * The address at which the client has reached the listener, `host:port` or `[host]:port`. Missing for clients that speak HTTP, and for UDP
   * peers.
   */
  readonly local?: string;
  /** `head-too-large`, `head-timeout`, `head-malformed`, `head-truncated`, `limit`, `limit-per-address`, `tls`, `not-tls`, `not-http2`, `reset` */
  readonly error?: NetError;
}

/** A connection to a server with many streams (RFC 9113). */
export interface Http2Connection {
  /** The server's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /**
   * Opens a stream that is used like a connection of HTTP/1.1: what is written begins with the head of a CONNECT request, or of a GET with
   * `Upgrade`, which becomes an extended CONNECT (RFC 8441); what is read begins with the head of its response. Its calls fail with `closed`
   * if the server has not processed the request (RFC 9113 §6.8, §8.7).
   * @throws {NetError} `limit` if as many streams are open as the server allows; `closed` if the connection is lost, or takes no more streams
   */
  openStream(): Promise<Duplex>;
  /** Opens no more streams; the connection closes when those that are open have ended. */
  release(): void;
}

/** Accepts streams of clients. */
export interface ClientListener {
  /** The bound address, `host:port` or `[host]:port`. */
  readonly address: string;
  /** Resolves with all ready connections, at least one; with `null` once it is closed. */
  accept(): Promise<Incoming[] | null>;
  /**
   * Stops accepting connections and soon frees the address. Established connections are still delivered if their preambles arrive within 500 ms;
   * after the last one `accept` resolves with `null`. Clients that speak HTTP/2 are told (GOAWAY), and delivered streams stay open. `close` must
   * still be called.
   */
  stopAccepting(): void;
  /**
   * Stops accepting, drops pending preambles, and frees the address at once. Delivered connections stay open; streams of UDP peers end.
   */
  close(): void;
}

/** Accepts streams of datagrams. */
export interface UdpListener extends ClientListener {
  /**
   * Datagrams so far that were not passed on, in either direction: malformed ones, those of others than the client of an association, of too
   * many peers or of one that was refused, the oldest that waited, and those that the system did not take.
   */
  readonly dropped: number;
}

/** Accepts TCP connections; TLS handshakes run, and preambles are read, concurrently. */
export interface TcpListener extends ClientListener {
  /**
   * Replaces the TLS settings for new handshakes; open connections are not affected.
   * @throws {NetError} `tls`, and the previous settings stay; `invalid` if it listens without TLS
   */
  setTls(tls: ServerTls): void;
  /**
   * Replaces all that it was opened with but address and preamble, for connections that it accepts from now on.
   * @throws {NetError} as {@link Net.listenTcp}, and the previous settings stay
   */
  configure(settings: TcpSettings): void;
}

/** What can change while a listener is open. */
export type TcpSettings = Omit<ListenTcpOptions, "address" | "preamble">;

/** Accepts sessions; handshakes run concurrently. */
export interface SessionListener {
  /** The bound address, `host:port` or `[host]:port`; empty if it has no socket of its own. */
  readonly address: string;
  /** Resolves with the next session after its handshake; with `null` once it is closed. */
  accept(): Promise<AgentSession | null>;
  /**
   * Replaces the TLS settings for new handshakes; open sessions are not affected.
   * @throws {NetError} `tls`, and the previous settings stay
   */
  setTls(tls: ServerTls): void;
  /**
   * Replaces transport settings and limits, for handshakes that start from now on; open sessions are not affected.
   * @throws {NetError} `invalid`, and the previous settings stay
   */
  configure(settings: SessionSettings): void;
  /**
   * Takes over a stream on which a WebSocket was accepted (RFC 6455 §4.2), and starts the handshake of a session within it. Calls made on the
   * stream before complete first, and what follows the request on it is not lost. `remote`, the client's address, becomes the session's.
   * @throws {NetError} `invalid` over QUIC, and for a stream of another network; `closed`
   */
  acceptWebSocket(stream: Duplex, remote: string): void;
  /** Stops accepting sessions; existing ones stay open. `close` must still be called. */
  stopAccepting(): void;
  /** Closes all its sessions with `code` and `reason`. Resolves when that has been sent to the peers, after at most 1 s. */
  close(code: number, reason: string): Promise<void>;
}

/** What carries a session: QUIC, TLS 1.3 on a TCP connection, or the same TLS within a WebSocket. */
export type SessionKind = "quic" | "tls" | "websocket";

/** A connection between agent and proxy with multiplexed streams. Everything but its statistics is alike on every transport. */
export interface AgentSession {
  /** The kind of the connection. */
  readonly transport: SessionKind;
  /** The peer's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /** The negotiated protocol (RFC 7301). */
  readonly alpn: string;
  /** The peer's certificate, DER; `undefined` if it sent none. */
  readonly peerCertificate?: Uint8Array;
  /**
   * Opens a bidirectional stream; waits while the peer's stream limit is reached.
   * @throws {NetError} `closed`, `reset`, `timed-out`
   */
  openStream(): Promise<Duplex>;
  /** Resolves with the next stream that the peer opens; with `null` once the session is closed. Not together with {@link acceptRequests}. */
  acceptStream(): Promise<Duplex | null>;
  /**
   * Opens a stream, sends a request head and reads the response head. On failure it aborts the stream (RESET_STREAM, STOP_SENDING).
   * @throws {NetError} `timed-out`, `cancelled`, `closed`, `reset`, `head-too-large`, `head-truncated`, `head-malformed`
   */
  request(head: Uint8Array, options: RequestOptions): Promise<AgentResponse>;
  /**
   * As {@link request}; if the response head equals `established`, byte for byte, relays between `a` and the stream as {@link Net.splice},
   * without a round trip to JavaScript. Takes ownership of `a`, and returns it unchanged with any other response or an error. Both phases are
   * cancelled by the signal in `splice` or the peer of `a`, as in {@link Net.connectAndSplice}.
   * @throws {NetError} as {@link request}, and `abandoned`
   */
  openTunnel(
    a: Duplex,
    head: Uint8Array,
    options: RequestOptions & { established: Uint8Array },
    splice?: SpliceOptions,
  ): Promise<AgentResponse | Spliced>;
  /** Cancels all pending requests, which reject with `cancelled`. */
  cancelRequests(): void;
  /**
   * Resolves with all ready requests on streams that the peer opened, at least one; with `null` once the session is closed. The options of the
   * first call apply.
   */
  acceptRequests(options?: HeadOptions): Promise<Incoming[] | null>;
  /**
   * Finds out whether a silent peer's process is gone: pings it, and resolves with `true` if nothing arrives for three probe timeouts (RFC 9002
   * §6.2), 1.2 s at least, and the peer's own system reports by ICMP that its port is closed. Neither silence nor ICMP alone is proof. `false`
   * as soon as something arrives, if another probe runs or has started within a second, and always where this is not QUIC on Linux: over TCP
   * the peer's system ends the session, and other systems report no ICMP errors.
   */
  probe(): Promise<boolean>;
  /** Closes the session and resets all its streams. {@link closed} resolves when the close has been sent to the peer. */
  close(code: number, reason: string): void;
  /** Changes {@link SessionTransport.connectionWindow}; 0: the default. */
  setConnectionWindow(bytes: number): void;
  /** The credit that the peer currently grants; `undefined` once the session is closed. */
  peerCredit(): PeerCredit | undefined;
  /** Never rejects. */
  readonly closed: Promise<SessionClosed>;
  /** Current statistics; zeros once it is closed. */
  stats(): SessionStats;
}

/** Flow control credit for streams that this side opens, as in RFC 9000 §4. */
export interface PeerCredit {
  /** Number of streams that may be opened. */
  readonly streams: number;
  /** Initial credit of each stream in bytes. */
  readonly streamBytes: number;
}

/** Why a session has ended. */
export interface SessionClosed {
  /** Application error code (RFC 9000 §20.2); 0 unless the cause is `application`. */
  readonly code: number;
  /** Reason of the side that closed it, or a local description unless the cause is `application`. At most 256 printable characters. */
  readonly reason: string;
  /** Whether the peer closed it. */
  readonly remote: boolean;
  /** `application`: closed by one side; `timed-out`: idle timeout; `transport`: a protocol or TLS error; `reset`: the peer no longer knows it (a stateless reset of QUIC, a reset of TCP). */
  readonly cause: "application" | "timed-out" | "transport" | "reset";
}

/** Statistics of a session. Packets, congestion window and MTU are known for QUIC only: on TCP they are the kernel's. */
export interface SessionStats {
  /** Smoothed round-trip time in milliseconds (RFC 9002 §5.3). */
  readonly rttMs: number;
  /** Bytes sent, as UDP payload or on the TCP connection. */
  readonly sentBytes: number;
  /** Bytes received, as UDP payload or on the TCP connection. */
  readonly receivedBytes: number;
  /** UDP datagrams or TCP segments sent; 0 over TCP except on Linux. */
  readonly sentPackets: number;
  /** Packets declared lost (RFC 9002 §6), or segments sent again; 0 over TCP except on Linux. */
  readonly lostPackets: number;
  /** Congestion window in bytes (RFC 9002 §7). */
  readonly congestionWindow?: number;
  /** Largest UDP payload of the path in bytes (RFC 8899). */
  readonly mtu?: number;
}

/** Limits on reading heads, and on TLS handshakes. */
export interface HeadOptions {
  /** Longest head in bytes. Default 16384. */
  headLimit?: number;
  /** Timeout in milliseconds from the start of the connection or stream to the empty line, including a TLS handshake. Default 10000. */
  headTimeoutMs?: number;
  /** Limit on heads being read concurrently; above it the oldest is delivered with the error `limit`. Default 4096. */
  maxPendingHeads?: number;
}

/** A limit per address (IPv6: per /64). */
export interface AddressLimit {
  /** 0: no limit. */
  max: number;
  /** Exempt networks: `10.0.0.0/8`, `::1/128`. */
  exempt: readonly string[];
}

/**
 * What a listener reads of a connection before it delivers it.
 *
 * - `http`: the head of a request
 * - `socks5`: the methods that a SOCKS client offers (RFC 1928 §3). If a password is among them, the listener selects it and reads the
 *   credentials too (RFC 1929 §2). It checks no more than the version and where the messages end
 * - `http-or-socks5`: one or the other, by the first byte
 * - `client-hello`: the first message of TLS (RFC 8446 §4.1.2), which is not answered and stays in the stream
 * - `http2`: the heads of a connection of HTTP/2 (RFC 9113). Each stream is delivered as one of HTTP/1.1: the head has its form, and a body
 *   without a length is in chunks; an extended CONNECT (RFC 8441) has the form of an upgrade. What is written begins with a response head of
 *   HTTP/1.1, interim ones before it; the fields about the connection are left out, and the body that follows is not in chunks. A reset ends
 *   both directions, with CONNECT_ERROR in a tunnel. A connection without a stream for 3 minutes is closed; it counts as a pending head
 * - `http-or-http2`: one or the other, as agreed by ALPN (RFC 7301); without TLS `http`
 * - `none`: nothing. It delivers a connection as soon as it is accepted and, with TLS, its handshake is complete, whether or not the client
 *   has sent anything
 */
export type Preamble = "http" | "http2" | "http-or-http2" | "socks5" | "http-or-socks5" | "client-hello" | "none";

/** Options of {@link Net.listenTcp}. */
export interface ListenTcpOptions extends HeadOptions {
  /** Default `http`. */
  preamble?: Preamble;
  /** Limit on heads being read per address; above it the oldest of that address is delivered with `limit-per-address`. Default: none. */
  pendingHeadsPerAddress?: AddressLimit;
  /** `host:port`, `[host]:port`, or `:port` for every IPv4 and IPv6 address; port 0 lets the system choose. */
  address: string;
  /**
   * Accept TLS; not with the preamble `client-hello`. Select `http/1.1` with a preamble that includes `http`, and `h2` with one that includes
   * `http2`, `h2` first, if a client offers it by ALPN (RFC 7301). Default: plain TCP, and for `http2` prior knowledge (RFC 9113 §3.3).
   */
  tls?: ServerTls;
  /**
   * Takes the TLS connections that offer one of its protocols by ALPN (RFC 7301), with its own certificate, requirements and limits. A
   * listener of {@link Net.listenTlsLink} of the same network. Default: all connections are clients'.
   */
  links?: SessionListener;
  /**
   * Networks, `address/bits`, whose connections must begin with a PROXY protocol header, version 1 or 2, before TLS. Its source address
   * becomes the stream's `remote`; a connection without one is delivered with `head-malformed`. Default: none.
   */
  proxyProtocol?: readonly string[];
}

/** Options of {@link Net.listenUdp}. */
export interface ListenUdpOptions {
  /** As {@link ListenTcpOptions.address}. */
  address: string;
  /** Limit on concurrent peers; datagrams of more are dropped. Default 32768. */
  maxPeers?: number;
  /**
   * Listen as the server of an association of SOCKS 5 (RFC 1928 §7): each datagram begins with a header that names its destination. A peer is
   * then a destination; its stream carries payloads without the header, which precedes what is sent back, too. Fragments are dropped. Default:
   * datagrams are payloads.
   */
  socks5?: SocksClient;
}

/** The client of an association. The first that sends a datagram from its address is the only one from then on. */
export interface SocksClient {
  /** Its address; IPv6 without brackets. */
  host: string;
  /** Its port. Default: any. */
  port?: number;
}

/** Options of {@link Net.connectTcp}. */
export interface ConnectTcpOptions {
  /** A name or an address; IPv6 without brackets, with an optional zone. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /**
   * The only addresses to try; `host` is then not looked up. This ensures that the connection goes to an address that was checked (DNS
   * rebinding). Default: all addresses of `host`.
   */
  addresses?: readonly string[];
  /** Timeout in milliseconds for everything: lookup, connection and TLS handshake. */
  timeoutMs: number;
  /** Use TLS. Default: plain TCP. */
  tls?: ClientTls;
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of {@link Net.resolve}. */
export interface ResolveOptions {
  /** Timeout in milliseconds. */
  timeoutMs: number;
  /** The operator configured the name: its lookup is never dropped in favour of names that clients ask for. Default `false`. */
  isConfigured?: boolean;
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of every listener for sessions. */
export interface ListenSessionsOptions {
  /** As {@link ListenTcpOptions.address}. */
  address: string;
  /** The server's certificate and its requirements on clients. */
  tls: ServerTls;
  /** Supported protocols, the preferred one first (RFC 7301). */
  alpn: string[];
  /** Limits and timers. Default: those of {@link SessionTransport}. */
  transport?: SessionTransport;
  /** Timeout of a handshake in milliseconds. Default 10000. */
  handshakeTimeoutMs?: number;
  /** Limit on concurrent handshakes; more are refused. Default 4096. */
  maxPendingHandshakes?: number;
  /**
   * Limit on concurrent handshakes per address; more are refused. Over UDP an address with this many handshakes may be forged until it is
   * validated; further handshakes from it must validate it by Retry (RFC 9000 §8.1.2). Default: none.
   */
  pendingHandshakesPerAddress?: AddressLimit;
  /** Called for failed and refused handshakes; refused ones have `limit` or `limit-per-address`. */
  onHandshakeError?: (failure: HandshakeFailure) => void;
}

/** Options of {@link Net.listenQuic}. */
export interface ListenQuicOptions extends ListenSessionsOptions {
  /** Limits and timers. Default: those of {@link QuicTransport}. */
  transport?: QuicTransport;
  /** Concurrent handshakes from which on addresses are validated by Retry (RFC 9000 §8.1.2). Default 256; 0: always. */
  retryThreshold?: number;
}

/** Options of {@link Net.listenTlsLink}. */
export interface ListenTlsLinkOptions extends Omit<ListenSessionsOptions, "address"> {
  /**
   * As {@link ListenTcpOptions.address}. Default: no socket of its own, only connections of {@link ListenTcpOptions.links} and
   * {@link SessionListener.acceptWebSocket}.
   */
  address?: string;
}

/** What can change while a listener is open. Congestion control, MTU and Retry are those of QUIC. */
export type SessionSettings = Omit<ListenQuicOptions, "address" | "tls" | "alpn" | "onHandshakeError">;

/** A failed or refused handshake. */
export interface HandshakeFailure {
  /** Source address; over UDP possibly not validated. */
  readonly remote: string;
  /** The reason. */
  readonly error: NetError;
  /** Number of handshakes that this report stands for. At most 64 reports are queued; beyond that, refusals are added to a later report and failures are dropped. */
  readonly count: number;
}

/** Options of every call that opens a session. */
export interface ConnectSessionOptions {
  /** A name or an address; IPv6 without brackets. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /** Name that the server's certificate must contain. Default `host`. */
  serverName?: string;
  /** Trust settings and client certificate. */
  tls: ClientTls;
  /** Offered protocols, the preferred one first (RFC 7301). */
  alpn: string[];
  /** Limits and timers. Default: those of {@link SessionTransport}. */
  transport?: SessionTransport;
  /** Timeout in milliseconds for everything: lookup, connection and handshake. */
  timeoutMs: number;
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of {@link Net.connectQuic}. */
export interface ConnectQuicOptions extends ConnectSessionOptions {
  /** Limits and timers. Default: those of {@link QuicTransport}. */
  transport?: QuicTransport;
}

/** Options of {@link Net.connectTlsLink}. */
export interface ConnectTlsLinkOptions extends ConnectSessionOptions {
  /** Open it within a WebSocket (RFC 6455), which `host` and `port` serve. Default: on TCP. */
  webSocket?: WebSocketRequest;
  /** Connect through this proxy, which resolves `host`; the session's `remote` is then `host:port` as given. Default: directly. */
  outboundProxy?: OutboundProxy;
}

/** A proxy between this machine and the servers that it connects to, for one TCP connection each. */
export interface OutboundProxy {
  /** `http`: CONNECT (RFC 9110 §9.3.6), without TLS to the proxy. `socks5`: RFC 1928. */
  readonly protocol: "http" | "socks5";
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  /** 1 to 65535. */
  readonly port: number;
  /**
   * The user's name, for Basic (RFC 7617) or Digest (RFC 7616 with MD5 or SHA-256 and `qop=auth`), as the proxy asks for, or RFC 1929. Default:
   * no authentication.
   */
  readonly username?: string;
  /** The user's password. Default: empty. */
  readonly password?: string;
}

/** The request for a WebSocket. */
export interface WebSocketRequest {
  /** Its `Host`: `host` or `host:port`. */
  authority: string;
  /** Its target, a path with or without a query: `/reverse-http`. */
  path: string;
  /**
   * Name that an outer TLS connection asks for (SNI, RFC 6066 §3). The server's certificate there is not verified: the session within has
   * its own TLS. Default: plain HTTP.
   */
  tlsServerName?: string;
}

/** Options of {@link Net.probeUdp}. */
export interface ProbeUdpOptions {
  /** A name or an address; IPv6 without brackets. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /** Time to wait for an error, in milliseconds. */
  timeoutMs: number;
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of {@link AgentSession.request}. */
export interface RequestOptions {
  /** Timeout in milliseconds, including the wait for stream credit. */
  timeoutMs: number;
  /** Longest response head in bytes. Default 16384. */
  headLimit?: number;
  /**
   * What follows the response are the capsules of a UDP flow, as of {@link Net.connectUdp}, whose peer takes QUIC DATAGRAM frames (RFC 9221):
   * datagrams that fit into a packet travel in them, the others and all else on the stream. From the request on, up to 256 KiB of the peer's
   * datagrams wait to be read, then the oldest are dropped. No effect over TLS. Default `false`.
   */
  datagrams?: boolean;
  /** Cancels {@link AgentSession.request} with `cancelled`. */
  signal?: AbortSignal;
}

/** The response to a request. */
export interface AgentResponse {
  /** The stream after the response head. */
  readonly stream: Duplex;
  /** The response head including its empty line, one character per byte. */
  readonly head: string;
}

/** Options of a relay. */
export interface SpliceOptions {
  /**
   * Written to `a` before anything from `b`, and not counted. On TCP it is a separate write, and data that `b` sends unprompted follows a
   * millisecond later: many clients lose data that they read together with the response to CONNECT. Default: none.
   */
  initialDataToA?: Uint8Array;
  /** Idle timeout of both directions in milliseconds; the relay is then aborted with `timed-out`. 0 or missing: none. */
  idleTimeoutMs?: number;
  /** Rate limits of both directions together; the lowest applies. Default: none. */
  rates?: readonly Rate[];
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of {@link Net.createRate}. */
export interface RateOptions {
  /** 1 or more. */
  bytesPerSecond: number;
  /** Burst in bytes; at least the bytes of 10 ms. */
  burst: number;
}

/** A rate limit in bytes per second. Its users are served in turn, so that none starves. */
export interface Rate {
  /**
   * Resolves when `bytes` may be sent.
   * @throws {NetError} `closed`, `cancelled`
   */
  take(bytes: number): Promise<void>;
  /** Rejects new users; relays that already use it continue. */
  close(): void;
}

/** The result of a relay. */
export interface SpliceResult {
  /** Bytes read from `a` and written to `b`. */
  readonly aToB: number;
  /** Bytes read from `b` and written to `a`. */
  readonly bToA: number;
  /** The first error, after which both streams were reset. `undefined` if both directions ended cleanly. */
  readonly error?: NetError;
  /** The stream that caused the error; `undefined` for `cancelled` and `timed-out`. */
  readonly errorSide?: "a" | "b";
  /** Datagrams of either stream that were dropped while they waited, as with {@link RequestOptions.datagrams}. Missing: none. */
  readonly datagramsDropped?: number;
}

/** `blocked`: what was read waits for its reader. `ended`: finished, or one side has failed. */
export type DirectionState = "open" | "blocked" | "ended";

/** What a relay has done so far. Bytes as of {@link SpliceResult}. */
export interface Relayed {
  /** Bytes read from `a` and written to `b`. */
  readonly aToB: number;
  /** Bytes read from `b` and written to `a`. */
  readonly bToA: number;
  /** The direction from `a` to `b`. */
  readonly toB: DirectionState;
  /** The direction from `b` to `a`. */
  readonly toA: DirectionState;
}

/** A running relay. */
export interface Spliced {
  /** The result, as of {@link Net.splice}. */
  readonly ended: Promise<SpliceResult>;
}

/** A running relay to a new connection. */
export interface ConnectedTunnel extends Spliced {
  /** The connected address, `host:port` or `[host]:port`. */
  readonly remote: string;
}

/** Options of {@link Net.connectUdp}. */
export interface FlowOptions extends Omit<SpliceOptions, "idleTimeoutMs"> {
  /**
   * Time without a datagram in either direction, in milliseconds, after which the flow ends with `timed-out` and `a` is finished, not aborted. 0
   * or missing: none.
   */
  idleTimeoutMs?: number;
  /** The peer of `a` takes QUIC DATAGRAM frames, as with {@link RequestOptions.datagrams}; from now on they are expected. Default `false`. */
  datagrams?: boolean;
}

/** Datagrams of a flow. */
export interface DatagramCounts {
  /** Those read from `a` and sent to the destination. */
  readonly aToB: number;
  /** Those received from the destination and written to `a`. */
  readonly bToA: number;
  /** Those of both directions that were not passed on. */
  readonly dropped: number;
}

/** The result of a flow. Bytes are those of the datagrams' payloads. */
export interface FlowResult extends SpliceResult {
  /** The datagrams that were passed on, and those that were not. */
  readonly datagrams: DatagramCounts;
}

/** A running flow. */
export interface ConnectedFlow {
  /** The destination's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /** The result, as of {@link Net.splice}. */
  readonly ended: Promise<FlowResult>;
}

/** Limits and timers of a session, as the transport parameters of QUIC (RFC 9000 §18.2). */
export interface SessionTransport {
  /** Interval of pings in milliseconds. Default 3000; 0: none. */
  keepAliveMs?: number;
  /** Idle timeout of the session in milliseconds. Default 10000; 0: none. */
  idleTimeoutMs?: number;
  /** Bidirectional streams the peer may have open at once. Default 16. */
  maxPeerStreams?: number;
  /**
   * Initial flow control window of a stream in bytes. While the stream is relayed, the window follows what the reader drains in two to four
   * round trips, up to 16 MiB, and less if many streams need more. Default 96 KiB on QUIC, 256 KiB on TLS.
   */
  streamWindow?: number;
  /** Flow control window of the session in bytes, in addition to the windows of accepted streams. Default 1 MiB. */
  connectionWindow?: number;
}

/** Settings of a QUIC connection. */
export interface QuicTransport extends SessionTransport {
  /**
   * Default `cubic` (RFC 9438), which like `newreno` (RFC 9002 §7) slows down on every loss. `cubic-loss-tolerant` ignores up to 2 % of losses
   * while no queue builds up. `bbr` follows the delivery rate and fills small buffers.
   */
  congestion?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
  /** Largest UDP payload to probe (RFC 8899), 1200 to 6400 bytes. Default 6400. */
  maxMtu?: number;
}

/** TLS settings of a server, as PEM texts (not file names). Invalid PEM is an error that names the line. */
export interface ServerTls {
  /** The certificate chain, beginning with the server's certificate. */
  cert: string;
  /** Its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted. */
  key: string;
  /** Require client certificates issued by one of these authorities. Default: none required. */
  clientCa?: string;
  /** Accept clients that present no certificate too; any that is presented must be valid. Default `false`. */
  isClientOptional?: boolean;
  /** Reject client certificates on these revocation lists (RFC 5280 §5). Requires `clientCa`. */
  clientCrl?: string;
  /**
   * Settings for clients that ask a TCP listener for other names (SNI, RFC 6066 §3). An exact name precedes the zone with most labels, and that
   * these settings. Default: all clients get these.
   */
  hosts?: readonly HostTls[];
  /**
   * Certificates by which a TCP listener answers the challenges of an ACME authority (RFC 8737), by name: to a client that offers
   * `acme-tls/1`, and closes its connection. Default: none.
   */
  challenges?: readonly HostTls[];
}

/** TLS settings of a server for some names. */
export interface HostTls {
  /** Names, or `*.zone` for all names below a zone. */
  readonly names: readonly string[];
  /** The settings. Their `hosts` and `challenges` have no meaning. */
  readonly tls: ServerTls;
}

/** TLS settings of a client, as PEM texts. The object must not be modified after its first use. */
export interface ClientTls {
  /**
   * Trust only these certificates: authorities, and server certificates by identity, even with CA:TRUE. Default: the system's authorities, or
   * Mozilla's if the system has none.
   */
  ca?: string;
  /** Trust the system's authorities in addition to `ca`. Default `false`. */
  systemRoots?: boolean;
  /** The client's certificate chain. Default: none. */
  cert?: string;
  /** The private key of `cert`. */
  key?: string;
  /** Accept any certificate. Default `false`. */
  insecureSkipVerify?: boolean;
  /**
   * Accepted pins: `sha256/` and the SHA-256 of the server's public key in base64 (SubjectPublicKeyInfo, RFC 7469 §2.4), or the SHA-256 of
   * its certificate (DER), 64 hexadecimal digits, colons allowed. Without `ca` they replace all other checks.
   */
  pinSha256?: string[];
}
