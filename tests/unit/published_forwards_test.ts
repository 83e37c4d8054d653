// Forwards that agents ask for: what a token allows, and how listeners change while agents come and go.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { agentOptions } from "../../agent/options.ts";
import { PublishedForwards } from "../../proxy/agents/published_forwards.ts";
import type { ConnectedAgent } from "../../proxy/agents/registry.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { createPublishList } from "../../shared/auth/publish_list.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ForwardListeners } from "../../shared/frontend/forwards/listeners.ts";
import { publishRequest } from "../../shared/frontend/forwards/published.ts";
import { ServiceFrontend } from "../../shared/frontend/service_frontend.ts";
import type { PublishRequest } from "../../shared/link/message.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { startService } from "../../shared/service/runtime.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { ask, connectTo, LogBook, Queue, readUntil, withNet } from "../../testing/network.ts";
import { refusal } from "../../testing/refusal.ts";
import { bytes, within } from "../conformance/support.ts";
import { recordDials } from "./tunnels.ts";

describe("what an agent may publish", () => {
  const rows: [patterns: string[], network: "tcp" | "udp", port: number, names: string[], allowed: boolean][] = [
    [[], "tcp", 5432, [], false],
    [[":5432"], "tcp", 5432, [], true],
    [[":5432"], "tcp", 5433, [], false],
    [[":5432"], "udp", 5432, [], false],
    [["udp:53"], "udp", 53, [], true],
    [["udp:53"], "tcp", 53, [], false],
    [[":8000-8002"], "tcp", 8002, [], true],
    [[":8000-8002"], "tcp", 8003, [], false],
    [[":443"], "tcp", 443, ["any.example"], true],
    [["a.example:443"], "tcp", 443, [], false],
    [["A.example.:443"], "tcp", 443, ["a.example"], true],
    [["a.example:443"], "tcp", 443, ["a.example", "b.example"], false],
    [["a.example:443", "b.example:443"], "tcp", 443, ["a.example", "b.example"], true],
    [["a.example:443"], "tcp", 80, ["a.example"], false],
    [["*.zone.example:443"], "tcp", 443, ["a.zone.example", "*.b.zone.example", "*.zone.example"], true],
    [["*.zone.example:443"], "tcp", 443, ["zone.example"], false],
    [["*.zone.example:443"], "tcp", 443, ["azone.example"], false],
    [["a.zone.example:443"], "tcp", 443, ["*.zone.example"], false],
  ];
  for (const [patterns, network, port, names, allowed] of rows) {
    it(`is ${allowed ? "" : "not "}${network} ${port} ${names} with ${patterns}`, () =>
      assert.equal(createPublishList(patterns).allows(network, port, names), allowed));
  }

  it("is written in patterns that can be read", () => {
    for (
      const text of [
        "",
        "5432",
        ":",
        ":0",
        ":65536",
        ":2-1",
        "*:443",
        "a b:443",
        "a.*.b:443",
        "udp:",
        "a.example",
        ":1-2-3",
        "-a:1",
        "tcp:80",
      ]
    ) {
      assert.throws(() => createPublishList([text]), RangeError, text);
    }
  });
});

describe("the option of an agent", () => {
  const parse = (publish: object[]) => withDefaults(agentOptions, { agentClient: { publish: publish as never } }).agentClient.publish;

  it("is sent without defaults", () => {
    assert.deepEqual(parse([{ listen: ":5432", to: "db:5432" }]).map(publishRequest), [{ listen: ":5432", to: "db:5432" }]);
    const web = { listen: ":443", network: "https", to: "web:80", host: ["a.example"], auth: "token", allow: ["10.0.0.0/8"] };
    assert.deepEqual(parse([web]).map(publishRequest), [web]);
  });

  it("refuses what no proxy would publish", () => {
    const rows: [records: object[], why: RegExp][] = [
      [[{ listen: "127.0.0.1:5432", to: "db:1" }], /record 1: listen: "127\.0\.0\.1:5432" is not a port/],
      [[{ listen: ":0", to: "db:1" }], /record 1: listen: ":0" is not a port/],
      [[{ listen: ":1", to: "db:1", agent: "other" }], /"agent" is an unknown key/],
      [[{ listen: ":1", to: "db:1", tokenFile: "t" }], /"tokenFile" is an unknown key/],
      [[{ listen: ":1", to: "db:1", host: ["a.example"] }], /has host and network=tcp/],
      [Array.from({ length: 17 }, (_, i) => ({ listen: `:${i + 1}`, to: "db:1" })), /there are 17 records; the limit is 16/],
      [[{ listen: ":1", to: "db:1", network: "http", path: [`/${"x".repeat(4096)}`] }], /bytes as JSON; the limit is 4096/],
    ];
    for (const [records, why] of rows) assert.match(refusal(() => parse(records)), why);
  });
});

