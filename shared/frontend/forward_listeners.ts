// What forwards need besides their option: their tokens and certificates, and their listeners.
import { ConfigError } from "../config/option.ts";
import { SecretFiles } from "../files/secret_files.ts";
import type { Intermediary } from "../http/proxy_status.ts";
import type { Logger } from "../log/logger.ts";
import type { ServerTls } from "../net/types.ts";
import { openServerTls, type ReloadableTls, type TlsCheck, type TlsGroup } from "../tls/reloadable_tls.ts";
import { warnOfOpenForward } from "./exposure.ts";
import { readToken } from "./forward_credentials.ts";
import { type Forward, groupForwards } from "./forwards.ts";
import { createVirtualHosts } from "./http_virtual_host.ts";
import type { ServiceFrontend } from "./service_frontend.ts";
import { createStaticForward } from "./static_forward.ts";
import { VirtualHosts } from "./virtual_hosts.ts";

export interface CheckForwards {
  /** The scheme that verifies tokens; `undefined` if the embedding program brings its own. */
  readonly authType?: string;
  /** Whether the next hop asks for credentials, as proxies ask lb. */
  readonly isAuthenticatedAgain: boolean;
}

/**
 * Checks the files with the forwards' tokens, and that each forward has the token that it needs.
 * @throws {ConfigError}
 */
export async function checkForwards(forwards: readonly Forward[], { authType, isAuthenticatedAgain }: CheckForwards): Promise<void> {
  for (const { listen, network, agent, auth, tokenFile } of forwards) {
    const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --forward listen=${listen}: ${why}`, { cause });
    if (auth === "token") {
      if (authType === "noauth") throw fail("auth=token: no token is verified without --auth.type=jwt");
      continue;
    }
    if (tokenFile === undefined) {
      const isHttp = network === "http" || network === "https";
      if (!isAuthenticatedAgain || authType !== "jwt") continue;
      throw fail(
        `with --auth.type=jwt it needs token-file, a file with a client's token for the agent ${agent}${isHttp ? ", or auth=token" : ""}`,
      );
    }
    if (authType === "noauth") throw fail("token-file: no token is verified without --auth.type=jwt");
    await readToken(tokenFile).catch((cause: Error) => {
      throw fail(`token-file: ${cause.message}`, cause);
    });
  }
}

/** The certificates of listeners that end TLS, by their address as configured. */
export type ForwardTls = ReadonlyMap<string, ReloadableTls<ServerTls>>;

/**
 * Reads the certificates of forwards that end TLS.
 * @param clients that of the clients' port, for records that name none
 * @throws {ConfigError}
 */
export async function openForwardTls(
  forwards: readonly Forward[],
  clients: ReloadableTls<ServerTls> | undefined,
  deps: { readonly log: Logger; readonly net: TlsCheck },
): Promise<ForwardTls> {
  const opened = new Map<string, ReloadableTls<ServerTls>>();
  for (const group of groupForwards(forwards)) {
    if (group.network !== "https") continue;
    const { listen, files } = group;
    const tls = files.cert === undefined ? clients : await openServerTls(TLS_OPTIONS, { file: files }, deps);
    if (tls === undefined) {
      throw new ConfigError(
        `Cannot use --forward listen=${listen}: network=https needs cert-file and key-file, or --http-proxy.tls.enable`,
      );
    }
    opened.set(listen, tls);
  }
  return opened;
}

/** How messages name the options. */
const TLS_OPTIONS: TlsGroup = { name: "forward", optionOf: (file) => `forward ${file}-file` };

export interface ListenForForwards {
  readonly log: Logger;
  readonly tls: ForwardTls;
  /** Of the service in Proxy-Status. */
  readonly name: Intermediary;
}

/**
 * Opens the listeners of the forwards. Returns the bound addresses, in the order of the forwards.
 * @throws {NetError} as `listenTcp` and `listenUdp` of the network
 */
export async function listenForForwards(
  clients: ServiceFrontend,
  forwards: readonly Forward[],
  { log, tls, name }: ListenForForwards,
): Promise<string[]> {
  const [bound, secrets] = [new Map<Forward, string>(), new SecretFiles(log)];
  for (const group of groupForwards(forwards)) {
    const protocol = group instanceof VirtualHosts ? createVirtualHosts(group, name) : createStaticForward(group);
    const listen = { address: group.listen, protocol };
    const { address } = group.network === "udp"
      ? await clients.listenUdp(listen)
      : await clients.listen({ ...listen, tls: tls.get(group.listen) });
    for (const forward of group.forwards) {
      const { agent, network, to, sni, host, path, auth, allow, tokenFile } = forward;
      bound.set(forward, address);
      log.info("forwarding", {
        clients: address,
        network: network === "tcp" ? undefined : network,
        servers: [...sni, ...host].join(",") || undefined,
        paths: path.join(",") || undefined,
        agent,
        destination: to,
      });
      const asksForSecret = auth === "token" || (network === "https" && tls.get(group.listen)?.current.clientCa !== undefined);
      if (allow.length === 0 && !asksForSecret) warnOfOpenForward(log, address, forward);
      if (tokenFile !== undefined) await secrets.check("the token of a forward", tokenFile);
    }
  }
  return forwards.map((forward) => bound.get(forward)!);
}
