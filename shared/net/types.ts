// The contract between policy and the network. Everything above it is given a `Net`; nothing here knows how one is made.
import type { NetError } from "./errors.ts";

/** The network as the rest of the program sees it: listeners, connections, and the copy between two streams. */
export interface Net {
  /**
   * Checks the settings as {@link Net.listenTcp} and {@link Net.listenQuic} do, and opens nothing.
   * @throws {NetError} `tls`
   */
  checkServerTls(tls: ServerTls): void;
  /**
   * Checks the settings as {@link Net.connectTcp} and {@link Net.connectQuic} do, and opens nothing.
   * @throws {NetError} `tls`, `invalid`
   */
  checkClientTls(tls: ClientTls): void;
  /**
   * Listens for TCP connections and reads each one's request head.
   * @throws {NetError} `address-in-use`, `address-not-available`, `permission-denied`, `unknown-host`, `tls`, `invalid`
   */
  listenTcp(options: ListenTcpOptions): Promise<TcpListener>;
  /**
   * Connects to `host`, trying every address of the name with a staggered start (RFC 8305).
   * @throws {NetError} `refused`, `unreachable`, `unknown-host`, `name-timed-out`, `timed-out`, `tls`, `cancelled`, `invalid`
   */
  connectTcp(options: ConnectTcpOptions): Promise<Duplex>;
  /**
   * Every address of `host`, as the connections made here would use them: at least one, IPv6 with a zone where it needs one. An address is its
   * own. The same resolver, and the same cache, as for connections; where a family is late, the other one does not wait for it (RFC 8305 §3).
   * @throws {NetError} `unknown-host`, `name-timed-out`, `cancelled`
   */
  resolve(host: string, options: ResolveOptions): Promise<string[]>;
  /**
   * Listens for QUIC connections.
   * @throws {NetError} as {@link Net.listenTcp}
   */
  listenQuic(options: ListenQuicOptions): Promise<QuicListener>;
  /**
   * Connects over QUIC, trying every address of the name with a staggered start (RFC 8305).
   * @throws {NetError} as {@link Net.connectTcp}, and `closed` where the far side refused the connection
   */
  connectQuic(options: ConnectQuicOptions): Promise<QuicConnection>;
  /**
   * Asks the system, with datagrams that no server answers, why those to a QUIC server do not arrive: `refused` or `unreachable`, with a message
   * that says what to do. `undefined` where it says nothing for `timeoutMs`. It is for people to read: what routers say can be forged.
   * @throws {NetError} `cancelled`, `invalid`
   */
  probeUdp(options: ProbeUdpOptions): Promise<NetError | undefined>;
  /**
   * Copies both ways until both directions have ended, each on its own, and QUIC peers have received all of theirs (what closes the
   * connection then cuts nothing off); then releases both streams. A reset at one end, or an end that takes no more, ends it within 2 s,
   * whatever both directions are doing. Takes the streams over: later calls on them reject with `closed`, but
   * `close()` and `reset()` still end the copy. Calls made on them before are done first. Never rejects for what the network does: see {@link SpliceResult.error}.
   */
  splice(a: Duplex, b: Duplex, options?: SpliceOptions): Promise<SpliceResult>;
  /**
   * Connects as {@link Net.connectTcp}, then copies between `a` and the connection as {@link Net.splice}, with nothing to wait for in between.
   * `a` is taken over when it is called; where no connection comes about it is given back as it was.
   * The signal in `options` gives up either, and so does the peer of `a` when it goes away: it resets `a`, or, over TCP, has finished for 1 s
   * and sent no byte.
   * @throws {NetError} as {@link Net.connectTcp}, and `abandoned`
   */
  connectAndSplice(a: Duplex, connect: Omit<ConnectTcpOptions, "signal">, options?: SpliceOptions): Promise<ConnectedTunnel>;
  /** Bytes a second, for all copies that are given it. */
  createRate(options: RateOptions): Rate;
  /**
   * What all copies of the process may buffer, in bytes: received and not passed on, sent and not acknowledged; 0 for no limit. From half of it
   * on windows no longer grow; from nine tenths on the copies that hold most end with `limit`, until three quarters are used.
   */
  limitBuffers(bytes: number): void;
  /** What copies buffer that wait for a peer, in bytes; 0 where there is no limit. */
  bufferedBytes(): number;
  /**
   * For how many milliseconds what moves the bytes has not got to run; 0 while it does. Each call finds out what the next one tells: to be
   * called regularly.
   */
  stalledMs(): number;
  /** Closes everything that was made with it: listeners, connections, streams. Every call under way settles. */
  close(): void;
}

