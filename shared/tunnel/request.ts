// What every way into the proxy and every way out of it agree on: a request for a tunnel, and the connection that a dialer opens for it.
// Knows no client protocol.
import type { Authority, Network } from "../address/authority.ts";
import type { ClientCredentials, Identity } from "../auth/authenticator.ts";
import type { Spliced, SpliceOptions } from "../net/relay.ts";
import type { SessionKind } from "../net/session.ts";
import type { Duplex } from "../net/stream.ts";
import type { Span } from "../tracing/span.ts";

/** A client's request for a connection to a destination through an agent. */
export interface TunnelRequest {
  /** With `udp` the stream carries capsules (RFC 9297) with UDP payloads (RFC 9298). */
  readonly network: Network;
  /** Logged by every hop. */
  readonly id: string;
  readonly agentId: string;
  readonly destination: Authority;
  readonly identity: Identity;
  /** The client's credentials, for a hop that authenticates it again. */
  readonly credentials: ClientCredentials;
  /** The client's own address, `host:port` or `[host]:port`; the port may be missing. */
  readonly client: string;
  /** The proxies that the request has passed, as `Via` lists them (RFC 9110 §7.6.3). */
  readonly via: readonly string[];
  /** The span of the request. Default: it is not traced. */
  readonly trace?: Span;
  /** The client's stream and how to relay it. A dialer may start the relay itself. Missing if the frontend does not relay. */
  readonly relay?: { readonly stream: Duplex; readonly splice: SpliceOptions };
  /** Aborted with the error when the client resets its connection. For dialers that do not start the relay, which reports it too. */
  readonly clientSignal?: () => AbortSignal;
}

/** An open connection to the destination, or a relay that runs already. */
export type Upstream = (UpstreamStream | Spliced) & {
  /** What it passes through, for operators. */
  readonly via?: TunnelVia;
  /** Called once, when the request has ended. */
  readonly release?: () => void;
};

/** The connection that a tunnel passes through: of an agent, or to a proxy. */
export interface TunnelVia {
  /** Its peer, `host:port` or `[host]:port`. */
  readonly address: string;
  /** The id of an agent's connection. */
  readonly connection?: string;
  readonly link?: SessionKind;
}

/** A stream whose other end is the destination. */
export interface UpstreamStream {
  readonly stream: Duplex;
}

/** Opens connections to destinations: proxy/dial.ts through an agent, lb/dial.ts through a proxy. @throws {TunnelError | NetError} */
export type Dialer = (request: TunnelRequest) => Promise<Upstream>;
