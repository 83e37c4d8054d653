// SOCKS 5 on the frontend's own pipeline: methods, credentials, requests, and what each failure is called.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { AuthenticationError, type Authenticator, type ClientCredentials, createNoAuth } from "../../shared/auth/authenticator.ts";
import type { ClientProtocol } from "../../shared/frontend/client_protocol.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { createSocks5Proxy } from "../../shared/frontend/socks5/socks5.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ListenTcpOptions } from "../../shared/net/tcp.ts";
import { TunnelError, type TunnelErrorType } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import type { SpanEnd } from "../../shared/tracing/span.ts";
import { RecordingTracer, TRACE_ID } from "../../testing/tracer.ts";
import { bytes, readAll, readExactly, readTextExactly, until, within } from "../conformance/support.ts";
import { ask, connectTo, LogBook, Queue, withNet } from "../../testing/network.ts";
import { credentials, methods, reply, request, requestOf } from "../../testing/socks.ts";
import { recordDials } from "./tunnels.ts";

interface Bench {
  readonly net: Net;
  readonly log: LogBook;
  readonly dialled: Queue<{ request: TunnelRequest; far: Duplex }>;
  /** Names of the metric of clients without a request. */
  readonly bad: string[];
  /** The listener's. */
  readonly address: string;
  connect(): Promise<Duplex>;
}

interface BenchOptions extends Partial<FrontendOptions> {
  readonly listen?: Partial<ListenTcpOptions>;
  readonly requestTimeoutMs?: number;
  /** HTTP at the same port. */
  readonly beside?: ClientProtocol;
}

/** A frontend whose destinations are one end of a pair of streams each. */
function withBench(
  body: (bench: Bench) => Promise<void>,
  { listen, requestTimeoutMs, beside, ...options }: BenchOptions = {},
): Promise<void> {
  return withNet(async (net) => {
    const [log, dialled] = [new LogBook(), new Queue<{ request: TunnelRequest; far: Duplex }>()];
    const bad: string[] = [];
    const socks = createSocks5Proxy({ requestTimeoutMs });
    const protocol = beside ?? socks;
    const preamble = beside ? "http-or-socks5" : protocol.preamble;
    const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble, ...listen });
    const frontend = new Frontend({
      net,
      log,
      listeners: [{ listener, protocol, socks }],
      authenticator: createNoAuth(),
      allowList: createAllowList([]),
      onBadClient: (what) => void bad.push(what),
      dial: recordDials(dialled),
      ...options,
    });
    await body({ net, log, dialled, bad, address: listener.address, connect: () => connectTo(net, listener.address) });
    frontend.close();
    await within(frontend.done);
  });
}

describe("the span of a SOCKS client", () => {
  it("has why it was refused", () => {
    const tracer = new RecordingTracer();
    return withBench(async ({ connect, log }) => {
      const client = await connect();
      await answerTo(client, methods(2), credentials("site", "wrong"));
      await log.waitFor("request", { trace_id: TRACE_ID, protocol: "socks5" });
      const [{ name, error, attributes }] = tracer.ends as [SpanEnd];
      assert.deepEqual([name, error, attributes?.["error.type"]], ["socks5", undefined, "http_request_denied"]);
    }, { authenticator: passwordOnly("x"), tracer });
  });
});

/** Sends messages and returns what the client gets until its connection ends. */
async function answerTo(client: Duplex, ...messages: Uint8Array[]): Promise<number[]> {
  for (const message of messages) await within(client.write(message));
  const answer = [...await readAll(client)];
  client.close();
  return answer;
}

/** Says who it is, and reads that this is accepted. */
async function login(client: Duplex, username = "site", password = "x"): Promise<void> {
  await within(client.write(methods(2)));
  assert.deepEqual([...await readExactly(client, 2)], [5, 2]);
  await within(client.write(credentials(username, password)));
  assert.deepEqual([...await readExactly(client, 2)], [1, 0]);
}

/** An authenticator that knows one password, and the credentials that it was asked about. */
function passwordOnly(password: string): Authenticator & { readonly seen: ClientCredentials[] } {
  const seen: ClientCredentials[] = [];
  return {
    seen,
    authenticateAgent: () => "",
    authenticateClient(given) {
      seen.push(given);
      if (given.scheme === "basic" && given.password === password) return given.username;
      throw new AuthenticationError("denied", "This is not the password");
    },
  };
}

