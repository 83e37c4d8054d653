// Destinations that name their agent, with the compiled executables: two agents in one configuration of curl, tokens for several agents, lb.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type Addresses, type Program, REVERSE_HTTP, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { ask, assertRefused, connectHead, credentials, dial, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { PAGE, Web } from "../../testing/web.ts";

const SUFFIX = ["--http-proxy.agent-suffix=.rhttp", "--http-proxy.pac"];
const AGENTS = ["site-a", "site-b"];

/** A proxy with two agents, and a web server that both reach. */
class TwoSites implements AsyncDisposable {
  private constructor(readonly site: Site, readonly proxy: Program, readonly addresses: Addresses, readonly web: Web) {}

  static async start(
    args: readonly string[] = SUFFIX,
    agentArgs: (site: Site, id: string) => Promise<string[]> = () => Promise.resolve([]),
  ) {
    const site = await Site.create();
    try {
      const { proxy, addresses } = await site.startProxy(args);
      for (const id of AGENTS) await site.startAgent(addresses, await agentArgs(site, id), id);
      return new TwoSites(site, proxy, addresses, await Web.start({ folder: site.folder.path }));
    } catch (error) {
      await site[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The status of a request for a tunnel. */
  async status(host: string, user?: [name: string, password: string]): Promise<number> {
    const authority = `${host}:${this.web.port}`;
    const head = user ? connectHead(authority, ...user) : `CONNECT ${authority} HTTP/1.1\r\n\r\n`;
    using client = await dial(this.addresses.clients);
    await client.write(head);
    return Number((await client.readUntil("\r\n\r\n")).split(" ")[1]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.web[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
  }
}

describe("a proxy with an agent suffix", () => {
  it("brings one configuration of curl to two agents, by CONNECT and as plain HTTP, without credentials", async () => {
    await using sites = await TwoSites.start();
    const { site, proxy, addresses, web: { port } } = sites;
    const config = site.folder.write("curlrc", `proxy = http://${addresses.clients}\nsilent\nshow-error\nfail\n`);
    for (
      const [agent, host, inner] of [["site-a", "SITE-A.rhttp", "localhost"], ["site-b", "127.0.0.1.site-b.rhttp", "127.0.0.1"]] as const
    ) {
      for (const [method, option] of [["GET", []], ["CONNECT", ["--proxytunnel"]]] as const) {
        const { stdout, stderr } = await runToEnd("curl", ["--config", config, ...option, `http://${host}:${port}/`]);
        assert.equal(stdout, PAGE, stderr);
        await proxy.waitFor("request", { method, agent, destination: `${inner}:${port}`, status: 200 });
      }
    }
  });

  it("takes a WebSocket to the agent, and leaves the Host of requests as the client sent it", async () => {
    await using sites = await TwoSites.start();
    const { proxy, addresses: { clients }, web: { port } } = sites;
    const host = `localhost.site-b.rhttp:${port}`;
    using client = await dial(clients);
    const upgrade =
      "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n";
    await client.write(`GET ws://${host}/ HTTP/1.1\r\nHost: ${host}\r\n${upgrade}\r\n`);
    assert.match(await client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 101 /);
    client.reset();
    await proxy.waitFor("request", { agent: "site-b", destination: `localhost:${port}`, status: 101 });
    await using origin = await Origin.start();
    const name = `127.0.0.1.site-a.rhttp:${origin.authority.split(":")[1]}`;
    using plain = await dial(clients);
    await plain.write(`GET http://${name}/ HTTP/1.1\r\nHost: ${name}\r\n\r\n`);
    const server = await origin.accept();
    assert.match(await server.readUntil("\r\n\r\n"), new RegExp(`^Host: ${name}\r$`, "m"));
    server.reset();
  });

  it("takes the agent from the user name without the suffix, and asks for it where neither names one", async () => {
    await using sites = await TwoSites.start();
    assert.equal(await sites.status("127.0.0.1", ["site-b", "x"]), 200);
    await sites.proxy.waitFor("request", { agent: "site-b", status: 200 });
    assert.equal(await sites.status("127.0.0.1.site-a.rhttp", ["site-b", "x"]), 200);
    await sites.proxy.waitFor("request", { agent: "site-a", status: 200 });
    assert.equal(await sites.status("127.0.0.1"), 407);
    assert.equal(await sites.status("db-.site-a.rhttp"), 400);
    assert.equal(await sites.status("127.0.0.1.nobody.rhttp"), 502);
  });

  it("applies the lists of proxy and agent to what the agent connects to", async () => {
    await using sites = await TwoSites.start(
      [...SUFFIX, "--http-proxy.host-whitelist=localhost,127.0.0.1"],
      (_, id) => Promise.resolve([`--agent-client.host-whitelist=${id === "site-a" ? "localhost" : "127.0.0.1"}`]),
    );
    const rows = [["site-a", 200], ["127.0.0.1.site-a", 403], ["site-b", 403], ["127.0.0.1.site-b", 200], ["db.site-a", 403]] as const;
    for (const [name, status] of rows) assert.equal(await sites.status(`${name}.rhttp`), status, name);
  });

  it("serves the proxy configuration for browsers to any client, and nothing else", async () => {
    await using sites = await TwoSites.start();
    const { addresses: { clients } } = sites;
    const { status, body, fields } = await ask(clients, "GET /proxy.pac HTTP/1.1\r\nHost: proxy.example:3128\r\n\r\n");
    assert.deepEqual([status, fields["content-type"]], [200, "application/x-ns-proxy-autoconfig"]);
    assert.match(body, /"PROXY proxy\.example:3128"/);
    assertRefused(await ask(clients, "GET /proxy.pac HTTP/1.1\r\nHost: a;b\r\n\r\n"), 400, "http_request_error");
    assertRefused(await ask(clients, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n"), 405, "http_request_denied");
    await using without = await Site.create();
    const { addresses } = await without.startProxy();
    assertRefused(await ask(addresses.clients, "GET /proxy.pac HTTP/1.1\r\nHost: a\r\n\r\n"), 405, "http_request_denied");
  });
});

describe("a token for several agents", () => {
  it("reaches those that its patterns match, with any user name, and no other token reaches a second agent", async () => {
    const key = makeTokenKey();
    await using site = await Site.create();
    site.folder.write("private.pem", key.privatePem);
    const { exitCode, stderr } = await runToEnd(
      REVERSE_HTTP,
      ["auth", "jwt", "token", "--agents=site-*,4711", "--in=private.pem", "--out=client.jwt"],
      { cwd: site.folder.path },
    );
    assert.equal(exitCode, 0, stderr);
    const several = readFileSync(join(site.folder.path, "client.jwt"), "utf8");
    const one = await key.sign({ agentId: "site-a" });
    await using sites = await TwoSites.start(
      [...SUFFIX, "--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`],
      async (_, id) => ["--auth.type=jwt", `--auth.jwt.token=${await key.sign({ agentId: id, role: "agent" })}`],
    );
    const cases: [host: string, user: [string, string] | undefined, status: number][] = [
      ["127.0.0.1.site-a.rhttp", ["alice", several], 200],
      ["127.0.0.1.site-b.rhttp", ["alice", several], 200],
      ["127.0.0.1.site-b.rhttp", ["site-a", several], 200],
      ["127.0.0.1", ["site-b", several], 200],
      ["127.0.0.1", ["alice", several], 407],
      ["127.0.0.1.other.rhttp", ["alice", several], 403],
      ["127.0.0.1.site-a.rhttp", ["site-a", one], 200],
      ["127.0.0.1.site-b.rhttp", ["site-a", one], 403],
      ["127.0.0.1.site-b.rhttp", ["site-b", one], 407],
      ["127.0.0.1.site-a.rhttp", undefined, 407],
    ];
    for (const [host, user, status] of cases) assert.equal(await sites.status(host, user), status, `${host} as ${user?.[0]}`);
    const head = (token: string) => `CONNECT site-b.rhttp:${sites.web.port} HTTP/1.1\r\nProxy-Authorization: Bearer ${token}\r\n\r\n`;
    for (const [token, status] of [[several, 200], [one, 403]] as const) {
      using client = await dial(sites.addresses.clients);
      await client.write(head(token));
      assert.match(await client.readUntil("\r\n\r\n"), new RegExp(`^HTTP/1\\.1 ${status} `));
    }
    await sites.proxy.waitFor("request", { agent: "other", status: 403, destination: `127.0.0.1:${sites.web.port}` });
  });
});

describe("lb with an agent suffix", () => {
  it("finds the agent's proxy by the name, with a token for several agents or none, and the proxy needs no suffix", async () => {
    const key = makeTokenKey();
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const auth = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`];
    await using web = await Web.start({ folder: site.folder.path });
    const { clients } = await site.startLb(cache, [...SUFFIX, ...auth]);
    for (const id of AGENTS) {
      const { addresses } = await site.startProxy([...storeArgs(cache), ...auth]);
      const agentToken = await key.sign({ agentId: id, role: "agent" });
      await site.startAgent(addresses, ["--auth.type=jwt", `--auth.jwt.token=${agentToken}`], id);
    }
    const token = await key.sign({ agentId: undefined, agents: ["site-*"] });
    for (const [id, fields] of [["site-a", credentials("alice", token)], ["site-b", `Proxy-Authorization: Bearer ${token}\r\n`]]) {
      const url = `http://${id}.rhttp:${web.port}/`;
      const deadline = performance.now() + 20_000; // until the entry of the agent is stored
      for (;;) {
        const answer = await ask(clients, `GET ${url} HTTP/1.1\r\n${fields}\r\n`);
        if (answer.status === 502 && performance.now() < deadline) continue;
        assert.deepEqual([answer.status, answer.body], [200, PAGE]);
        break;
      }
    }
    assertRefused(
      await ask(clients, `GET http://other.rhttp/ HTTP/1.1\r\n${credentials("alice", token)}\r\n`),
      403,
      "http_request_denied",
    );
    const { status, body } = await ask(clients, "GET /proxy.pac HTTP/1.1\r\nHost: lb.example:3129\r\n\r\n");
    assert.deepEqual([status, /"PROXY lb\.example:3129"/.test(body)], [200, true]);
  });
});
