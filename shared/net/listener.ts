// What listeners for clients have in common: the streams that they accept, and how much they read of each beforehand.
import type { NetError } from "./errors.ts";
import type { Duplex } from "./stream.ts";

/** An accepted stream with its preamble, or the error in reading that. */
export interface Incoming {
  /** Bytes after the preamble can be read from it. With an `error`, it can be written to and closed, but not read. */
  readonly stream: Duplex;
  /**
   * What was read, one character per byte (ISO 8859-1): a head including its empty line, or the messages of a SOCKS client, which begin with
   * a byte that no head begins with. With an `error`, only the messages of a SOCKS client so far. In an association it is the header of the first
   * datagram for a destination. Missing with the {@link Preamble} `none`, and for other UDP peers. A server may remove it when it has parsed it.
   */
  head?: string;
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

/** Accepts streams of clients. */
export interface ClientListener {
  /** The bound address, `host:port` or `[host]:port`. */
  readonly address: string;
  /** Resolves with all ready connections, at least one; with `null` once it is closed. */
  accept(): Promise<Incoming[] | null>;
  /**
   * Goes on accepting, but has clients that speak HTTP/2 open another connection for further requests (GOAWAY, RFC 9113 §6.8): those that are
   * connected, and new ones after their first request. Does nothing for other clients.
   */
  startDraining(): void;
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
 * The part of a connection that a listener reads before it delivers the connection.
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
