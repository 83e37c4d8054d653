// Clients, a load balancer, proxies, a store and agents, with the compiled executables and real store servers.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { createMemcachedStore } from "../../shared/store/memcached.ts";
import type { Store } from "../../shared/store/store.ts";
import { NGINX, Nginx } from "../../testing/nginx.ts";
import { type Addresses, AGENT_ID, type Program, Site, storeArgs } from "../../testing/programs.ts";
import { ask, connectHead, credentials, dial, openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const withNginx = {
  skip: process.platform === "linux" && existsSync(NGINX) ? false : "there is no nginx (tests/install.sh), or not all of 127.0.0.0/8",
};
const onLinux = { skip: process.platform === "linux" ? false : "only Linux has all of 127.0.0.0/8" };

/** The minimum: entries are renewed every second. */
const SHORT_LIFE = "--store.ttl=3s";

/** A store, a load balancer, and proxies that are started one by one; `await using` ends them all. */
class Fleet implements AsyncDisposable {
  private constructor(readonly site: Site, readonly cache: StoreServer, readonly lb: Program, readonly clients: string) {}

  static async start(kind: "memcached" | "redis" = "memcached", lbArgs: readonly string[] = []): Promise<Fleet> {
    const cache = await StoreServer.start(kind);
    const site = await Site.create();
    const { lb, clients } = await site.startLb(cache, lbArgs);
    return new Fleet(site, cache, lb, clients);
  }

  async startProxy(args: readonly string[] = []): Promise<{ proxy: Program; addresses: Addresses }> {
    return await this.site.startProxy([...storeArgs(this.cache), SHORT_LIFE, ...args]);
  }

  /** A proxy with an agent, whose entry is written. */
  async startPair(proxyArgs: readonly string[] = [], agentArgs: readonly string[] = []): Promise<
    { proxy: Program; agent: Program; addresses: Addresses }
  > {
    const { proxy, addresses } = await this.startProxy(proxyArgs);
    const agent = await this.site.startAgent(addresses, agentArgs);
    await this.entry((address) => address === addresses.clients);
    return { proxy, agent, addresses };
  }

  openStore(): Store {
    return createMemcachedStore({ addresses: [this.cache.address], timeoutMs: 1_000, ttlMs: 30_000 });
  }

  /** Waits until the agent's entry is as wanted. */
  async entry(wanted: (address: string | undefined) => boolean): Promise<void> {
    if (this.cache.kind === "redis") return;
    const store = this.openStore();
    try {
      const deadline = performance.now() + 20_000;
      for (let found: string | undefined; !wanted(found = await store.lookup(AGENT_ID).catch(() => undefined));) {
        if (performance.now() > deadline) throw new Error(`The entry is ${found}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    } finally {
      store.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.cache[Symbol.asyncDispose]();
  }
}

async function echo(clients: string, text = "ping"): Promise<void> {
  await using origin = await Origin.start();
  using client = await openTunnel(clients, origin.authority);
  const server = await origin.accept();
  await client.write(text);
  assert.equal((await server.read(text.length)).toString(), text);
  server.finish("pong");
  assert.equal((await client.readAll()).toString(), "pong");
}

describe("load balancer", () => {
  for (const kind of ["memcached", "redis"] as const) {
    it(`forwards a CONNECT to the agent's proxy, found in ${kind}, with independent directions`, async () => {
      await using fleet = await Fleet.start(kind);
      await using origin = await Origin.start();
      await fleet.startProxy(); // it has no agents
      const { proxy } = await fleet.startPair();
      if (kind === "redis") {
        for (let status = 0; status !== 200;) ({ status } = await askHead(fleet.clients, connectHead(origin.authority)));
        await origin.accept();
      }
      using client = await openTunnel(fleet.clients, origin.authority, { early: "early" });
      const server = await origin.accept();
      assert.equal((await server.read(5)).toString(), "early");
      client.finish("last words");
      assert.equal((await server.readAll()).toString(), "last words");
      server.finish("answer after the client has finished");
      assert.equal((await client.readAll()).toString(), "answer after the client has finished");
      const { id, agent } = await fleet.lb.waitFor("request", { status: 200, sent: 15 });
      assert.equal(agent, AGENT_ID);
      await proxy.waitFor("request", { id, status: 200, agent: AGENT_ID }); // one id tells both ends of it
    });
  }

  it("loses no bytes of a destination that speaks first", async () => {
    await using fleet = await Fleet.start();
    await fleet.startPair();
    await using origin = await Origin.start(async (wire) => {
      await wire.write("220 ready\r\n");
      wire.finish("bye");
      await wire.ending();
    });
    for (let round = 0; round < 20; round++) {
      using client = await openTunnel(fleet.clients, origin.authority);
      assert.equal((await client.readAll()).toString(), "220 ready\r\nbye");
    }
  });

  it("forwards plain HTTP to it too", async () => {
    await using fleet = await Fleet.start();
    await fleet.startPair();
    await using origin = await Origin.start(async (wire) => {
      const head = await wire.readUntil("\r\n\r\n");
      const body = await wire.read(5);
      const answer = JSON.stringify({ line: head.split("\r\n")[0], secret: /proxy-authorization/i.test(head), body: body.toString() });
      wire.finish(`HTTP/1.1 200 OK\r\nContent-Length: ${answer.length}\r\n\r\n${answer}`);
      await wire.ending();
    });
    const head =
      `POST http://${origin.authority}/path?q HTTP/1.1\r\nHost: ${origin.authority}\r\nContent-Length: 5\r\n${credentials()}\r\n`;
    const { status, body } = await ask(fleet.clients, `${head}hello`);
    assert.equal(status, 200);
    assert.deepEqual(JSON.parse(body), { line: "POST /path?q HTTP/1.1", secret: false, body: "hello" });
  });

  it("responds with 407 without credentials, 403 by its own list, and 502 for an agent that is not connected", async () => {
    await using fleet = await Fleet.start("memcached", ["--http-proxy.host-whitelist=127.0.0.1"]);
    const missing = await ask(fleet.clients, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");
    assert.equal(missing.status, 407);
    assert.equal((await ask(fleet.clients, connectHead("127.0.0.9:1"))).status, 403);
    const nowhere = await ask(fleet.clients, connectHead("127.0.0.1:1"));
    assert.equal(nowhere.status, 502);
    assert.match(nowhere.fields["proxy-status"]!, /error=destination_unavailable;details="The agent is not connected to any proxy"/);
  });

  it("forwards refusals of a proxy and an agent, with the error type", async () => {
    await using fleet = await Fleet.start();
    await fleet.startPair(["--http-proxy.host-whitelist=127.0.0.0/8"], ["--agent-client.host-whitelist=127.0.0.1"]);
    const byProxy = await ask(fleet.clients, connectHead("10.0.0.1:80"));
    assert.equal(byProxy.status, 403);
    assert.match(byProxy.fields["proxy-status"]!, /error=http_request_denied;details=".*allow-list of this proxy"/);
    const byAgent = await ask(fleet.clients, connectHead("127.0.0.9:80"));
    assert.equal(byAgent.status, 403);
    assert.match(byAgent.fields["proxy-status"]!, /allow-list of the agent"/);
    const refused = await ask(fleet.clients, connectHead("127.0.0.1:1"));
    assert.equal(refused.status, 502);
    assert.match(refused.fields["proxy-status"]!, /error=connection_refused/);
  });

  it("shows in Proxy-Status which hop refuses, and which have forwarded that", async () => {
    await using fleet = await Fleet.start("memcached", ["--http-proxy.host-whitelist=127.0.0.0/8,10.0.0.1"]);
    const { addresses } = await fleet.startPair(["--http-proxy.host-whitelist=127.0.0.0/8"], ["--agent-client.host-whitelist=127.0.0.1"]);
    const [agent, proxy, lb] = ["agent", "proxy", "lb"].map((part) => `reverse-http-${part}`);
    const denied = (by: string) => new RegExp(`^${by};error=http_request_denied;details="[^"]+"`).source;
    const chains: [destination: string, status: number, RegExp][] = [
      ["192.0.2.1:80", 403, new RegExp(`${denied(lb!)}$`)],
      ["10.0.0.1:80", 403, new RegExp(`${denied(proxy!)}, ${lb}$`)],
      ["127.0.0.9:80", 403, new RegExp(`${denied(agent!)}, ${proxy}, ${lb}$`)],
      ["127.0.0.1:1", 502, new RegExp(`^${agent};error=connection_refused;details="127.0.0.1:1 refused the connection", ${proxy}, ${lb}$`)],
    ];
    for (const [destination, status, chain] of chains) {
      const answer = await ask(fleet.clients, connectHead(destination));
      assert.equal(answer.status, status, destination);
      assert.match(answer.fields["proxy-status"]!, chain);
    }
    const direct = await ask(addresses.clients, connectHead("127.0.0.9:80"));
    assert.match(direct.fields["proxy-status"]!, new RegExp(`${denied(agent!)}, ${proxy}$`));
  });

  it(
    "tells the proxy the client's address for log, limits and lockouts, and others cannot forge it",
    onLinux,
    async () => {
      const key = makeTokenKey();
      await using fleet = await Fleet.start();
      const jwt = ["--auth.type=jwt", `--auth.jwt.public-key=${fleet.site.folder.write("public.pem", key.publicPem)}`];
      const limits = ["--limits.exempt-addresses=none", "--limits.auth-failures=2"];
      const trusting = ["--http-proxy.trusted-proxies=127.0.0.1"];
      const { proxy, addresses } = await fleet.startProxy([...jwt, ...limits, ...trusting]);
      const store = fleet.openStore();
      await store.set(AGENT_ID, addresses.clients);
      store.close();
      const password = await key.sign();
      const head = (with_: string, fields = "") => connectHead("127.0.0.1:1", AGENT_ID, with_).replace("\r\n\r\n", `\r\n${fields}\r\n`);
      const lie = 'Forwarded: for="192.0.2.99"\r\n';
      for (let i = 0; i < 3; i++) assert.equal((await ask(fleet.clients, head(`wrong ${i}`, lie), "127.0.0.2")).status, 407);
      assert.equal((await ask(fleet.clients, head(password, lie), "127.0.0.2")).status, 503);
      assert.equal((await ask(fleet.clients, head(password), "127.0.0.3")).status, 502);
      await proxy.waitFor("limit reached", { limit: "auth-failures", address: "127.0.0.2" });
      const { client, peer } = await proxy.waitFor("request", { status: 502 });
      assert.match(`${client} ${peer}`, /^127\.0\.0\.3:[0-9]+ 127\.0\.0\.1:[0-9]+$/);
      // who comes to the proxy itself is not believed
      assert.equal((await ask(addresses.clients, head(password, lie), "127.0.0.2")).status, 503);
      // a trusted proxy whose client has broken the field is told so
      assert.equal((await ask(addresses.clients, head(password, 'Forwarded: for="1\r\n'))).status, 400);
    },
  );

  it(
    "applies no limit by address to a listed proxy that names no client, and warns of it once; limits by agent hold",
    onLinux,
    async () => {
      const key = makeTokenKey();
      await using site = await Site.create();
      const { proxy, addresses } = await site.startProxy([
        "--auth.type=jwt",
        `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
        "--limits.exempt-addresses=none",
        "--limits.auth-failures=2",
        "--limits.connections-per-address=5",
        "--limits.tunnel-rate-per-client=1",
        "--limits.tunnel-burst=2s",
        "--http-proxy.trusted-proxies=127.0.0.2,127.0.0.3",
        "--http-proxy.proxy-protocol=127.0.0.4",
      ]);
      const password = await key.sign();
      const request = (password: string, forwarded = "") =>
        connectHead("127.0.0.1:1", AGENT_ID, password).replace("\r\n\r\n", `\r\n${forwarded}\r\n`);
      const hidden = 'Forwarded: for="_hidden"\r\n';
      const proxied = 'Forwarded: for="127.0.0.2"\r\n';
      const local = Buffer.from("0d0a0d0a000d0a515549540a20000000", "hex").toString("latin1");
      const cases = [["127.0.0.2", "", ""], ["127.0.0.3", "", hidden], ["127.0.0.3", "", proxied], ["127.0.0.4", local, ""]] as const;
      for (const [from, header, forwarded] of cases) {
        using held = new DisposableStack();
        for (let i = 0; i < 6; i++) held.use(await dial(addresses.clients, undefined, from));
        for (let i = 0; i < 4; i++) {
          const { status } = await ask(addresses.clients, Buffer.from(header + request(`wrong ${i}`, forwarded), "latin1"), from);
          assert.equal(status, 407, `${from} ${forwarded}`);
        }
      }
      const statuses: number[] = [];
      for (let i = 0; i < 3; i++) statuses.push((await ask(addresses.clients, request(password), "127.0.0.2")).status);
      assert.deepEqual(statuses, [502, 502, 503]);
      await proxy.waitFor("limit reached", { limit: "tunnel-rate-per-client" });
      const warned = proxy.logged("listed proxy names no client: limits by address do not apply to its clients");
      assert.deepEqual(warned.map(({ proxy }) => proxy), ["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
      assert.match(String(warned[0]!.remedy), /Forwarded.*--http-proxy\.trusted-proxies/);
      // a client that is named, and one that comes itself, are held to them
      for (const [from, forwarded] of [["127.0.0.2", "Forwarded: for=192.0.2.7\r\n"], ["127.0.0.9", ""]] as const) {
        for (let i = 0; i < 2; i++) assert.equal((await ask(addresses.clients, request(`wrong ${i}`, forwarded), from)).status, 407);
        assert.equal((await ask(addresses.clients, request(password, forwarded), from)).status, 503);
      }
    },
  );

  it("has the client's own address behind nginx with the PROXY protocol, and so has the proxy behind it", withNginx, async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { proxy, addresses } = await site.startProxy([
      ...storeArgs(cache),
      "--http-proxy.trusted-proxies=127.0.0.1",
      "--limits.exempt-addresses=none",
    ]);
    await site.startAgent(addresses);
    const { lb, clients } = await site.startLb(cache, ["--http-proxy.proxy-protocol=127.0.0.1", "--limits.exempt-addresses=none"]);
    await using nginx = await Nginx.start([{ transport: "tcp", servers: [clients], directives: "proxy_protocol on;" }]);
    const [balanced] = nginx.addresses;
    for (let status = 0; status !== 200;) ({ status } = await askHead(balanced!, connectHead(origin.authority), "127.0.0.7"));
    (await origin.accept()).finish(); // nginx ends a tunnel when both its ends have
    for (const program of [lb, proxy]) {
      const { client } = await program.waitFor("request", { status: 200 });
      assert.match(String(client), /^127\.0\.0\.7:[0-9]+$/);
    }
    // who comes without nginx cannot claim to be another
    const claim = "PROXY TCP4 192.0.2.1 127.0.0.1 5000 3128\r\n";
    const direct = await ask(clients, `${claim}${connectHead(origin.authority)}`, "127.0.0.2");
    assert.equal(direct.status, 400);
    const without = await ask(clients, connectHead(origin.authority));
    assert.equal(without.status, 400);
    await lb.waitFor("request", {
      reason: "The request head is malformed: The load balancer's connection does not begin with a PROXY protocol header",
    });
  });

  it("finds an agent that has moved, although its old proxy was looked up just before", async () => {
    await using fleet = await Fleet.start();
    const { agent } = await fleet.startPair();
    const other = await fleet.startProxy();
    await echo(fleet.clients);
    await agent.stop();
    await fleet.site.startAgent(other.addresses);
    await fleet.entry((address) => address === other.addresses.clients);
    await echo(fleet.clients);
    await other.proxy.waitFor("request", { status: 200, agent: AGENT_ID });
  });

  it("uses another proxy at once when the known one was killed, and responds with 502 while there is none", async () => {
    await using fleet = await Fleet.start();
    const { proxy, addresses } = await fleet.startPair();
    await echo(fleet.clients);
    proxy.signal("SIGKILL");
    await proxy.ended;
    await using origin = await Origin.start();
    const gone = await ask(fleet.clients, connectHead(origin.authority));
    assert.equal(gone.status, 502);
    assert.match(gone.fields["proxy-status"]!, /error=connection_refused;details="The proxy that holds the agent refused the connection"/);
    assert.ok(!gone.body.includes(addresses.clients), "The client learns the address of a proxy");
    const other = await fleet.startProxy();
    await fleet.site.startAgent(other.addresses);
    await fleet.entry((address) => address === other.addresses.clients);
    await echo(fleet.clients);
  });

  it("stops waiting for a proxy that does not respond", async () => {
    await using fleet = await Fleet.start("memcached", ["--http-connector.response-timeout=300ms"]);
    await using silent = await Origin.start();
    const store = fleet.openStore();
    await store.set(AGENT_ID, silent.authority);
    store.close();
    const { status, fields } = await ask(fleet.clients, connectHead("127.0.0.1:80"));
    assert.equal(status, 504);
    assert.match(fields["proxy-status"]!, /error=connection_timeout/);
    const wire = await silent.accept();
    const head = await wire.readUntil("\r\n\r\n");
    assert.match(head, /^CONNECT 127\.0\.0\.1:80 HTTP\/1\.1\r\nHost: 127\.0\.0\.1:80\r\n/);
    assert.ok(head.includes(credentials()), head);
    assert.match(head, /\r\nX-Request-Id: \S+\r\n/);
  });

  it("recovers by itself when the store is restarted, empty", async () => {
    await using fleet = await Fleet.start();
    const { addresses } = await fleet.startPair();
    await echo(fleet.clients);
    await fleet.cache.restart();
    await echo(fleet.clients); // the agent is where it was
    await fleet.entry((address) => address === addresses.clients);
    const { clients } = await fleet.site.startLb(fleet.cache);
    await echo(clients); // and another load balancer finds it too
  });

  it("serves connected and known agents while the store is down, responds with 503 for others, and recovers", async () => {
    await using fleet = await Fleet.start();
    await using origin = await Origin.start();
    const { proxy, agent, addresses } = await fleet.startPair();
    using open = await openTunnel(fleet.clients, origin.authority);
    const server = await origin.accept();
    await fleet.cache.kill();
    const unknown = await ask(fleet.clients, connectHead(origin.authority, "4799"));
    assert.equal(unknown.status, 503);
    assert.equal(unknown.fields["retry-after"], "1");
    assert.match(unknown.fields["proxy-status"]!, /error=proxy_internal_error;details="The store of agents cannot be reached"/);
    await echo(fleet.clients);
    await proxy.waitFor("store unavailable");
    await fleet.site.startAgent(addresses, [], "4712"); // it need not wait for the store
    await open.write("still there");
    assert.equal((await server.read(11)).toString(), "still there");
    await fleet.cache.restart();
    await proxy.waitFor("store recovered");
    for (let status = 0; status !== 200;) ({ status } = await askHead(fleet.clients, connectHead(origin.authority, "4712")));
    assert.equal(proxy.logged("store unavailable").length, 1);
    assert.equal(agent.logged("not connected").length, 0);
  });

  it("responds with 502 if the store's entry is its own address or not an address", async () => {
    await using fleet = await Fleet.start();
    const store = fleet.openStore();
    try {
      await store.set(AGENT_ID, fleet.clients);
      const loop = await ask(fleet.clients, connectHead("127.0.0.1:80"));
      assert.equal(loop.status, 502);
      assert.match(loop.fields["proxy-status"]!, /error=proxy_loop_detected/);
      await store.set("4712", "not an address");
      assert.equal((await ask(fleet.clients, connectHead("127.0.0.1:80", "4712"))).status, 502);
    } finally {
      store.close();
    }
  });

  it("uses TLS to proxies with its own certificate, and accepts only a trusted one", async () => {
    await using fleet = await Fleet.start();
    const { ca, cert, key } = fleet.site.files;
    const tls = [`--http-proxy.tls.file.cert=${cert}`, `--http-proxy.tls.file.key=${key}`, `--http-proxy.tls.file.client-ca=${ca}`];
    await fleet.startPair(["--http-proxy.tls.enable", ...tls]);
    const trust = ["--http-connector.tls.enable", `--http-connector.tls.file.root-ca=${ca}`];
    const own = [`--http-connector.tls.file.cert=${cert}`, `--http-connector.tls.file.key=${key}`];
    await echo((await fleet.site.startLb(fleet.cache, [...trust, ...own])).clients);
    const strangers = [fleet.clients];
    for (const args of [trust, ["--http-connector.tls.enable", ...own]]) {
      strangers.push((await fleet.site.startLb(fleet.cache, args)).clients);
    }
    const answers = await Promise.all(strangers.map((clients) => ask(clients, connectHead("127.0.0.1:80"))));
    assert.deepEqual(answers.map(({ status }) => status), [502, 502, 502]);
    const [plain] = answers;
    assert.match(plain!.body, /^The proxy that holds the agent takes TLS, and lb uses plain HTTP /);
    assert.match(
      plain!.fields["proxy-status"]!,
      /^reverse-http-proxy;error=http_request_error;.*, reverse-http-lb;error=tls_protocol_error;/,
    );
    const { reason } = await fleet.lb.waitFor("request", { status: 502, error: "tls_protocol_error" });
    assert.match(String(reason), /; set --http-connector\.tls\.enable$/);
  });

  it("lets tunnels finish on SIGTERM, accepts clients until none is left, and stops with exit code 0", async () => {
    await using fleet = await Fleet.start();
    await using origin = await Origin.start();
    await fleet.startPair();
    using client = await openTunnel(fleet.clients, origin.authority);
    const server = await origin.accept();
    fleet.lb.signal("SIGTERM");
    await fleet.lb.waitFor("draining");
    await echo(fleet.clients);
    await client.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
    server.finish("pong");
    client.finish();
    assert.equal((await client.readAll()).toString(), "pong");
    assert.equal((await fleet.lb.ended).exitCode, 0);
  });

  it("resets the remaining tunnels after --drain.timeout, and stops with exit code 0", async () => {
    await using fleet = await Fleet.start("memcached", ["--drain.timeout=0s"]);
    await using origin = await Origin.start();
    await fleet.startPair();
    using client = await openTunnel(fleet.clients, origin.authority);
    const server = await origin.accept();
    assert.equal((await fleet.lb.stop()).exitCode, 0);
    assert.equal(await client.ending(), "ECONNRESET");
    assert.equal(await server.ending(), "ECONNRESET");
  });
});

/** Sends a request, and disconnects after the response's header section, because a tunnel has no end of its own. */
async function askHead(address: string, request: string, from?: string): Promise<{ status: number }> {
  using wire = await dial(address, undefined, from);
  await wire.write(request);
  return { status: Number((await wire.readUntil("\r\n\r\n")).split(" ")[1]) };
}