/** A TCP connection or one QUIC stream: two directions that end on their own. Calls act in the order they were made. */
export interface Duplex {
  /** The far side's address, `host:port` or `[host]:port`; for a QUIC stream its connection's. */
  readonly remote: string;
  /**
   * The next bytes, or `null` when the peer has finished its direction. Over TLS a FIN without a close_notify is an end where the peer is a
   * client, and a reset where it is a server.
   * @throws {NetError} `reset`, `closed`
   */
  read(): Promise<Uint8Array | null>;
  /**
   * Resolves when more may be written: this is the backpressure. The bytes are copied before it returns.
   * @throws {NetError} `stopped`, `reset`, `closed`
   */
  write(data: Uint8Array): Promise<void>;
  /** Finishes the writing direction after what was written before (TCP FIN, QUIC FIN, TLS close_notify). */
  closeWrite(): void;
  /** Aborts at once: RESET_STREAM with `code` on QUIC; TCP knows no code and no single direction, so the connection is reset (RST). */
  reset(code: number): void;
  /** Takes no more at once: STOP_SENDING with `code` on QUIC; on TCP reading ends. A pending `read` rejects with `closed`. */
  stopRead(code: number): void;
  /**
   * Resolves when the peer resets the stream, even with no read pending, with the error that reads will get. The signal ends the wait, and
   * is aborted before the stream is closed or given to a copy.
   * @throws {NetError} `cancelled`, `closed`
   */
  whenReset(signal: AbortSignal): Promise<NetError>;
  /**
   * Ends both directions in good order and releases the handle: what was written is still sent (for 10 s at most), then the writing
   * direction is finished; a pending `read` rejects with `closed`. A TCP peer that is still sending gets up to 2 s to read what was
   * written to it before the connection goes.
   */
  close(): void;
}

/** What an accepting side hands over: a stream whose head was read, or why it was not. */
export interface Incoming {
  /** What followed the head in the same packet is still in it. With an `error` it can be answered and closed, but not read. */
  readonly stream: Duplex;
  /** The head up to and including its blank line, one character a byte (ISO 8859-1). Missing with an `error`. */
  readonly head?: string;
  /** `head-too-large`, `head-timeout`, `head-malformed`, `head-truncated`, `limit`, `limit-per-address`, `tls`, `not-tls`, `reset` */
  readonly error?: NetError;
}

/** Accepts TCP connections and reads their heads side by side. */
export interface TcpListener {
  /** The address bound, `host:port` or `[host]:port`. */
  readonly address: string;
  /** All that is ready, at least one; `null` once it is closed. */
  accept(): Promise<Incoming[] | null>;
  /**
   * Uses other certificates from the next handshake on; open connections go on.
   * @throws {NetError} `tls`, and the old ones stay; `invalid` where it listens without TLS
   */
  setTls(tls: ServerTls): void;
  /**
   * Takes no new connections and soon frees the address. Those that have connected are still handed over when their heads are read, for
   * which they have 500 ms more at most; after the last one `accept` gives `null`. `close` is still to be called.
   */
  stopAccepting(): void;
  /** Stops accepting, drops unfinished heads, frees the address with this call. Connections handed over go on. */
  close(): void;
}

/** Accepts QUIC connections; handshakes run side by side. */
export interface QuicListener {
  /** The address bound, `host:port` or `[host]:port`. */
  readonly address: string;
  /** The next connection whose handshake is complete; `null` once it is closed. */
  accept(): Promise<QuicConnection | null>;
  /**
   * Uses other certificates from the next handshake on; open connections go on.
   * @throws {NetError} `tls`, and the old ones stay
   */
  setTls(tls: ServerTls): void;
  /** Takes no new connections from now on; those it has go on, and `close` is still to be called. */
  stopAccepting(): void;
  /** Closes all its connections with `code` and `reason`. Resolves when their peers have been sent it, after 1 s at most. */
  close(code: number, reason: string): Promise<void>;
}

