// Proxy-Authorization (RFC 9110 §11.7.2), or Authorization (§11.6.2): the credentials of a client that speaks HTTP.
import { Buffer } from "node:buffer";
import { AuthenticationError, type ClientCredentials, isLoggable } from "../../auth/authenticator.ts";
import { type Fields, values } from "../../http/head.ts";
import { printable } from "../../net/printable.ts";
import { CredentialsError } from "../../tunnel/errors.ts";

/** Returns `undefined` without credentials, and the error of malformed ones, for the caller to throw once other checks have passed. */
export function readCredentials(
  fields: Fields,
  field: "proxy-authorization" | "authorization" = "proxy-authorization",
): ClientCredentials | CredentialsError | undefined {
  const given = values(fields, field);
  if (given.length === 0) return undefined;
  if (given.length > 1) return new CredentialsError(`There is more than one field ${field}`);
  try {
    return parseProxyAuthorization(given[0]!);
  } catch (cause) {
    return new CredentialsError("The credentials are not accepted", { cause });
  }
}

/** The user name of Basic credentials, for the log alone. */
export function claimedAgent(credentials: ClientCredentials): string | undefined {
  const name = credentials.scheme === "basic" ? credentials.username : "";
  return name !== "" && isLoggable(name) ? printable(name) : undefined;
}

/**
 * Parses the value of the field: `Basic` (RFC 7617) or `Bearer` (RFC 6750).
 * @throws {AuthenticationError} `denied`
 */
export function parseProxyAuthorization(value: string): ClientCredentials {
  const [, scheme, rest] = /^([A-Za-z]+) +([A-Za-z0-9._~+/-]+=*)$/.exec(value) ?? [];
  switch (scheme?.toLowerCase()) {
    case "basic": {
      const text = decodeBase64(rest!);
      const colon = text.indexOf(":");
      if (colon < 0) throw new AuthenticationError("denied", "The client's Basic credentials have no colon");
      return { scheme: "basic", username: text.slice(0, colon), password: text.slice(colon + 1) };
    }
    case "bearer":
      return { scheme: "bearer", token: rest! };
    default:
      throw new AuthenticationError("denied", "The client's credentials are neither Basic nor Bearer");
  }
}

/** The inverse of {@link parseProxyAuthorization}. */
export function formatProxyAuthorization(credentials: ClientCredentials): string {
  if (credentials.scheme === "bearer") return `Bearer ${credentials.token}`;
  return `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString("base64")}`;
}

// deno-lint-ignore no-control-regex -- ASCII
const ASCII = /^[\x00-\x7f]*$/;
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decodeBase64(text: string): string {
  try {
    const binary = atob(text);
    if (ASCII.test(binary)) return binary;
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return strictDecoder.decode(bytes);
  } catch {
    throw new AuthenticationError("denied", "The client's Basic credentials are not UTF-8 in base64");
  }
}
