// Clients of forwards: each connection, or UDP peer, is relayed to the destination that the operator has configured for its listener, or for
// the server name in its ClientHello. Without names the tunnel does not wait for the client's first byte: many servers speak first.
import { type AllowList, createAllowList } from "../address/allow_list.ts";
import { parseAuthority } from "../address/authority.ts";
import { type ClientCredentials, type Identity, usernameOf } from "../auth/authenticator.ts";
import { MAX_TOKEN } from "../auth/token.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { SecretFiles } from "../files/secret_files.ts";
import { hostOf } from "../limits/addresses.ts";
import type { Logger } from "../log/logger.ts";
import type { NetError } from "../net/errors.ts";
import { printable } from "../net/printable.ts";
import { CredentialsError, MalformedRequestError, TunnelError } from "../tunnel/errors.ts";
import type { ClientProtocol } from "./client_protocol.ts";
import { warnOfOpenForward } from "./exposure.ts";
import { type Forward, type ForwardGroup, groupForwards } from "./forwards.ts";
import { encodeProxyHeader } from "./proxy_header.ts";
import type { ClientSession } from "./pipeline.ts";
import type { ServiceFrontend } from "./service_frontend.ts";

/**
 * The protocol of a listener of forwards. Who is refused gets a reset, as there is no response that its client would understand; or an alert,
 * if it asks for an unknown server over TLS.
 */
export function createStaticForward(group: ForwardGroup): ClientProtocol {
  const allowed = new Map(group.forwards.map((forward) => [forward, createAllowList(forward.allow)]));
  return {
    preamble: group.isByName ? "client-hello" : "none",
    open: (session) => ({
      serve: async ({ serverName, local = UNKNOWN_ADDRESS }) => {
        session.record.method = METHOD;
        session.record.serverName = serverName;
        session.checkRate();
        const match = group.match(serverName);
        if (match === undefined) throw new UnknownServerError(serverName);
        await serve(session, match.forward, { allowed: allowed.get(match.forward)!, local });
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
}

/** @throws {TunnelError} */
async function serve(session: ClientSession, forward: Forward, { allowed, local }: ServeOptions): Promise<void> {
  const { record, stream } = session;
  const { agent, network, to, proxyProtocol } = forward;
  record.network = network === "udp" ? network : undefined;
  record.destination = to;
  if (!allowed.allows({ host: hostOf(record.client), port: 1 })) {
    throw new TunnelError("http_request_denied", `The client's address is not on the list allow of the forward ${forward.listen}`);
  }
  const credentials = await readCredentials(forward);
  const identity = await identify(session, forward, credentials);
  record.agent = agent;
  // the relay sends it first, even if the client says nothing: the destination waits for it
  if (proxyProtocol !== "none") stream.unread(encodeProxyHeader(proxyProtocol, record.client, local));
  await session.connect({ identity, credentials, destination: parseAuthority(to), network });
}

/** Stands for a connection of a forward in the log. */
const METHOD = "FORWARD";

/**
 * The credentials for the next hop: a token where the forward has one.
 * @throws {TunnelError} if the file cannot be read
 */
async function readCredentials({ agent, tokenFile }: Forward): Promise<ClientCredentials> {
  const username = usernameOf(agent);
  if (tokenFile === undefined) return { scheme: "basic", username, password: "" };
  try {
    return { scheme: "basic", username, password: await readToken(tokenFile) };
  } catch (cause) {
    throw new TunnelError("proxy_configuration_error", "The token of the forward cannot be read", { cause });
  }
}

/** @throws {Error} saying why, without the token */
async function readToken(file: string): Promise<string> {
  let text;
  try {
    text = (await readText(file, MAX_TOKEN)).trim();
  } catch (cause) {
    throw new Error(`${file}: ${describeFileError(cause)}`, { cause });
  }
  if (text === "") throw new Error(`${file}: the file is empty`);
  return text;
}

/** Without a token the operator vouches for the client, who has nothing to show. */
async function identify(session: ClientSession, { agent, tokenFile }: Forward, credentials: ClientCredentials): Promise<Identity> {
  if (tokenFile === undefined) return { agentId: agent };
  const identity = await session.identify(credentials, { isOperators: true });
  if (identity.agentId !== agent) throw new CredentialsError(`The token of the forward is not for the agent ${agent}`);
  return identity;
}

/** What can be malformed is a load balancer's PROXY header and a ClientHello. */
function refusalOf({ code, message }: NetError): TunnelError | undefined {
  return ["head-malformed", "head-truncated", "head-timeout", "not-tls"].includes(code) ? new MalformedRequestError(message) : undefined;
}

export interface CheckForwards {
  /** The scheme that verifies tokens; `undefined` if the embedding program brings its own. */
  readonly authType?: string;
  /** Whether the next hop asks for credentials, as proxies ask lb. */
  readonly isAuthenticatedAgain: boolean;
}

/**
 * Checks the files of the forwards, and that each has the token that it needs.
 * @throws {ConfigError}
 */
export async function checkForwards(forwards: readonly Forward[], { authType, isAuthenticatedAgain }: CheckForwards): Promise<void> {
  for (const { listen, agent, tokenFile } of forwards) {
    const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --forward listen=${listen}: ${why}`, { cause });
    if (tokenFile === undefined) {
      if (!isAuthenticatedAgain || authType !== "jwt") continue;
      throw fail(`with --auth.type=jwt it needs token-file, a file with a client's token for the agent ${agent}`);
    }
    if (authType === "noauth") throw fail("token-file: no token is verified without --auth.type=jwt");
    await readToken(tokenFile).catch((cause: Error) => {
      throw fail(`token-file: ${cause.message}`, cause);
    });
  }
}

/**
 * Opens the listeners of the forwards. Returns the bound addresses, in the order of the forwards.
 * @throws {NetError} as `listenTcp` and `listenUdp` of the network
 */
export async function listenForForwards(clients: ServiceFrontend, forwards: readonly Forward[], log: Logger): Promise<string[]> {
  const [bound, secrets] = [new Map<Forward, string>(), new SecretFiles(log)];
  for (const group of groupForwards(forwards)) {
    const listen = { address: group.listen, protocol: createStaticForward(group) };
    const { address } = group.network === "udp" ? await clients.listenUdp(listen) : await clients.listen(listen);
    for (const forward of group.forwards) {
      const { agent, network, to, sni, allow, tokenFile } = forward;
      bound.set(forward, address);
      log.info("forwarding", {
        clients: address,
        network: network === "udp" ? network : undefined,
        servers: sni.length > 0 ? sni.join(",") : undefined,
        agent,
        destination: to,
      });
      if (allow.length === 0) warnOfOpenForward(log, address, forward);
      if (tokenFile !== undefined) await secrets.check("the token of a forward", tokenFile);
    }
  }
  return forwards.map((forward) => bound.get(forward)!);
}
