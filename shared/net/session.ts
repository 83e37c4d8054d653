// Sessions between agent and proxy, on every transport.
import type { NetError } from "./errors.ts";
import type { AddressLimit, HeadOptions, Incoming } from "./listener.ts";
import type { Spliced, SpliceOptions } from "./relay.ts";
import type { Duplex } from "./stream.ts";
import type { ClientTls, ServerTls } from "./tls.ts";

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
  /** Sends a ping, which the peer acknowledges (PING of QUIC, RFC 9000 §19.2). No effect once the session is closed. */
  ping(): void;
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
  /** `application`: closed by one side; `timed-out`: idle timeout; `transport`: a protocol or TLS error; `reset`: the peer no longer has it (a stateless reset of QUIC, a reset of TCP). */
  readonly cause: "application" | "timed-out" | "transport" | "reset";
}

/** Statistics of a session. Packets, congestion window, MTU and path challenges are known for QUIC only: on TCP they are the kernel's. */
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
  /** PATH_CHALLENGE frames received (RFC 9000 §9): a server sends one when the client's address has changed, as behind a NAT. */
  readonly pathChallenges?: number;
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

/** Options that can change while a listener is open. Congestion control, MTU and Retry are those of QUIC. */
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

/** Options of {@link AgentSession.request}. */
export interface RequestOptions {
  /** Timeout in milliseconds, including the wait for stream credit. */
  timeoutMs: number;
  /** Longest response head in bytes. Default 16384. */
  headLimit?: number;
  /**
   * The data after the response are the capsules of a UDP flow, as of {@link Net.connectUdp}, whose peer takes QUIC DATAGRAM frames (RFC 9221):
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
