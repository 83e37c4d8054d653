// What a protocol that clients speak implements. A new protocol is a file that creates one of these, and a line where its listener is opened.
import type { NetError } from "../net/errors.ts";
import type { Incoming, Preamble } from "../net/types.ts";
import type { TunnelError } from "../tunnel/errors.ts";
import type { ClientSession } from "./pipeline.ts";

export interface ClientProtocol {
  /** What the listener reads before {@link serve}. */
  readonly preamble: Preamble;
  /**
   * Reads the client's request and takes it through the steps of the session, to the end of its tunnel.
   * @throws {TunnelError} the client gets the response of {@link refuse}; any other error is a fault of this program
   */
  serve(session: ClientSession, incoming: Incoming): Promise<void>;
  /**
   * Writes the response to a request that has failed. Called once, and not after a response has begun.
   * @throws {NetError} if the client has disconnected
   */
  refuse(session: ClientSession, error: TunnelError): Promise<void>;
  /** The response to a connection that the listener could not read a request from; `undefined`: the connection is closed without one. */
  refusalOf?(error: NetError): TunnelError | undefined;
}
