// How lb asks proxies: which refusals make it look the agent up again, and what a client gets in the end.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDialer } from "../../lb/dial.ts";
import { Locator } from "../../lb/locator.ts";
import type { DialRequest } from "../../shared/front/front.ts";
import { encodeRefusal, type ProxyErrorType, Refusal } from "../../shared/http/status.ts";
import { createMemoryNet } from "../../shared/net/memory.ts";
import type { Net } from "../../shared/net/types.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import type { Store } from "../../shared/store/store.ts";

const REQUEST: DialRequest = {
  id: "r-1",
  agentId: "7",
  destination: { host: "db", port: 5432 },
  credentials: { scheme: "basic", username: "7", password: "" },
  fields: [["proxy-authorization", "Basic Nzp4"], ["User-Agent", "test"], ["Via", "1.1 somebody"]],
  done: new Promise(() => {}),
};
const ESTABLISHED = "HTTP/1.1 200 Connection established\r\nContent-Length: 0\r\n\r\n";
const GO_REFUSAL = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

const refusal = (status: number, error: ProxyErrorType, message = "no") =>
  new TextDecoder("latin1").decode(encodeRefusal(new Refusal(status, error, message)));

/** A proxy that answers every request alike, and keeps what it was asked. */
async function fakeProxy(net: Net, address: string, answer: string): Promise<string[]> {
  const listener = await net.listenTcp({ address });
  const heads: string[] = [];
  void (async () => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, head } of batch) {
        heads.push(head ?? "");
        await stream.write(new TextEncoder().encode(answer));
        if (!answer.startsWith("HTTP/1.1 200")) stream.close(); // a tunnel has no end of its own
      }
    }
  })();
  return heads;
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
  const dial = createDialer({
    net,
    locator: new Locator({ store: counting }),
    tls: () => undefined,
    connectTimeoutMs: 1_000,
    answerTimeoutMs: 100,
    pseudonym: "lb-1",
  });
  const refused = async (): Promise<Refusal> => {
    const error = await dial(REQUEST).then(() => undefined, (error) => error);
    assert.ok(error instanceof Refusal, String(error));
    return error;
  };
  return { net, store, counted, dial, refused };
}

describe("dialing through proxies", () => {
  it("asks with the client's credentials and id, and nothing else of its request, and keeps what follows the answer", async () => {
    const { net, store, dial } = setUp();
    const heads = await fakeProxy(net, "127.0.0.1:1", `${ESTABLISHED}220 ready`);
    await store.set("7", "127.0.0.1:1");
    const { stream, early } = await dial(REQUEST);
    assert.equal(new TextDecoder().decode(early), "220 ready");
    assert.deepEqual(heads, [
      "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nProxy-Authorization: Basic Nzp4\r\nProxy-Connection: keep-alive\r\n" +
      "Via: 1.1 somebody\r\nVia: 1.1 lb-1\r\nX-Request-Id: r-1\r\n\r\n",
    ]);
    stream.close();
  });

  it("takes an address without a host, as the Go proxy writes it, for this machine", async () => {
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
    "answers nothing that is HTTP": "220 smtp ready\r\n\r\n",
    "ends without an answer": "",
  };
  for (const [what, answer] of Object.entries(moved)) {
    it(`looks the agent up once more when its proxy ${what}, and asks the one that holds it now`, async () => {
      const { net, store, counted, dial } = setUp();
      if (answer !== undefined) await fakeProxy(net, "127.0.0.1:1", answer);
      const now = await fakeProxy(net, "127.0.0.1:2", ESTABLISHED);
      const addresses = ["127.0.0.1:1", "127.0.0.1:2"];
      store.lookup = () => Promise.resolve(addresses.shift());
      (await dial(REQUEST)).stream.close();
      assert.deepEqual([now.length, counted.lookups], [1, 2]);
    });

    it(`tells the client when its proxy ${what} and the store knows no other`, async () => {
      const { net, store, counted, refused } = setUp();
      const heads = answer === undefined ? undefined : await fakeProxy(net, "127.0.0.1:1", answer);
      await store.set("7", "127.0.0.1:1");
      const { status } = await refused();
      assert.ok([502, 503, 504].includes(status), String(status));
      assert.equal(counted.lookups, 2);
      assert.ok(heads === undefined || heads.length === 1, "The same proxy is asked twice");
    });
  }

  it("asks two proxies at most, and tells the client what the last one said", async () => {
    const { net, store, refused } = setUp();
    await fakeProxy(net, "127.0.0.1:1", refusal(502, "destination_unavailable", "not here"));
    await fakeProxy(net, "127.0.0.1:2", refusal(502, "destination_unavailable", "not here either"));
    const third = await fakeProxy(net, "127.0.0.1:3", ESTABLISHED);
    const addresses = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
    store.lookup = () => Promise.resolve(addresses.shift());
    const { status, message } = await refused();
    assert.deepEqual([status, message, third.length], [502, "not here either", 0]);
  });

  const final: [status: number, error: ProxyErrorType][] = [
    [403, "http_request_denied"],
    [407, "http_request_denied"],
    [502, "connection_refused"],
    [502, "dns_error"],
    [504, "connection_timeout"],
    [503, "connection_limit_reached"],
  ];
  for (const [status, error] of final) {
    it(`passes on ${status} ${error} as it came, without asking again`, async () => {
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

  it("makes 502 of a status that a proxy has no reason to answer", async () => {
    const { net, store, refused } = setUp();
    await fakeProxy(net, "127.0.0.1:1", "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n");
    await store.set("7", "127.0.0.1:1");
    const { status, fields } = await refused();
    assert.deepEqual([status, fields], [502, []]);
  });

  it("refuses a request that has come from itself", async () => {
    const { store, dial } = setUp();
    await store.set("7", "127.0.0.1:1");
    const own: DialRequest = { ...REQUEST, fields: [...REQUEST.fields, ["via", "1.1 lb-1"]] };
    await assert.rejects(dial(own), (error) => error instanceof Refusal && error.error === "proxy_loop_detected");
  });
});
