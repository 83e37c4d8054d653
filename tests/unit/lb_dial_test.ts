// How lb requests tunnels from proxies: which refusals make it look the agent up again, and the final response.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDialer } from "../../lb/dial.ts";
import { Locator } from "../../lb/locator.ts";
import { encodeErrorResponse, fieldsOf, ProxyError, statusOf, TLS_NEEDED } from "../../shared/http/status.ts";
import { NetError } from "../../shared/net/errors.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import type { Net } from "../../shared/net/net.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { type Store, StoreError } from "../../shared/store/store.ts";
import { TunnelError, type TunnelErrorType } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { readTextExactly } from "../conformance/support.ts";

const REQUEST: TunnelRequest = {
  network: "tcp",
  id: "r-1",
  agentId: "7",
  identity: { agentId: "7" },
  client: "192.0.2.1:5000",
  destination: { host: "db", port: 5432 },
  credentials: { scheme: "basic", username: "7", password: "x" },
  via: ["1.1 somebody"],
};
const ESTABLISHED = "HTTP/1.1 200 Connection established\r\nContent-Length: 0\r\n\r\n";
const GO_REFUSAL = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

const refusal = (status: number, error: TunnelErrorType, message = "no") =>
  new TextDecoder("latin1").decode(encodeErrorResponse(new ProxyError(status, error, message), "reverse-http-proxy"));

type Answer = string | undefined;

/** A proxy that gives every request the same response, or none, and records requests. */
async function fakeProxy(net: Net, address: string, answer: Answer | (() => Answer)): Promise<string[]> {
  const listener = await net.listenTcp({ address });
  const heads: string[] = [];
  void (async () => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, head } of batch) {
        heads.push(head ?? "");
        const text = typeof answer === "function" ? answer() : answer;
        if (text === undefined) continue;
        await stream.write(new TextEncoder().encode(text));
        if (!text.startsWith("HTTP/1.1 200")) stream.close(); // a tunnel has no end of its own
      }
    }
  })();
  return heads;
}

/** The refusal that the client gets. */
interface Refused {
  readonly status: number;
  readonly error: TunnelErrorType;
  readonly message: string;
  readonly fields: readonly (readonly [string, string])[];
  readonly cause: unknown;
}

function refusedOf(error: unknown): Refused {
  assert.ok(error instanceof TunnelError, String(error));
  const { type, message, cause } = error;
  return { status: statusOf(error), error: type, message, fields: fieldsOf(error), cause };
}

function setUp() {
  const net = createMemoryNet();
  const store = createMemoryStore();
  const counted = { lookups: 0 };
  const counting: Store = {
    ...store,
    lookup(agentId) {
      counted.lookups++;
      return store.lookup(agentId);
    },
  };
  const clock = { now: 0 };
  const dial = createDialer({
    net,
    locator: new Locator({ store: counting, now: () => clock.now }),
    tls: () => undefined,
    connectTimeoutMs: 100,
    responseTimeoutMs: 100,
    pseudonym: "lb-1",
  });
  const refused = async (): Promise<Refused> => refusedOf(await dial(REQUEST).then(() => undefined, (error) => error));
  return { net, store, counted, clock, dial, refused };
}

