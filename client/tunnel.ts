// Opens a tunnel by CONNECT (RFC 9110 §9.3.6) over HTTP/1.1, at any proxy.
import { type Authority, formatAuthority } from "../shared/address/authority.ts";
import { splitHostPort } from "../shared/address/host_port.ts";
import { type ClientCredentials, usernameOf } from "../shared/auth/authenticator.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { formatProxyAuthorization } from "../shared/frontend/http_credentials.ts";
import { encodeHead, HeadError, type ResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus } from "../shared/http/proxy_status.ts";
import { readResponse } from "../shared/http/read_response.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { NetError } from "../shared/net/errors.ts";
import { printable } from "../shared/net/printable.ts";
import type { ClientTls, Duplex, Net } from "../shared/net/types.ts";
import { openClientTls, refuseWithoutTls } from "../shared/tls/reloadable_tls.ts";
import type { ClientOptions } from "./options.ts";

/**
 * Why there is no tunnel. `proxy`: the proxy cannot be reached, or is none. `denied`: the credentials or the destination are not allowed.
 * `no-agent`: the agent is not connected. `refused`: nothing listens at the destination. `unreachable`: it cannot be reached, or its name
 * cannot be resolved.
 */
export type TunnelFailureKind = "proxy" | "denied" | "no-agent" | "refused" | "unreachable";

/** There is no tunnel. The message is one line, without secrets. */
export class TunnelFailure extends Error {
  override readonly name = "TunnelFailure";
  constructor(readonly kind: TunnelFailureKind, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** The options that are needed, and those that exclude others. */
export type Access = ClientOptions & { readonly proxy: string };

/** @throws {ConfigError} for missing options, and for those that depend on another */
export function checkAccess(options: ClientOptions): Access {
  const { proxy, tls } = options;
  if (proxy === undefined) throw new ConfigError("Cannot connect: --proxy is required, or proxy in the profile");
  if (!tls.enable) {
    refuseWithoutTls("tls", tls);
    if (tls.pinSha256.length > 0) throw new ConfigError("Cannot use --tls.pin-sha256: --tls.enable is not set");
  }
  return { ...options, proxy };
}

/**
 * Opens a tunnel to `destination`. Token and certificates are read each time.
 * @throws {TunnelFailure}
 * @throws {ConfigError} for a file that cannot be used
 */
export async function openTunnel(net: Net, access: Access, destination: Authority): Promise<Duplex> {
  const deadline = performance.now() + access.connectTimeout;
  const head = encodeRequest(destination, await readCredentials(access));
  const stream = await connectToProxy(net, access);
  try {
    await stream.write(head);
    const response = await readResponse(stream, Math.max(1, deadline - performance.now()), "--tls.enable");
    if (response.status < 200 || response.status > 299) throw refusalOf(response, destination);
    return stream;
  } catch (cause) {
    stream.reset(1);
    stream.close();
    if (!(cause instanceof NetError || cause instanceof HeadError)) throw cause;
    throw new TunnelFailure("proxy", `The proxy ${access.proxy} gave no response to CONNECT: ${cause.message}`, { cause });
  }
}

/**
 * Connects to the proxy.
 * @throws {TunnelFailure} `proxy`
 * @throws {ConfigError} for a file that cannot be used
 */
export async function connectToProxy(net: Net, { proxy, tls, connectTimeout }: Access): Promise<Duplex> {
  const settings = tls.enable ? await readTls(net, tls) : undefined;
  try {
    return await net.connectTcp({ ...splitHostPort(proxy), timeoutMs: connectTimeout, tls: settings });
  } catch (cause) {
    if (!(cause instanceof NetError)) throw cause;
    throw new TunnelFailure("proxy", `The proxy ${proxy} cannot be reached: ${cause.message}`, { cause });
  }
}

/**
 * Reads the files that a connection needs.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function checkFiles(net: Net, access: Access): Promise<void> {
  await readCredentials(access);
  if (access.tls.enable) await readTls(net, access.tls);
}

async function readTls(net: Net, options: ClientOptions["tls"]): Promise<ClientTls> {
  return (await openClientTls("tls", options, { log: silentLogger, net })).current;
}

function encodeRequest(destination: Authority, credentials: ClientCredentials | undefined): Uint8Array {
  const authority = formatAuthority(destination);
  return encodeHead(`CONNECT ${authority} HTTP/1.1`, [
    ["Host", authority],
    ...credentials ? [["Proxy-Authorization", formatProxyAuthorization(credentials)] as const] : [],
    ["Proxy-Connection", "keep-alive"],
  ]);
}

const FILE = "file:";

/** Without a token, the password is any text: the Go version needs one. */
async function readCredentials({ agentId, token }: Access): Promise<ClientCredentials | undefined> {
  const text = token?.startsWith(FILE) ? await readToken(token.slice(FILE.length)) : token;
  if (agentId !== undefined) return { scheme: "basic", username: usernameOf(agentId), password: text ?? "x" };
  return text === undefined ? undefined : { scheme: "bearer", token: text };
}

/** @throws {ConfigError} */
async function readToken(file: string): Promise<string> {
  let text;
  try {
    text = (await readText(file, MAX_TOKEN)).trim();
  } catch (cause) {
    throw new ConfigError(`Cannot read --token ${FILE}${file}: ${describeFileError(cause)}`, { cause });
  }
  // what is no token would break the head, and must not be shown
  if (!/^[\x21-\x7e]+$/.test(text)) throw new ConfigError(`Cannot use --token ${FILE}${file}: it has no token, or more than one word`);
  return text;
}

/** The error of the proxy's response. */
function refusalOf({ status, reason, fields }: ResponseHead, destination: Authority): TunnelFailure {
  const { error, details } = parseProxyStatus(fields);
  const [id] = values(fields, "x-request-id");
  const text = details ?? printable(reason, MAX_REASON);
  const subject = formatAuthority(destination);
  const notes = [String(status), error, id && `request ${printable(id, MAX_REASON)}`].filter(Boolean).join(", ");
  const message = `${text.includes(subject) ? "" : `${subject}: `}${text} (${notes})`;
  return new TunnelFailure(kindOf(status, error, details), message);
}

/** Longest reason that is shown, in characters. */
const MAX_REASON = 200;

function kindOf(status: number, error: string | undefined, details = ""): TunnelFailureKind {
  if (status === 407 || status === 403 || status === 401) return "denied";
  if (error === "connection_refused") return "refused";
  // the message of proxy and lb: other causes of that type are the destination's
  if (error === "destination_unavailable" && details.startsWith("The agent is not connected")) return "no-agent";
  return status === 400 || status === 405 ? "proxy" : "unreachable";
}