interface Bench {
  readonly net: Net;
  readonly log: LogBook;
  readonly dialled: Queue<{ request: TunnelRequest; far: Duplex }>;
  readonly published: PublishedForwards;
  /** A connection of an agent that has asked for something. */
  connect(id: string, claim: string[], ...publish: PublishRequest[]): ConnectedAgent;
}

function withBench(records: object[], body: (bench: Bench) => Promise<void>): Promise<void> {
  return withNet(async (net) => {
    const [log, dialled] = [new LogBook(), new Queue<{ request: TunnelRequest; far: Duplex }>()];
    const runtime = await startService("proxy", { net, log }, (runtime) => Promise.resolve(runtime));
    const options = withDefaults(proxyOptions, records.length > 0 ? { forward: records as never } : {});
    const clients = new ServiceFrontend(runtime, options, { descriptors: 1, hasOwnAuthenticator: false });
    const listeners = new ForwardListeners(clients, { log, tls: { listeners: new Map() }, name: "reverse-http-proxy" });
    await listeners.open(options.forward);
    clients.serve({
      authenticator: createNoAuth(),
      dial: recordDials(dialled),
    });
    const published = new PublishedForwards(listeners, log);
    const connect = (agentId: string, claim: string[], ...publish: PublishRequest[]) => {
      const agent = { identity: { agentId, publish: createPublishList(claim) }, hello: { publish } } as unknown as ConnectedAgent;
      published.connected(agent);
      return agent;
    };
    await body({ net, log, dialled, published, connect });
    await within(runtime.close());
  });
}

/** Whom a client at a TCP port reaches. */
async function reached({ net, dialled }: Bench, address: string): Promise<string> {
  const client = await connectTo(net, address);
  const { request: { agentId, destination }, far } = await dialled.next();
  far.close();
  client.close();
  return `${agentId} ${destination.host}`;
}

