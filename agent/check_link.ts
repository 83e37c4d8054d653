// The checks of `agent --check-link`: what passes between this machine and its proxies. They connect as an agent does, but with protocols that
// no proxy takes for an agent's. Knows no terminal.
import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { formatHostPort } from "../shared/address/host_port.ts";
import { agentTransport, ALPN, askForStatus, CloseCode, CREDENTIALS_ALPN, TLS_ALPN } from "../shared/link/link.ts";
import { PROBE_ALPN, type ProbeResult, runProbe } from "../shared/link/probe.ts";
import { checkClock } from "../shared/cli/diagnosis.ts";
import type { Finding } from "../shared/cli/findings.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import { printable } from "../shared/net/printable.ts";
import type { AgentSession, SessionKind } from "../shared/net/session.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import { askOutboundProxy } from "./check_outbound_proxy.ts";
import type { Credentials } from "./credentials.ts";
import { closeFailed, explainFailure } from "./connection_errors.ts";
import type { LearnedPins } from "./learned_pins.ts";
import type { AgentOptions } from "./options.ts";
import { type OutboundRoute, RejectedCredentials, viaOf } from "./outbound_proxy.ts";
import { endpointOf, type ProxyEndpoint, withoutZone } from "./proxy_endpoints.ts";
import { explainTimeout } from "./transport/explain_timeout.ts";
import { parseWebSocketUrl, routeTo, type WebSocketUrl } from "./transport/web_socket_url.ts";
import { messageOf } from "../shared/log/error_message.ts";

/** The result of all checks. */
export interface LinkReport {
  readonly findings: readonly Finding[];
  /** Whether the agent can connect to a proxy as it is configured. */
  readonly works: boolean;
  /** One sentence. */
  readonly summary: string;
}

/** The settings and dependencies of the checks. */
export interface CheckContext {
  readonly net: Net;
  readonly options: AgentOptions;
  readonly tls: ClientTls;
  /** Pins that proxies have announced to the agent. Default: none. */
  readonly pins?: LearnedPins;
  readonly credentials: Credentials;
  readonly outbound: OutboundRoute;
  /** Returns the time in milliseconds since 1970. Default: that of the machine. */
  readonly now?: () => number;
}

interface Context extends CheckContext {
  /** A wrong password is sent to an outbound proxy once. */
  readonly rejected: RejectedCredentials;
}

/** Timeouts in milliseconds: for a name, and for a connection with its handshake. */
const NAME_TIMEOUT_MS = 5_000;
const CONNECT_TIMEOUT_MS = 4_000;
/** Maximum number of addresses that are checked of a name. */
const MAX_ADDRESSES = 8;
/** The port that most firewalls let pass. */
const HTTPS_PORT = 443;
const NAMES = { quic: "QUIC (UDP)", tls: "TLS (TCP)", websocket: "WebSocket (HTTP)" } as const;
/** The order in which an agent prefers them, and short names. */
const LINKS = [["quic", "QUIC"], ["tls", "TLS"], ["websocket", "a WebSocket"]] as const;

/**
 * Checks all proxies in parallel; the first behind an outbound proxy before the others, which then do not repeat a password that was rejected.
 * Never rejects for network errors.
 */
export async function checkLink(given: CheckContext): Promise<LinkReport> {
  const context = { ...given, rejected: new RejectedCredentials() };
  const { serverAddress } = context.options.agentClient;
  const first = serverAddress.find((address) => context.outbound.proxyFor(endpointOf(address)));
  const early = first === undefined ? [] : [await checkServer(context, first)];
  const others = serverAddress.filter((address) => address !== first);
  const checked = [...early, ...await Promise.all(others.map((address) => checkServer(context, address)))];
  const findings = [checkConfiguration(context), ...checked.flatMap(({ findings }) => findings)];
  const links = new Set(checked.flatMap(({ links }) => links));
  return { findings, works: links.size > 0, summary: summarize(context, links) };
}

function checkConfiguration(
  { options: { agentClient: { transport } }, credentials: { agentId, expiresAt }, now = Date.now }: CheckContext,
): Finding {
  const target = printable(agentId);
  const common = `the options are valid; transport ${transport}`;
  if (expiresAt === Infinity) return { check: "configuration", target, result: "ok", details: common };
  const details = `${common}; the token expires at ${new Date(expiresAt).toISOString()}`;
  if (expiresAt > now()) return { check: "configuration", target, result: "ok", details };
  return { check: "configuration", target, result: "failed", details, remedy: "create a new token, or set the clock of this machine" };
}

