// A member of a cluster: a proxy or load balancer whose admin API answers others.
import { splitHostPort } from "../../address/host_port.ts";
import { checkPins } from "../../config/common_options.ts";

export interface Member {
  /** Where others reach its admin address, `host:port`. It identifies the member. */
  readonly address: string;
  readonly service: "proxy" | "lb";
  /** Host name, for display. */
  readonly host: string;
  /** `sha256/` and the SHA-256 of its public key in base64, by which others know it over TLS. Missing: it speaks plain HTTP. */
  readonly pin?: string;
}

/** What a member has written into the store. */
export interface Entry {
  readonly member: Member;
  /** It has ended, or is about to. */
  readonly isLeaving: boolean;
  /** When it has signed this, in seconds since 1970. */
  readonly at: number;
}

const MAX_HOST = 253;

/** Checks what a signed entry has: the member may run another version. */
export function readMember(value: unknown): Pick<Entry, "member" | "isLeaving"> | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { address, service, host, pin, isLeaving } = value as Readonly<Record<string, unknown>>;
  if (typeof address !== "string" || typeof host !== "string" || host.length > MAX_HOST) return undefined;
  if (service !== "proxy" && service !== "lb") return undefined;
  if (pin !== undefined && !(typeof pin === "string" && checkPins([pin]) === undefined)) return undefined;
  try {
    if (splitHostPort(address).host === "") return undefined;
  } catch {
    return undefined;
  }
  return { member: { address, service, host, ...pin !== undefined && { pin } }, isLeaving: isLeaving === true };
}
