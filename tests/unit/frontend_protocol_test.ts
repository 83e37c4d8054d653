// A minimal client protocol, whose request is a line of text, beside HTTP in the same frontend.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { parseAuthority } from "../../shared/address/authority.ts";
import { AuthenticationError, createNoAuth } from "../../shared/auth/authenticator.ts";
import type { ClientProtocol } from "../../shared/frontend/client_protocol.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { MalformedRequestError, TunnelError } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { bytes, readText, readTextExactly, until, within } from "../conformance/support.ts";
import { ask, connectTo, instead, LogBook, Queue, streamPair, withNet } from "../../testing/network.ts";

/** Longest line in bytes. */
const MAX_LINE = 1_024;

/** `AGENT DESTINATION` and a line end, within `timeoutMs`; the response is `OK` or `NO TYPE`. */
const createLines = (timeoutMs = 10_000): ClientProtocol => ({
  preamble: "none",
  open: (session) => ({
    async serve() {
      const line = await readLine(session.stream, timeoutMs);
      const [, agent, target] = /^(\S+) (\S+)\n$/.exec(line) ?? [];
      if (agent === undefined || target === undefined) throw new MalformedRequestError("The line is malformed");
      session.record.method = "LINE";
      session.checkRate();
      const credentials = { scheme: "basic", username: agent, password: "" } as const;
      const identity = await session.identify(credentials);
      await session.connect({ identity, credentials, destination: parseAuthority(target), established: bytes("OK\n") });
    },
    refuse: ({ type }) => session.stream.write(bytes(`NO ${type}\n`)),
  }),
});

/**
 * Reads a line, bounded in bytes and time: with the preamble `none` the listener has bounded neither.
 * @throws {MalformedRequestError}
 */
async function readLine(stream: Duplex, timeoutMs: number): Promise<string> {
  let [line, isLate] = ["", false];
  const timer = setTimeout(() => {
    isLate = true;
    stream.stopRead(0); // the pending read rejects
  }, timeoutMs);
  try {
    while (!line.includes("\n")) {
      const data = await stream.read();
      if (data === null) throw new MalformedRequestError("The line is not complete");
      line += String.fromCharCode(...data.subarray(0, MAX_LINE));
      if (line.length >= MAX_LINE) throw new MalformedRequestError("The line is too long");
    }
    return line;
  } catch (error) {
    throw isLate ? new MalformedRequestError("The line was not complete in time") : error;
  } finally {
    clearTimeout(timer);
  }
}

interface Bench {
  readonly net: Net;
  readonly frontend: Frontend;
  readonly log: LogBook;
  readonly dialled: Queue<{ request: TunnelRequest; far: Duplex }>;
  /** The address of the listener for lines, and of that for HTTP. */
  readonly lines: string;
  readonly http: string;
}

function withBench(body: (bench: Bench) => Promise<void>, options: Partial<FrontendOptions> = {}, protocol = createLines()): Promise<void> {
  return withNet(async (net) => {
    const [log, dialled] = [new LogBook(), new Queue<{ request: TunnelRequest; far: Duplex }>()];
    const lines = await net.listenTcp({ address: "127.0.0.1:0", preamble: protocol.preamble });
    const http = await net.listenTcp({ address: "127.0.0.1:0" });
    const frontend = new Frontend({
      net,
      log,
      listeners: [{ listener: lines, protocol }, { listener: http, protocol: createHttpProxy("reverse-http-proxy") }],
      authenticator: createNoAuth(),
      allowList: createAllowList(["db", "gone"]),
      dial: (request) => {
        if (request.destination.host === "gone") return Promise.reject(new TunnelError("connection_refused", "It is gone"));
        const { near, far } = streamPair("session");
        dialled.push({ request, far });
        return Promise.resolve({ stream: near });
      },
      ...options,
    });
    await body({ net, frontend, log, dialled, lines: lines.address, http: http.address });
    frontend.close();
    await within(frontend.done);
  });
}

async function send(net: Net, address: string, text: string): Promise<Duplex> {
  const client = await connectTo(net, address);
  await client.write(bytes(text));
  return client;
}

