// Opens a tunnel: by CONNECT (RFC 9110 §9.3.6) at any proxy, and for UDP by CONNECT-UDP (RFC 9298).
import { execFile } from "node:child_process";
import { type Authority, formatAuthority, formatDestination, type Network, parseAuthority } from "../shared/address/authority.ts";
import { type ClientCredentials, usernameOf } from "../shared/auth/authenticator.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { formatProxyAuthorization } from "../shared/frontend/http/credentials.ts";
import { encodeUdpRequest, isUdpEstablished, isWithoutUdp } from "../shared/http/connect_udp.ts";
import { encodeHead, type Fields, HeadError, type ResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus } from "../shared/http/proxy_status.ts";
import { readResponse } from "../shared/http/read_response.ts";
import { messageOf } from "../shared/log/error_message.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import { printable } from "../shared/net/printable.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import { openClientTls, refuseWithoutTls } from "../shared/tls/reloadable_tls.ts";
import { MalformedRequestError } from "../shared/tunnel/errors.ts";
import type { ClientOptions } from "./options.ts";
import { ProxyConnections } from "./proxy_connections.ts";
import { checkSessionOptions, readSessionToken } from "./session.ts";
import { TunnelFailure, type TunnelFailureKind } from "./tunnel_failure.ts";

/** @throws {ConfigError} */
export function parseDestination(text: string): Authority {
  try {
    return parseAuthority(text);
  } catch (cause) {
    if (!(cause instanceof MalformedRequestError)) throw cause;
    const why = cause.message.replace(/^The target/, "it").replace(/^it's/, "its");
    throw new ConfigError(`Cannot use the destination ${JSON.stringify(text)}: ${why}`, { cause });
  }
}

/** Checks for required options and for options that exclude each other. */
export type Access = ClientOptions & { readonly proxy: string };

/** @throws {ConfigError} for missing options, and for those that depend on another */
export function checkAccess(options: ClientOptions): Access {
  const { proxy, tls, token, tokenCommand, issuer } = options;
  const given = [["token", token], ["token-command", tokenCommand], ["issuer", issuer]].flatMap(([name, value]) =>
    value ? [`--${name}`] : []
  );
  if (given.length > 1) throw new ConfigError(`Cannot use both ${given.slice(0, 2).join(" and ")}: set only one`);
  checkSessionOptions(options);
  if (proxy === undefined) throw new ConfigError("Cannot connect: --proxy is required, or a profile, which reverse-http login creates");
  if (!tls.enable) {
    refuseWithoutTls("tls", tls);
    if (tls.pinSha256.length > 0) throw new ConfigError("Cannot use --tls.pin-sha256: --tls.enable is not set");
  }
  return { ...options, proxy };
}

export interface OpenOptions {
  /** Default `tcp`. With `udp` the stream carries capsules (RFC 9297). */
  readonly network?: Network;
  /** Cancels with `cancelled`. Default: only the timeout ends it. */
  readonly signal?: AbortSignal;
  /** Those that the tunnels share. Default: those of this tunnel. */
  readonly connections?: ProxyConnections;
}

/**
 * Opens a tunnel to `destination`. Token and certificates are read each time.
 * @throws {TunnelFailure}
 * @throws {ConfigError} for a file that cannot be used
 * @throws {NetError} `cancelled`
 */
export async function openTunnel(
  net: Net,
  access: Access,
  destination: Authority,
  { network = "tcp", signal, connections = new ProxyConnections(net) }: OpenOptions = {},
): Promise<Duplex> {
  const deadline = performance.now() + access.connectTimeout;
  const head = encodeRequest(access, destination, network, await readCredentials(access));
  const attempt = async () => {
    const stream = await connectToProxy(net, access, { signal, connections });
    return await requestTunnel(stream, head, access, { destination, network, deadline, signal });
  };
  try {
    return await attempt();
  } catch (error) {
    // the proxy has closed the connection that others had opened before, and has not processed the request (RFC 9113 §6.8)
    if (!(access.http2 && error instanceof TunnelFailure && error.cause instanceof NetError && error.cause.code === "closed")) throw error;
    return await attempt();
  }
}

interface TunnelRequest {
  readonly destination: Authority;
  readonly network: Network;
  /** As of `performance.now()`. */
  readonly deadline: number;
  readonly signal?: AbortSignal;
}

/** Sends the request, and reads the response. The stream is closed if there is no tunnel. */
async function requestTunnel(
  stream: Duplex,
  head: Uint8Array,
  access: Access,
  { destination, network, deadline, signal }: TunnelRequest,
): Promise<Duplex> {
  const abort = () => stream.reset(1);
  signal?.addEventListener("abort", abort, { once: true });
  try {
    await stream.write(head);
    const response = await readResponse(stream, Math.max(1, deadline - performance.now()), "--tls.enable");
    if (network === "udp" && isWithoutUdp(response)) throw new TunnelFailure("proxy", `The proxy ${access.proxy} relays no UDP`);
    const isOpen = network === "udp" ? isUdpEstablished(response) : response.status >= 200 && response.status <= 299;
    if (!isOpen) throw refusalOf(response, formatDestination(destination, network));
    return stream;
  } catch (cause) {
    stream.reset(1);
    stream.close();
    if (signal?.aborted) throw new NetError("cancelled", "The tunnel was cancelled before it was open", { cause });
    if (!(cause instanceof NetError || cause instanceof HeadError)) throw cause;
    throw new TunnelFailure("proxy", `The proxy ${access.proxy} gave no response to CONNECT: ${cause.message}`, { cause });
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Connects to the proxy.
 * @throws {TunnelFailure} `proxy`
 * @throws {ConfigError} for a file that cannot be used
 * @throws {NetError} `cancelled`
 */
export async function connectToProxy(
  net: Net,
  { proxy, tls, http2, connectTimeout }: Access,
  { signal, connections = new ProxyConnections(net) }: Pick<OpenOptions, "signal" | "connections"> = {},
): Promise<Duplex> {
  const settings = await readTls(net, tls);
  try {
    return await connections.connect({ proxy, tls: settings, http2, connectTimeout, signal });
  } catch (cause) {
    if (!(cause instanceof NetError) || signal?.aborted) throw cause;
    throw new TunnelFailure("proxy", `The proxy ${proxy} cannot be reached: ${cause.message}`, { cause });
  }
}

/** Connects to the proxy, and reports why it cannot: a listener is no proof that anything is behind it. Never rejects. */
export async function reportUnreachableProxy(
  net: Net,
  access: () => Access,
  connections: ProxyConnections,
  report: (why: string) => void,
): Promise<void> {
  try {
    (await connectToProxy(net, access(), { connections })).close();
  } catch (error) {
    report(messageOf(error));
  }
}

/**
 * Reads the files that a connection needs.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function checkFiles(net: Net, access: Access): Promise<void> {
  await readCredentials(access);
  await readTls(net, access.tls);
}

/**
 * The settings of TLS; `undefined` without.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function readTls(net: Net, options: ClientOptions["tls"]): Promise<ClientTls | undefined> {
  if (!options.enable) return undefined;
  return (await openClientTls("tls", options, { log: silentLogger, net })).current;
}

function encodeRequest(
  { proxy }: Access,
  destination: Authority,
  network: Network,
  credentials: ClientCredentials | undefined,
): Uint8Array {
  const authority = network === "udp" ? proxy : formatAuthority(destination);
  const fields: Fields = [
    ["Host", authority],
    ...credentials ? [["Proxy-Authorization", formatProxyAuthorization(credentials)] as const] : [],
  ];
  if (network === "udp") return encodeUdpRequest(destination, fields);
  return encodeHead(`CONNECT ${authority} HTTP/1.1`, [...fields, ["Proxy-Connection", "keep-alive"]]);
}

const FILE = "file:";

/**
 * Reads the client's credentials. Without a token, the password is any text: the Go version needs one.
 * @throws {ConfigError} for a file or a command that gives no token
 * @throws {TunnelFailure} `denied` if there is no valid token of the issuer
 */
export async function readCredentials(access: Access): Promise<ClientCredentials | undefined> {
  const { agentId, token, tokenCommand, connectTimeout } = access;
  const text = access.issuer !== undefined
    ? await readSessionToken(access)
    : tokenCommand !== undefined
    ? await runTokenCommand(tokenCommand, connectTimeout)
    : token?.startsWith(FILE)
    ? await readToken(token.slice(FILE.length))
    : token;
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
  if (!isToken(text)) throw new ConfigError(`Cannot use --token ${FILE}${file}: it has no token, or more than one word`);
  return text;
}

/**
 * Runs the command with the shell, and returns the token that it prints. Its output appears in no error.
 * @throws {ConfigError}
 */
async function runTokenCommand(command: string, timeoutMs: number): Promise<string> {
  const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --token-command: ${why}`, { cause });
  const text = await new Promise<string>((resolve, reject) => {
    execFile("/bin/sh", ["-c", command], { timeout: timeoutMs, maxBuffer: MAX_TOKEN, encoding: "utf8" }, (error, stdout) => {
      if (error === null) return resolve(stdout.trim());
      const { code, killed } = error;
      if (String(code) === "ERR_CHILD_PROCESS_STDIO_MAXBUFFER") return reject(fail(`it prints more than ${MAX_TOKEN} bytes`));
      reject(
        fail(
          killed
            ? `it took longer than ${timeoutMs} ms`
            : typeof code === "number"
            ? `it ended with ${code}`
            : `it was stopped by a signal`,
        ),
      );
    });
  });
  if (!isToken(text)) throw fail("it prints no token, or more than one word");
  return text;
}

/** Other text than a token would break the head, and must not be shown. */
function isToken(text: string): boolean {
  return /^[\x21-\x7e]+$/.test(text);
}

/** The error of the proxy's response. */
function refusalOf({ status, reason, fields }: ResponseHead, destination: string): TunnelFailure {
  const { error, details } = parseProxyStatus(fields);
  const [id] = values(fields, "x-request-id");
  const text = details ?? printable(reason, MAX_REASON);
  const notes = [String(status), error, id && `request ${printable(id, MAX_REASON)}`].filter(Boolean).join(", ");
  const message = `${text.includes(destination) ? "" : `${destination}: `}${text} (${notes})`;
  return new TunnelFailure(kindOf(status, error, details), message, { errorType: error, status });
}

/** Longest reason that is shown, in characters. */
const MAX_REASON = 200;

function kindOf(status: number, error: string | undefined, details = ""): TunnelFailureKind {
  if (status === 407 || status === 403 || status === 401) return "denied";
  if (error === "connection_refused") return "refused";
  // proxy and lb send this message; other errors of this type are about the destination
  if (error === "destination_unavailable" && details.startsWith("The agent is not connected")) return "no-agent";
  return status === 400 || status === 405 ? "proxy" : "unreachable";
}
