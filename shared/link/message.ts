// Encodes and decodes the messages of the control stream (version 2 of the agent link), described in docs/protocol.md. Knows no streams.
import { splitHostPort } from "../address/host_port.ts";
import { PIN_OF_KEY } from "../config/common_options.ts";

/** How clients reach the proxy, for a command that can be pasted. */
export interface ClientAccess {
  /** `host:port`; `:port` if only the port is known. */
  readonly address: string;
  readonly tls: boolean;
  /** SHA-256 of the certificate, 64 hexadecimal digits. Default: it is verified by the system's authorities. */
  readonly pin?: string;
  /** Whether clients need a token. */
  readonly token: boolean;
}

/** An agent's description of itself, or a proxy's. */
export interface Hello {
  /** Program and version for display: `reverse-http/0.1.0`. */
  readonly version: string;
  /** Identifies the agent process. */
  readonly instance: string;
  /** Host name; may be empty. */
  readonly host: string;
  readonly labels: Readonly<Record<string, string>>;
  /** Features besides TCP tunnels: {@link UDP_FEATURE}, {@link DATAGRAMS_FEATURE}, {@link TRACE_FEATURE}, {@link PINS_FEATURE}. Default: nothing. */
  readonly features?: readonly string[];
  /** How clients reach the sending proxy. Default: unknown. */
  readonly clients?: ClientAccess;
  /** Forwards that the agent requests, as records of its option, unchecked. Default: none. */
  readonly publish?: readonly PublishRequest[];
}

/** A forward that an agent asks for: `listen`, `to` and other keys of a forward. */
export type PublishRequest = Readonly<Record<string, unknown>>;

/** The agent relays UDP. */
export const UDP_FEATURE = "udp";
/** Over QUIC it relays UDP in DATAGRAM frames, too. */
export const DATAGRAMS_FEATURE = "udp-datagrams";

/** The agent takes the place of a tunnel in a trace (W3C Trace Context) from its request. */
export const TRACE_FEATURE = "trace-context";

/** The agent stores the pins that a proxy announces. */
export const PINS_FEATURE = "pins";

/** One message. */
export type Message =
  /** From the agent, its first. From the proxy, at most for advice. */
  | { readonly type: "hello"; readonly hello: Hello }
  /** From the proxy: connect elsewhere within `withinMs`. From the agent: open no more tunnels here. */
  | { readonly type: "goaway"; readonly reason: string; readonly withinMs: number }
  | { readonly type: "ping" | "pong"; readonly data: Uint8Array }
  /** From the agent, after a goaway: the proxy need not wait for it any longer, because it has found another proxy or there is none. */
  | { readonly type: "moved"; readonly found: boolean }
  /** From the agent: newer credentials, in the form of its first frame. */
  | { readonly type: "credentials"; readonly credentials: Uint8Array }
  /** From the proxy: pins of its public keys, `sha256/` and base64, the one in use first, then future ones. */
  | { readonly type: "pins"; readonly pins: readonly string[] };

/** Longest message in bytes, including its type. */
export const MAX_MESSAGE = 16 * 1024;
/** Longest delay in milliseconds that a goaway can request. */
export const MAX_SPREAD_MS = 30_000;
const PING_BYTES = 8;
/** Body of a moved message that reports that no other proxy was found. */
const NOWHERE = 1;
const MAX_REASON = 256;
const MAX_VERSION = 128;
const MAX_HOST = 253;
const MAX_LABELS = 32;
const LABEL_NAME = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const MAX_LABEL = 255;
const MAX_FEATURES = 32;
/** Forwards that one agent may ask for. */
export const MAX_PUBLISHED = 16;
/** Pins that a proxy may announce. */
export const MAX_PINS = 8;
const FEATURE = /^[a-z0-9-]{1,32}$/;

/** An invalid message. */
export class MessageError extends Error {
  override readonly name = "MessageError";
}

const TYPES = { hello: 0, goaway: 1, ping: 2, pong: 3, moved: 4, credentials: 5, pins: 6 } as const;

/** Encodes a message as a frame's payload: one byte of type, then the body. */
export function encodeMessage(message: Message): Uint8Array {
  const body = encodeBody(message);
  const bytes = new Uint8Array(1 + body.length);
  bytes[0] = TYPES[message.type];
  bytes.set(body, 1);
  return bytes;
}

function encodeBody(message: Message): Uint8Array {
  switch (message.type) {
    case "hello":
      return encodeJson(message.hello);
    case "goaway":
      return encodeJson({ reason: message.reason, withinMs: message.withinMs });
    case "ping":
    case "pong":
      return message.data;
    case "moved":
      return message.found ? new Uint8Array(0) : Uint8Array.of(NOWHERE);
    case "credentials":
      return message.credentials;
    case "pins":
      return encodeJson({ pins: message.pins });
  }
}

/**
 * Decodes the message in a frame's payload. Returns `undefined` for an unknown type, which is ignored.
 * @throws {MessageError}
 */
