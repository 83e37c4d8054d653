// What the frontend asks of the code that reaches destinations: proxy/dial.ts through an agent, lb/dial.ts through a proxy.
import type { ClientCredentials } from "../auth/authenticator.ts";
import type { Authority, Fields } from "../http/head.ts";
import type { Duplex, Spliced, SpliceOptions } from "../net/types.ts";

/** A client's request for a connection to a destination. */
export interface DialRequest {
  /** Logged by every hop. */
  readonly id: string;
  readonly agentId: string;
  /** The client's own address, `host:port` or `[host]:port`; the port may be missing. */
  readonly clientAddress: string;
  readonly destination: Authority;
  readonly credentials: ClientCredentials;
  /** Header fields as received. */
  readonly fields: Fields;
  /** For a CONNECT: the client's stream and how to relay it. A dialer may start the relay itself. */
  readonly client?: { readonly stream: Duplex; readonly copy: SpliceOptions };
  /** Aborted with the error when the client resets its connection. For dialers that do not relay `client`, which reports it too. */
  readonly clientSignal?: () => AbortSignal;
}

/** An open connection to the destination, or a relay that runs already. */
export type Upstream = (UpstreamStream | Spliced) & {
  /** Called once, when the request has ended. */
  readonly release?: () => void;
};

/** A stream whose other end is the destination. */
export interface UpstreamStream {
  readonly stream: Duplex;
  /** Bytes that the destination has sent already; the stream continues after them. */
  readonly leftover?: Uint8Array;
}

/** @throws {ProxyError} the response for the client */
export type Dialer = (request: DialRequest) => Promise<Upstream>;