/** One QUIC connection. */
export interface QuicConnection {
  /** The far side's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /** The protocol agreed on (RFC 7301). */
  readonly alpn: string;
  /** The peer's own certificate, DER; missing where it showed none. */
  readonly peerCertificate?: Uint8Array;
  /**
   * Opens a bidirectional stream, waiting while the peer's limit is reached.
   * @throws {NetError} `closed`, `reset`, `timed-out`
   */
  openStream(): Promise<Duplex>;
  /** The next stream the peer opened; `null` once the connection is closed. Not together with {@link acceptRequests}. */
  acceptStream(): Promise<Duplex | null>;
  /**
   * Opens a stream, writes `head` and reads the answer's head. Abandons the stream (RESET_STREAM, STOP_SENDING) where that fails.
   * @throws {NetError} `timed-out`, `cancelled`, `closed`, `reset`, `head-too-large`, `head-truncated`, `head-malformed`
   */
  request(head: Uint8Array, options: RequestOptions): Promise<AgentResponse>;
  /**
   * As {@link request}, and where the answer's head is `established`, byte for byte, copies between `a` and the stream as {@link Net.splice},
   * with nothing to wait for in between. `a` is taken over when it is called; where the answer is another one, or none comes, it is given back
   * as it was. The signal in `splice` gives up either, and so does the peer of `a`, as with {@link Net.connectAndSplice}.
   * @throws {NetError} as {@link request}, and `abandoned`
   */
  openTunnel(
    a: Duplex,
    head: Uint8Array,
    options: RequestOptions & { established: Uint8Array },
    splice?: SpliceOptions,
  ): Promise<AgentResponse | Spliced>;
  /** Ends the exchanges under way, which reject with `cancelled`. */
  cancelRequests(): void;
  /** All requests that are ready on streams the peer opened, at least one; `null` once the connection is closed. The first call's options count. */
  acceptRequests(options?: HeadOptions): Promise<Incoming[] | null>;
  /** Closes the connection: every stream of it ends with a reset. {@link closed} resolves when the peer has been sent it. */
  close(code: number, reason: string): void;
  /** As {@link QuicTransport.connectionWindow}, from now on; 0 is the default. */
  setConnectionWindow(bytes: number): void;
  /** What the peer lets this side do now; `undefined` once it is closed. */
  peerCredit(): PeerCredit | undefined;
  /** Never rejects. */
  readonly closed: Promise<QuicClosed>;
  /** Figures of now; zeros once it is closed. */
  stats(): QuicStats;
}

/** What a peer gives for streams that the other side opens (RFC 9000 §4). */
export interface PeerCredit {
  /** How many more may be opened now (MAX_STREAMS). */
  readonly streams: number;
  /** Bytes that may be sent on each before the peer gives more: the transport parameter `initial_max_stream_data_bidi_remote`. */
  readonly streamBytes: number;
}

/** Why a connection is no more. */
export interface QuicClosed {
  /** Application error code (RFC 9000 §20.2), 0 where the cause is not `application`. */
  readonly code: number;
  /** What the side that closed it says, 256 characters at most and all of them printable; in words of this side where the cause is not `application`. */
  readonly reason: string;
  /** Whether the far side closed it. */
  readonly remote: boolean;
  /** `application`: one side closed it; `timed-out`: idle for too long; `transport`: a protocol or TLS error; `reset`: stateless reset. */
  readonly cause: "application" | "timed-out" | "transport" | "reset";
}

/** Figures of a QUIC connection. */
export interface QuicStats {
  /** Round-trip time in milliseconds, smoothed (RFC 9002 §5.3). */
  readonly rttMs: number;
  /** UDP datagrams sent. */
  readonly sentPackets: number;
  /** Packets that were declared lost (RFC 9002 §6). */
  readonly lostPackets: number;
  /** Bytes in UDP payloads. */
  readonly sentBytes: number;
  /** Bytes in UDP payloads that were received. */
  readonly receivedBytes: number;
  /** Congestion window in bytes (RFC 9002 §7). */
  readonly congestionWindow: number;
  /** UDP payload in bytes that the path takes (RFC 8899). */
  readonly mtu: number;
}

/** Limits on the reading of heads. */
export interface HeadOptions {
  /** Longest head in bytes. Default 16384. */
  headLimit?: number;
  /** Longest time in milliseconds from the connection (or the stream) to the blank line, TLS handshake included. Default 10000. */
  headTimeoutMs?: number;
  /** Most heads being read at a time; one more and the oldest is delivered with the error `limit`. Default 4096. */
  maxPendingHeads?: number;
}

/** How many at a time may come from one address, of IPv6 from one /64. */
export interface AddressLimit {
  /** 0 for no limit. */
  most: number;
  /** Networks to whose addresses it does not apply: `10.0.0.0/8`, `::1/128`. */
  exempt: readonly string[];
}

