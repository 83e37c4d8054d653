// Plain HTTP to an origin: a request becomes one in origin-form (RFC 9112 §3.2.1) with `Connection: close`. Each has a connection to the origin
// of its own. The client's connection may bring several.
//
// The bytes are copied and counted here and not by `splice`, which would let the client send a second request behind the first.
import { Buffer } from "node:buffer";
import { type BodyEnd, LengthEnd } from "../../http/body.ts";
import { endOfHead, HeadError, parseResponseHead, type RequestHead, type ResponseHead, values } from "../../http/head.ts";
import type { Intermediary } from "../../http/proxy_status.ts";
import { ProxyError } from "../../http/status.ts";
import { NetError } from "../../net/errors.ts";
import type { Duplex } from "../../net/stream.ts";
import { clientDisconnected } from "../../tunnel/errors.ts";
import type { RequestRecord } from "../access_log.ts";
import { ClientInput } from "./client_input.ts";
import { endOfRequest, endOfResponse, type ForwardTarget, framingOf, rewriteRequest, rewriteResponse, upgradeOf } from "./rewrite.ts";
import { linger } from "./linger.ts";

/** Maximum size of a response head in bytes. */
const MAX_RESPONSE_HEAD = 64 * 1024;
/** Timeout in milliseconds for the origin to send something after the client has finished sending. */
const HALF_CLOSED_TIMEOUT_MS = 30_000;
/** Interim responses (1xx) before the final one. */
const MAX_INTERIM = 16;
/** Maximum number of bytes read and dropped behind a request; then reading stops. */
const MAX_TRAILING_BYTES = 16 * 1024;

const encoder = new TextEncoder();

/** One chunk (RFC 9112 §7.1). */
function chunkOf(data: Uint8Array): Uint8Array {
  const size = encoder.encode(`${data.length.toString(16)}\r\n`);
  const chunk = new Uint8Array(size.length + data.length + 2);
  chunk.set(size);
  chunk.set(data, size.length);
  chunk.set(CRLF, size.length + data.length);
  return chunk;
}

const CRLF = encoder.encode("\r\n");
const LAST_CHUNK = encoder.encode("0\r\n\r\n");

/** A request to forward, and how. */
export interface ForwardedExchange {
  readonly request: RequestHead;
  readonly target: ForwardTarget;
  /** Gets status and bytes. */
  readonly record: RequestRecord;
  readonly by: Intermediary;
  /** Aborted with the error when the client resets its connection. */
  readonly clientSignal: AbortSignal;
  /** Awaited for each part of a body. Default: does not wait. */
  readonly pace?: (bytes: number) => Promise<void>;
  /** The client's input, if another request may follow. Default: the connection has only one request. */
  readonly input?: ClientInput;
  /** Whether the client's connection may stay open for another request. Default: never. */
  readonly mayPersist?: () => boolean;
}

/**
 * Forwards the request and its response. Bodies stream in both directions at once. Returns whether the client's connection stays open for
 * another request; otherwise it is closed.
 */
export async function forward(client: Duplex, origin: Duplex, exchange: ForwardedExchange): Promise<boolean> {
  const { request, target, clientSignal } = exchange;
  const forwarded = new ForwardedRequest(client, origin, exchange);
  const abortForClient = () => forwarded.abortForClient(clientSignal.reason);
  clientSignal.addEventListener("abort", abortForClient, { once: true });
  try {
    if (clientSignal.aborted) throw clientDisconnected(clientSignal.reason);
    await origin.write(rewriteRequest(request, target));
    const sent = forwarded.sendBody();
    await forwarded.sendResponse();
    if (forwarded.isUpgraded) await sent; // each direction of the other protocol ends on its own
    await forwarded.finish();
    if (!forwarded.isPersistent) await sent; // otherwise it waits for the client's next bytes, which are not for it
    return forwarded.isPersistent;
  } catch (error) {
    // do not wait for the body: it ends with the client's connection, which is open until the client has the error
    forwarded.abort();
    throw error;
  } finally {
    clientSignal.removeEventListener("abort", abortForClient);
  }
}