describe("a forward that an agent asks for", () => {
  const DB = { listen: ":5432", to: "db:5432", allow: ["all"] };

  it("is open while the agent is connected", () =>
    withBench([], async (bench) => {
      const agent = bench.connect("site", [":5432"], DB);
      await bench.log.waitFor("forwarding", { agent: "site", destination: "db:5432" });
      assert.equal(await reached(bench, "127.0.0.1:5432"), "site db");
      bench.published.disconnected(agent);
      await bench.log.waitFor("forward withdrawn", { agent: "site", clients: ":5432" });
      await assert.rejects(connectTo(bench.net, "127.0.0.1:5432"), { code: "refused" });
      bench.connect("site", [":5432"], DB);
      await bench.log.waitFor("forwarding", { agent: "site" }, 2);
      assert.equal(await reached(bench, "127.0.0.1:5432"), "site db");
    }));

  it("stays while another connection of the agent asks for it, and the newest connection says where it leads", () =>
    withBench([], async (bench) => {
      const [first, second] = [bench.connect("site", [":5432"], DB), bench.connect("site", [":5432"], DB)];
      bench.published.disconnected(first);
      bench.connect("later", [":1"], { ...DB, listen: ":1" });
      await bench.log.waitFor("forwarding", { agent: "later" });
      assert.equal(await reached(bench, "127.0.0.1:5432"), "site db");
      bench.connect("site", [":5432"], { ...DB, to: "other:1" });
      await bench.log.waitFor("forwarding", { destination: "other:1" });
      assert.equal(await reached(bench, "127.0.0.1:5432"), "site other");
      bench.published.disconnected(second);
      assert.equal(await reached(bench, "127.0.0.1:5432"), "site other");
      assert.equal(bench.log.logged("forward withdrawn").length, 1);
    }));

  const refused: [what: string, claim: string[], request: PublishRequest, reason: RegExp][] = [
    ["is more than its token allows", [":1"], DB, /the agent's token does not allow :5432/],
    [
      "has a name that its token does not allow",
      ["b.example:80"],
      { listen: ":80", network: "http", to: "web:1", host: ["a.example"] },
      /a\.example at :80/,
    ],
    [
      "is what the operator has published",
      [":80"],
      { listen: ":80", network: "http", to: "web:1", host: ["Static.example"] },
      /have host=static\.example/,
    ],
    [
      "is of another kind than what the operator has published there",
      [":80"],
      { listen: ":80", to: "web:1" },
      /network=http and network=tcp/,
    ],
    ["is what another agent has published", [":7000"], { listen: ":7000", to: "db:1" }, /two records without sni listen on :7000/],
    [
      "is for server names where one is not",
      [":7000"],
      { listen: ":7000", to: "db:1", sni: ["a.example"] },
      /only some of the records that listen on :7000/,
    ],
    ["needs a certificate where there is none", [":443"], { listen: ":443", network: "https", to: "web:1" }, /there is no certificate/],
    ["is malformed", [":80"], { listen: ":80", to: "web:1", agent: "other" }, /"agent" is an unknown key/],
    ["has a value of another type", [":80"], { listen: 80, to: ["x"] }, /record 1: listen: 80 is not a address/],
  ];
  for (const [what, claim, request, reason] of refused) {
    it(`is refused if it ${what}`, () =>
      withBench([{ listen: ":80", network: "http", agent: "operator", to: "web:80", host: ["static.example"] }], async (bench) => {
        bench.connect("first", [":7000"], { listen: ":7000", to: "db:7000" });
        await bench.log.waitFor("forwarding", { agent: "first" });
        bench.connect("site", claim, request);
        const { reason: said } = await bench.log.waitFor("forward of an agent refused", { agent: "site" });
        assert.match(String(said), reason);
        assert.equal(await reached(bench, "127.0.0.1:7000"), "first db");
      }));
  }

  it("waits for one that another agent has published, as long as its agent is connected", () =>
    withBench([], async (bench) => {
      const first = bench.connect("first", [":5432"], DB);
      const gone = bench.connect("gone", [":5432"], { ...DB, to: "gone:1" });
      bench.connect("second", [":5432"], { ...DB, to: "other:1" });
      bench.connect("third", [":5432"], { ...DB, to: "third:1" });
      await bench.log.waitFor("forward of an agent refused", { agent: "third" });
      bench.published.disconnected(gone);
      bench.published.disconnected(first);
      await bench.log.waitFor("forwarding", { destination: "other:1" });
      assert.equal(await reached(bench, "127.0.0.1:5432"), "second other");
      assert.deepEqual(bench.log.entries.filter(({ level }) => level === "warn").map(({ fields }) => fields.agent), [
        "gone",
        "second",
        "third",
      ]);
    }));

  it("joins the web sites of the operator, and leaves them", () =>
    withBench([{ listen: ":80", network: "http", agent: "operator", to: "web:80" }], async (bench) => {
      const request = (host: string) => bytes(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
      const client = await connectTo(bench.net, "127.0.0.1:80");
      const asks = async (host: string) => {
        await client.write(request(host));
        const { request: { agentId }, far } = await bench.dialled.next();
        await far.write(bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        await readUntil(client, "ok");
        far.close();
        return agentId;
      };
      assert.equal(await asks("a.example"), "operator");
      const agent = bench.connect("site", ["*.example:80"], { listen: ":80", network: "http", to: "web:1", host: ["a.example"] });
      await bench.log.waitFor("forwarding", { agent: "site" });
      assert.equal(await asks("a.example"), "site"); // on the same connection
      assert.equal(await asks("b.example"), "operator");
      bench.published.disconnected(agent);
      await bench.log.waitFor("forward withdrawn", { agent: "site" });
      assert.equal(await asks("a.example"), "operator");
      client.close();
    }));

  it("has its clients refused by the list of the agent", () =>
    withBench([], async (bench) => {
      bench.connect("site", [":80"], { listen: ":80", network: "http", to: "web:1", allow: ["192.0.2.0/24"] });
      await bench.log.waitFor("forwarding", { agent: "site" });
      assert.equal((await ask(bench.net, "127.0.0.1:80", "GET / HTTP/1.1\r\nHost: a\r\n\r\n")).status, 403);
    }));
});