/** How to listen for TCP connections. */
export interface ListenTcpOptions extends HeadOptions {
  /** Most heads of one address being read; one more and its oldest is delivered with `limit-per-address`. Default: no such limit. */
  pendingHeadsPerAddress?: AddressLimit;
  /** `host:port`, `[host]:port`, or `:port` for every IPv4 and IPv6 address; port 0 lets the system choose. */
  address: string;
  /** Speak TLS, and pick `http/1.1` where a client offers it by ALPN (RFC 7301), or no protocol. Default: plain TCP. */
  tls?: ServerTls;
  /**
   * Networks, `address/bits`, from which every connection begins with a header of the PROXY protocol, version 1 or 2, before TLS. The address
   * that it tells is the stream's `remote`; one without a header is delivered with `head-malformed`. Default none.
   */
  proxyProtocol?: readonly string[];
}

/** Where to connect to over TCP. */
export interface ConnectTcpOptions {
  /** A name or an address; IPv6 without brackets, with a zone if need be. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /**
   * Addresses of `host`, which is then not looked up: they are tried, and no others. An address that was checked is the one that is
   * connected to, whatever the name has become meanwhile. Default: those that the name has.
   */
  addresses?: readonly string[];
  /** Longest time in milliseconds for everything: name, connection and TLS handshake. */
  timeoutMs: number;
  /** Speak TLS. Default: plain TCP. */
  tls?: ClientTls;
  /** Gives up with `cancelled`. */
  signal?: AbortSignal;
}

/** How long to look for an address. */
export interface ResolveOptions {
  /** Longest time in milliseconds. */
  timeoutMs: number;
  /** The operator chose the name: it is never given up for the many names of clients. Default `false`. */
  isOwn?: boolean;
  /** Gives up with `cancelled`. */
  signal?: AbortSignal;
}

/** How to listen for QUIC connections. */
export interface ListenQuicOptions {
  /** As {@link ListenTcpOptions.address}. */
  address: string;
  /** The certificate to show, and what is asked of clients. */
  tls: ServerTls;
  /** Protocols offered, the preferred one first (RFC 7301). */
  alpn: string[];
  /** Limits and timers. Default: those of {@link QuicTransport}. */
  transport?: QuicTransport;
  /** Longest handshake in milliseconds. Default 10000. */
  handshakeTimeoutMs?: number;
  /** Most unfinished handshakes; more are refused. Default 4096. */
  maxPendingHandshakes?: number;
  /**
   * Most unfinished handshakes of one address that has been validated; more are refused. Where it has so many whose address is not validated,
   * anybody may have sent them: the next ones are to show theirs by Retry (RFC 9000 §8.1.2). Default: no such limit.
   */
  pendingHandshakesPerAddress?: AddressLimit;
  /** From so many unfinished handshakes on, addresses are validated by Retry (RFC 9000 §8.1.2). Default 256; 0 validates always. */
  retryThreshold?: number;
  /** Called for handshakes that failed, or were refused: `limit`, `limit-per-address`. */
  onHandshakeError?: (failure: HandshakeFailure) => void;
}

/** A handshake that came to nothing. */
export interface HandshakeFailure {
  /** Its address, as it came. */
  readonly remote: string;
  /** What was wrong with it. */
  readonly error: NetError;
  /** How many it stands for. At most 64 wait to be told: further refusals are counted in with a later one, other failures are dropped. */
  readonly count: number;
}

/** Where to connect to over QUIC. */
export interface ConnectQuicOptions {
  /** A name or an address; IPv6 without brackets. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /** The name the server's certificate must have. Default `host`. */
  serverName?: string;
  /** What to believe and show. */
  tls: ClientTls;
  /** Protocols offered, the preferred one first (RFC 7301). */
  alpn: string[];
  /** Limits and timers. Default: those of {@link QuicTransport}. */
  transport?: QuicTransport;
  /** Longest time in milliseconds for everything: name and handshake. */
  timeoutMs: number;
  /** Gives up with `cancelled`. */
  signal?: AbortSignal;
}

/** Whom to ask about. */
export interface ProbeUdpOptions {
  /** A name or an address; IPv6 without brackets. */
  host: string;
  /** 1 to 65535. */
  port: number;
  /** How long to listen, in milliseconds. */
  timeoutMs: number;
  /** Gives up with `cancelled`. */
  signal?: AbortSignal;
}

/** How long to wait for an answer, and how long that may be. */
export interface RequestOptions {
  /** Longest time in milliseconds, the wait for a free stream included. */
  timeoutMs: number;
  /** Longest answer head in bytes. Default 16384. */
  headLimit?: number;
  /** Gives up {@link QuicConnection.request} with `cancelled`. */
  signal?: AbortSignal;
}

/** What an exchange brings. */
export interface AgentResponse {
  /** As it goes on after the answer's head. */
  readonly stream: Duplex;
  /** The answer's head, blank line included, one character a byte. */
  readonly head: string;
}