/** One request and its response. */
class ForwardedRequest {
  #finished = false;
  /** Resolved by the final response: whether the origin has switched protocols. */
  #resolveUpgrade: (upgraded: boolean) => void = () => {};
  readonly #upgraded = new Promise<boolean>((resolve) => this.#resolveUpgrade = resolve);
  /** The error of the client's direction. */
  #clientError: unknown;
  /** Why reading from the client has ended, for the log; `undefined` while it is read. */
  #clientEndReason?: string;
  /** Whether a read from the origin is pending. While the client reads slowly, the origin is not idle. */
  #isReading = false;
  /** Runs while the origin is read and the client is not. */
  #idleTimer?: ReturnType<typeof setTimeout>;
  readonly #body: BodyEnd;
  isUpgraded = false;
  /** Whether the response has permitted the client to send another request. */
  isPersistent = false;
  readonly request: RequestHead;
  readonly record: RequestRecord;
  readonly by: Intermediary;
  readonly pace: (bytes: number) => Promise<void>;
  readonly input: ClientInput;
  readonly mayPersist: () => boolean;

  constructor(readonly client: Duplex, readonly origin: Duplex, exchange: ForwardedExchange) {
    this.request = exchange.request;
    this.record = exchange.record;
    this.by = exchange.by;
    this.pace = exchange.pace ?? (async () => {});
    this.input = exchange.input ?? new ClientInput(client);
    this.mayPersist = exchange.mayPersist ?? (() => false);
    this.#body = endOfRequest(this.request);
  }

