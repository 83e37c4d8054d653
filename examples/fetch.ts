// fetch through a tunnel. That of the runtimes takes no connection; this one makes a request with node:http, and returns a Response.
//   deno run -A examples/fetch.ts 127.0.0.1:3128 alice 'correct horse' http://127.0.0.1:8080/hello
import { type IncomingMessage, request as requestHttp } from "node:http";
import process from "node:process";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { connect as connectTls } from "node:tls";
import { type ClientOptions, openTunnel } from "@reverse-http/reverse-http";

/** Fetches as `fetch` does, without redirects, cookies and compression. */
async function fetchThrough(options: ClientOptions, input: string | URL | Request, init?: RequestInit): Promise<Response> {
  const request = new Request(input, init);
  const { protocol, hostname, port, pathname, search } = new URL(request.url);
  const isTls = protocol === "https:";
  const stream = await openTunnel({ ...options, destination: `${hostname}:${port || (isTls ? 443 : 80)}` }, { signal: request.signal });
  const socket = isTls ? connectTls({ socket: stream, servername: hostname }) : stream;
  const outgoing = requestHttp({
    method: request.method,
    host: hostname,
    port: port || (isTls ? 443 : 80),
    path: `${pathname}${search}`,
    headers: { ...Object.fromEntries(request.headers), connection: "close" },
    createConnection: () => socket,
    signal: request.signal,
  });
  const responding = new Promise<IncomingMessage>((resolve, reject) => outgoing.once("response", resolve).once("error", reject));
  if (request.body) await pipeline(request.body as AsyncIterable<Uint8Array>, outgoing);
  else outgoing.end();
  const response = await responding;
  const headers = Object.entries(response.headersDistinct).flatMap(([name, values = []]) =>
    values.map((value): [string, string] => [name, value])
  );
  const hasBody = request.method !== "HEAD" && response.statusCode !== 204 && response.statusCode !== 304;
  return new Response(hasBody ? Readable.toWeb(response) as unknown as ReadableStream : null, { status: response.statusCode, headers });
}

const [proxy, user, password, url] = process.argv.slice(2);
if (url === undefined) throw new Error("Usage: fetch.ts PROXY USER PASSWORD URL");
try {
  const response = await fetchThrough({ proxy, agentId: user, token: password }, url);
  console.log(response.status, await response.text());
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 1;
}
