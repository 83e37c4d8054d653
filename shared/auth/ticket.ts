// Tickets: credentials of clients that are short enough for SOCKS passwords, of which several clients garble those of 128 bytes or more.
// Signed like tokens, with the same keys, and verified without a look-up. Knows neither files nor connections.
import { Buffer } from "node:buffer";
import { randomUUID } from "node:crypto";
import { AuthenticationError, checkAgentId } from "./authenticator.ts";
import { type Algorithm, KeyError, type SigningKey, type VerificationKey } from "./keys.ts";
import type { Token } from "./token.ts";

/** A ticket is this prefix and 114 characters of base64url (RFC 4648 §5): version (1 byte), expiry (4), id (16, a UUID), signature (64). */
const PREFIX = "rht_";
const VERSION = 1;
const EXPIRY = 1;
const ID = 5;
const CONTENT_LENGTH = 21;
const SIGNATURE_LENGTH = 64;
const TICKET = /^rht_[\w-]{114}$/;
/** Prefix of the signed data (domain separation): no other signature of the key is valid for a ticket. */
const CONTEXT = "reverse-http client ticket\0";

/** Algorithms whose signatures have 64 bytes, for Web Cryptography. */
const ALGORITHMS: Readonly<Partial<Record<Algorithm, EcdsaParams & EcKeyImportParams | { readonly name: "Ed25519" }>>> = {
  ES256: { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" },
  EdDSA: { name: "Ed25519" },
};

/** The content of a new ticket. */
export interface TicketRequest {
  readonly agentId: string;
  /** Must equal that of the verifier. Default: none, and then the verifier must have none. */
  readonly audience?: string;
  /** Lifetime in milliseconds. */
  readonly durationMs: number;
}

/** A new ticket. */
export interface Ticket {
  readonly text: string;
  /** For revocation and logs. */
  readonly id: string;
  /** Milliseconds since 1970. */
  readonly expiresAt: number;
}

/** Whether the text looks like a ticket. */
export function isTicket(text: string): boolean {
  return text.startsWith(PREFIX);
}

/**
 * Signs a ticket for clients of an agent.
 * @throws {KeyError} if the key is for RSA
 * @throws {AuthenticationError} `agent-id`
 * @throws {RangeError} if it would expire after 2106-02-07T06:28:15Z
 */
export async function signTicket({ algorithm, key }: SigningKey, request: TicketRequest, now = Date.now()): Promise<Ticket> {
  const { agentId, audience, durationMs } = request;
  checkAgentId(agentId);
  const parameters = ALGORITHMS[algorithm];
  if (parameters === undefined) {
    throw new KeyError("its key is for RSA, whose signatures are longer than a ticket may be; ES256 or EdDSA is required");
  }
  const seconds = Math.floor(now / 1000) + Math.ceil(durationMs / 1000);
  if (seconds > 0xffff_ffff) throw new RangeError("a ticket expires in 2106 at the latest");
  const id = randomUUID();
  const content = Buffer.alloc(CONTENT_LENGTH);
  content.writeUInt8(VERSION);
  content.writeUInt32BE(seconds, EXPIRY);
  content.write(id.replaceAll("-", ""), ID, "hex");
  const signing = await crypto.subtle.importKey("pkcs8", key.export({ type: "pkcs8", format: "der" }) as BufferSource, parameters, false, [
    "sign",
  ]);
  const signature = await crypto.subtle.sign(parameters, signing, signedBy(content, agentId, audience));
  const text = PREFIX + Buffer.concat([content, new Uint8Array(signature)]).toString("base64url");
  return { text, id, expiresAt: seconds * 1000 };
}

/** The requirements for a ticket, besides its expiry. */
export interface TicketExpectation {
  /** The agent id that the client names, or its possible meanings. */
  readonly agentIds: readonly string[];
  readonly audience?: string;
}

/**
 * Verifies the signature of a ticket. The caller checks the expiry.
 * @throws {AuthenticationError} `denied`
 */
export async function verifyTicket(
  text: string,
  keys: readonly VerificationKey[],
  { agentIds, audience }: TicketExpectation,
): Promise<Token> {
  const { bytes, id, expiresAt } = readTicket(text);
  const content = bytes.subarray(0, CONTENT_LENGTH);
  const signature = bytes.subarray(CONTENT_LENGTH, CONTENT_LENGTH + SIGNATURE_LENGTH);
  for (const { algorithm, id: keyId, key } of keys) {
    const parameters = ALGORITHMS[algorithm];
    if (parameters === undefined) continue;
    for (const agentId of agentIds) {
      if (!await crypto.subtle.verify(parameters, key, signature, signedBy(content, agentId, audience))) continue;
      return { agentId, id, expiresAt, keyId };
    }
  }
  throw deny("is for another agent id or audience than the client's user name and this side, or its key is none of the public keys");
}

/**
 * Reads what is in a ticket, without verifying it.
 * @throws {AuthenticationError} `denied`
 */
export function readTicket(text: string): Pick<Ticket, "id" | "expiresAt"> & { readonly bytes: Buffer<ArrayBuffer> } {
  const bytes = Buffer.from(text.slice(PREFIX.length), "base64url");
  if (!TICKET.test(text) || PREFIX + bytes.toString("base64url") !== text) throw deny("is not complete, or is misspelt");
  if (bytes[0] !== VERSION) throw deny(`has the version ${bytes[0]}, and ${VERSION} is required`);
  return { bytes, id: formatUuid(bytes.subarray(ID, CONTENT_LENGTH)), expiresAt: bytes.readUInt32BE(EXPIRY) * 1000 };
}

function deny(why: string): AuthenticationError {
  return new AuthenticationError("denied", `The ticket ${why}`);
}

/** The agent id and the audience are signed, but not sent: both sides know them. */
function signedBy(content: Uint8Array, agentId: string, audience: string | undefined): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.concat([Buffer.from(CONTEXT), content, Buffer.from(JSON.stringify([agentId, audience ?? null]))]));
}

function formatUuid(bytes: Buffer): string {
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