  /**
   * Never rejects: an origin may respond without reading, and a client that disconnects ends the response too. Some bytes behind the body are
   * read, to detect that the client disconnects. They are left to the next request if there may be one, and dropped otherwise.
   */
  async sendBody(): Promise<void> {
    const { input, origin, record } = this;
    let [taken, trailing, other] = [true, 0, false];
    try {
      while (trailing <= MAX_TRAILING_BYTES) {
        await input.ready();
        if (this.#finished) return;
        const data = input.take();
        if (data === null) break;
        const own = other ? data.length : this.#body.take(data);
        const rest = data.subarray(own);
        const isNext = rest.length > 0 && this.#mayPersist();
        if (isNext) input.unread(rest); // before anything is awaited: the next request may be read meanwhile
        await this.pace(isNext ? own : data.length);
        record.sent += isNext ? own : data.length;
        if (own > 0 && taken) taken = await origin.write(data.subarray(0, own)).then(() => true, () => false);
        if (isNext) return; // from here on only a reset of the client is seen
        if (rest.length === 0) continue;
        // after an upgrade, data after the request belongs to the other protocol
        other = upgradeOf(this.request) !== undefined && await this.#upgraded;
        if (!other) trailing += rest.length;
        else if (taken) taken = await origin.write(rest).then(() => true, () => false);
      }
      // from here on a disconnect is not seen
      if (trailing > MAX_TRAILING_BYTES) return this.#startIdleTimeout("It has sent too many bytes after its request");
      // an incomplete body must not look complete; a client that has its response already need not send the rest
      if (!this.#body.done && record.status === undefined) throw new HeadError(400, "The request ended before its body was complete");
      if (await this.#isEndOfMessage()) return;
      origin.closeWrite();
      if (!this.isUpgraded) this.#startIdleTimeout("It has finished sending");
    } catch (error) {
      this.abortForClient(error);
    }
  }

  /**
   * Whether the end of the client's direction is that of a message alone, as after each request of HTTP/2. Many origins close a connection whose
   * other end has finished, without a response; and whether the client is there still is known: its stream or its connection is open.
   */
  async #isEndOfMessage(): Promise<boolean> {
    if (this.request.version !== "2" || !this.#body.done) return false;
    return upgradeOf(this.request) === undefined || !await this.#upgraded;
  }

  /** A client that asks for another protocol may send it at once, which must not become a request. */
  #mayPersist(): boolean {
    return upgradeOf(this.request) === undefined && this.mayPersist();
  }

  /** The client's direction broke: the client can neither send more nor receive the response. */
  abortForClient(error: unknown): void {
    if (this.#finished) return;
    this.#clientError ??= error;
    this.origin.reset(1);
    this.origin.stopRead(1);
  }

  /** A client that has finished sending may still wait for its response, or may have disconnected. With a silent origin it is unknown. */
  #startIdleTimeout(why: string): void {
    this.#clientEndReason = why;
    this.#armIdleTimeout();
  }

  #armIdleTimeout(): void {
    if (this.#clientEndReason === undefined || !this.#isReading || this.#finished) return;
    const why = new Error(`${this.#clientEndReason}, and the destination has been silent for ${HALF_CLOSED_TIMEOUT_MS / 1_000} s`);
    this.#idleTimer = setTimeout(() => this.abortForClient(why), HALF_CLOSED_TIMEOUT_MS);
  }

  async sendResponse(): Promise<void> {
    const { client, request, record } = this;
    const { response, rest } = await this.#sendHeads();
    this.isUpgraded = response.status === 101;
    this.#resolveUpgrade(this.isUpgraded);
    const framing = framingOf(request, response);
    const body = this.isUpgraded ? new LengthEnd(Infinity) : endOfResponse(request.method, response) ?? new LengthEnd(Infinity);
    for (let data: Uint8Array | null = rest; data !== null; data = await this.#readBody(body)) {
      const part = framing === "dechunked" ? contentOf(body, data) : data.subarray(0, takeResponse(body, data));
      if (part.length > 0) {
        await this.pace(part.length);
        await this.#write(framing === "chunked" ? chunkOf(part) : part);
        record.received += part.length;
      }
      // do not wait for an origin that keeps its connection open, unless the request's body is still being sent
      if (body.done && this.#body.done) break;
    }
    if (!body.mayEnd) throw incomplete("The destination's response ends before it is complete");
    if (framing === "chunked") await this.#write(LAST_CHUNK);
    // the client may take the next response for a part of this one
    else if (!body.done || !body.isStrict) this.isPersistent = false;
    if (!this.isPersistent) client.closeWrite();
  }

  /** An error of the connection after the response is complete is ignored. */
  async #readBody(body: BodyEnd): Promise<Uint8Array | null> {
    try {
      return await this.#read();
    } catch (cause) {
      if (body.done && this.#clientError === undefined) return null;
      throw cause;
    }
  }

  /** Forwards heads up to the final one, and returns it with the bytes behind it. */
  async #sendHeads(): Promise<{ response: ResponseHead; rest: Uint8Array }> {
    let buffer = Buffer.alloc(0);
    let [seen, skipped] = [0, 0];
    for (let interim = 0; interim <= MAX_INTERIM;) {
      // empty lines before the status line are skipped, as before a request line
      const blank = seen > 0 ? 0 : buffer.findIndex((byte) => byte !== 0x0d && byte !== 0x0a);
      skipped += blank < 0 ? buffer.length : blank;
      if (seen === 0) buffer = blank < 0 ? Buffer.alloc(0) : buffer.subarray(blank);
      const end = endOfHead(buffer, seen);
      if (end < 0 || end > MAX_RESPONSE_HEAD) {
        if (skipped + buffer.length > MAX_RESPONSE_HEAD) throw tooLarge();
        seen = buffer.length;
        const data = await this.#read();
        if (data === null) throw incomplete("The destination's response head is missing");
        buffer = Buffer.concat([buffer, data]);
        continue;
      }
      seen = 0;
      const response = parseResponse(buffer.toString("latin1", 0, end));
      buffer = buffer.subarray(end);
      const final = response.status >= 200 || response.status === 101;
      // the rest of the request's body would be parsed as another request
      this.isPersistent = final && this.#body.done && this.#mayPersist();
      if (response.status === 101 && (upgradeOf(this.request) === undefined || upgradeOf(response) === undefined)) {
        throw new ProxyError(502, "http_upgrade_failed", "The destination has switched to a protocol that was not requested");
      }
      if (final) this.record.status = response.status;
      // HTTP/1.0 has no interim responses (RFC 9110 §15.2)
      if (final || this.request.version !== "1.0") {
        const written = this.#write(rewriteResponse(response, framingOf(this.request, response), this.by, this.isPersistent));
        // an origin of HTTP/2 may send any number of them while the client does not read: they are counted here, not kept
        if (!final) written.catch(() => {}); // the next write fails, too
        else await written;
      }
      if (final) return { response, rest: buffer };
      interim++;
    }
    throw new ProxyError(502, "http_protocol_error", "The destination has sent too many interim responses");
  }

  async #read(): Promise<Uint8Array | null> {
    this.#isReading = true;
    this.#armIdleTimeout();
    try {
      return await this.origin.read();
    } catch (cause) {
      if (cause instanceof NetError && cause.code === "not-http2") {
        throw new ProxyError(502, "http_protocol_error", "The destination does not speak HTTP/2, which to-protocol=h2c says", [], {
          cause,
        });
      }
      if (this.#clientError === undefined || this.#clientError instanceof HeadError) throw this.#clientError ?? cause;
      throw clientDisconnected(this.#clientError);
    } finally {
      this.#isReading = false;
      clearTimeout(this.#idleTimer);
    }
  }

  async #write(data: Uint8Array): Promise<void> {
    await this.client.write(data).catch((cause) => {
      throw clientDisconnected(cause);
    });
  }

  /** The origin may have responded without reading the body, and the client may still be sending it. */
  async finish(): Promise<void> {
    this.#finished = true;
    clearTimeout(this.#idleTimer);
    this.origin.close();
    if (this.isPersistent) return;
    if (!this.#body.done && !this.isUpgraded) {
      await linger(this.client, async (bytes) => {
        this.record.sent += bytes;
        await this.pace(bytes);
      });
    }
    this.client.close();
  }

  abort(): void {
    this.#finished = true;
    clearTimeout(this.#idleTimer);
    this.#resolveUpgrade(false);
    this.origin.reset(1);
    this.origin.close();
  }
}

/** @throws {ProxyError} 502 */
function takeResponse(body: BodyEnd, data: Uint8Array, onContent?: (part: Uint8Array) => void): number {
  try {
    return body.take(data, onContent);
  } catch (cause) {
    throw new ProxyError(502, "http_response_transfer_coding", "The chunks of the destination's response are malformed", [], { cause });
  }
}

/**
 * The content of `data`, without the framing of chunks.
 * @throws {ProxyError} 502
 */
function contentOf(body: BodyEnd, data: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = [];
  takeResponse(body, data, (part) => parts.push(part));
  return Buffer.concat(parts);
}

function parseResponse(head: string): ResponseHead {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (cause instanceof HeadError && cause.status === 431) throw tooLarge();
    throw new ProxyError(502, "http_protocol_error", "The destination's response is malformed", [], { cause });
  }
  // repeated equal lengths are one; different lengths are an error
  const lengths = new Set(values(response.fields, "content-length").flatMap((value) => value.split(",")).map((value) => value.trim()));
  if (lengths.size > 1 || [...lengths].some((length) => !/^[0-9]{1,15}$/.test(length))) {
    throw new ProxyError(502, "http_protocol_error", "The destination's response has no valid Content-Length");
  }
  const [length] = lengths;
  // `identity` stood for no coding (RFC 2616 §3.6)
  const others = response.fields.filter(([name, value]) =>
    name.toLowerCase() !== "content-length" && !(name.toLowerCase() === "transfer-encoding" && /^(identity)?$/i.test(value))
  );
  return { ...response, fields: length === undefined ? others : [...others, ["Content-Length", length]] };
}

function incomplete(message: string): ProxyError {
  return new ProxyError(502, "http_response_incomplete", message);
}

function tooLarge(): ProxyError {
  return new ProxyError(502, "http_response_header_section_size", "The destination's response head is too large");
}
