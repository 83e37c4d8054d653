// Listeners for TCP, and connections to servers.
import type { AddressLimit, ClientListener, HeadOptions, Preamble } from "./listener.ts";
import type { SessionListener } from "./session.ts";
import type { Duplex } from "./stream.ts";
import type { ClientTls, ServerTls } from "./tls.ts";

/** A connection to a server with many streams (RFC 9113). */
export interface Http2Connection {
  /** The server's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /**
   * Opens a stream that is used like a connection of HTTP/1.1: what is written begins with the head of a CONNECT request, or of a GET with
   * `Upgrade`, which becomes an extended CONNECT (RFC 8441); what is read begins with the head of its response. Its calls fail with `closed`
   * if the server has not processed the request (RFC 9113 §6.8, §8.7).
   * @throws {NetError} `limit` if as many streams are open as the server allows; `closed` if the connection is lost, or accepts no more streams
   */
  openStream(): Promise<Duplex>;
  /** Opens no more streams; the connection closes when those that are open have ended. */
  release(): void;
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

/** Options that can change while a listener is open. */
export type TcpSettings = Omit<ListenTcpOptions, "address" | "preamble">;

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
