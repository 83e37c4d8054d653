// The interface of a protocol for clients. A new one is a file that creates a `ClientProtocol`, an option for its address, and a
// `listen` where the service starts.
import type { NetError } from "../net/errors.ts";
import type { Incoming, Preamble } from "../net/listener.ts";
import type { UdpListener } from "../net/udp.ts";
import type { TunnelError } from "../tunnel/errors.ts";
import type { ClientSession } from "./pipeline.ts";

export interface ClientProtocol {
  /** The part of a connection that the listener reads first. */
  readonly preamble: Preamble;
  /** Creates the handler of one client. `serve` serves more streams of the same client. */
  open(session: ClientSession, serve: ServeStreams): ClientHandler;
  /**
   * The response to a connection that the listener could not read a request from; `undefined`: the connection is closed without one.
   * @param received as {@link Incoming.head}
   */
  refusalOf?(error: NetError, received?: string): TunnelError | undefined;
}

/**
 * Serves the streams of `listener`, each as a client of its own. Resolves when the listener is closed and the last of them has ended. Never
 * rejects.
 */
export type ServeStreams = (listener: UdpListener, protocol: ClientProtocol) => Promise<void>;

/** One client. It has the state of the protocol: which response is due. */
export interface ClientHandler {
  /**
   * Reads the request, as far as the listener has not, and takes it through the steps of the session, to the end of its tunnel. Bounds the
   * time and the number of bytes that it reads: with the preamble `none` the listener has bounded neither.
   * @throws {TunnelError} the client gets the response of {@link refuse}; any other error is a fault of this program
   */
  serve(incoming: Incoming): Promise<void>;
  /**
   * Writes the response to a request that has failed, or was not read. Called at most once, and not after a response has begun.
   * @throws {NetError} if the client has disconnected
   */
  refuse(error: TunnelError): Promise<void>;
  /**
   * Waits for the next request on the connection, once the last one was served; `undefined` if there is none. Bounds the time. Never rejects.
   * Default: a connection has one request.
   */
  next?(): Promise<Incoming | undefined>;
}
