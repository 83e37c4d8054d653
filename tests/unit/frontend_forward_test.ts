// How long a client that sends no more waits for the response to a plain HTTP request.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { RequestRecord } from "../../shared/frontend/access_log.ts";
import { forward } from "../../shared/frontend/http/plain_request.ts";
import { parseAbsoluteTarget } from "../../shared/frontend/http/rewrite.ts";
import { parseRequestHead } from "../../shared/http/head.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { bytes, readText, until, within } from "../conformance/support.ts";
import { readUntil, streamPair } from "../../testing/network.ts";

const HALF_CLOSED_MS = 30_000;
const TARGET = "http://origin/";

/** The running timers of an origin's silence, as functions that fire them. */
interface Silences {
  readonly running: ReadonlyMap<unknown, () => void>;
  elapse(): void;
}

/** Runs `body` while timers of {@link HALF_CLOSED_MS} fire only on demand. */
async function withSilences(body: (silences: Silences) => Promise<void>): Promise<void> {
  const { setTimeout: start, clearTimeout: stop } = globalThis;
  const running = new Map<unknown, () => void>();
  const fakeStart = (callback: () => void, ms?: number, ...rest: unknown[]) => {
    const timer = (start as (...args: unknown[]) => unknown)(callback, ms, ...rest);
    if (ms === HALF_CLOSED_MS) running.set(timer, callback);
    return timer;
  };
  const fakeStop = (timer: Parameters<typeof stop>[0]) => {
    running.delete(timer);
    stop(timer);
  };
  Object.assign(globalThis, { setTimeout: fakeStart, clearTimeout: fakeStop });
  try {
    const elapse = () => {
      for (const [timer, callback] of [...running]) {
        fakeStop(timer as Parameters<typeof stop>[0]);
        callback();
      }
    };
    await body({ running, elapse });
  } finally {
    Object.assign(globalThis, { setTimeout: start, clearTimeout: stop });
  }
}

function passage(
  pace?: (bytes: number) => Promise<void>,
  head = `GET ${TARGET} HTTP/1.1\r\nHost: origin\r\n\r\n`,
  isHttp2 = false,
): { client: Duplex; origin: Duplex; done: Promise<boolean> } {
  const [clients, origins] = [streamPair(), streamPair("session")];
  const parsed = parseRequestHead(head);
  const request = isHttp2 ? { ...parsed, version: "2" as const } : parsed;
  const exchange: RequestRecord = { key: "1", id: "1", client: "", startedAt: 0, sent: 0, received: 0 };
  const { near: client } = clients;
  const done = forward(client, origins.near, {
    request,
    target: parseAbsoluteTarget(TARGET)!,
    record: exchange,
    by: "reverse-http-proxy",
    clientSignal: new AbortController().signal,
    pace,
  });
  done.catch(() => {}); // looked at by the test
  return { client: clients.far, origin: origins.far, done };
}

const isClientGone = (error: unknown) =>
  error instanceof TunnelError && error.type === "connection_terminated" && /client has disconnected/.test(error.message);

