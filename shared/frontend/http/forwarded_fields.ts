// The fields by which a reverse proxy states the client and its request to an origin: Forwarded (RFC 7239), and X-Forwarded-*,
// which most origins read, and Client-Cert (RFC 9440).
import ipaddr from "ipaddr.js";
import { clientCertField } from "../../http/client_cert.ts";
import { type Fields, values } from "../../http/head.ts";
import { hostOf } from "../../limits/addresses.ts";

/** The client, and the original request. */
export interface RequestOrigin {
  /** Address of the connection's peer, `host:port` or `[host]:port`. */
  readonly peer: string;
  /** Whether it is a proxy whose own fields are true. */
  readonly isTrusted: boolean;
  /** Whether its `Client-Cert` is true, too. */
  readonly trustsCertificate: boolean;
  readonly scheme: "http" | "https";
  /** `Host` of the request; `undefined` if it has none. */
  readonly host: string | undefined;
  /** The peer's verified certificate, DER. */
  readonly certificate?: Uint8Array;
}

/** Names that origins may read as one of the fields: some do not tell `_` from `-`. */
const FORWARDING = /^(?:forwarded|x[-_]forwarded[-_].*|x[-_]real[-_]ip)$/i;
const CERTIFICATE = /^client[-_]cert(?:[-_]chain)?$/i;

/**
 * Removes fields by which a client could claim another address or certificate. Those of a trusted proxy stay, unless {@link forwardingFields}
 * replaces them; `Client-Cert` only if the proxy is trusted with it, since others may pass on what their clients send.
 */
export function withoutForwarding(fields: Fields, { isTrusted, trustsCertificate }: RequestOrigin): Fields {
  const isReplaced = (name: string) => isTrusted ? REPLACED.has(name.toLowerCase()) : FORWARDING.test(name);
  return fields.filter(([name]) => !isReplaced(name) && (trustsCertificate || !CERTIFICATE.test(name)));
}

const REPLACED = new Set(["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]);

/** The fields to add. Statements of a trusted proxy about the request stay, and its own address is added to the list. */
export function forwardingFields(fields: Fields, { peer, isTrusted, scheme, host, certificate }: RequestOrigin): Fields {
  const given = (name: string) => isTrusted ? values(fields, name) : [];
  const address = ipaddr.process(hostOf(peer).replace(/%.*/, ""));
  const node = address.kind() === "ipv6" ? `[${address}]` : String(address);
  const element = [`for="${node}"`, ...host === undefined ? [] : [`host="${host}"`], `proto=${scheme}`].join(";");
  const originalHost = given("x-forwarded-host")[0] ?? host;
  return [
    ["X-Forwarded-For", [...given("x-forwarded-for"), String(address)].join(", ")],
    ["X-Forwarded-Proto", given("x-forwarded-proto")[0] ?? scheme],
    ...originalHost === undefined ? [] : [["X-Forwarded-Host", originalHost] as const],
    ["Forwarded", [...given("forwarded"), element].join(", ")],
    // that of a trusted proxy is not the client's
    ...certificate === undefined || isTrusted ? [] : [clientCertField(certificate)],
  ];
}