/** How two streams are joined. */
export interface SpliceOptions {
  /**
   * Written to `a` before anything that comes from `b`. Not counted. Where `a` is TCP it is a write of its own, and what `b` says unasked
   * follows a millisecond later: many clients lose what they read together with the answer to their CONNECT.
   */
  initialDataToA?: Uint8Array;
  /** Both directions silent for so many milliseconds: the copy is aborted with `timed-out`. 0 or missing: never. */
  idleTimeoutMs?: number;
  /** Bytes a second, of both directions together; the narrowest counts. Default: as fast as it goes. */
  rates?: readonly Rate[];
  /** Gives up with `cancelled`. */
  signal?: AbortSignal;
}

/** How fast, and how much at once. */
export interface RateOptions {
  /** 1 or more. */
  bytesPerSecond: number;
  /** Bytes that may go at once after a pause; at least what goes in 10 ms. */
  burst: number;
}

/** Bytes a second, for all who share it. They are served in turn, a little at a time: nobody starves, however much another one wants. */
export interface Rate {
  /**
   * Resolves when so many bytes may go.
   * @throws {NetError} `closed`, `cancelled`
   */
  take(bytes: number): Promise<void>;
  /** Copies that have it go on with it; nobody else can use it any more. */
  close(): void;
}

/** What was copied, and how it ended. */
export interface SpliceResult {
  /** Bytes read from `a` and written to `b`. */
  readonly aToB: number;
  /** Bytes read from `b` and written to `a`. */
  readonly bToA: number;
  /** Missing where both directions ended in good order; else what happened first. Both streams were then reset. */
  readonly error?: NetError;
  /** The stream that the error came from; missing for `cancelled` and `timed-out`. */
  readonly errorSide?: "a" | "b";
}

/** A copy that has begun. */
export interface Spliced {
  /** As what {@link Net.splice} gives. */
  readonly ended: Promise<SpliceResult>;
}

/** A copy that has begun, with a connection. */
export interface ConnectedTunnel extends Spliced {
  /** The address that was connected to, `host:port` or `[host]:port`. */
  readonly remote: string;
}

/** Transport parameters of QUIC (RFC 9000 §18.2) and what the sender does. */
export interface QuicTransport {
  /** A PING every so many milliseconds. Default 3000; 0 sends none. */
  keepAliveMs?: number;
  /** Silence in milliseconds after which the connection is lost. Default 10000; 0 never. */
  idleTimeoutMs?: number;
  /** Bidirectional streams the peer may have open at once. Default 16. */
  maxPeerStreams?: number;
  /**
   * Bytes one stream may have under way, unread, at first. Where it is copied, that grows to what its reader drains in two round trips, to
   * 16 MiB at most and less where many want more, and shrinks again. Default 96 KiB.
   */
  streamWindow?: number;
  /** Bytes all streams of a connection may have under way, unread, besides the windows of those that were accepted. Default 1 MiB. */
  connectionWindow?: number;
  /**
   * Default `cubic` (RFC 9438), which like `newreno` (RFC 9002 §7) slows down for every loss. `cubic-loss-tolerant` does not for losses of at
   * most 2 % with no queue before them. `bbr` goes by the rate that arrives, and fills small buffers.
   */
  congestion?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
  /** Largest UDP payload tried (RFC 8899), 1200 to 6400. Default 6400. */
  maxMtu?: number;
}

/** What a TLS server shows and asks. PEM texts, not file names; what is no PEM of the kind that is needed is an error, with its line. */
export interface ServerTls {
  /** The certificate chain, the server's own first. */
  cert: string;
  /** Its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted. */
  key: string;
  /** Require a client certificate issued by one of these. */
  clientCa?: string;
  /** Refuse client certificates on these revocation lists (RFC 5280 §5). Needs `clientCa`. */
  clientCrl?: string;
}

/** What a TLS client believes and shows. PEM texts as in {@link ServerTls}. It must not change once it has been used. */
export interface ClientTls {
  /**
   * Trust these certificates alone: authorities, and servers' own, byte for byte, even where they have CA:TRUE. Default: the system's
   * authorities, or Mozilla's where the system has none.
   */
  ca?: string;
  /** Trust the system's authorities as well as `ca`. Default `false`. */
  systemRoots?: boolean;
  /** The client's own certificate chain and key. */
  cert?: string;
  /** The key of `cert`. */
  key?: string;
  /** Accept any certificate. Default `false`. */
  insecureSkipVerify?: boolean;
  /** SHA-256 of the server's certificate (DER), 64 hexadecimal digits, colons allowed; any of these. Without `ca` it replaces all other checks. */
  pinSha256?: string[];
}
