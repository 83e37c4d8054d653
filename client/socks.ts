// A local proxy, SOCKS 5 and HTTP on one port, for programs that cannot authenticate to the remote one: it adds the credentials, and says
// which agent a destination is behind. The protocols and the steps of a client are those of the services.
import { createAllowList } from "../shared/address/allow_list.ts";
import { isLoopback, splitHostPort } from "../shared/address/host_port.ts";
import { createNoAuth } from "../shared/auth/authenticator.ts";
import type { Terminal } from "../shared/cli/command.ts";
import { ConfigError } from "../shared/config/option.ts";
import { createHttpProxy } from "../shared/frontend/http/proxy.ts";
import { Frontend } from "../shared/frontend/server.ts";
import { createSocks5Proxy } from "../shared/frontend/socks5/socks5.ts";
import type { LogLimit } from "../shared/log/limit.ts";
import { ignoreLine, type Logger } from "../shared/log/logger.ts";
import type { Net } from "../shared/net/net.ts";
import { toErrorType, TunnelError, type TunnelErrorType } from "../shared/tunnel/errors.ts";
import type { Dialer } from "../shared/tunnel/request.ts";
import { ERRORS, limitErrors } from "./error_limit.ts";
import { findAgent, type Route } from "./routes.ts";
import { ProxyConnections } from "./proxy_connections.ts";
import { type Access, checkFiles, openTunnel, reportUnreachableProxy } from "./tunnel.ts";
import { TunnelFailure, type TunnelFailureKind } from "./tunnel_failure.ts";

/** Time in milliseconds that open connections get to end after a stop signal. */
const GRACE_MS = 5_000;
/** Requests that wait for their tunnel; more are refused. */
const MAX_PENDING = 256;

/** Where a local proxy listens if nothing else is said. */
const DEFAULT_PORT = 1080;

/** Parses `PORT`, `:PORT` or `ADDRESS:PORT`. Without an address it is 127.0.0.1. @throws {ConfigError} */
export function parseListen(text = String(DEFAULT_PORT)): string {
  try {
    const { host, port } = splitHostPort(/^[0-9]+$/.test(text) ? `:${text}` : text);
    return `${host === "" ? "127.0.0.1" : host.includes(":") ? `[${host}]` : host}:${port}`;
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new ConfigError(`Cannot listen: ${cause.message}`, { cause });
  }
}

export interface SocksOptions {
  /** `host:port`; port 0 lets the system choose. */
  readonly listen: string;
  /** Suffix of names that carry their agent. Default: none do. */
  readonly agentSuffix?: string;
  /** In the order in which they are tried. */
  readonly routes: readonly Route[];
}

/**
 * Serves until a stop signal. Connections then get some seconds to end.
 * @param access called for each connection
 * @throws {NetError} if the address cannot be listened on
 * @throws {ConfigError} for files of `access` that cannot be used
 */
export async function serveSocks(
  net: Net,
  access: () => Access,
  { listen, agentSuffix, routes }: SocksOptions,
  terminal: Pick<Terminal, "write" | "report" | "stopped">,
): Promise<void> {
  await checkFiles(net, access());
  const listener = await net.listenTcp({ address: listen, preamble: "http-or-socks5" });
  const { address } = listener;
  const connections = new ProxyConnections(net, terminal.report);
  const limit = limitErrors(terminal.report);
  const log = createReporter(terminal, limit);
  const frontend = new Frontend({
    net,
    log,
    listeners: [{
      listener,
      protocol: createHttpProxy(
        "reverse-http-client",
        agentSuffix === undefined ? {} : { autoConfig: { tls: false, suffix: agentSuffix } },
      ),
      socks: createSocks5Proxy(),
    }],
    authenticator: createNoAuth(),
    allowList: createAllowList([]),
    agentSuffix,
    findsAgent: true,
    dial: createDialer(net, access, connections, routes),
    upstreamRole: "proxy",
  });
  terminal.write(`${address} is a SOCKS 5 and HTTP proxy\n`);
  if (!isLoopback(address)) terminal.report(`anyone who can reach ${address} uses your credentials`);
  void reportUnreachableProxy(net, access, connections, terminal.report); // never rejects
  await terminal.stopped();
  await frontend.drain(GRACE_MS, Promise.resolve());
  limit.close();
}

/** Opens tunnels through the remote proxy, to the agent that the program names, or else a route, or the profile. */
function createDialer(net: Net, access: () => Access, connections: ProxyConnections, routes: readonly Route[]): Dialer {
  let pending = 0;
  return async ({ agentId, destination, network, clientSignal }) => {
    if (pending >= MAX_PENDING) throw new TunnelError("connection_limit_reached", `More than ${MAX_PENDING} requests wait for a tunnel`);
    pending++;
    try {
      const current = access();
      const chosen = agentId || findAgent(routes, destination) || current.agentId;
      const options = { network, signal: clientSignal?.(), connections };
      return { stream: await openTunnel(net, { ...current, agentId: chosen }, destination, options) };
    } catch (cause) {
      if (cause instanceof TunnelFailure) {
        throw new TunnelError(toErrorType(cause.errorType ?? "") ?? ERROR_TYPES[cause.kind], cause.message);
      }
      if (cause instanceof ConfigError) throw new TunnelError("proxy_configuration_error", cause.message);
      throw cause;
    } finally {
      pending--;
    }
  };
}

/** Error types where the remote proxy gives none. */
const ERROR_TYPES: Readonly<Record<TunnelFailureKind, TunnelErrorType>> = {
  "proxy": "destination_unavailable",
  "denied": "http_request_denied",
  "no-agent": "destination_unavailable",
  "refused": "connection_refused",
  "unreachable": "destination_unavailable",
};

/** Reports failures in one line each, a limited number per minute, because programs retry. */
function createReporter({ report }: Pick<Terminal, "report">, limit: LogLimit): Logger {
  return {
    trace: ignoreLine,
    debug: ignoreLine,
    info(_, { destination, reason } = {}) {
      if (reason === undefined || !limit.admits(ERRORS)) return;
      report(destination === undefined || String(reason).includes(String(destination)) ? String(reason) : `${destination}: ${reason}`);
    },
    warn(message, { reason = "" } = {}) {
      if (limit.admits(ERRORS)) report(`${message}: ${reason}`);
    },
    error: (message, { error = "" } = {}) => report(`${message}: ${error}`),
  };
}
