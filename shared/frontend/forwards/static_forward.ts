// Clients of forwards: each connection, or UDP peer, is relayed to the destination that the operator has configured for its listener, or for
// the server name in its ClientHello. Without names the tunnel does not wait for the client's first byte: many servers speak first.
import type { AllowList } from "../../address/allow_list.ts";
import { parseAuthority } from "../../address/authority.ts";
import { hostOf } from "../../limits/addresses.ts";
import type { NetError } from "../../net/errors.ts";
import { printable } from "../../net/printable.ts";
import { MalformedRequestError, TunnelError } from "../../tunnel/errors.ts";
import type { ClientProtocol } from "../client_protocol.ts";
import { identifyForward } from "./credentials.ts";
import type { Forward, ForwardGroup } from "./forwards.ts";
import { encodeProxyHeader } from "./proxy_header.ts";
import type { ClientSession } from "../pipeline.ts";

/**
 * The protocol of a listener of forwards. Who is refused gets a reset, as there is no response that its client would understand; or an alert,
 * if it asks for an unknown server over TLS.
 * @param current the forwards at the moment; `undefined` after they were removed
 */
export function createStaticForward(current: () => ForwardGroup | undefined): ClientProtocol {
  return createForwardProtocol(current()!.isByName ? "client-hello" : "none", current, current);
}

/**
 * The same where forwards are looked up.
 * @param find returns the candidates for a server name; `undefined` without one
 * @param current as of {@link createStaticForward}; missing: tunnels stay when their forward is no longer found
 */
export function createForwardProtocol(
  preamble: "client-hello" | "none",
  find: (serverName: string | undefined) => ForwardGroup | undefined | Promise<ForwardGroup>,
  current?: () => ForwardGroup | undefined,
): ClientProtocol {
  return {
    preamble,
    open: (session) => ({
      serve: async ({ serverName, local = UNKNOWN_ADDRESS }) => {
        session.record.method = METHOD;
        session.record.serverName = serverName;
        session.startTrace();
        session.checkRate();
        const group = await find(serverName);
        const match = group?.match(serverName);
        if (group === undefined || match === undefined) {
          throw preamble === "client-hello"
            ? new UnknownServerError(serverName)
            : new TunnelError("destination_not_found", "No forward is for this port now");
        }
        const verify = () => problemOf(current ? current() : group, serverName, session.record.client);
        await serve(session, match.forward, { allowed: group.allowed.get(match.forward)!, local, verify });
      },
      refuse: async (error) => {
        if (error instanceof UnknownServerError) await session.stream.write(UNRECOGNIZED_NAME);
        else session.stream.reset(1);
      },
    }),
    refusalOf,
  };
}

/** Stands for the address of a connection that has ended already. */
const UNKNOWN_ADDRESS = "0.0.0.0:0";

/** No forward is for the server name of the client, or for clients without one. */
class UnknownServerError extends TunnelError {
  constructor(serverName: string | undefined) {
    super(
      "destination_not_found",
      serverName === undefined ? "The client names no server" : `No forward is for the server ${printable(serverName)}`,
    );
  }
}

/** A record with the fatal alert unrecognized_name (RFC 8446 §6, RFC 6066 §3). */
const UNRECOGNIZED_NAME = Uint8Array.of(21, 3, 3, 0, 2, 2, 112);

interface ServeOptions {
  readonly allowed: AllowList;
  /** The address at which the client has reached the listener. */
  readonly local: string;
  /** As of {@link ClientRequest}. */
  readonly verify: () => string | undefined;
}

/** Why an open tunnel is no longer permitted, or `undefined`. If a forward leads elsewhere now, it is. */
function problemOf(group: ForwardGroup | undefined, serverName: string | undefined, client: string): string | undefined {
  const match = group?.match(serverName);
  if (group === undefined || match === undefined) return "The forward was removed";
  const isAllowed = group.allowed.get(match.forward)!.allows({ host: hostOf(client), port: 1 });
  return isAllowed ? undefined : "The client's address is not on the list allow of the forward";
}

/** @throws {TunnelError} */
async function serve(session: ClientSession, forward: Forward, { allowed, local, verify }: ServeOptions): Promise<void> {
  const { record, stream } = session;
  const { agent, to, proxyProtocol } = forward;
  const network = forward.network === "udp" ? "udp" : "tcp";
  record.network = network === "udp" ? network : undefined;
  record.destination = to;
  if (!allowed.allows({ host: hostOf(record.client), port: 1 })) {
    throw new TunnelError("http_request_denied", `The client's address is not on the list allow of the forward ${forward.listen}`);
  }
  const { identity, credentials, isOperators } = await identifyForward(session, forward);
  record.agent = agent;
  // the relay sends it first, even if the client says nothing: the destination waits for it
  if (proxyProtocol !== "none") stream.unread(encodeProxyHeader(proxyProtocol, record.client, local));
  await session.connect({ identity, credentials, destination: parseAuthority(to), network, isOperators, verify });
}

/** Stands for a connection of a forward in the log. */
const METHOD = "FORWARD";

/** Only a load balancer's PROXY header and a ClientHello can be malformed. */
function refusalOf({ code, message }: NetError): TunnelError | undefined {
  return ["head-malformed", "head-truncated", "head-timeout", "not-tls"].includes(code) ? new MalformedRequestError(message) : undefined;
}
