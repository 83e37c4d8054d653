// How the frontend uses an identity: its allowed destinations, and what ends with it.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend } from "../../shared/frontend/server.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { bytes, readText, within } from "../conformance/support.ts";
import { connectTo, LogBook, parseAnswer, Queue, readUntil, streamPair, withNet } from "../../testing/network.ts";

/** A frontend that gives every client the same identity. */
interface Bench {
  log: LogBook;
  /** Aborted when the identity ends. */
  ending: AbortController;
  /** The destinations' ends of what was dialled. */
  dialled: Queue<Duplex>;
  /** How often the identity was released. */
  released: () => number;
  /** A client that has asked for this. */
  client(request: string): Promise<Duplex>;
}

const CREDENTIALS = "Proxy-Authorization: Basic NDcxMTp4\r\n";
const ENDED = new Error("The token has expired");

/** `beforeDialled` is called when the destination is connected, before the frontend knows. */
async function withFront(body: (bench: Bench) => Promise<void>, beforeDialled?: (ending: AbortController) => void): Promise<void> {
  await withNet(async (net: Net) => {
    const listener = await net.listenTcp({ address: "127.0.0.1:0" });
    const { address } = listener;
    const [log, ending, dialled] = [new LogBook(), new AbortController(), new Queue<Duplex>()];
    let released = 0;
    const identity = {
      agentId: "4711",
      tokenId: "id-1",
      allowList: createAllowList(["*.zone:80", "elsewhere"]),
      signal: ending.signal,
      release: () => void released++,
    };
    const front = new Frontend({
      net,
      listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
      log,
      allowList: createAllowList(["*.zone", "origin"]),
      authenticator: { authenticateAgent: () => "nobody", authenticateClient: () => identity },
      dial: () => {
        const { near, far } = streamPair("session");
        dialled.push(far);
        beforeDialled?.(ending);
        return Promise.resolve({ stream: near });
      },
    });
    const client = async (request: string) => {
      const stream = await connectTo(net, address);
      await stream.write(bytes(`${request}\r\n${CREDENTIALS}\r\n`));
      return stream;
    };
    await body({ log, ending, dialled, client, released: () => released });
    front.close();
    await within(front.done);
  });
}

/** How the stream ends. */
async function endOf(stream: Duplex): Promise<string> {
  const reading = (async () => {
    while (await stream.read() !== null);
    return "finished";
  })();
  return await within(reading.catch((error) => error instanceof NetError ? error.code : String(error)));
}

describe("a client's credentials", () => {
  it("allow the destinations on both the proxy's list and their own", async () => {
    await withFront(async ({ log, client, dialled, released }) => {
      for (const authority of ["a.zone:81", "origin:80", "elsewhere:80"]) {
        const { status, body } = parseAnswer(await readText(await client(`CONNECT ${authority} HTTP/1.1`)));
        assert.deepEqual([status, body.replace(/ \(request [^ ]+\)/, "")], [
          403,
          `${authority} is not on the allow-list of ${authority === "elsewhere:80" ? "this proxy" : "the credentials"}\n`,
        ]);
      }
      const stream = await client("CONNECT a.zone:80 HTTP/1.1");
      await readUntil(stream, "\r\n\r\n");
      (await dialled.next()).closeWrite();
      stream.closeWrite();
      await log.waitFor("request", { status: 200, agent: "4711", jti: "id-1" });
      assert.equal(log.logged("request", { status: 403, agent: "4711", jti: "id-1" }).length, 3);
      assert.equal(released(), 4);
    });
  });

  it("that end reset its tunnel at both ends, and the reason is logged", async () => {
    await withFront(async ({ log, client, dialled, ending, released }) => {
      const stream = await client("CONNECT a.zone:80 HTTP/1.1");
      await readUntil(stream, "\r\n\r\n");
      const destination = await dialled.next();
      ending.abort(ENDED);
      assert.deepEqual([await endOf(stream), await endOf(destination)], ["reset", "reset"]);
      await log.waitFor("request", { status: 200, error: "connection_terminated", reason: ENDED.message });
      assert.equal(released(), 1);
    });
  });

  it("that end while the destination is dialled cause 407 for it, and a reset for the destination", async () => {
    await withFront(async ({ log, client, dialled, released }) => {
      for (const request of ["CONNECT a.zone:80 HTTP/1.1", "GET http://a.zone/ HTTP/1.1\r\nHost: a.zone"]) {
        const answer = parseAnswer(await readText(await client(request)));
        assert.equal(answer.status, 407);
        assert.equal(answer.field("proxy-authenticate"), 'Basic realm="reverse-http"');
        assert.doesNotMatch(answer.body, /expired/);
        assert.equal(await endOf(await dialled.next()), "reset");
      }
      assert.equal(log.logged("request", { status: 407, reason: `The credentials are no longer accepted: ${ENDED.message}` }).length, 2);
      assert.equal(released(), 2);
    }, (ending) => ending.abort(ENDED));
  });

  it("that end before a response has started cause 407", async () => {
    await withFront(async ({ log, client, dialled, ending }) => {
      const stream = await client("GET http://a.zone/ HTTP/1.1\r\nHost: a.zone");
      const destination = await dialled.next();
      await readUntil(destination, "\r\n\r\n");
      ending.abort(ENDED);
      assert.equal(parseAnswer(await readText(stream)).status, 407);
      assert.equal(await endOf(destination), "reset");
      await log.waitFor("request", { status: 407, reason: `The credentials are no longer accepted: ${ENDED.message}` });
    });
  });

  it("that end within a response reset it", async () => {
    await withFront(async ({ log, client, dialled, ending }) => {
      const stream = await client("GET http://a.zone/ HTTP/1.1\r\nHost: a.zone");
      const destination = await dialled.next();
      await readUntil(destination, "\r\n\r\n");
      await destination.write(bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"));
      await readUntil(stream, "ab");
      ending.abort(ENDED);
      assert.deepEqual([await endOf(stream), await endOf(destination)], ["reset", "reset"]);
      await log.waitFor("request", { status: 200, reason: `The credentials are no longer accepted: ${ENDED.message}` });
    });
  });
});
