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
  const { maxBytes, signal, headers, body } = options;
  const timeoutMs = Math.ceil(options.timeoutMs); // Node.js takes whole numbers only
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
    throw new Error(describeFetchError(cause), { cause });
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

/** A fetch for libraries that read whole responses, however long they are: it rejects if one has more than `maxBytes`. */
export function boundedFetch(fetch: Fetch, maxBytes: number): Fetch {
  return async (url, init) => {
    const response = await fetch(url, init);
    const { status } = response;
    const text = await readBody(response, maxBytes);
    const headers = new Headers(response.headers);
    for (const name of ["content-encoding", "content-length"]) headers.delete(name); // the text is decoded
    return new Response(status === 204 || status === 304 ? null : text, { status, headers });
  };
}

/** Why there is no response, in a few words: the innermost cause of what `fetch` throws says it, as ECONNREFUSED does. */
export function describeFetchError(error: unknown): string {
  let inner = error as Error;
  while (inner.cause instanceof Error) inner = inner.cause;
  const { message } = inner;
  const code = "code" in inner && typeof inner.code === "string" ? inner.code : undefined;
  if (/CERT|SSL|TLS|ISSUER|certificate/.test(`${code} ${message}`)) {
    const reason = code === undefined ? message : `${code}: ${message}`;
    return `its certificate or TLS cannot be used (${reason}); NODE_EXTRA_CA_CERTS names a file with other authorities`;
  }
  return code ?? message;
}

/** Describes a status that a response must not have. */
export function describeStatus(status: number): string {
  return status >= 300 && status < 400 ? `status ${status}, and redirects are not followed` : `status ${status}`;
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
