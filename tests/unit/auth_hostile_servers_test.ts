// Webhooks, issuers and key servers that are broken or hostile: each request to them is bounded in time, bytes and number, and the reason is in
// one line.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { describe, it } from "node:test";
import { createServer as createTlsServer } from "node:tls";
import { gzipSync } from "node:zlib";
import { IssuerClient } from "../../shared/auth/issuer_client.ts";
import { RemoteKeys } from "../../shared/auth/remote_keys.ts";
import { createWebhookProvider } from "../../shared/auth/webhook.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { LogBook } from "../../testing/network.ts";
import { until } from "../conformance/support.ts";

const OK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
const BOMB = gzipSync(Buffer.alloc(32 * 1024 * 1024, " "));

/** Writes the same again and again, as fast as it is read. */
function pour(socket: Socket, start: string, chunk: string): void {
  const more = () => {
    while (socket.writable && socket.write(chunk));
  };
  socket.write(start);
  socket.on("drain", more);
  more();
}

/** Writes little, and never ends. */
function drip(socket: Socket, start: string, chunk: string): void {
  socket.write(start);
  const timer = setInterval(() => socket.write(chunk), 20);
  socket.on("close", () => clearInterval(timer));
}

const TOO_LONG = /the response has more than [0-9]+ bytes/;
const TOO_SLOW = /no (?:complete )?response within [0-9]+ m?s/;
const BROKEN = /./;

/** What a server does with a request, and what is said about it. */
const KINDS: Readonly<Record<string, readonly [serve: (socket: Socket) => void, said: RegExp]>> = {
  "a long body": [(socket) => pour(socket, `${OK}Content-Length: 1000000000000\r\n\r\n{`, " ".repeat(16_384)), TOO_LONG],
  "endless chunks": [(socket) => pour(socket, `${OK}Transfer-Encoding: chunked\r\n\r\n`, `4000\r\n${" ".repeat(0x4000)}\r\n`), TOO_LONG],
  // a webhook is sent no Accept-Encoding, and its answer is not decoded
  "a compressed body that grows": [(socket) => {
    socket.write(`${OK}Content-Encoding: gzip\r\nContent-Length: ${BOMB.length}\r\n\r\n`);
    socket.end(BOMB);
  }, /the response has more than [0-9]+ bytes|is not JSON/],
  "an endless head": [(socket) => pour(socket, OK, `X-Padding: ${"x".repeat(1_000)}\r\n`), BROKEN],
  "a body that drips": [(socket) => drip(socket, `${OK}Content-Length: 100000\r\n\r\n`, " "), TOO_SLOW],
  "a head that drips": [(socket) => drip(socket, "HTTP/1.1 200 OK\r\n", "X"), TOO_SLOW],
  "informational responses alone": [(socket) => drip(socket, "", "HTTP/1.1 103 Early Hints\r\n\r\n"), TOO_SLOW],
  "no response": [() => {}, TOO_SLOW],
  "another type": [
    (socket) => socket.end("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"),
    /is not JSON|content-type/,
  ],
  "a redirect": [
    (socket) => socket.end("HTTP/1.1 302 Found\r\nLocation: /elsewhere/\r\nContent-Length: 0\r\n\r\n"),
    /with status 302, and redirects are not followed/,
  ],
  "half a body": [(socket) => socket.end(`${OK}Content-Length: 100\r\n\r\n{`), BROKEN],
  "no HTTP": [(socket) => socket.end("SSH-2.0-OpenSSH_9.9\r\n"), BROKEN],
  "a closed connection": [(socket) => socket.destroy(), BROKEN],
};

/** Serves each kind below a path of its own. */
class HostileServer implements AsyncDisposable {
  readonly sockets = new Set<Socket>();
  /** First parts of the paths that were asked for. */
  readonly asked: string[] = [];
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(): Promise<HostileServer> {
    const server = createServer();
    const hostile = new HostileServer(server);
    server.on("connection", (socket) => {
      hostile.sockets.add(socket);
      socket.on("close", () => hostile.sockets.delete(socket)).on("error", () => {});
      socket.once("data", (data) => {
        const [, kind = ""] = /^\w+ \/([^/ ]*)/.exec(data.toString("latin1")) ?? [];
        hostile.asked.push(decodeURIComponent(kind));
        KINDS[decodeURIComponent(kind)]?.[0](socket);
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return hostile;
  }

  urlOf(kind: string): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/${encodeURIComponent(kind)}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** What is said about a server at a URL. */
const CLIENTS: Readonly<Record<string, (url: string) => Promise<string>>> = {
  "a webhook": async (url) => {
    const options = { url, connectTimeout: 5_000, timeout: 5_000, concurrency: 2, maxStale: 0 };
    const provider = createWebhookProvider(options, { log: silentLogger });
    const credentials = { scheme: "basic", username: "alice", password: "pw" } as const;
    const asked = provider.authenticateClient(credentials, { address: "192.0.2.1", requestId: "r-1" });
    const said = await asked.then(() => "accepted", ({ message }) => message as string);
    provider.close!();
    return said;
  },
  "a key server": async (url) => {
    const log = new LogBook();
    const keys = new RemoteKeys({ source: { jwksUrl: url }, refreshMs: 1_000, maxStaleMs: 0, onRemoved: () => {}, log });
    const said = await keys.ready().then(() => "accepted", () => "");
    keys.close();
    return said || String(log.logged("issuer's keys cannot be fetched; the previous ones stay in force for a time")[0]!.reason);
  },
  "an issuer": (url) => IssuerClient.open({ issuer: url, clientId: "cli" }).then(() => "accepted", ({ message }) => message as string),
};

function checkSaid(said: string, expected: RegExp, what: string): void {
  assert.match(said, expected, `${what}: ${said}`);
  assert.ok(said.length >= 5 && said.length < 400 && !/[\n\r]/.test(said) && said !== "accepted", `${what}: ${said}`);
}

describe("a server that is hostile", () => {
  it("costs neither memory nor much time, and is described", async () => {
    await using server = await HostileServer.start();
    await Promise.all(
      Object.entries(KINDS).flatMap(([kind, [, expected]]) =>
        Object.entries(CLIENTS).map(async ([client, ask]) => checkSaid(await ask(server.urlOf(kind)), expected, `${client} with ${kind}`))
      ),
    );
    assert.ok(!server.asked.includes("elsewhere"));
    await until(() => server.sockets.size === 0, "connections stay open");
  });

  it("has a certificate that is not trusted, or none", async () => {
    const authority = await makeAuthority("Hostile");
    const { cert, key } = await authority.issue({ names: ["127.0.0.1"] });
    const untrusted = createTlsServer({ cert, key }, (socket) => socket.on("error", () => {}));
    const plain = createServer((socket) => socket.on("error", () => {}).end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    for (const server of [untrusted, plain]) {
      server.on("tlsClientError", () => {}).listen(0, "127.0.0.1");
      await once(server, "listening");
      const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const expected = server === untrusted ? /its certificate or TLS cannot be used \(.+\); NODE_EXTRA_CA_CERTS names a file/ : BROKEN;
      for (const [client, ask] of Object.entries(CLIENTS)) checkSaid(await ask(url), expected, client);
      server.close();
    }
  });
});
