// The messages of the control stream (version 2 of the agent link): from bytes and back. docs/protocol.md describes them. No streams here.

/** What an agent says of itself. */
export interface Hello {
  /** Program and version, for people: `reverse-http/0.1.0`. */
  readonly version: string;
  /** Tells connections of one agent process from those of another. */
  readonly instance: string;
  /** Name of the machine; may be empty. */
  readonly host: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** One message. */
export type Message =
  | { readonly type: "hello"; readonly hello: Hello }
  /** The proxy: connect elsewhere, within so many milliseconds. The agent: open no more tunnels here. */
  | { readonly type: "goaway"; readonly reason: string; readonly withinMs: number }
  | { readonly type: "ping" | "pong"; readonly data: Uint8Array }
  /** The agent, after a goaway of the proxy: it need not be waited for, for it has found another one, or none. */
  | { readonly type: "moved"; readonly found: boolean };

/** Longest message in bytes, its type included. */
export const MAX_MESSAGE = 16 * 1024;
/** Longest wait in milliseconds that a goaway may ask for. */
export const MAX_SPREAD_MS = 30_000;
const PING_BYTES = 8;
/** The body of a moved that has found no other proxy. */
const NOWHERE = 1;
const MAX_REASON = 256;
const MAX_VERSION = 128;
const MAX_HOST = 253;
const MAX_LABELS = 32;
const LABEL_NAME = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const MAX_LABEL = 255;

/** A message that breaks the rules. */
export class MessageError extends Error {
  override readonly name = "MessageError";
}

const TYPES = { hello: 0, goaway: 1, ping: 2, pong: 3, moved: 4 } as const;

/** The payload of a frame: one byte of type, then what belongs to it. */
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
  }
}

/**
 * The message in a frame's payload; `undefined` for a type that is not known: it is to be ignored.
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
      if (body.length !== PING_BYTES) throw new MessageError(`A ${type} has ${body.length} bytes, and not ${PING_BYTES}`);
      return { type, data: body.slice() };
    }
    case TYPES.moved:
      return { type: "moved", found: body.length !== 1 || body[0] !== NOWHERE };
    default:
      return undefined;
  }
}

/** Returns why labels cannot be sent; `undefined` where they can. */
export function checkLabels(labels: Readonly<Record<string, string>>): string | undefined {
  const entries = Object.entries(labels);
  if (entries.length > MAX_LABELS) return `there are ${entries.length} labels, and ${MAX_LABELS} is the limit`;
  for (const [name, value] of entries) {
    if (!LABEL_NAME.test(name)) return `${quote(name)} is not a label's name: up to 63 letters, digits, dots, slashes, dashes`;
    if (!isText(value, MAX_LABEL)) return `the label ${name} has a value of more than ${MAX_LABEL} characters, or with control characters`;
  }
  return undefined;
}

function readHello(value: Record<string, unknown>): Hello {
  const { version = "", instance, host = "", labels = {} } = value;
  if (typeof instance !== "string" || !/^[A-Za-z0-9-]{1,64}$/.test(instance)) throw new MessageError("A hello has no instance");
  if (!isText(version, MAX_VERSION)) throw new MessageError("A hello has a version that is no short text");
  if (!isText(host, MAX_HOST)) throw new MessageError("A hello has a host that is no short text");
  if (!isRecord(labels)) throw new MessageError("A hello has labels that are no object");
  const problem = checkLabels(labels as Record<string, string>);
  if (problem !== undefined) throw new MessageError(`A hello cannot be used: ${problem}`);
  return { version, instance, host, labels: Object.fromEntries(Object.entries(labels)) as Record<string, string> };
}

function readGoaway({ reason = "", withinMs = 0 }: Record<string, unknown>): Message {
  if (!isText(reason, MAX_REASON)) throw new MessageError("A goaway has a reason that is no short text");
  if (typeof withinMs !== "number" || !(withinMs >= 0)) throw new MessageError("A goaway has a withinMs that is no number from 0 on");
  return { type: "goaway", reason, withinMs: Math.min(withinMs, MAX_SPREAD_MS) };
}

/** What a stranger says, short enough for a line of the log. */
function quote(text: string): string {
  return JSON.stringify(text.length <= 100 ? text : `${text.slice(0, 100)}…`);
}

/** Text that can stand in a log line. */
function isText(value: unknown, most: number): value is string {
  // deno-lint-ignore no-control-regex -- these are what must not be in it
  return typeof value === "string" && value.length <= most && !/[\x00-\x1f\x7f-\x9f]/.test(value);
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
  if (!isRecord(value)) throw new MessageError(`A ${what} is no JSON object`);
  return value;
}
