// Warns about a client listener that is open to everyone.
import { isLoopback, splitHostPort } from "../address/host_port.ts";
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

/** Warns if everyone who can connect may reach every destination of every agent. */
export function warnOfExposure(log: Logger, exposure: Exposure): void {
  const remedy = exposureRemedy(exposure);
  if (remedy === undefined) return;
  log.warn("everyone who can reach this address can use every agent, for any destination", { address: exposure.address, remedy });
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
