// Sends requests to a member's admin API: for one response, bounded in time and bytes, or for its stream of events.
import { splitHostPort } from "../../address/host_port.ts";
import { encodeHead, type Fields, HeadError, type ResponseHead, values } from "../../http/head.ts";
import { readResponse } from "../../http/read_response.ts";
import { NetError } from "../../net/errors.ts";
import type { Net } from "../../net/net.ts";
import type { Duplex } from "../../net/stream.ts";
import type { ClientTls } from "../../net/tls.ts";
import type { Member } from "./member.ts";

export interface RequestOptions {
  readonly net: Pick<Net, "connectTcp">;
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  /** JSON; empty for none. */
  readonly body: string;
  readonly authorization: string;
  /** Time in milliseconds for everything; of a stream, for its beginning. */
  readonly timeoutMs: number;
}

export interface AskOptions extends RequestOptions {
  /** Bytes that may still be received, shared by all members of one request. */
  readonly budget: { left: number };
}

/** A response whose body is JSON. */
export interface MemberResponse {
  readonly status: number;
  readonly value: unknown;
}

/** @throws {Error} saying in a few words why there is no response */
export async function askMember(member: Member, options: AskOptions): Promise<MemberResponse> {
  return await request(member, options, async ({ head, stream }) => await readJson(head, stream, options.budget));
}

export interface FollowOptions extends RequestOptions {
  /** Ends it. */
  readonly signal: AbortSignal;
  /** Called when the member has accepted. */
  opened(): void;
  /** Takes an event: its name, and its data, which is JSON. */
  take(name: string, data: string): void;
}

/** Time in milliseconds without a byte after which a stream of events ends: three comments are missing. */
const SILENCE_MS = 45_000;
/** Longest event in characters, and longest error in bytes. */
const MAX_EVENT = 1 << 20;
const MAX_ERROR = 16 * 1024;

/**
 * Reads a member's stream of server-sent events until one side ends it.
 * @throws {Error} saying in a few words why there is no stream, or no longer
 */
export async function followMember(member: Member, options: FollowOptions): Promise<void> {
  const { signal, opened, take } = options;
  await request(member, options, async ({ head, stream, extend }) => {
    if (head.status !== 200) {
      const { status, value } = await readJson(head, stream, { left: MAX_ERROR });
      throw new Error(errorIn(status, value));
    }
    opened();
    const decoder = new TextDecoder();
    let text = "";
    for (let data; (data = await stream.read()) !== null;) {
      extend(SILENCE_MS);
      text += decoder.decode(data, { stream: true });
      const events = text.split("\n\n");
      text = events.pop()!;
      for (const event of events) {
        const [, name, json] = /^event: ([^\n]*)\ndata: ([^\n]*)$/.exec(event) ?? [];
        if (name !== undefined && json !== undefined) take(name, json);
      }
      if (text.length > MAX_EVENT) throw new Error("the response is too large");
    }
    throw new Error("it ended the connection");
  }, signal);
}

/** A response whose body is not read yet. */
interface Responding {
  readonly head: ResponseHead;
  readonly stream: Duplex;
  /** Allows it this much more time, in milliseconds from now. */
  extend(ms: number): void;
}

/**
 * Sends a request, and calls `read` when its response begins. The connection closes after that.
 * @throws {Error} saying in a few words what has failed
 */
async function request<T>(
  { address, pin }: Member,
  { net, method, target, body, authorization, timeoutMs }: RequestOptions,
  read: (response: Responding) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const { host, port } = splitHostPort(address);
  const deadline = performance.now() + timeoutMs;
  let stream: Duplex | undefined;
  let isLate = false;
  const stop = () => stream?.reset(1);
  const expire = () => {
    isLate = true;
    stop();
  };
  let timer = setTimeout(expire, timeoutMs);
  const extend = (ms: number) => {
    clearTimeout(timer);
    timer = setTimeout(expire, ms);
  };
  signal?.addEventListener("abort", stop);
  try {
    const tls: ClientTls | undefined = pin === undefined ? undefined : { pinSha256: [pin] };
    stream = await net.connectTcp({ host, port, timeoutMs, tls, signal });
    const content = new TextEncoder().encode(body);
    const fields: Fields = [
      ["Host", address],
      ["Authorization", authorization],
      ...body === "" ? [] : [["Content-Type", "application/json"], ["Content-Length", String(content.length)]] as const,
      ["Connection", "close"],
    ];
    await stream.write(encodeHead(`${method} ${target} HTTP/1.1`, fields));
    if (content.length > 0) await stream.write(content);
    const head = await readResponse(stream, Math.max(1, deadline - performance.now()), "--admin.cluster.address");
    return await read({ head, stream, extend });
  } catch (cause) {
    throw new Error(isLate ? "no response in time" : describe(cause), { cause });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
    stream?.reset(1);
    stream?.close();
  }
}

/** @throws {Error} */
async function readJson(head: ResponseHead, stream: Duplex, budget: { left: number }): Promise<MemberResponse> {
  const length = Number(values(head.fields, "content-length")[0] ?? NaN);
  return { status: head.status, value: JSON.parse(await readBody(stream, length, budget)) };
}

/** Why a member refuses. */
export function errorIn(status: number, value: unknown): string {
  const { error } = (value ?? {}) as Readonly<Record<string, unknown>>;
  return typeof error === "string" ? error : `it responded with status ${status}`;
}

/** @throws {Error} */
async function readBody(stream: Duplex, length: number, budget: { left: number }): Promise<string> {
  if (!Number.isInteger(length) || length < 0) throw new Error("the response has no length");
  if (length > budget.left) throw new Error("the response is too large: ask for fewer items");
  budget.left -= length;
  const body = new Uint8Array(length);
  for (let size = 0; size < length;) {
    const data = await stream.read();
    if (data === null) throw new Error("the response is incomplete");
    body.set(data.subarray(0, length - size), size);
    size += data.length;
  }
  return new TextDecoder().decode(body);
}

function describe(error: unknown): string {
  if (error instanceof NetError) return REASONS[error.code] ?? error.message;
  if (error instanceof SyntaxError || error instanceof HeadError) return "the response is not one of a member";
  return error instanceof Error ? error.message : String(error);
}

const REASONS: Readonly<Record<string, string>> = {
  "refused": "no service listens there",
  "tls": "it does not speak TLS with the key of its entry in the store",
  "timed-out": "no response in time",
  "reset": "it ended the connection without a response",
  "closed": "it ended the connection without a response",
  "head-truncated": "it ended the connection without a response",
};
