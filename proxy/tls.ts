// The proxy's TLS: always for agents, with a self-signed certificate by default, and for clients if enabled.
import { ConfigError } from "../shared/config/option.ts";
import { type ForwardTls, openForwardTls } from "../shared/frontend/forward_listeners.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import type { ServerTls } from "../shared/net/types.ts";
import { type CertifiedKey, openServerTls, refuseWithoutTls, type ReloadableTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import type { StateDirectory } from "../shared/files/state_directory.ts";
import { AGENT_CERTIFICATE, checkSelfSigned, openSelfSigned, type SelfSigned } from "../shared/tls/self_signed.ts";
import type { ProxyOptions } from "./options.ts";
import type { PublicAddresses } from "./public_address.ts";

export interface ProxyTls {
  readonly agents: ReloadableTls<ServerTls>;
  /** Missing for plain HTTP from clients. */
  readonly clients?: ReloadableTls<ServerTls>;
  readonly forwards: ForwardTls;
  /** The self-signed certificate for agents, if used. */
  readonly selfSigned?: SelfSigned;
}

/** What TLS needs besides the options. */
export interface ProxyTlsDeps {
  readonly log: Logger;
  /** Checks the files' content. */
  readonly net: TlsCheck;
  /** For the self-signed certificate, if the options name no directory. */
  readonly stateDirectory?: string;
}

/**
 * Reads the files.
 * @throws {ConfigError}
 */
export async function openProxyTls(options: ProxyOptions, deps: ProxyTlsDeps): Promise<ProxyTls> {
  const clients = await openClientTls(options, deps);
  const forwards = await openForwardTls(options.forward, clients, deps);
  const selfSigned = needsSelfSigned(options) ? await openSelfSigned(AGENT_CERTIFICATE, placeOf(options, deps), deps.log) : undefined;
  return { agents: await openAgentTls(options, { ...deps, selfSigned }), clients, forwards, selfSigned };
}

/**
 * Checks the files without creating any.
 * @throws {ConfigError}
 */
export async function checkProxyTls(options: ProxyOptions, deps: Omit<ProxyTlsDeps, "log">): Promise<void> {
  const clients = await openClientTls(options, { ...deps, log: silentLogger });
  await openForwardTls(options.forward, clients, { ...deps, log: silentLogger });
  const selfSigned = needsSelfSigned(options) ? await checkSelfSigned(AGENT_CERTIFICATE, placeOf(options, deps)) : undefined;
  await openAgentTls(options, { ...deps, log: silentLogger, selfSigned });
}

function placeOf({ stateDir }: ProxyOptions, { stateDirectory }: Omit<ProxyTlsDeps, "log">): StateDirectory {
  return { path: stateDir || stateDirectory, required: Boolean(stateDir) };
}

/** Logs the options with which an agent trusts the self-signed certificate. */
export function logPin({ pin, file }: SelfSigned, { addresses, doubt }: PublicAddresses, log: Logger): void {
  log.info("using a self-signed certificate, which agents trust with these options", {
    file,
    options: `--agent-client.server-address=${addresses.join(",")} --agent-client.tls.pin-sha256=${pin}`,
    note: doubt,
  });
}

function needsSelfSigned({ agentServer: { tls } }: ProxyOptions): boolean {
  return !tls.file.key && !tls.file.cert;
}

async function openAgentTls(
  { agentServer: { tls } }: ProxyOptions,
  deps: ProxyTlsDeps & { selfSigned?: CertifiedKey },
): Promise<ReloadableTls<ServerTls>> {
  if (tls.agentIdFrom !== "none" && !tls.file.clientCa) {
    throw new ConfigError(
      `Cannot use --agent-server.tls.agent-id-from ${tls.agentIdFrom}: --agent-server.tls.file.client-ca is needed too`,
    );
  }
  return await openServerTls("agent-server.tls", tls, deps);
}

async function openClientTls(options: ProxyOptions, deps: ProxyTlsDeps): Promise<ReloadableTls<ServerTls> | undefined> {
  const { httpProxy: { tls }, agentServer: { shareClientPort } } = options;
  if (tls.enable) return await openServerTls("http-proxy.tls", tls, deps);
  if (shareClientPort) {
    throw new ConfigError("Cannot use --agent-server.share-client-port: --http-proxy.tls.enable is not set, and agents are known by TLS");
  }
  refuseWithoutTls("http-proxy.tls", tls);
}