export function decodeMessage(payload: Uint8Array): Message | undefined {
  if (payload.length === 0) throw new MessageError("A control frame has no type");
  if (payload.length > MAX_MESSAGE) throw new MessageError(`A control frame has ${payload.length} bytes: the limit is ${MAX_MESSAGE}`);
  const body = payload.subarray(1);
  switch (payload[0]) {
    case TYPES.hello:
      return { type: "hello", hello: readHello(decodeJson(body, "hello")) };
    case TYPES.goaway:
      return readGoaway(decodeJson(body, "goaway"));
    case TYPES.ping:
    case TYPES.pong: {
      const type = payload[0] === TYPES.ping ? "ping" : "pong";
      if (body.length !== PING_BYTES) throw new MessageError(`A ${type} has ${body.length} bytes instead of ${PING_BYTES}`);
      return { type, data: body.slice() };
    }
    case TYPES.moved:
      return { type: "moved", found: body.length !== 1 || body[0] !== NOWHERE };
    case TYPES.credentials:
      return { type: "credentials", credentials: body.slice() };
    case TYPES.pins: {
      const { pins } = decodeJson(body, "list of pins");
      if (!isPins(pins)) throw new MessageError(`A list of pins has not 1 to ${MAX_PINS} of public keys`);
      return { type: "pins", pins };
    }
    default:
      return undefined;
  }
}

/** Returns why labels are invalid, or `undefined`. */
export function checkLabels(labels: Readonly<Record<string, string>>): string | undefined {
  const entries = Object.entries(labels);
  if (entries.length > MAX_LABELS) return `there are ${entries.length} labels; the limit is ${MAX_LABELS}`;
  for (const [name, value] of entries) {
    if (!LABEL_NAME.test(name)) return `${quote(name)} is not a valid label name: up to 63 letters, digits, dots, slashes, dashes`;
    if (!isText(value, MAX_LABEL)) return `the label ${name} has a value of more than ${MAX_LABEL} characters, or with control characters`;
  }
  return undefined;
}

function readHello(value: Record<string, unknown>): Hello {
  const { version = "", instance, host = "", labels = {}, features = [], publish = [] } = value;
  if (typeof instance !== "string" || !/^[A-Za-z0-9-]{1,64}$/.test(instance)) throw new MessageError("A hello has no instance");
  if (!isText(version, MAX_VERSION)) throw new MessageError("A hello has an invalid version");
  if (!isText(host, MAX_HOST)) throw new MessageError("A hello has an invalid host");
  if (!isRecord(labels)) throw new MessageError("A hello has labels that are not an object");
  const problem = checkLabels(labels as Record<string, string>);
  if (problem !== undefined) throw new MessageError(`A hello is invalid: ${problem}`);
  if (!isFeatures(features)) throw new MessageError(`A hello has features that are not up to ${MAX_FEATURES} names`);
  if (!isPublish(publish)) throw new MessageError(`A hello has a publish that is not a list of up to ${MAX_PUBLISHED} objects`);
  const description = { version, instance, host, labels: Object.fromEntries(Object.entries(labels)) as Record<string, string> };
  const clients = readClients(value.clients);
  return { ...description, ...features.length > 0 && { features }, ...clients && { clients }, ...publish.length > 0 && { publish } };
}

/** What cannot be used is left out: it is only advice. */
function readClients(value: unknown): ClientAccess | undefined {
  if (!isRecord(value)) return undefined;
  const { address, tls, pin, token } = value;
  if (!isText(address, MAX_HOST + 8) || typeof tls !== "boolean" || typeof token !== "boolean") return undefined;
  try {
    splitHostPort(address);
  } catch {
    return undefined;
  }
  if (pin !== undefined && !(typeof pin === "string" && /^[0-9a-f]{64}$/.test(pin))) return undefined;
  return { address, tls, token, ...pin !== undefined && { pin } };
}

function readGoaway({ reason = "", withinMs = 0 }: Record<string, unknown>): Message {
  if (!isText(reason, MAX_REASON)) throw new MessageError("A goaway has an invalid reason");
  if (typeof withinMs !== "number" || !(withinMs >= 0)) throw new MessageError("A goaway has an invalid withinMs");
  return { type: "goaway", reason, withinMs: Math.min(withinMs, MAX_SPREAD_MS) };
}

/** Quotes untrusted text, shortened for the log. */
function quote(text: string): string {
  return JSON.stringify(text.length <= 100 ? text : `${text.slice(0, 100)}…`);
}

/** Whether a value is text without control characters, of at most `maxLength` characters. */
function isText(value: unknown, maxLength: number): value is string {
  // deno-lint-ignore no-control-regex -- matches forbidden characters
  return typeof value === "string" && value.length <= maxLength && !/[\x00-\x1f\x7f-\x9f]/.test(value);
}

function isFeatures(value: unknown): value is string[] {
  return Array.isArray(value) && value.length <= MAX_FEATURES && value.every((name) => typeof name === "string" && FEATURE.test(name));
}

function isPublish(value: unknown): value is PublishRequest[] {
  return Array.isArray(value) && value.length <= MAX_PUBLISHED && value.every(isRecord);
}

function isPins(value: unknown): value is string[] {
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_PINS) return false;
  return value.every((pin) => typeof pin === "string" && PIN_OF_KEY.test(pin));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function encodeJson(value: object): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

function decodeJson(body: Uint8Array, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body));
  } catch (cause) {
    throw new MessageError(`A ${what} is not JSON in UTF-8`, { cause });
  }
  if (!isRecord(value)) throw new MessageError(`A ${what} is not a JSON object`);
  return value;
}
