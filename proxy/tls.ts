// The proxy's TLS: always for agents, with a self-signed certificate by default, and for clients if enabled.
import { ConfigError } from "../shared/config/option.ts";
import { certificateOptionsOf, type ForwardTls, openForwardTls } from "../shared/frontend/forwards/listeners.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import type { ServerTls } from "../shared/net/tls.ts";
import { acmeHosts } from "../shared/frontend/forwards/forwards.ts";
import { type Acme, openAcme } from "../shared/service/acme.ts";
import { differs } from "../shared/service/change.ts";
import type { Store } from "../shared/store/store.ts";
import {
  type CertifiedKey,
  type DefaultIdentity,
  openNextPin,
  openServerTls,
  refuseWithoutTls,
  type ReloadableTls,
  type ServerTlsOptions,
  type TlsCheck,
} from "../shared/tls/reloadable_tls.ts";
import { type StateDirectory, type StateDirectoryDefault, stateDirectoryOf } from "../shared/files/state_directory.ts";
import { openCertificateDirectory } from "../shared/tls/certificate_directory.ts";
import { AGENT_CERTIFICATE, checkSelfSigned, openSelfSigned, type SelfSigned } from "../shared/tls/self_signed.ts";
import { keyPinOfChain } from "../shared/tls/trust.ts";
import type { ProxyOptions } from "./options.ts";
import type { PublicAddresses } from "./public_address.ts";

export interface ProxyTls {
  readonly agents: ReloadableTls<ServerTls>;
  /** Pin of the key that agents will see. */
  readonly nextPin: ReloadableTls<string | undefined>;
  /** Missing for plain HTTP from clients. */
  clients?: ReloadableTls<ServerTls>;
  readonly forwards: ForwardTls;
  /** The self-signed certificate for agents, if used for good. */
  readonly selfSigned?: SelfSigned;
}

/** What TLS needs besides the options. */
export interface ProxyTlsDeps extends StateDirectoryDefault {
  readonly log: Logger;
  /** Checks the files' content. */
  readonly net: TlsCheck;
  /** The certificate of an authority, for listeners whose options name none. */
  readonly acme?: Acme;
}

/**
 * The certificates that an authority issues; `undefined` if nothing needs one.
 * @param log default: it is only a check
 * @throws {ConfigError}
 */
export async function openProxyAcme(
  options: ProxyOptions,
  deps: StateDirectoryDefault & { readonly store?: Store },
  log?: Logger,
): Promise<Acme | undefined> {
  const { acme, forward, store } = options;
  return await openAcme(acme, {
    directory: directoryOf(options, deps),
    hosts: acmeHosts(forward),
    publishedNames: acme.published ? acme.publishedNames : 0,
    hasStore: deps.store !== undefined || store.type !== "none",
    log,
  });
}

/**
 * Reads the files.
 * @throws {ConfigError}
 */
export async function openProxyTls(options: ProxyOptions, deps: ProxyTlsDeps): Promise<ProxyTls> {
  const selfSigned = needsSelfSigned(options) ? await openSelfSigned(AGENT_CERTIFICATE, directoryOf(options, deps), deps.log) : undefined;
  const isForGood = hasNoFiles(options.agentServer.tls) && deps.acme?.certificateFile === undefined;
  return { ...await openAll(options, deps, selfSigned), selfSigned: isForGood ? selfSigned : undefined };
}

/**
 * Checks the files without creating any.
 * @throws {ConfigError}
 */
export async function checkProxyTls(options: ProxyOptions, deps: Omit<ProxyTlsDeps, "log">): Promise<void> {
  const selfSigned = needsSelfSigned(options) ? await checkSelfSigned(AGENT_CERTIFICATE, directoryOf(options, deps)) : undefined;
  await openAll(options, { ...deps, log: silentLogger }, selfSigned);
  await openCertificateDirectory(options, { net: deps.net, log: silentLogger });
}

/** Several workers cannot do without a directory: all have the same certificate. */
function directoryOf(options: ProxyOptions, deps: StateDirectoryDefault): StateDirectory {
  const directory = stateDirectoryOf(options, deps);
  return options.workers > 1 ? { ...directory, required: true } : directory;
}