describe("a client protocol", () => {
  it("takes its clients through the steps of all, and writes success in its own form", () =>
    withBench(async ({ net, lines, dialled, log }) => {
      const client = await send(net, lines, "site db:5432\n");
      const { request, far } = await dialled.next();
      const { network, agentId, destination, via, client: address } = request;
      assert.deepEqual({ network, agentId, destination, via }, {
        network: "tcp",
        agentId: "site",
        destination: { host: "db", port: 5432 },
        via: [],
      });
      assert.match(address, /^127\.0\.0\.1:/);
      assert.equal(await readTextExactly(client, 3), "OK\n");
      await client.write(bytes("ping"));
      assert.equal(await readTextExactly(far, 4), "ping");
      client.closeWrite();
      far.close();
      assert.equal(await readText(client), "");
      await log.waitFor("request", { method: "LINE", agent: "site", destination: "db:5432", status: 200, error: undefined });
      client.close();
    }));

  const refused: [what: string, line: string, type: string, options?: Partial<FrontendOptions>][] = [
    ["a malformed request", "site\n", "http_request_error"],
    ["a request that is too long", "x".repeat(MAX_LINE), "http_request_error"],
    ["a destination that is not allowed", "site other:1\n", "http_request_denied"],
    ["a destination that cannot be reached", "site gone:1\n", "connection_refused"],
    ["credentials that are not accepted", "site db:1\n", "http_request_denied", {
      authenticator: {
        authenticateAgent: () => "",
        authenticateClient: () => {
          throw new AuthenticationError("denied", "No");
        },
      },
    }],
    ["a fault of the program", "site db:1\n", "proxy_internal_error", {
      dial: () => {
        throw new TypeError("undefined is not a function");
      },
    }],
    ["a lost connection", "site db:1\n", "connection_terminated", { dial: () => Promise.reject(new NetError("reset", "lost")) }],
  ];
  for (const [what, line, type, options] of refused) {
    it(`writes in its own form that a request is refused for ${what}`, () =>
      withBench(async ({ net, lines, log }) => {
        const client = await send(net, lines, line);
        assert.equal(await readText(client), `NO ${type}\n`);
        await log.waitFor("request", { error: type });
        client.close();
      }, options));
  }

  it("reads a request that arrives in parts", () =>
    withBench(async ({ net, lines }) => {
      const client = await send(net, lines, "site ");
      await client.write(bytes("gone:1\n"));
      assert.equal(await readText(client), "NO connection_refused\n");
      client.close();
    }));

  it("refuses a request that is not complete in time", () =>
    withBench(
      async ({ net, lines, log }) => {
        const client = await send(net, lines, "site ");
        assert.equal(await readText(client), "NO http_request_error\n");
        await log.waitFor("request", { error: "http_request_error", reason: "The line was not complete in time" });
        client.close();
      },
      {},
      createLines(10),
    ));

  it("is counted and drained together with the others", () =>
    withBench(async ({ net, frontend, lines, http, dialled }) => {
      const client = await send(net, lines, "site db:1\n");
      const { far } = await dialled.next();
      const asked = await ask(net, http, `CONNECT gone:1 HTTP/1.1\r\nProxy-Authorization: Basic ${btoa("site:x")}\r\n\r\n`);
      assert.equal(asked.status, 502);
      await until(() => frontend.open === 1, "the refused client is still counted");
      const drained = frontend.drain(10_000);
      assert.equal(await readTextExactly(client, 3), "OK\n");
      far.close();
      client.close();
      await within(drained);
      assert.equal(frontend.open, 0);
    }));

  it("has its listeners drain before they stop accepting, also one that is added meanwhile", () =>
    withBench(async ({ net, frontend, lines, dialled }) => {
      const calls: string[] = [];
      const add = async (name: string) => {
        const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble: "none" });
        const watched = instead(listener, {
          startDraining: () => void calls.push(`${name} drains`),
          stopAccepting: () => {
            calls.push(`${name} stops`);
            listener.stopAccepting();
          },
        });
        frontend.add({ listener: watched, protocol: createLines() });
      };
      const client = await send(net, lines, "site db:1\n");
      const { far } = await dialled.next();
      await add("first");
      const drained = frontend.drain(10_000);
      await add("second");
      assert.deepEqual(calls, ["first drains", "second drains"]);
      far.close();
      client.close();
      await within(drained);
      assert.deepEqual(calls.slice(2), ["first stops", "second stops"]);
    }));
});
