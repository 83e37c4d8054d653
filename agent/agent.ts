// The agent: keeps one connection to the proxy, serves what comes through it, and comes back when it is lost.
import { setTimeout as sleep } from "node:timers/promises";
import { createAllowList } from "../shared/allow_list.ts";
import { checkAgentId } from "../shared/auth/authenticator.ts";
import { Backoff } from "../shared/backoff.ts";
import { ConfigError } from "../shared/cli/option.ts";
import { AGENT_TRANSPORT, ALPN, authenticate, CloseCode } from "../shared/link/link.ts";
import { type Logger, silentLogger } from "../shared/log.ts";
import { NetError } from "../shared/net/errors.ts";
import { openClientTls, refreshTls, type TlsFiles } from "../shared/tls/files.ts";
import type { ClientTls, Net, QuicClosed, QuicConnection } from "../shared/net/types.ts";
import type { AgentOptions } from "./options.ts";
import { serveTunnel, type TunnelOptions } from "./tunnel.ts";

/** What the agent is given besides its options. */
export interface AgentDeps {
  net: Net;
  log: Logger;
  /** The wait between attempts. Default 0.5 s to 30 s. */
  backoff?: Backoff;
  /** Milliseconds that a connection must have lived for the next wait to be the shortest again. Default 30000. */
  settledAfterMs?: number;
  /** The proxy has accepted the agent. */
  onConnected?: (proxy: { remote: string }) => void;
  onDisconnected?: (proxy: { remote: string; reason: string }) => void;
}

/** A running agent. */
export interface Agent {
  /** Address of the proxy it is connected to. */
  readonly proxy: string | undefined;
  /** Tells the proxy and ends every tunnel. */
  close(): Promise<void>;
}

/** Longest handshake in milliseconds. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
/** Below the proxy's default dial-timeout of 10 s, so that the client hears of the agent's time-out rather than of the proxy's. */
const CONNECT_TIMEOUT_MS = 9_000;

/**
 * Starts an agent. Resolves at once: it goes on connecting until it is closed.
 * @throws {ConfigError} for options that cannot be used
 */
export async function startAgent(options: AgentOptions, deps: AgentDeps): Promise<Agent> {
  const { log } = deps;
  const agentId = await checkAgentOptions(options);
  const tls = await openClientTls("agent-client.tls", options.agentClient.tls, log);
  const stopping = new AbortController();
  const tunnels: TunnelOptions = {
    net: deps.net,
    log,
    allowList: createAllowList(options.agentClient.hostWhitelist),
    connectTimeoutMs: CONNECT_TIMEOUT_MS,
  };
  let current: QuicConnection | undefined;

  const session = async (): Promise<{ remote: string; livedMs: number; closed: QuicClosed }> => {
    const connection = await connect(options, deps.net, tls, agentId, stopping.signal);
    current = connection;
    if (stopping.signal.aborted) connection.close(CloseCode.shutdown, "shutting down");
    const { remote } = connection;
    log.info("connected", { proxy: remote, agent: agentId });
    deps.onConnected?.({ remote });
    const start = performance.now();
    for (let batch; (batch = await connection.acceptRequests()) !== null;) {
      for (const incoming of batch) void serveTunnel(tunnels, incoming); // never rejects
    }
    const closed = await connection.closed;
    current = undefined;
    return { remote, livedMs: performance.now() - start, closed };
  };

  const run = async (): Promise<void> => {
    const backoff = deps.backoff ?? new Backoff();
    while (!stopping.signal.aborted) {
      let reason;
      try {
        const { remote, livedMs, closed } = await session();
        const replaced = closed.remote && closed.code === CloseCode.replaced;
        // two agents with one id must not take each other's place for ever: who was replaced waits longer each time
        if (livedMs >= (deps.settledAfterMs ?? 30_000) && !replaced) backoff.reset();
        reason = describeEnd(closed);
        deps.onDisconnected?.({ remote, reason });
      } catch (error) {
        reason = describeFailure(error, options);
      }
      if (stopping.signal.aborted) break;
      const waitMs = Math.round(backoff.next());
      log.warn("not connected", { proxy: options.agentClient.serverAddress, reason, retryInMs: waitMs });
      await sleep(waitMs, undefined, { signal: stopping.signal }).catch(() => {}); // stopping
    }
    log.info("stopped");
  };
  const running = run();
  const refreshing = refreshTls(tls, options.agentClient.tls.refresh);

  return {
    get proxy() {
      return current?.remote;
    },
    async close() {
      stopping.abort();
      current?.close(CloseCode.shutdown, "shutting down");
      await refreshing.close();
      await running;
    },
  };
}