describe("dialing through proxies", () => {
  it("sends the client's credentials and id only, and keeps the bytes after the response", async () => {
    const { net, store, dial } = setUp();
    const heads = await fakeProxy(net, "127.0.0.1:1", `${ESTABLISHED}220 ready`);
    await store.set("7", "127.0.0.1:1");
    const { stream } = await dial(REQUEST);
    assert.equal(await readTextExactly(stream, 9), "220 ready");
    assert.deepEqual(heads, [
      "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nProxy-Authorization: Basic Nzp4\r\nProxy-Connection: keep-alive\r\n" +
      "Via: 1.1 somebody\r\nVia: 1.1 lb-1\r\n" +
      'Forwarded: for="192.0.2.1:5000"\r\n' +
      "X-Request-Id: r-1\r\n\r\n",
    ]);
    stream.close();
  });

  it("passes on the certificate that has identified the client", async () => {
    const { net, store, dial } = setUp();
    const heads = await fakeProxy(net, "127.0.0.1:1", ESTABLISHED);
    await store.set("7", "127.0.0.1:1");
    const { stream } = await dial({ ...REQUEST, identity: { agentId: "7", certificate: new Uint8Array([1, 2, 3]) } });
    stream.close();
    assert.match(heads[0]!, /\r\nClient-Cert: :AQID:\r\n/);
  });

  it("requests a UDP flow, and names a proxy that knows none", async () => {
    const { net, store, dial } = setUp();
    const answers = [
      "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\ncapsules",
      refusal(405, "http_request_denied"),
      "HTTP/1.1 500 Internal Server Error\r\n\r\nThis is a proxy server. Does not respond to non-proxy requests.",
      ESTABLISHED,
    ];
    const heads = await fakeProxy(net, "127.0.0.1:1", () => answers.shift());
    await store.set("7", "127.0.0.1:1");
    const request = { ...REQUEST, network: "udp" } as const;
    const { stream } = await dial(request);
    assert.equal(await readTextExactly(stream, 8), "capsules");
    stream.close();
    assert.match(
      heads[0]!,
      /^GET \/\.well-known\/masque\/udp\/db\/5432\/ HTTP\/1\.1\r\nHost: 127\.0\.0\.1:1\r\nProxy-Authorization: Basic Nzp4\r\n/,
    );
    for (const error of ["http_upgrade_failed", "http_upgrade_failed", "http_upgrade_failed"]) {
      const refused = refusedOf(await dial(request).then(() => undefined, (cause) => cause));
      assert.deepEqual([refused.status, refused.error], [502, error]);
      assert.match(refused.message, /does not relay UDP/);
    }
  });

  it("connects to loopback for an address without a host, as the Go proxy writes it", async () => {
    const { net, store, dial } = setUp();
    await fakeProxy(net, "127.0.0.1:1", ESTABLISHED);
    await store.set("7", ":1");
    (await dial(REQUEST)).stream.close();
  });

  const moved: Record<string, string | undefined> = {
    "refuses connections": undefined,
    "does not hold the agent": refusal(502, "destination_unavailable"),
    "is of the Go project and does not hold the agent": GO_REFUSAL,
    "shuts down": refusal(503, "destination_unavailable"),
    "loses the agent": refusal(502, "connection_terminated"),
    "answers nothing that is HTTP": "220 smtp ready\r\n\r\n",
    "ends without an answer": "",
  };
  for (const [what, answer] of Object.entries(moved)) {
    it(`looks the agent up once more if its proxy ${what}, and uses the agent's current proxy`, async () => {
      const { net, store, counted, dial } = setUp();
      if (answer !== undefined) await fakeProxy(net, "127.0.0.1:1", answer);
      const now = await fakeProxy(net, "127.0.0.1:2", ESTABLISHED);
      const addresses = ["127.0.0.1:1", "127.0.0.1:2"];
      store.lookup = () => Promise.resolve(addresses.shift());
      (await dial(REQUEST)).stream.close();
      assert.deepEqual([now.length, counted.lookups], [1, 2]);
    });

    it(`refuses the client if its proxy ${what} and the store has no other`, async () => {
      const { net, store, counted, refused } = setUp();
      const heads = answer === undefined ? undefined : await fakeProxy(net, "127.0.0.1:1", answer);
      await store.set("7", "127.0.0.1:1");
      const { status } = await refused();
      assert.ok([502, 503, 504].includes(status), String(status));
      assert.equal(counted.lookups, 2);
      assert.ok(heads === undefined || heads.length === 1, "The same proxy is asked twice");
    });
  }

  it("asks no further proxy after the timeout", async () => {
    const { net, store, refused } = setUp();
    await fakeProxy(net, "127.0.0.1:1", () => {
      const start = performance.now();
      while (performance.now() - start < 250); // the clock goes on, past the two limits of 100 ms
      return undefined;
    });
    const second = await fakeProxy(net, "127.0.0.1:2", refusal(502, "destination_unavailable"));
    const addresses = ["127.0.0.1:1", "127.0.0.1:2"];
    store.lookup = () => Promise.resolve(addresses.shift());
    assert.equal((await refused()).status, 504);
    assert.deepEqual([second, addresses], [[], ["127.0.0.1:2"]]);
  });

  it("asks at most two proxies that the store names, and responds with the last one's refusal", async () => {
    const { net, store, refused } = setUp();
    await fakeProxy(net, "127.0.0.1:1", refusal(502, "destination_unavailable", "not here"));
    await fakeProxy(net, "127.0.0.1:2", refusal(502, "destination_unavailable", "not here either"));
    const third = await fakeProxy(net, "127.0.0.1:3", ESTABLISHED);
    const addresses = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
    store.lookup = () => Promise.resolve(addresses.shift());
    const { status, message } = await refused();
    assert.deepEqual([status, message, third.length], [502, "not here either", 0]);
  });

  /** Proxies that the store names for other agents, so that the dialer knows them. */
  async function know({ store, dial }: ReturnType<typeof setUp>, addresses: readonly string[]): Promise<void> {
    for (const address of addresses) {
      await store.set(`at ${address}`, address);
      await dial({ ...REQUEST, agentId: `at ${address}` }).then(({ stream }) => stream.close(), () => {});
    }
  }

  it("asks other proxies if the store still names one that has gone, and remembers the one with the agent", async () => {
    const parts = setUp();
    const { net, store, dial, clock, counted } = parts;
    const other = await fakeProxy(net, "127.0.0.1:2", refusal(502, "destination_unavailable"));
    const holder = await fakeProxy(net, "127.0.0.1:3", ESTABLISHED);
    await know(parts, ["127.0.0.1:2", "127.0.0.1:3"]);
    await store.set("7", "127.0.0.1:1"); // no program listens there
    [other.length, holder.length] = [0, 0];
    for (const expected of [1, 2, 3]) {
      (await dial(REQUEST)).stream.close();
      assert.deepEqual([other.length, holder.length], [1, expected]);
      clock.now += 1_000; // the store is asked again, and says the same
    }
    assert.ok(counted.lookups >= 5);
    const gone = await fakeProxy(net, "127.0.0.1:4", ESTABLISHED);
    await store.set("7", "127.0.0.1:4");
    (await dial(REQUEST)).stream.close();
    assert.deepEqual([gone.length, holder.length], [1, 3], "what the store says newly holds");
  });

  it("asks other proxies while the store is down, too", async () => {
    const parts = setUp();
    const { net, store, dial, clock } = parts;
    const holder = await fakeProxy(net, "127.0.0.1:3", ESTABLISHED);
    let answer = ESTABLISHED;
    await fakeProxy(net, "127.0.0.1:1", () => answer);
    await know(parts, ["127.0.0.1:1", "127.0.0.1:3"]);
    await store.set("7", "127.0.0.1:1");
    (await dial(REQUEST)).stream.close();
    answer = refusal(502, "destination_unavailable");
    [holder.length, clock.now] = [0, 2_000];
    store.lookup = () => Promise.reject(new StoreError("down"));
    (await dial(REQUEST)).stream.close();
    assert.equal(holder.length, 1);
  });

  it("asks at most four proxies, different ones each time, and for a second after that only those in the store", async () => {
    const parts = setUp();
    const { net, store, refused, clock } = parts;
    const named = await fakeProxy(net, "127.0.0.1:1", refusal(502, "destination_unavailable", "the named one"));
    const ports = [2, 3, 4, 5, 6, 7];
    let answer = ESTABLISHED;
    const others = await Promise.all(ports.map((port) => fakeProxy(net, `127.0.0.1:${port}`, () => answer)));
    await know(parts, ports.map((port) => `127.0.0.1:${port}`));
    answer = refusal(502, "destination_unavailable", "another");
    for (const heads of others) heads.length = 0;
    await store.set("7", "127.0.0.1:1");
    const asked = () => others.map(({ length }) => length);
    assert.equal((await refused()).message, "the named one");
    assert.deepEqual(asked(), [1, 1, 1, 0, 0, 0]);
    await refused();
    assert.deepEqual([asked(), named.length], [[1, 1, 1, 0, 0, 0], 2]);
    clock.now += 1_000;
    await refused();
    assert.deepEqual([asked(), named.length], [[1, 1, 1, 1, 1, 1], 3]);
  });

  it("says where the store's entry is not an address, and does not blame the proxy", async () => {
    for (const entry of ["", "garbage", "host:99999", "/run/proxy.sock", "x".repeat(10_000)]) {
      const { store, refused } = setUp();
      await store.set("7", entry);
      const { status, error, message, cause } = await refused();
      assert.deepEqual([status, error, message], [502, "destination_unavailable", "The agent's entry in the store is not an address"]);
      assert.equal((cause as Error).message, `the entry ${JSON.stringify(entry.slice(0, 100))} is not host:port`);
    }
  });

  it("asks no proxy for an agent that is not in the store", async () => {
    const parts = setUp();
    const other = await fakeProxy(parts.net, "127.0.0.1:2", ESTABLISHED);
    await know(parts, ["127.0.0.1:2"]);
    other.length = 0;
    await parts.refused();
    assert.equal(other.length, 0);
  });

  it("has one timeout for all proxies together", async () => {
    const parts = setUp();
    const { net, store, refused } = parts;
    const silent = await Promise.all([1, 2, 3, 4].map((port) => fakeProxy(net, `127.0.0.1:${port}`, undefined)));
    await know(parts, [2, 3, 4].map((port) => `127.0.0.1:${port}`));
    for (const heads of silent) heads.length = 0;
    await store.set("7", "127.0.0.1:1");
    // 100 ms for a connection and 100 ms for an answer: time for two
    assert.equal((await refused()).status, 504);
    assert.ok(silent.flat().length <= 3, `${silent.flat().length} were asked`);
  });

  const final: [status: number, error: TunnelErrorType][] = [
    [403, "http_request_denied"],
    [407, "http_request_denied"],
    [502, "connection_refused"],
    [502, "dns_error"],
    [504, "connection_timeout"],
    [503, "connection_limit_reached"],
  ];
  for (const [status, error] of final) {
    it(`forwards ${status} ${error} unchanged, without another attempt`, async () => {
      const { net, store, counted, refused } = setUp();
      const advice = 'Retry-After: 7\r\nProxy-Authenticate: Basic realm="x"\r\nSet-Cookie: a=b\r\n';
      const answer = refusal(status, error, 'Because of "it"').replace("Content-Type", `${advice}Content-Type`);
      const heads = await fakeProxy(net, "127.0.0.1:1", answer);
      await store.set("7", "127.0.0.1:1");
      const got = await refused();
      assert.deepEqual([got.status, got.error, got.message], [status, error, 'Because of "it"']);
      assert.deepEqual(got.fields, [["Proxy-Authenticate", 'Basic realm="x"'], ["Retry-After", "7"]]);
      assert.deepEqual([heads.length, counted.lookups], [1, 1]);
    });
  }

  it("reports a lack of local ports as a limit, not as a missing agent", async () => {
    const { net, store, counted } = setUp();
    await store.set("7", "127.0.0.1:1");
    const exhausted: string[] = [];
    const locator = new Locator({ store: { ...store, lookup: (id) => (counted.lookups++, store.lookup(id)) } });
    const dial = createDialer({
      net: { ...net, connectTcp: () => Promise.reject(new NetError("address-not-available", "no port")) },
      locator,
      tls: () => undefined,
      connectTimeoutMs: 100,
      responseTimeoutMs: 100,
      pseudonym: "lb-1",
      onNoLocalPort: (address) => exhausted.push(address),
    });
    for (let i = 0; i < 2; i++) {
      const error = await dial(REQUEST).then(() => undefined, (error) => error);
      const refused = refusedOf(error);
      assert.deepEqual([refused.status, refused.error, refused.fields], [503, "connection_limit_reached", [["Retry-After", "1"]]]);
    }
    assert.deepEqual([[...locator], counted.lookups], [[["7", "127.0.0.1:1"]], 1]);
    assert.deepEqual(exhausted, ["127.0.0.1:1", "127.0.0.1:1"]);
  });

  it("responds with 502 to a status that a proxy must not send", async () => {
    const { net, store, refused } = setUp();
    await fakeProxy(net, "127.0.0.1:1", "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n");
    await store.set("7", "127.0.0.1:1");
    const { status, fields } = await refused();
    assert.deepEqual([status, fields], [502, []]);
  });

  const misunderstood: [what: string, answer: string, error: TunnelErrorType, reason: RegExp][] = [
    [
      "asks for TLS",
      refusal(400, "http_request_error", TLS_NEEDED),
      "tls_protocol_error",
      /^127\.0\.0\.1:1: it responded This port takes TLS.*; set --http-connector\.tls\.enable$/,
    ],
    ["answers with a TLS alert", "\x15\x03\x03\x00\x02\x02\x46", "tls_protocol_error", /; set --http-connector\.tls\.enable$/],
    [
      "asks for TLS as others do",
      "HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port",
      "http_protocol_error",
      /^127\.0\.0\.1:1: it responded 400 Bad Request; if it takes TLS, set --http-connector\.tls\.enable$/,
    ],
    [
      "expects a PROXY header",
      refusal(400, "http_request_error", "no PROXY header"),
      "http_protocol_error",
      /^127\.0\.0\.1:1: it responded no PROXY header; if it takes TLS/,
    ],
  ];
  for (const [what, answer, expected, reason] of misunderstood) {
    it(`responds with 502 if a proxy ${what}, and logs a remedy`, async () => {
      const { net, store, refused } = setUp();
      await fakeProxy(net, "127.0.0.1:1", answer);
      await store.set("7", "127.0.0.1:1");
      const { status, error, message, cause } = await refused();
      assert.deepEqual([status, error], [502, expected]);
      assert.doesNotMatch(message, /127\.0\.0\.1|--/, "that is the operator's business");
      assert.match((cause as Error).message, reason);
    });
  }

  it("refuses a request that has come from itself", async () => {
    const { store, dial } = setUp();
    await store.set("7", "127.0.0.1:1");
    const own: TunnelRequest = { ...REQUEST, via: [...REQUEST.via, "1.1 lb-1"] };
    await assert.rejects(dial(own), (error) => error instanceof TunnelError && error.type === "proxy_loop_detected");
  });
});
