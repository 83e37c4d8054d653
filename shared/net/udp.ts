// Listeners and flows of UDP datagrams.
import type { ClientListener } from "./listener.ts";
import type { SpliceOptions, SpliceResult } from "./relay.ts";

/** Accepts streams of datagrams. */
export interface UdpListener extends ClientListener {
  /**
   * Datagrams so far that were not passed on, in either direction: malformed ones, those of others than the client of an association, of too
   * many peers or of one that was refused, the oldest that waited, and those that the system did not take.
   */
  readonly dropped: number;
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
  /** The numbers of forwarded and dropped datagrams. */
  readonly datagrams: DatagramCounts;
}

/** A running flow. */
export interface ConnectedFlow {
  /** The destination's address, `host:port` or `[host]:port`. */
  readonly remote: string;
  /** The result, as of {@link Net.splice}. */
  readonly ended: Promise<FlowResult>;
}
