// Client listeners that are open to everyone: warnings in the log, and what a diagnosis finds.
import { isLoopback, splitHostPort } from "../address/host_port.ts";
import type { Finding } from "../cli/findings.ts";
import type { Logger } from "../log/logger.ts";

export interface Exposure {
  /** The address bound, and the option that named it. */
  readonly address: string;
  readonly option: string;
  /** Whether clients need a secret: a token or a certificate. */
  readonly asksForSecret: boolean;
  /** Patterns of destinations; empty or `all` for all. */
  readonly allowList: readonly string[];
}

/** The remedy if everyone who can connect may reach every destination of every agent; otherwise `undefined`. */
export function exposureRemedy({ address, option, asksForSecret, allowList }: Exposure): string | undefined {
  const allowsAll = allowList.every((pattern) => /^all$/i.test(pattern));
  if (asksForSecret || !allowsAll || isLoopback(address)) return undefined;
  return `--auth.type=jwt, --http-proxy.host-whitelist, or --${option}=127.0.0.1:${splitHostPort(address).port}`;
}

const EXPOSED = "everyone who can reach this address can use every agent, for any destination";

/** Warns if everyone who can connect may reach every destination of every agent. */
export function warnOfExposure(log: Logger, exposure: Exposure): void {
  const remedy = exposureRemedy(exposure);
  if (remedy !== undefined) log.warn(EXPOSED, { address: exposure.address, remedy });
}

/** What a diagnosis finds about that; empty if it is not so. */
export function checkExposure({ auth, httpProxy }: ExposureOptions): Finding[] {
  const { listenAddress: address, hostWhitelist: allowList, tls } = httpProxy;
  const asksForSecret = auth.type !== "noauth" || tls.file.clientCa !== undefined;
  const remedy = exposureRemedy({ address, option: "http-proxy.listen-address", asksForSecret, allowList });
  return remedy === undefined ? [] : [{ check: "authentication", target: address, result: "failed", details: EXPOSED, remedy }];
}

/** The options that matter. */
interface ExposureOptions {
  readonly auth: { readonly type: string };
  readonly httpProxy: {
    readonly listenAddress: string;
    readonly hostWhitelist: readonly string[];
    readonly tls: { readonly file: { readonly clientCa?: string } };
  };
}

/** Warns that everyone can reach the destination of a forward without `allow`, which may not be intended. */
export function warnOfOpenForward(log: Logger, address: string, { agent, to }: { readonly agent: string; readonly to: string }): void {
  if (isLoopback(address)) return;
  log.warn("everyone who can reach this address can use the forward", {
    address,
    agent,
    destination: to,
    remedy: "allow=NETWORK in its record, or allow=all if that is intended",
  });
}