function summarize({ options: { agentClient: { transport } } }: CheckContext, links: ReadonlySet<SessionKind>): string {
  if (links.size === 0) return "The agent cannot connect.";
  if (transport !== "auto") return `The agent can connect: ${NAMES[transport]} works.`;
  const [first, second] = LINKS.filter(([kind]) => links.has(kind)).map(([, name]) => name);
  if (first !== "QUIC") return `The agent can connect: it will use ${first}.`;
  return second === undefined
    ? "The agent can connect over QUIC, but has no TLS to fall back to."
    : `The agent can connect: it will use QUIC, and ${second} where QUIC fails.`;
}

interface Checked {
  readonly findings: readonly Finding[];
  /** The transports that the agent can use. */
  readonly links: readonly SessionKind[];
}

/** The transports over TCP that an agent has. */
function overTcpOf({ agentClient: { websocketUrl } }: AgentOptions): SessionKind[] {
  return websocketUrl === undefined ? ["tls"] : ["tls", "websocket"];
}

/** Checks one address of `--agent-client.server-address`: every address of its name. */
async function checkServer(context: Context, address: string): Promise<Checked> {
  const named = endpointOf(address);
  const at = (host: string): ProxyEndpoint => ({ ...named, address: formatHostPort({ host, port: named.port }), host });
  const isProxied = context.outbound.proxyFor(named) !== undefined;
  const overTcp = overTcpOf(context.options);
  const { addresses, findings } = await resolveName(context.net, named.host, isProxied);
  const checked = await Promise.all([
    ...addresses.map((ip) => checkEndpoint(context, at(ip), isProxied ? ["quic"] : ["quic", ...overTcp])),
    // the outbound proxy resolves the name itself
    ...isProxied ? [checkOutbound(context, named)] : [],
  ]);
  return { findings: [...findings, ...checked.flatMap(({ findings }) => findings)], links: checked.flatMap(({ links }) => links) };
}

/** Checks what passes through the outbound proxy. One connection after the other, so that a wrong password is not sent twice. */
async function checkOutbound(context: Context, endpoint: ProxyEndpoint): Promise<Checked> {
  const proxy = context.outbound.proxyFor(endpoint)!;
  const common = { check: "outbound proxy", target: viaOf(proxy)! };
  try {
    const details = `reachable; ${await askOutboundProxy(context.net, proxy, endpoint.address)}`;
    const { findings, links } = await checkEndpoint(context, endpoint, overTcpOf(context.options));
    return { findings: [{ ...common, result: "ok", details }, ...findings], links };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    const remedy = "correct --agent-client.proxy or HTTPS_PROXY, or connect directly with --agent-client.proxy=none";
    return { findings: [{ ...common, result: "failed", details: error.message, remedy }], links: [] };
  }
}

async function resolveName(net: Net, host: string, isProxied: boolean): Promise<{ addresses: string[]; findings: Finding[] }> {
  if (isIP(withoutZone(host)) !== 0) return { addresses: [host], findings: [] };
  const common = { check: "name", target: host };
  try {
    const all = [...new Set(await net.resolve(host, { timeoutMs: NAME_TIMEOUT_MS, isConfigured: true }))];
    const addresses = all.slice(0, MAX_ADDRESSES);
    const more = all.length > MAX_ADDRESSES ? `, and ${all.length - MAX_ADDRESSES} more, which are not checked` : "";
    return { addresses, findings: [{ ...common, result: "ok", details: `${addresses.join(", ")}${more}` }] };
  } catch (error) {
    if (isProxied) {
      const details = `${messageOf(error)}; the outbound proxy may know it, but QUIC is not possible without`;
      return { addresses: [], findings: [{ ...common, result: "note", details }] };
    }
    const remedy = error instanceof NetError && error.code === "name-timed-out"
      ? "allow this machine to reach its name servers, or use the proxy's address"
      : "correct the name in --agent-client.server-address, or add it to the name server";
    return { addresses: [], findings: [{ ...common, result: "failed", details: messageOf(error), remedy }] };
  }
}