describe("a client that sends no more", () => {
  it("is dropped once the destination has been silent for too long", () =>
    withSilences(async ({ running, elapse }) => {
      const { client, origin, done } = passage();
      client.closeWrite();
      assert.match(await readUntil(origin, "\r\n\r\n"), /^GET \/ /);
      await until(() => running.size === 1, "the silence is not limited");
      elapse();
      await assert.rejects(within(done), isClientGone);
    }));

  it("is dropped, too, if it has sent more after its request than is read", () =>
    withSilences(async ({ running, elapse }) => {
      const { client, origin, done } = passage();
      await client.write(new Uint8Array(16 * 1024 + 1));
      assert.match(await readUntil(origin, "\r\n\r\n"), /^GET \/ /);
      await until(() => running.size === 1, "the silence is not limited");
      elapse();
      await assert.rejects(within(done), isClientGone);
    }));

  it("gets its complete response, however slowly it reads it", () =>
    withSilences(async ({ running, elapse }) => {
      const { promise: taken, resolve: take } = Promise.withResolvers<void>();
      let paced = 0;
      const { client, origin, done } = passage(async () => {
        paced++;
        await taken;
      });
      client.closeWrite();
      await readUntil(origin, "\r\n\r\n");
      await until(() => running.size === 1, "the silence is not limited");
      await origin.write(bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234"));
      await until(() => paced === 1, "the response did not come");
      assert.equal(running.size, 0);
      elapse();
      await origin.write(bytes("56789"));
      origin.closeWrite();
      take();
      assert.match(await readText(client), /\r\n\r\n0123456789$/);
      await within(done);
      assert.equal(running.size, 0);
    }));

  it("that reads the response slowly is not dropped if it finishes sending meanwhile", () =>
    withSilences(async ({ running }) => {
      const { promise: taken, resolve: take } = Promise.withResolvers<void>();
      let paced = 0;
      const { client, origin, done } = passage(async () => {
        paced++;
        await taken;
      });
      await readUntil(origin, "\r\n\r\n");
      await origin.write(bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234"));
      await until(() => paced === 1, "the response did not come");
      client.closeWrite();
      assert.equal(await within(origin.read()), null); // the end was passed on
      assert.equal(running.size, 0);
      take();
      await until(() => running.size === 1, "the silence is not limited"); // the rest is waited for
      await origin.write(bytes("56789"));
      origin.closeWrite();
      assert.match(await readText(client), /\r\n\r\n0123456789$/);
      await within(done);
    }));
});

describe("a client that ends its request before the body is complete", () => {
  const uploads: [framing: string, part: string][] = [
    ["Content-Length: 10", "half"],
    ["Transfer-Encoding: chunked", "4\r\nha"],
    ["Transfer-Encoding: chunked", "4\r\nhalf\r\n"],
  ];
  for (const [framing, part] of uploads) {
    it(`is refused with 400, and the destination sees a reset: ${framing}, ${JSON.stringify(part)}`, async () => {
      const { client, origin, done } = passage(undefined, `POST ${TARGET} HTTP/1.1\r\nHost: origin\r\n${framing}\r\n\r\n`);
      await client.write(bytes(part));
      await readUntil(origin, part);
      client.closeWrite();
      await assert.rejects(within(done), { name: "HeadError", status: 400, message: "The request ended before its body was complete" });
      await assert.rejects(within(origin.read()), { code: "reset" });
    });
  }

  it("still gets a response that has begun", async () => {
    const { client, origin, done } = passage(undefined, `POST ${TARGET} HTTP/1.1\r\nHost: origin\r\nContent-Length: 10\r\n\r\n`);
    await readUntil(origin, "\r\n\r\n");
    await origin.write(bytes("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n"));
    await readUntil(client, "\r\n\r\n");
    client.closeWrite();
    await origin.write(bytes("no"));
    origin.closeWrite();
    assert.equal(await readText(client), "no");
    await within(done);
  });
});

describe("an HTTP/1.0 client", () => {
  const ask = () => passage(undefined, `GET ${TARGET} HTTP/1.0\r\n\r\n`);
  const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

  it("gets the content of a response in chunks, whose framing it does not know", async () => {
    const { client, origin, done } = ask();
    await readUntil(origin, "\r\n\r\n");
    await origin.write(bytes(`${head}3\r\nhel\r\n`));
    await origin.write(bytes("3;x\r\nlo!\r\n0\r\n\r\n"));
    const response = await readText(client);
    assert.match(response, /^HTTP\/1\.1 200 OK\r\n[^]*\r\n\r\nhello!$/);
    assert.doesNotMatch(response, /Transfer-Encoding|Content-Length/i);
    await within(done);
  });

  it("gets no complete response where the chunks are truncated", async () => {
    const { client, origin, done } = ask();
    await readUntil(origin, "\r\n\r\n");
    await origin.write(bytes(`${head}3\r\nhe`));
    origin.closeWrite();
    assert.match(await readUntil(client, "he"), /\r\n\r\nhe$/);
    await assert.rejects(within(done), (error) => error instanceof TunnelError && error.type === "http_response_incomplete");
  });
});

describe("a client of HTTP/2", () => {
  it("is waited for without a limit after its request, whose end is not that of the origin's connection", () =>
    withSilences(async ({ running }) => {
      for (
        const [fields, body] of [["", ""], ["Content-Length: 4\r\n", "body"], ["Transfer-Encoding: chunked\r\n", "0\r\n\r\n"]] as const
      ) {
        const { client, origin, done } = passage(undefined, `POST ${TARGET} HTTP/1.1\r\nHost: origin\r\n${fields}\r\n`, true);
        await client.write(bytes(body));
        client.closeWrite();
        await readUntil(origin, `\r\n\r\n${body}`);
        const end = origin.read();
        await origin.write(bytes("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlo"));
        await readUntil(client, "lo");
        assert.equal(await Promise.race([end, Promise.resolve("open")]), "open", fields);
        assert.equal(running.size, 0);
        await origin.write(bytes("ng"));
        assert.match(await readText(client), /ng$/);
        await within(done);
        assert.equal(await within(end), null);
      }
    }));

  it("ends the other protocol that its request has asked for", async () => {
    const upgrade = `GET ${TARGET} HTTP/1.1\r\nHost: origin\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`;
    const { client, origin, done } = passage(undefined, upgrade, true);
    client.closeWrite();
    await readUntil(origin, "\r\n\r\n");
    const end = origin.read();
    await origin.write(bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    assert.equal(await within(end), null);
    origin.closeWrite();
    await within(done);
  });

  it("gets a response in chunks as it is, for the engine to put into frames, and one without a length to its end", async () => {
    for (const [fields, body] of [["Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\nX: y\r\n\r\n"], ["", "body"]] as const) {
      const { client, origin, done } = passage(undefined, undefined, true);
      const head = await readUntil(origin, "\r\n\r\n");
      assert.match(head, /^GET \/ HTTP\/1\.1\r\n/);
      assert.match(head, /\r\nVia: 2 reverse-http\r\n/);
      await origin.write(bytes(`HTTP/1.1 200 OK\r\n${fields}\r\n${body}`));
      origin.closeWrite();
      const response = await readText(client);
      assert.ok(response.endsWith(`\r\n\r\n${body}`), response);
      assert.equal(response.includes("\r\nTransfer-Encoding: chunked\r\n"), fields !== "");
      client.closeWrite();
      await within(done);
    }
  });
});
