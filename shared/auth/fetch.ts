// Requests to identity providers and webhooks: bounded in time and size, without redirects, over https alone unless the host is this machine.

/** The runtime's fetch, or that of a test. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

export interface FetchOptions {
  /** Time in milliseconds from the start to the last byte. */
  readonly timeoutMs: number;
  /** Largest response body in bytes. */
  readonly maxBytes: number;
  /** Aborts the request. */
  readonly signal?: AbortSignal;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent by POST. Default: GET. */
  readonly body?: string;
}

export interface Fetched {
  readonly status: number;
  readonly text: string;
}

/**
 * Sends a request and reads the response. Redirects are not followed: their status is returned.
 * @throws {Error} saying in a few words why there is no response
 */
export async function fetchText(fetch: Fetch, url: string, options: FetchOptions): Promise<Fetched> {
  const { timeoutMs, maxBytes, signal, headers, body } = options;
  const timeout = AbortSignal.timeout(timeoutMs);
  try {
    const response = await fetch(url, {
      method: body === undefined ? "GET" : "POST",
      headers: { Accept: "application/json", ...headers },
      body,
      redirect: "manual",
      signal: signal === undefined ? timeout : AbortSignal.any([timeout, signal]),
    });
    return { status: response.status, text: await readBody(response, maxBytes) };
  } catch (cause) {
    if (timeout.aborted) throw new Error(`no complete response within ${timeoutMs} ms`, { cause });
    throw new Error(describe(cause), { cause });
  }
}

/** @throws {Error} if it has more than `maxBytes` */
export async function readBody({ body }: Response, maxBytes: number): Promise<string> {
  if (body === null) return "";
  const [decoder, reader] = [new TextDecoder("utf-8"), body.getReader()];
  let [text, size] = ["", 0];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    size += value.length;
    if (size > maxBytes) {
      await reader.cancel().catch(() => {}); // the error below is the reason
      throw new Error(`the response has more than ${maxBytes} bytes`);
    }
    text += decoder.decode(value, { stream: true });
  }
}

/** Node.js gives the reason as the cause, for instance ECONNREFUSED. */
function describe(error: unknown): string {
  const { message, cause } = error as Error;
  const { code, message: inner } = (cause ?? {}) as NodeJS.ErrnoException;
  return code ?? inner ?? message;
}

/**
 * Parses JSON that must be an object.
 * @throws {Error} that describes the unexpected response
 */
export function parseObject(text: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new Error("the response is not JSON", { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error("the response is not a JSON object");
  return value as Readonly<Record<string, unknown>>;
}