/**
 * Checks the files that the options name, and returns the agent's id. A file that is not there is a mistake now, and an accident later.
 * @throws {ConfigError}
 */
export async function checkAgentOptions(options: AgentOptions): Promise<string> {
  await openClientTls("agent-client.tls", options.agentClient.tls, silentLogger);
  const id = options.auth.noauth.agentId;
  if (id === undefined) throw new ConfigError("Cannot start: --auth.noauth.agent-id is needed");
  try {
    return checkAgentId(id);
  } catch (cause) {
    throw new ConfigError(`Cannot use --auth.noauth.agent-id ${JSON.stringify(id)}: ${(cause as Error).message}`, { cause });
  }
}

async function connect(
  options: AgentOptions,
  net: Net,
  tls: TlsFiles<ClientTls>,
  agentId: string,
  signal: AbortSignal,
): Promise<QuicConnection> {
  await tls.reload();
  const { hostname, port } = new URL(`quic://${options.agentClient.serverAddress}`);
  const connection = await net.connectQuic({
    host: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port),
    tls: tls.current,
    alpn: [ALPN],
    transport: AGENT_TRANSPORT,
    timeoutMs: HANDSHAKE_TIMEOUT_MS,
    signal,
  });
  try {
    await authenticate(connection, new TextEncoder().encode(agentId));
    return connection;
  } catch (error) {
    connection.close(CloseCode.shutdown, "");
    const closed = await connection.closed;
    // why the proxy closed the connection says more than that a stream of it was reset
    if (!closed.remote) throw error;
    // TLS 1.3 lets a client finish its handshake before the server has looked at the client's certificate
    if (closed.cause === "transport" && closed.reason.includes("handshake")) {
      throw new NetError("tls", closed.reason, { remote: true, cause: error });
    }
    throw new NetError("closed", closed.reason, { appCode: closed.code, remote: true, cause: error });
  }
}

/** What happened, and what to do about it, for somebody who sets it up for the first time. */
function describeFailure(error: unknown, options: AgentOptions): string {
  if (!(error instanceof NetError)) return error instanceof Error ? error.message : String(error);
  const address = options.agentClient.serverAddress;
  switch (error.code) {
    case "closed":
      return error.appCode === undefined ? error.message : describeCode(error.appCode, error.message);
    case "timed-out":
      return `${error.message}; is the proxy running there, and may UDP pass to ${address}?`;
    case "tls":
      return error.message + adviseOnTls(error, options);
    default:
      return error.message;
  }
}

function adviseOnTls({ message, remote }: NetError, { agentClient: { tls } }: AgentOptions): string {
  if (!message.includes("certificate")) return "";
  if (remote) return "; the proxy asks for a certificate that it accepts, --agent-client.tls.file.cert with its key";
  if (message.includes("WrongPin")) {
    return "; the proxy shows another certificate than that of --agent-client.tls.pin-sha256: it logs the pin of its own at its start";
  }
  if (tls.file.rootCa || tls.pinSha256.length > 0) {
    return "; the certificate must be valid for this name and issued by an authority of --agent-client.tls.file.root-ca";
  }
  return "; unless the certificate is of an authority that this system trusts, the agent needs --agent-client.tls.pin-sha256, which the " +
    "proxy logs at its start where it has made its own, or the authority as --agent-client.tls.file.root-ca";
}

function describeEnd({ code, reason, remote, cause }: QuicClosed): string {
  if (cause === "application") return remote ? describeCode(code, reason) : "closed by this agent";
  return reason;
}

function describeCode(code: number, reason: string): string {
  const text = `the proxy closed the connection: ${code} ${reason}`;
  switch (code) {
    case CloseCode.badAgentId:
      return `${text}; it does not take this agent id`;
    case CloseCode.unauthorized:
    case CloseCode.internal:
      return `${text}; does it use the same --auth.type, and does it accept these credentials?`;
    case CloseCode.replaced:
      return `${text}; another agent has connected with the same id`;
    default:
      return text;
  }
}
