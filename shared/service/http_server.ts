// Serves connections of a listener by a function from Request to Response, as Fetch defines them. One request each: the connection closes
// after the response, which bounds what a client can hold.
import { encodeHead, type Fields, HeadError, parseRequestHead, type RequestHead, values } from "../http/head.ts";
import { reasonOf } from "../http/status.ts";
import type { NetError } from "../net/errors.ts";
import type { Duplex } from "../net/stream.ts";
import type { TcpListener } from "../net/tcp.ts";
import type { AskingWorker } from "./cluster/workers.ts";

/** Where a request comes from, and the fields that decide whether it may. */
export interface RequestOrigin {
  /** By the unix socket, which only its owner can open. */
  readonly isLocal: boolean;
  /** The address at which the server listens; a path for a unix socket. */
  readonly listening: string;
  readonly remote: string;
  readonly host?: string;
  readonly origin?: string;
  /** The worker that asks on behalf of an operator, over the link between them. */
  readonly worker?: AskingWorker;
}

/** Type of a response that continues until one side ends it. */
export const EVENT_STREAM = "text/event-stream";

export type Handler = (request: Request, origin: RequestOrigin) => Response | Promise<Response>;

/** A connection with the head of its request, as a listener delivers it. */
export interface Connection {
  readonly stream: Pick<Duplex, "remote" | "read" | "write" | "close" | "reset">;
  readonly head?: string;
  /** Why there is no head. */
  readonly error?: NetError;
}

/** Longest body of a request in bytes, and the time for it in milliseconds. */
const MAX_BODY = 16 * 1024;
const BODY_TIMEOUT_MS = 10_000;

/** Serves one request. Never rejects. */
export async function serveRequest(
  { stream, head = "", error }: Connection,
  { isLocal, listening }: Pick<RequestOrigin, "isLocal" | "listening">,
  handle: Handler,
): Promise<void> {
  let isHead = false;
  let response;
  try {
    if (error?.code === "not-tls") throw new RequestError(400, "this port speaks HTTPS");
    const request = parseRequestHead(head);
    isHead = request.method === "HEAD";
    const [host, origin] = [values(request.fields, "host")[0], values(request.fields, "origin").join(", ") || undefined];
    response = await handle(toRequest(request, await readBody(stream, request)), {
      isLocal,
      listening,
      remote: stream.remote,
      host,
      origin,
    });
  } catch (error) {
    response = error instanceof RequestError || error instanceof HeadError
      ? Response.json({ error: error.message }, { status: error.status })
      : Response.json({ error: "internal error" }, { status: 500 });
  }
  await send(stream, response, isHead).catch(() => {}); // the client has disconnected
  stream.close(); // pending writes are sent first
}

/** Serves the connections of a listener until it is closed. */
export async function serveTcp(listener: TcpListener, handle: Handler): Promise<void> {
  const from = { isLocal: false, listening: listener.address };
  const serve = (connection: Connection): void => void serveRequest(connection, from, handle); // never rejects
  for (let batch; (batch = await listener.accept()) !== null;) batch.forEach(serve);
}

/** A request that is not handled. */
class RequestError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** @throws {RequestError} */
async function readBody(stream: Connection["stream"], { fields }: RequestHead): Promise<Uint8Array | undefined> {
  const length = Number(values(fields, "content-length")[0] ?? 0);
  if (values(fields, "transfer-encoding").length > 0) throw new RequestError(411, "a body needs a Content-Length");
  if (length === 0) return undefined;
  if (length > MAX_BODY) throw new RequestError(413, `the body has ${length} bytes; the limit is ${MAX_BODY}`);
  const body = new Uint8Array(length);
  const timer = setTimeout(() => stream.reset(1), BODY_TIMEOUT_MS);
  try {
    for (let size = 0; size < length;) {
      const data = await stream.read();
      if (data === null) throw new RequestError(400, "the body is incomplete");
      body.set(data.subarray(0, length - size), size);
      size += Math.min(data.length, length - size);
    }
  } finally {
    clearTimeout(timer);
  }
  return body;
}

/** @throws {RequestError} */
function toRequest({ method, target, fields }: RequestHead, body: Uint8Array | undefined): Request {
  if (!target.startsWith("/")) throw new RequestError(400, "the target of a request is a path");
  if (method === "CONNECT" || method === "TRACE" || method === "TRACK") throw new RequestError(405, `${method} is not served`); // no Request has it
  const headers = new Headers();
  for (const [name, value] of fields) headers.append(name, value);
  const hasBody = body !== undefined && method !== "GET" && method !== "HEAD";
  return new Request(new URL(`http://localhost${target}`), {
    method: method === "HEAD" ? "GET" : method, // `send` leaves the body out
    headers,
    body: hasBody ? new Uint8Array(body) : undefined,
  });
}

/** @throws {NetError} if the client has disconnected */
async function send(stream: Connection["stream"], response: Response, isHead: boolean): Promise<void> {
  const { status, headers, body } = response;
  const isEndless = headers.get("content-type") === EVENT_STREAM;
  const content = isEndless ? undefined : new Uint8Array(await response.arrayBuffer());
  const fields: Fields = [
    ...[...headers].map(([name, value]) => [inTitleCase(name), value] as const),
    ...content === undefined ? [] : [["Content-Length", String(content.length)] as const],
    ["Connection", "close"],
  ];
  const written = stream.write(encodeHead(`HTTP/1.1 ${status} ${reasonOf(status)}`, fields));
  if (content !== undefined) return void await Promise.all([written, isHead ? undefined : stream.write(content)]);
  const reader = body!.getReader();
  try {
    await written;
    if (isHead) return;
    for (let part; !(part = await reader.read()).done;) await stream.write(part.value);
  } finally {
    await reader.cancel().catch(() => {}); // it has ended, or the client has disconnected
  }
}

/** Header fields as people write them: `Content-Type`. */
function inTitleCase(name: string): string {
  return name.replace(/\b[a-z]/g, (letter) => letter.toUpperCase());
}
