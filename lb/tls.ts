// The load balancer's TLS: for clients and to proxies, if enabled.
import { ConfigError } from "../shared/config/option.ts";
import { type StateDirectoryDefault, stateDirectoryOf } from "../shared/files/state_directory.ts";
import { certificateOptionsOf, type ForwardTls, openForwardTls } from "../shared/frontend/forwards/listeners.ts";
import { acmeHosts } from "../shared/frontend/forwards/forwards.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { ClientTls, ServerTls } from "../shared/net/tls.ts";
import { type Acme, openAcme } from "../shared/service/acme.ts";
import { differs } from "../shared/service/change.ts";
import { openClientTls, openServerTls, refuseWithoutTls, type ReloadableTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { checkSelfSigned, openSelfSigned } from "../shared/tls/self_signed.ts";
import type { LoadBalancerOptions } from "./options.ts";

export interface LoadBalancerTls {
  /** Missing for plain HTTP from clients. */
  clients?: ReloadableTls<ServerTls>;
  readonly forwards: ForwardTls;
  /** Missing for plain HTTP to proxies. */
  proxies?: ReloadableTls<ClientTls>;
}

/** What TLS needs besides the options. */
export interface LoadBalancerTlsDeps extends StateDirectoryDefault {
  readonly log: Logger;
  /** Checks the files' content. */
  readonly net: TlsCheck;
  /** The certificate of an authority, for clients if the options name none. */
  readonly acme?: Acme;
  /** Whether no file is written. */
  readonly isCheck?: boolean;
}

/** Name of the certificate in the state directory that clients get until the authority has issued one, without `.pem`. */
const CLIENT_CERTIFICATE = "lb";

/**
 * The certificates that an authority issues; `undefined` if nothing needs one.
 * @param log default: it is only a check
 * @throws {ConfigError}
 */
export async function openLoadBalancerAcme(
  options: LoadBalancerOptions,
  deps: StateDirectoryDefault,
  log?: Logger,
): Promise<Acme | undefined> {
  return await openAcme(options.acme, {
    directory: stateDirectoryOf(options, deps),
    hosts: acmeHosts(options.forward),
    hasStore: true,
    log,
  });
}

/**
 * Reads the files.
 * @throws {ConfigError}
 */
export async function openLoadBalancerTls(options: LoadBalancerOptions, tlsDeps: LoadBalancerTlsDeps): Promise<LoadBalancerTls> {
  const { httpProxy, httpConnector, forward, acme: { challenge } } = options;
  const { log, net, acme, isCheck = false } = tlsDeps;
  const directory = stateDirectoryOf(options, tlsDeps);
  const { enable, file: { key, cert } } = httpProxy.tls;
  const managedFile = acme?.certificateFile;
  if (managedFile !== undefined && (!enable || key || cert)) {
    throw new ConfigError(
      `Cannot use --acme.domain: ${enable ? "clients get the certificate of --http-proxy.tls" : "--http-proxy.tls.enable is not set"}`,
    );
  }
  if (acme && challenge === "tls-alpn-01" && !enable && forward.every(({ network }) => network !== "https")) {
    throw new ConfigError("Cannot use --acme.challenge tls-alpn-01: there is no TLS port to answer at; set --http-proxy.tls.enable");
  }
  const hasDirectory = httpProxy.tls.certDir !== undefined && !(enable && (key || cert));
  const selfSigned = acme === undefined && !hasDirectory
    ? undefined
    : await (isCheck ? checkSelfSigned(CLIENT_CERTIFICATE, directory) : openSelfSigned(CLIENT_CERTIFICATE, directory, log));
  const deps = { log, net };
  if (!httpProxy.tls.enable) refuseWithoutTls("http-proxy.tls", httpProxy.tls);
  if (!httpConnector.tls.enable) refuseWithoutTls("http-connector.tls", httpConnector.tls);
  const own = managedFile === undefined && !hasDirectory ? {} : { managedFile, selfSigned };
  const clients = enable ? await openServerTls("http-proxy.tls", httpProxy.tls, { ...deps, ...own }) : undefined;
  return {
    clients,
    forwards: await openForwardTls(forward, clients, { ...deps, selfSigned, hasDirectory }),
    proxies: httpConnector.tls.enable ? await openClientTls("http-connector.tls", httpConnector.tls, deps) : undefined,
  };
}

/** Whether the certificates of `next` may be others. */
export function hasOtherTls(before: LoadBalancerOptions, next: LoadBalancerOptions): boolean {
  const of = ({ httpProxy, httpConnector, forward }: LoadBalancerOptions) => [
    httpProxy.tls,
    httpConnector.tls,
    forward.map(certificateOptionsOf),
  ];
  return differs(of(before), of(next));
}
