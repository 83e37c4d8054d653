// Sends one request to a member's admin API, bounded in time and bytes.
import { splitHostPort } from "../../address/host_port.ts";
import { encodeHead, type Fields, HeadError, values } from "../../http/head.ts";
import { readResponse } from "../../http/read_response.ts";
import { NetError } from "../../net/errors.ts";
import type { Net } from "../../net/net.ts";
import type { Duplex } from "../../net/stream.ts";
import type { Member } from "./member.ts";

export interface AskOptions {
  readonly net: Pick<Net, "connectTcp">;
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  /** JSON; empty for none. */
  readonly body: string;
  readonly authorization: string;
  /** Time in milliseconds for everything. */
  readonly timeoutMs: number;
  /** Bytes that may still be received, shared by all members that are asked together. */
  readonly budget: { left: number };
}

/** A response whose body is JSON. */
export interface MemberResponse {
  readonly status: number;
  readonly value: unknown;
}

/** @throws {Error} saying in a few words why there is no response */
export async function askMember({ address }: Pick<Member, "address">, options: AskOptions): Promise<MemberResponse> {
  const { net, method, target, body, authorization, timeoutMs, budget } = options;
  const { host, port } = splitHostPort(address);
  const deadline = performance.now() + timeoutMs;
  let stream: Duplex | undefined;
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    stream?.reset(1);
  }, timeoutMs);
  try {
    stream = await net.connectTcp({ host, port, timeoutMs });
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
    const length = Number(values(head.fields, "content-length")[0] ?? NaN);
    const text = await readBody(stream, length, budget);
    return { status: head.status, value: JSON.parse(text) };
  } catch (cause) {
    throw new Error(isLate ? "no response in time" : describe(cause), { cause });
  } finally {
    clearTimeout(timer);
    stream?.reset(1);
    stream?.close();
  }
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
  "timed-out": "no response in time",
  "reset": "it ended the connection without a response",
  "closed": "it ended the connection without a response",
  "head-truncated": "it ended the connection without a response",
};