describe("a SOCKS 5 client", () => {
  it("reaches its destination as the agent of its user name, and its password is checked", () => {
    const authenticator = passwordOnly("secret");
    return withBench(async ({ connect, dialled, log }) => {
      const client = await connect();
      await login(client, "site", "secret");
      await client.write(request("db.internal", 5432));
      const { request: asked, far } = await dialled.next();
      const { network, agentId, destination, via, client: address } = asked;
      assert.deepEqual({ network, agentId, destination, via }, {
        network: "tcp",
        agentId: "site",
        destination: { host: "db.internal", port: 5432 },
        via: [],
      });
      assert.match(address, /^127\.0\.0\.1:/);
      assert.deepEqual(asked.credentials, { scheme: "basic", username: "site", password: "secret" });
      assert.deepEqual([...await readExactly(client, 10)], reply(0));
      await client.write(bytes("ping"));
      assert.equal(await readTextExactly(far, 4), "ping");
      client.closeWrite();
      far.close();
      assert.deepEqual(await answerTo(client), []);
      const fields = { protocol: "socks5", method: "CONNECT", agent: "site", destination: "db.internal:5432", status: 200 };
      await log.waitFor("request", fields);
      assert.doesNotMatch(JSON.stringify(log.entries), /secret/);
    }, { authenticator });
  });

  it("may send everything at once, and byte by byte", () =>
    withBench(async ({ connect, dialled }) => {
      const all = [...methods(0, 1, 2), ...credentials("site", "x"), ...request("db", 1), ...bytes("hello")];
      for (const size of [all.length, 1]) {
        const client = await connect();
        for (let at = 0; at < all.length; at += size) await within(client.write(Uint8Array.from(all.slice(at, at + size))));
        const { far } = await dialled.next();
        assert.equal(await readTextExactly(far, 5), "hello");
        assert.deepEqual([...await readExactly(client, 14)], [5, 2, 1, 0, ...reply(0)]);
        client.close();
        far.close();
      }
    }));

  for (const offer of [[2], [0, 2], [2, 0], [0, 1, 2], [255, 2]]) {
    it(`that offers ${offer} is asked for its password`, () =>
      withBench(async ({ connect }) => {
        const client = await connect();
        await client.write(methods(...offer));
        assert.deepEqual([...await readExactly(client, 2)], [5, 2]);
        client.close();
      }));
  }

  for (const offer of [[], [0], [0, 1], [1]]) {
    it(`that offers ${offer.join() || "nothing"} is told that no method fits, and the log says that it has no password`, () =>
      withBench(async ({ connect, log }) => {
        assert.deepEqual(await answerTo(await connect(), methods(...offer)), [5, 0xff]);
        const { reason } = await log.waitFor("request", { protocol: "socks5", status: 407 });
        assert.match(String(reason), /^The client offers no password \(SOCKS method 2\)/);
      }));
  }

  it("is refused with a wrong password at once, whatever follows, and counts as failed", () => {
    const authenticator = passwordOnly("secret");
    return withBench(async ({ connect, log }) => {
      // a client that writes the length of a long password modulo 256 sends the rest of it behind the credentials
      const rest = "rest-of-a-password";
      assert.deepEqual(await answerTo(await connect(), methods(2), credentials("site", "wrong"), bytes(rest)), [5, 2, 1, 1]);
      const { reason } = await log.waitFor("request", { status: 407, agentClaimed: "site" });
      assert.equal(reason, "The credentials are not accepted: This is not the password");
      assert.doesNotMatch(JSON.stringify(log.entries), /wrong|rest-of/);
    }, { authenticator });
  });

  it("without a password or a user name is refused without asking, and the name is not logged", () => {
    const authenticator = passwordOnly("");
    return withBench(async ({ connect, log }) => {
      assert.deepEqual(await answerTo(await connect(), methods(0, 2), credentials("local-user", "")), [5, 2, 1, 1]);
      await log.waitFor("request", { status: 407, reason: "The client sent a user name without a password, which SOCKS 5 requires" });
      assert.deepEqual(await answerTo(await connect(), methods(2), credentials("", "x")), [5, 2, 1, 1]);
      await log.waitFor("request", { status: 407, reason: "Credentials are required: the agent id as user name" });
      assert.deepEqual(authenticator.seen, []);
      assert.doesNotMatch(JSON.stringify(log.entries), /local-user/);
    }, { authenticator });
  });

  it("needs no password where the name of its destination carries the agent, and its login name is ignored", () =>
    withBench(async ({ connect, dialled, log }) => {
      const anonymous: [Uint8Array[], number[]][] = [
        [[methods(0)], [5, 0]],
        [[methods(0, 2), credentials("local-user", "")], [5, 2, 1, 0]],
      ];
      for (const [messages, answer] of anonymous) {
        const client = await connect();
        for (const message of messages) await client.write(message);
        assert.deepEqual([...await readExactly(client, answer.length)], answer);
        await client.write(request("db.site7.rhttp", 80));
        const { request: asked, far } = await dialled.next();
        assert.deepEqual([asked.agentId, asked.destination], ["site7", { host: "db", port: 80 }]);
        client.close();
        far.close();
        const other = await connect();
        for (const message of messages) await other.write(message);
        assert.deepEqual(await answerTo(other, request("db", 80)), [...answer, ...reply(2)]);
      }
      assert.deepEqual(await answerTo(await connect(), methods(1)), [5, 0xff]);
      const named = await connect();
      await login(named, "site");
      await named.write(request("db", 80));
      assert.equal((await dialled.next()).request.agentId, "site");
      named.close();
      assert.doesNotMatch(JSON.stringify(log.entries), /local-user/);
    }, { agentSuffix: ".rhttp" }));

  it("needs a password with tokens, whatever its destination", () =>
    withBench(async ({ connect }) => {
      assert.deepEqual(await answerTo(await connect(), methods(0)), [5, 0xff]);
    }, { agentSuffix: ".rhttp", authenticator: passwordOnly("secret") }));

  it("has the user name of HTTP: UTF-8, and a colon in it is not the end", () =>
    withBench(async ({ connect, dialled }) => {
      for (const [username, agent, inHttp] of [["köln", "köln", "köln"], ["a:b", "a:b", "a%3Ab"], ["a%3Ab", "a:b", "a%3Ab"]] as const) {
        const client = await connect();
        await login(client, username);
        await client.write(request("db", 1));
        const { request: asked, far } = await dialled.next();
        assert.equal(asked.agentId, agent);
        assert.deepEqual(asked.credentials, { scheme: "basic", username: inHttp, password: "x" });
        client.close();
        far.close();
      }
      const client = await connect();
      assert.deepEqual(await answerTo(client, methods(2), Uint8Array.of(1, 1, 0xff, 1, 0x61)), [5, 2, 1, 1]);
    }));

  it("is refused with credentials of another version", () =>
    withBench(async ({ connect, log }) => {
      assert.deepEqual(await answerTo(await connect(), methods(2), Uint8Array.of(5, 1, 0x61, 1, 0x61)), [5, 2, 1, 1]);
      await log.waitFor("request", { status: 400, reason: "The SOCKS credentials have the version 5, and 1 is required" });
    }));

  const destinations: [string, Uint8Array, { host: string; port: number }][] = [
    ["an IPv4 address", requestOf([192, 0, 2, 1], 443), { host: "192.0.2.1", port: 443 }],
    ["an IPv6 address", requestOf([0x20, 1, 0xd, 0xb8, ...Array(11).fill(0), 1], 65535), { host: "2001:db8::1", port: 65535 }],
    ["a mapped IPv4 address", requestOf([...Array(10).fill(0), 255, 255, 192, 0, 2, 1], 1), { host: "::ffff:c000:201", port: 1 }],
    ["a name", request("a.b_c-d.e.", 1), { host: "a.b_c-d.e.", port: 1 }],
    ["a name of one byte", request("a", 1), { host: "a", port: 1 }],
    ["a name of 253 bytes", request(`${"a".repeat(60)}.`.repeat(4) + "b".repeat(9), 1), {
      host: `${"a".repeat(60)}.`.repeat(4) + "b".repeat(9),
      port: 1,
    }],
    ["IPv4 as a name", request("192.0.2.1", 1), { host: "192.0.2.1", port: 1 }],
    ["IPv6 as a name", request("2001:db8::1", 1), { host: "2001:db8::1", port: 1 }],
    ["IPv6 in brackets as a name", request("[::1]", 1), { host: "::1", port: 1 }],
    ["IPv4 in brackets as a name", request("[127.0.0.1]", 1), { host: "127.0.0.1", port: 1 }],
    ["IPv6 with a zone as a name", request("fe80::1%eth0", 1), { host: "fe80::1%eth0", port: 1 }],
  ];
  for (const [what, message, destination] of destinations) {
    it(`may name ${what}`, () =>
      withBench(async ({ connect, dialled }) => {
        const client = await connect();
        await login(client);
        await client.write(message);
        const { request: asked, far } = await dialled.next();
        assert.deepEqual(asked.destination, destination);
        client.close();
        far.close();
      }));
  }

  it("is kept from an address by rules that name it, however it is written", () =>
    withBench(async ({ connect }) => {
      const written = [
        requestOf([127, 0, 0, 1], 1),
        requestOf([...Array(10).fill(0), 255, 255, 127, 0, 0, 1], 1),
        ...["127.0.0.1", "[127.0.0.1]", "127.1", "[::ffff:127.0.0.1]", "::ffff:7f00:1"].map((name) => request(name, 1)),
      ];
      for (const message of written) {
        const client = await connect();
        await login(client);
        assert.deepEqual(await answerTo(client, message), reply(2));
      }
      const client = await connect();
      await login(client);
      await client.write(requestOf([10, 0, 0, 1], 1));
      assert.deepEqual([...await readExactly(client, 10)], reply(0));
      client.close();
    }, { allowList: createAllowList(["10.0.0.0/8"]) }));

  const replies: [TunnelErrorType, number][] = [
    ["http_request_denied", 2],
    ["destination_ip_prohibited", 2],
    ["destination_ip_unroutable", 3],
    ["destination_unavailable", 4],
    ["dns_error", 4],
    ["connection_refused", 5],
    ["connection_timeout", 6],
    ["dns_timeout", 6],
    ["connection_terminated", 1],
    ["connection_limit_reached", 1],
    ["proxy_internal_error", 1],
  ];
  for (const [type, code] of replies) {
    it(`gets the reply ${code} for ${type}`, () =>
      withBench(async ({ connect, log }) => {
        const client = await connect();
        await login(client);
        assert.deepEqual(await answerTo(client, request("db", 1)), reply(code));
        await log.waitFor("request", { error: type, reason: "why", agent: "site", destination: "db:1" });
      }, { dial: () => Promise.reject(new TunnelError(type, "why")) }));
  }

  const refused: [string, Uint8Array, number, RegExp][] = [
    ["BIND", requestOf([0, 0, 0, 0], 0, 2), 7, /^The SOCKS command BIND is not supported$/],
    ["RESOLVE", request("db", 0, 0xf0), 7, /^The SOCKS command RESOLVE is not supported$/],
    ["an unknown command", request("db", 1, 9), 7, /^The SOCKS command 9 is not supported$/],
    ["an unknown address type", Uint8Array.of(5, 1, 0, 2, 1, 2, 3, 4, 5), 8, /^The SOCKS address type 2 is unknown$/],
    ["another version", Uint8Array.of(4, 1, 0, 80, 127, 0, 0, 1, 0), 1, /version 4, and 5 is required/],
    ["an empty name", request("", 1), 1, /is not host:port/],
    ["a name with a port", request("db:80", 1), 1, /is not host:port/],
    ["a name with a control character", request("d\r\nb", 1), 1, /host:port|malformed/],
    ["a name in brackets", request("[db]", 1), 1, /host:port/],
    ["a name of 255 bytes", request("a".repeat(255), 1), 1, /malformed/],
    ["port 0", request("db", 0), 1, /port is not 1 to 65535/],
  ];
  for (const [what, message, code, reason] of refused) {
    it(`gets the reply ${code} for ${what}, after its whole request`, () =>
      withBench(async ({ connect, log }) => {
        const client = await connect();
        await login(client);
        assert.deepEqual(await answerTo(client, message), reply(code));
        const logged = await log.waitFor("request", { protocol: "socks5" });
        assert.match(String(logged.reason), reason);
      }));
  }

  it("that sends nothing more is dropped, and the log names the message", async () => {
    const cut: [Uint8Array[], string, number[]][] = [
      [[Uint8Array.of(5)], "methods", []],
      [[Uint8Array.of(5, 3, 0, 1)], "methods", []],
      [[methods(2)], "credentials", [5, 2]],
      [[methods(2), credentials("site", "x").slice(0, -1)], "credentials", [5, 2]],
    ];
    for (const [messages, name, answer] of cut) {
      await withBench(async ({ connect, log, bad }) => {
        assert.deepEqual(await answerTo(await connect(), ...messages), answer);
        const reason = `The client's SOCKS ${name} were not complete in time`;
        await log.waitFor("request", { status: 400, error: "http_request_error", reason });
        assert.deepEqual(bad, ["head"]);
      }, { listen: { headTimeoutMs: 20 } });
    }
    await withBench(async ({ connect, log }) => {
      const client = await connect();
      await login(client);
      assert.deepEqual(await answerTo(client, request("db", 1).slice(0, -1)), reply(1));
      await log.waitFor("request", { status: 400, agent: "site", reason: "The SOCKS request was not complete in time" });
    }, { requestTimeoutMs: 20 });
  });

  it("that ends within a message is logged with its name", () =>
    withBench(async ({ connect, log }) => {
      const ends: [Uint8Array[], string][] = [
        [[Uint8Array.of(5, 2, 0)], "The client ended within its SOCKS methods"],
        [[methods(2), Uint8Array.of(1, 4)], "The client ended within its SOCKS credentials"],
        [[methods(2), credentials("site", "x")], "The client ended within the SOCKS request"],
      ];
      for (const [messages, reason] of ends) {
        const client = await connect();
        for (const message of messages) await client.write(message);
        client.closeWrite();
        await log.waitFor("request", { reason });
        await answerTo(client);
      }
      const silent = await connect();
      silent.closeWrite();
      await until(() => log.logged("request").length === ends.length, "a client that sends nothing has no line");
    }));

  it("is one of those that may be shaking hands: above the limit the oldest is dropped", () =>
    withBench(async ({ connect, log }) => {
      const oldest = await connect();
      await oldest.write(Uint8Array.of(5));
      const other = await connect();
      await other.write(methods(2));
      assert.deepEqual(await answerTo(oldest), []);
      await log.waitFor("request", { status: 503, reason: "Too many requests are being received" });
      assert.deepEqual([...await readExactly(other, 2)], [5, 2]);
      other.close();
    }, { listen: { maxPendingHeads: 1 } }));

  it("is recognized beside HTTP, and never gets a response of HTTP", () =>
    withBench(async ({ connect, net, log, address }) => {
      const client = await connect();
      await login(client);
      await client.write(request("db", 1));
      assert.deepEqual([...await readExactly(client, 10)], reply(0));
      client.close();
      assert.equal((await ask(net, address, "CONNECT db:1 HTTP/1.1\r\n\r\n")).status, 407);
      await log.waitFor("request", { status: 407, protocol: undefined, method: "CONNECT" });
      assert.deepEqual(await answerTo(await connect(), methods(0)), [5, 0xff]);
      assert.deepEqual(await answerTo(await connect(), methods(2)), [5, 2]);
      await log.waitFor("request", { status: 400, reason: "The client's SOCKS credentials were not complete in time" });
    }, { beside: createHttpProxy("reverse-http-proxy"), listen: { headTimeoutMs: 50 } }));

  it("that speaks another protocol is refused", () =>
    withBench(async ({ connect, log }) => {
      assert.deepEqual(await answerTo(await connect(), bytes("GET / HTTP/1.1\r\n\r\n")), []);
      await log.waitFor("request", { status: 400, error: "http_request_error" });
    }));
});
