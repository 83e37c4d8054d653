// A fetch with a limit on the time for a connection, apart from that for the response: a server that is gone is noticed early, and one that
// asks a person has time. The runtimes' fetch has none.
import { Agent as HttpAgent, type ClientRequest, request as requestHttp } from "node:http";
import { Agent as HttpsAgent, request as requestHttps } from "node:https";
import { Readable } from "node:stream";
import type { Fetch } from "./fetch.ts";

export interface ConnectingFetchOptions {
  /** Time in milliseconds for name, TCP and TLS. */
  readonly connectTimeoutMs: number;
  /** Connections that are kept for further requests. */
  readonly maxIdle: number;
}

/** Time in milliseconds for which a connection is kept; Node.js servers close theirs after 5 s. */
const IDLE_MS = 4_000;

/** Posts texts. Redirects are not followed. `close` closes the connections that are kept. */
export function createConnectingFetch({ connectTimeoutMs, maxIdle }: ConnectingFetchOptions): { readonly fetch: Fetch; close(): void } {
  const options = { keepAlive: true, maxFreeSockets: maxIdle, timeout: IDLE_MS };
  const agents = { http: new HttpAgent(options), https: new HttpsAgent(options) };
  const send = (url: string, { method, headers, body, signal }: RequestInit): Promise<Response> =>
    new Promise((resolve, reject) => {
      const isTls = url.startsWith("https:");
      const init = { method, headers: headers as Record<string, string>, signal: signal ?? undefined };
      const request = isTls ? requestHttps(url, { ...init, agent: agents.https }) : requestHttp(url, { ...init, agent: agents.http });
      limitConnecting(request, isTls, connectTimeoutMs);
      request.on("response", (response) => {
        const { statusCode = 0 } = response;
        const hasBody = statusCode !== 204 && statusCode !== 304;
        if (!hasBody) response.resume();
        // the types of Node.js and of the web differ
        const stream = hasBody ? Readable.toWeb(response) as unknown as ReadableStream<Uint8Array> : null;
        resolve(new Response(stream, { status: statusCode }));
      });
      request.on("error", (error: NodeJS.ErrnoException) => {
        // the server has closed a connection that was kept, and has not read the request
        if (request.reusedSocket && error.code === "ECONNRESET") send(url, { method, headers, body, signal }).then(resolve, reject);
        else reject(error);
      });
      request.end(body);
    });
  return {
    fetch: send,
    close() {
      agents.http.destroy();
      agents.https.destroy();
    },
  };
}

function limitConnecting(request: ClientRequest, isTls: boolean, ms: number): void {
  request.once("socket", (socket) => {
    if (request.reusedSocket) return;
    const timer = setTimeout(() => request.destroy(new Error(`no connection within ${ms} ms`)), ms);
    const clear = () => clearTimeout(timer);
    socket.once(isTls ? "secureConnect" : "connect", clear);
    request.once("close", clear);
  });
}
