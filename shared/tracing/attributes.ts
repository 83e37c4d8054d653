// Attributes of spans, by OpenTelemetry's semantic conventions.
import type { Attributes } from "./span.ts";

/** `prefix.address` and `prefix.port` of `host:port` or `[host]:port`; the port may be missing. */
export function addressAttributes(prefix: "client" | "server" | "network.peer", address: string): Attributes {
  const [, bracketed, plain = address, port] = /^(?:\[([^\]]*)\]|([^:]*))(?::([0-9]{1,5}))?$/.exec(address) ?? [];
  return { [`${prefix}.address`]: bracketed ?? plain, [`${prefix}.port`]: port === undefined ? undefined : Number(port) };
}