/** Whether the certificates of `next` may be others. */
export function hasOtherTls(before: ProxyOptions, next: ProxyOptions): boolean {
  const of = ({ agentServer: { tls, shareClientPort }, httpProxy, forward }: ProxyOptions) => [
    tls,
    shareClientPort,
    httpProxy.tls,
    forward.map(certificateOptionsOf),
  ];
  return differs(of(before), of(next));
}

/** Pins of the agents' port: that of the key in use, and of the next one. */
export function pinsOf({ agents, nextPin }: Pick<ProxyTls, "agents" | "nextPin">): string[] {
  const { current: next } = nextPin;
  return [...new Set([keyPinOfChain(agents.current.cert), ...next === undefined ? [] : [next]])];
}

/** Logs the options with which an agent trusts the self-signed certificate. */
export function logPin({ pin, file }: SelfSigned, { addresses, doubt }: PublicAddresses, log: Logger): void {
  log.info("using a self-signed certificate, which agents trust with these options", {
    file,
    options: `--agent-client.server-address=${addresses.join(",")} --agent-client.tls.pin-sha256=${pin}`,
    note: doubt,
  });
}

/** Whether a listener may need it: for good, or until the authority has issued a certificate. */
function needsSelfSigned({ agentServer, httpProxy, acme, forward }: ProxyOptions): boolean {
  const hasDirectory = httpProxy.tls.certDir !== undefined;
  return hasNoFiles(agentServer.tls) || ((acme.domain.length > 0 || hasDirectory) && httpProxy.tls.enable && hasNoFiles(httpProxy.tls)) ||
    forward.some(({ acme, network }) => acme || (network === "https" && hasDirectory));
}

function hasNoFiles({ file: { key, cert } }: ServerTlsOptions): boolean {
  return !key && !cert;
}

/** The settings of all listeners. Without options of their own, agents and clients share a certificate. */
async function openAll(
  options: ProxyOptions,
  { acme, ...deps }: ProxyTlsDeps,
  selfSigned: CertifiedKey | undefined,
): Promise<Omit<ProxyTls, "selfSigned">> {
  const { agentServer, httpProxy, forward } = options;
  const managedFile = acme?.certificateFile;
  if (managedFile !== undefined && !hasNoFiles(agentServer.tls) && !(httpProxy.tls.enable && hasNoFiles(httpProxy.tls))) {
    throw new ConfigError("Cannot use --acme.domain: agents and clients get the certificates of --agent-server.tls and --http-proxy.tls");
  }
  if (acme && options.acme.challenge === "tls-alpn-01" && !httpProxy.tls.enable && forward.every(({ network }) => network !== "https")) {
    throw new ConfigError(
      "Cannot use --acme.challenge tls-alpn-01: there is no TLS port to answer at; set --http-proxy.tls.enable, or a --forward with network=https",
    );
  }
  const hasDirectory = httpProxy.tls.certDir !== undefined;
  const own = managedFile === undefined && !hasDirectory ? {} : { managedFile, selfSigned };
  const clients = await openClientTls(options, { ...deps, ...own });
  const forwards = await openForwardTls(forward, clients, { ...deps, selfSigned, hasDirectory });
  const nextPin = await openNextPin("agent-server.tls", agentServer.tls.file.nextCert, deps.log);
  return { agents: await openAgentTls(options, { ...deps, managedFile, selfSigned }), nextPin, clients, forwards };
}

async function openAgentTls(
  { agentServer: { tls } }: ProxyOptions,
  deps: ProxyTlsDeps & DefaultIdentity,
): Promise<ReloadableTls<ServerTls>> {
  if (tls.agentIdFrom !== "none" && !tls.file.clientCa) {
    throw new ConfigError(
      `Cannot use --agent-server.tls.agent-id-from ${tls.agentIdFrom}: --agent-server.tls.file.client-ca is needed too`,
    );
  }
  return await openServerTls("agent-server.tls", tls, deps);
}

async function openClientTls(
  options: ProxyOptions,
  deps: ProxyTlsDeps & DefaultIdentity,
): Promise<ReloadableTls<ServerTls> | undefined> {
  const { httpProxy: { tls }, agentServer: { shareClientPort } } = options;
  if (tls.enable) return await openServerTls("http-proxy.tls", tls, deps);
  if (shareClientPort) {
    throw new ConfigError("Cannot use --agent-server.share-client-port: --http-proxy.tls.enable is not set, and agents are known by TLS");
  }
  refuseWithoutTls("http-proxy.tls", tls);
}
