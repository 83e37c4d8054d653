// The field Client-Cert (RFC 9440): the certificate of a client, from the proxy that has verified it to the next hop.
import { type BareItem, parseItem, serializeItem } from "structured-headers";
import { type Fields, HeadError, values } from "./head.ts";

/** @param certificate DER */
export function clientCertField(certificate: Uint8Array): readonly [name: string, value: string] {
  return ["Client-Cert", serializeItem(new Uint8Array(certificate).buffer)];
}

/**
 * The certificate, DER; `undefined` without the field. The caller decides which peers to trust, and who reads the certificate checks it.
 * @throws {HeadError} 400 unless the field is one byte sequence (RFC 9651 §3.3.5)
 */
export function parseClientCert(fields: Fields): Uint8Array | undefined {
  const lines = values(fields, "client-cert");
  if (lines.length === 0) return undefined;
  const value = parseValue(lines.join(", "));
  if (!(value instanceof ArrayBuffer) || value.byteLength === 0) throw new HeadError(400, "The Client-Cert field is malformed");
  return new Uint8Array(value);
}

function parseValue(text: string): BareItem | undefined {
  try {
    return parseItem(text)[0];
  } catch {
    return undefined;
  }
}