/** Checks the transports of one endpoint, and the credentials over the first that works. */
async function checkEndpoint(context: Context, endpoint: ProxyEndpoint, kinds: readonly SessionKind[]): Promise<Checked> {
  const isProxied = context.outbound.proxyFor(endpoint) !== undefined;
  const check = (kind: SessionKind) => checkTransport(context, endpoint, kind);
  const inTurn: Awaited<ReturnType<typeof check>>[] = [];
  if (isProxied) { for (const kind of kinds) inTurn.push(await check(kind)); }
  const isHttpsChecked = kinds.includes("tls") && endpoint.port !== HTTPS_PORT;
  const [https, ...parallel] = await Promise.all([
    isHttpsChecked ? checkHttpsPort(context, endpoint) : [],
    ...isProxied ? [] : kinds.map(check),
  ]);
  const checked = [...inTurn, ...parallel];
  const { transport } = context.options.agentClient;
  const works = checked.filter(({ works }) => works).map(({ kind }) => kind);
  const links = works.filter((kind) => transport === "auto" || transport === kind);
  const [first] = links.length > 0 ? links : works;
  const credentials = first === undefined ? [] : await checkCredentials(context, endpoint, first);
  return {
    findings: [...checked.flatMap(({ findings }) => findings), ...https, ...credentials],
    links: credentials.some(({ check, result }) => check === CREDENTIALS && result === "failed") ? [] : links,
  };
}

function urlOf({ agentClient: { websocketUrl } }: AgentOptions): WebSocketUrl | undefined {
  return websocketUrl === undefined ? undefined : parseWebSocketUrl(websocketUrl);
}

async function connect(
  { net, options, tls, pins, outbound, rejected }: Context,
  endpoint: ProxyEndpoint,
  kind: SessionKind,
  alpn: string[],
): Promise<AgentSession> {
  const { host, port, serverName } = endpoint;
  const common = { host, port, serverName, tls: pins?.extend(endpoint.address, tls) ?? tls, alpn, timeoutMs: CONNECT_TIMEOUT_MS };
  const transport = agentTransport(0);
  if (kind !== "quic") {
    const { server, webSocket } = routeTo(endpoint, kind, urlOf(options));
    const outboundProxy = outbound.proxyFor(server);
    const wanted = { ...common, host: server.host, port: server.port, transport, webSocket, outboundProxy };
    return await rejected.connect(outboundProxy, () => net.connectTlsLink(wanted));
  }
  const attempt = net.connectQuic({ ...common, transport: { ...transport, congestion: options.agentClient.congestionControl } });
  return await explainTimeout(net, silentLogger, endpoint, attempt);
}

/** Connects and moves data. A proxy without probes chooses the agents' protocol, and then only the handshake is checked. */
async function checkTransport(
  context: Context,
  endpoint: ProxyEndpoint,
  kind: SessionKind,
): Promise<{ kind: SessionKind; works: boolean; findings: Finding[] }> {
  const target = kind === "websocket" ? context.options.agentClient.websocketUrl ?? "" : endpoint.address;
  const common = { check: NAMES[kind], target };
  const start = performance.now();
  let session;
  try {
    session = await connect(context, endpoint, kind, [PROBE_ALPN, ...kind === "quic" ? ALPN : TLS_ALPN]);
  } catch (error) {
    return { kind, works: false, findings: [{ ...common, result: "failed", ...explain(context, endpoint, kind, error) }] };
  }
  const via = kind === "quic" ? undefined : viaOf(context.outbound.proxyFor(routeTo(endpoint, kind, urlOf(context.options)).server));
  const handshake = `handshake in ${milliseconds(performance.now() - start)}${via === undefined ? "" : ` via ${via}`}`;
  const details = `${handshake}; ${describeTrust(context, session)}`;
  const data = { check: `${NAMES[kind].split(" ")[0]} data`, target };
  if (session.alpn !== PROBE_ALPN) {
    session.close(CloseCode.shutdown, "");
    const note = "not checked: this proxy does not answer probes; it is another version";
    return { kind, works: true, findings: [{ ...common, result: "ok", details }, { ...data, result: "note", details: note }] };
  }
  try {
    const findings: Finding[] = [
      { ...common, result: "ok", details },
      { ...data, result: "ok", details: describeProbe(await runProbe(session)) },
    ];
    return { kind, works: true, findings };
  } catch (error) {
    const failed = explain(context, endpoint, kind, await closeFailed(session, error));
    return { kind, works: false, findings: [{ ...common, result: "ok", details }, { ...data, result: "failed", ...failed }] };
  }
}

function describeProbe({ durationMs, stats: { rttMs, mtu } }: ProbeResult): string {
  const path = mtu === undefined ? "" : `; path MTU at least ${mtu} bytes of UDP payload`;
  return `64 KiB each way in ${milliseconds(durationMs)}; round trip ${milliseconds(rttMs)}${path}`;
}

