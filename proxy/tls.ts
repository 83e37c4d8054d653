// The proxy's TLS: towards agents always, with a certificate of its own making where it is given none, and towards clients where it is asked for.
import { hostname } from "node:os";
import { ConfigError } from "../shared/cli/option.ts";
import { type Logger, silentLogger } from "../shared/log.ts";
import type { ServerTls } from "../shared/net/types.ts";
import { type CertifiedKey, openServerTls, refuseWithoutTls, type TlsFiles } from "../shared/tls/files.ts";
import { openSelfSigned, type SelfSigned } from "../shared/tls/self_signed.ts";
import type { ProxyOptions } from "./options.ts";

export interface ProxyTls {
  readonly agents: TlsFiles<ServerTls>;
  /** Missing where clients come without TLS. */
  readonly clients?: TlsFiles<ServerTls>;
  /** The certificate for agents, where the proxy has made it. */
  readonly own?: SelfSigned;
}

/**
 * Reads the files. `stateDirectory` is for the proxy's own certificate, where the options name no directory.
 * @throws {ConfigError}
 */
export async function openProxyTls(options: ProxyOptions, log: Logger, stateDirectory: string | undefined): Promise<ProxyTls> {
  const clients = await openClientSide(options, log);
  const directory = { path: options.stateDir || stateDirectory, required: Boolean(options.stateDir) };
  const own = needsOwn(options) ? await openSelfSigned("agent-server", directory, log) : undefined;
  return { agents: await openAgentSide(options, log, own), clients, own };
}

/**
 * Checks the files, and makes none.
 * @throws {ConfigError}
 */
export async function checkProxyTls(options: ProxyOptions): Promise<void> {
  await openClientSide(options, silentLogger);
  await openAgentSide(options, silentLogger, needsOwn(options) ? { cert: "", key: "" } : undefined);
}

/** Somebody who tries it out needs no authority: these options are all that an agent needs to trust the proxy. */
export function showPin({ pin, file }: SelfSigned, agentAddress: string, log: Logger): void {
  const [, host, port] = /^(.*):([0-9]+)$/.exec(agentAddress)!;
  const reached = ["0.0.0.0", "[::]"].includes(host!) ? hostname() : host;
  log.info("using a self-signed certificate, which agents trust with these options", {
    file,
    options: `--agent-client.server-address=${reached}:${port} --agent-client.tls.pin-sha256=${pin}`,
  });
}

function needsOwn({ agentServer: { tls } }: ProxyOptions): boolean {
  return !tls.file.key && !tls.file.cert;
}

async function openAgentSide({ agentServer: { tls } }: ProxyOptions, log: Logger, own?: CertifiedKey): Promise<TlsFiles<ServerTls>> {
  if (tls.agentIdFrom !== "none" && !tls.file.clientCa) {
    throw new ConfigError(
      `Cannot use --agent-server.tls.agent-id-from ${tls.agentIdFrom}: --agent-server.tls.file.client-ca is needed too`,
    );
  }
  return await openServerTls("agent-server.tls", tls, log, own);
}

async function openClientSide({ httpProxy: { tls } }: ProxyOptions, log: Logger): Promise<TlsFiles<ServerTls> | undefined> {
  if (tls.enable) return await openServerTls("http-proxy.tls", tls, log);
  refuseWithoutTls("http-proxy.tls", tls);
}
