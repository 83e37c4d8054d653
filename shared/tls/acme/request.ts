// HTTPS requests to a certificate authority, bounded in time and size. The runtimes' fetch has no common way to trust another authority.
import type { IncomingMessage } from "node:http";
import { VERSION } from "../../version.ts";

export interface AcmeRequest {
  readonly method: "GET" | "HEAD" | "POST";
  /** JSON. Default: none. */
  readonly body?: string;
  /** Authorities to trust, PEM. Default: the runtime's. */
  readonly ca?: string;
  readonly signal: AbortSignal;
}

export interface AcmeResponse {
  readonly status: number;
  readonly headers: Readonly<IncomingMessage["headers"]>;
  readonly text: string;
}

/** Time for a request and its response, in milliseconds. */
const TIMEOUT_MS = 30_000;
/** Limit on the size of a response, in bytes. */
const MAX_RESPONSE = 1024 * 1024;

/**
 * Sends a request and reads the response.
 * @throws {Error} without the URL, if it fails, takes too long or is too large
 */
export async function send(url: string, { method, body, ca, signal }: AcmeRequest): Promise<AcmeResponse> {
  if (!/^https:\/\//i.test(url) || !URL.canParse(url)) throw new Error("the authority names a URL that is not https");
  const { request } = await import("node:https"); // takes memory that only ACME needs
  const limited = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]);
  return await new Promise<AcmeResponse>((resolve, reject) => {
    const headers = {
      "User-Agent": `reverse-http/${VERSION}`, // RFC 8555 §6.1 requires one
      ...body === undefined ? {} : { "Content-Type": "application/jose+json", "Content-Length": Buffer.byteLength(body) },
    };
    const outgoing = request(url, { method, headers, ca, agent: false, signal: limited }, (response) => {
      readAll(response).then((text) => resolve({ status: response.statusCode!, headers: response.headers, text }), reject);
    });
    outgoing.on("error", (error) => reject(limited.aborted && !signal.aborted ? new Error(`no response in ${TIMEOUT_MS} ms`) : error));
    outgoing.end(body);
  });
}

async function readAll(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of response) {
    size += part.length;
    if (size > MAX_RESPONSE) throw new Error(`the response has more than ${MAX_RESPONSE} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString("utf8");
}