/** Who answered, and why the agent trusts it. */
function describeTrust({ options: { agentClient: { tls } } }: CheckContext, { peerCertificate }: AgentSession): string {
  const trust = tls.insecureSkipVerify
    ? "not verified: --agent-client.tls.insecure-skip-verify"
    : tls.file.rootCa !== undefined
    ? "issued by an authority of --agent-client.tls.file.root-ca"
    : "issued by an authority of this system";
  const isPinned = (tls.pinSha256 ?? []).length > 0;
  const why = !isPinned ? trust : tls.file.rootCa === undefined ? "the pin matches" : `${trust}; the pin matches`;
  return `certificate of ${peerCertificate === undefined ? "an unknown server" : describeCertificate(peerCertificate)}: ${why}`;
}

function describeCertificate(der: Uint8Array): string {
  try {
    const { subject, issuer } = new X509Certificate(der);
    const name = (text: string | undefined) => JSON.stringify(printable((text ?? "").replaceAll("\n", ", "), 128));
    return `${name(subject)} from ${name(issuer)}`;
  } catch {
    return "an unknown format"; // the network has verified its signature, but another library reads it here
  }
}

/** Whether port 443 leads to the proxy's agents too; it passes most firewalls. */
async function checkHttpsPort(context: Context, { host, serverName }: ProxyEndpoint): Promise<Finding[]> {
  const endpoint: ProxyEndpoint = { address: formatHostPort({ host, port: HTTPS_PORT }), host, port: HTTPS_PORT, serverName };
  const note = (details: string): Finding[] => [{ check: "port 443 (TCP)", target: endpoint.address, result: "note", details }];
  try {
    const session = await connect(context, endpoint, "tls", [PROBE_ALPN, ...TLS_ALPN]);
    session.close(CloseCode.shutdown, "");
    return note("the proxy takes agents here too");
  } catch (error) {
    const isOpen = error instanceof NetError && ["tls", "reset", "closed"].includes(error.code);
    if (isOpen) return note(`TCP passes, but this is not the proxy's port for agents: ${error.message}`);
    return note(`not reachable: ${messageOf(error)}`);
  }
}

const CREDENTIALS = "credentials";

/** Asks the proxy whether it accepts the credentials, without becoming its agent, and compares version and clock. */
async function checkCredentials(context: Context, endpoint: ProxyEndpoint, kind: SessionKind): Promise<Finding[]> {
  const { credentials, now = Date.now } = context;
  const target = endpoint.address;
  const common = { check: CREDENTIALS, target };
  let session;
  try {
    session = await connect(context, endpoint, kind, [CREDENTIALS_ALPN, ...kind === "quic" ? ALPN : TLS_ALPN]);
  } catch (error) {
    return [{ ...common, result: "failed", ...explain(context, endpoint, kind, error) }];
  }
  if (session.alpn !== CREDENTIALS_ALPN) {
    session.close(CloseCode.shutdown, "");
    return [{
      ...common,
      result: "note",
      details: "not checked: this proxy checks them only when an agent connects; it is another version",
    }];
  }
  try {
    const status = await askForStatus(session, credentials.bytes);
    session.close(CloseCode.shutdown, "");
    const accepted: Finding = { ...common, result: "ok", details: `accepted over ${NAMES[kind]}` };
    if (status === undefined) return [accepted];
    return [accepted, checkClock(target, status.time, now()), { check: "proxy", target, result: "ok", details: status.version }];
  } catch (error) {
    return [{ ...common, result: "failed", ...explain(context, endpoint, kind, await closeFailed(session, error)) }];
  }
}

/** Details and remedy of a failure. */
function explain(
  { options }: CheckContext,
  { address }: ProxyEndpoint,
  kind: SessionKind,
  error: unknown,
): Pick<Finding, "details" | "code"> & { remedy: string } {
  const { reason, remedy } = explainFailure(error, address, { ...options, agentClient: { ...options.agentClient, transport: kind } });
  const { code, cause } = error instanceof NetError ? error : {};
  const known = { code: cause instanceof NetError && code === "timed-out" ? cause.code : code };
  const isForeign = code === "tls" && /UnknownIssuer|is not the pinned one/.test(reason);
  const inspection = `if the issuer is not the proxy's, a middlebox inspects TLS: let it pass ${address} unchanged`;
  if (isForeign) return { ...known, details: reason, remedy: `${remedy}; ${inspection}` };
  return {
    ...known,
    details: reason,
    remedy: remedy ?? (code === "tls" ? OTHER_SERVER : `${FIREWALL[kind]} to ${address}, and start the proxy there`),
  };
}

const OTHER_SERVER = "use the address of --agent-server.listen-address of the proxy: another server may have answered";
const FIREWALL = { quic: "allow UDP in firewalls", tls: "allow TCP in firewalls", websocket: "allow WebSockets in middleboxes" } as const;

function milliseconds(ms: number): string {
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}
