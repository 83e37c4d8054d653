// Published ports: clients that know nothing of a proxy, through the compiled executables.
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { freeAddress, NGINX, NginxHttp } from "../../testing/nginx.ts";
import { AGENT, AGENT_ID, LB, Pair, type Program, PROXY, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { dial, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { PAGE, Web } from "../../testing/web.ts";

/** A forward to `to` on a port that the kernel chooses. */
function forwardTo(to: string, more = ""): string {
  return `--forward=listen=127.0.0.1:0,agent=${AGENT_ID},to=${to}${more}`;
}

/** The address that the program has bound for a forward to `to`. */
async function addressOf(program: Program, to: string): Promise<string> {
  return String((await program.waitFor("forwarding", { destination: to })).clients);
}

const withNginx = { skip: existsSync(NGINX) ? false : "there is no nginx (tools/requirements.ts)" };

/** How a connection ends that may be reset before the client learns that it is open. */
async function endingOf(address: string): Promise<string> {
  try {
    using client = await dial(address);
    return await client.ending();
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

describe("a forward of a proxy", () => {
  it("lets a server speak first, and each direction end on its own", async () => {
    await using origin = await Origin.start();
    await using pair = await Pair.start({ proxy: [forwardTo(origin.authority)] });
    using client = await dial(await addressOf(pair.proxy, origin.authority));
    const server = await origin.accept();
    await server.write("220 ready\r\n");
    assert.equal(await client.readUntil("\r\n"), "220 ready\r\n");
    client.finish("QUIT\r\n");
    assert.equal((await server.readAll()).toString(), "QUIT\r\n");
    server.finish("221 bye\r\n");
    assert.equal((await client.readAll()).toString(), "221 bye\r\n");
    const fields = { method: "FORWARD", agent: AGENT_ID, destination: origin.authority, status: 200, sent: 6, received: 20 };
    await pair.proxy.waitFor("request", fields);
  });

  it("keeps a reset a reset, both ways", async () => {
    await using origin = await Origin.start();
    await using pair = await Pair.start({ proxy: [forwardTo(origin.authority)] });
    const address = await addressOf(pair.proxy, origin.authority);
    using first = await dial(address);
    (await origin.accept()).reset();
    assert.equal(await first.ending(), "ECONNRESET");
    using second = await dial(address);
    const server = await origin.accept();
    second.reset();
    assert.equal(await server.ending(), "ECONNRESET");
  });

  it("serves curl, which knows of no proxy", async () => {
    await using site = await Site.create();
    await using web = await Web.start({ folder: site.folder.path });
    const { proxy, addresses } = await site.startProxy([forwardTo(web.authority)]);
    await site.startAgent(addresses);
    const { stdout } = await runToEnd("/usr/bin/curl", ["-sS", "--fail", `http://${await addressOf(proxy, web.authority)}/`]);
    assert.equal(stdout, PAGE);
  });

  it("resets its clients at once without an agent, and belongs to the agent that has connected last", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(async (wire) => {
      wire.finish("served");
      await wire.readAll();
    });
    const { proxy, addresses } = await site.startProxy([forwardTo(origin.authority)]);
    const address = await addressOf(proxy, origin.authority);
    assert.equal(await endingOf(address), "ECONNRESET");
    await proxy.waitFor("request", { agent: AGENT_ID, status: 502, reason: "The agent is not connected to this proxy" });
    // the first is frozen, as an agent is whose machine has lost its network
    const frozen = await site.startAgent(addresses);
    frozen.signal("SIGSTOP");
    await site.startAgent(addresses);
    using client = await dial(address);
    assert.equal((await client.readAll()).toString(), "served");
  });

  it("takes the client's address from a load balancer's PROXY header, and serves it alone", async () => {
    await using origin = await Origin.start();
    const allowed = forwardTo(origin.authority, ",allow=192.0.2.0/24,allow=2001:db8::/32");
    await using pair = await Pair.start({ proxy: [allowed, "--http-proxy.proxy-protocol=127.0.0.1"] });
    const address = await addressOf(pair.proxy, origin.authority);
    using served = await dial(address);
    await served.write("PROXY TCP4 192.0.2.7 192.0.2.1 5000 5432\r\nhello");
    assert.equal((await (await origin.accept()).read(5)).toString(), "hello");
    using refused = await dial(address);
    await refused.write("PROXY TCP4 198.51.100.7 192.0.2.1 5000 5432\r\n");
    assert.equal(await refused.ending(), "ECONNRESET");
    await pair.proxy.waitFor("request", { client: "198.51.100.7:5000", status: 403 });
    using malformed = await dial(address);
    await malformed.write("hello without a header");
    assert.equal(await malformed.ending(), "ECONNRESET");
    await pair.proxy.waitFor("request", { status: 400, error: "http_request_error" });
  });

  it("that cannot work is refused before anything is opened", async () => {
    for (
      const [record, message] of [
        ["listen=:1,agent=a", "record 1: it has no to"],
        ["listen=:1,agent=a,to=b:1;listen=:1,agent=c,to=d:1", "two records without sni listen on :1"],
        ["listen=:1,agent=a,to=b:1,token-file=t", "token-file: no token is verified without --auth.type=jwt"],
      ] as const
    ) {
      const { exitCode, stderr } = await runToEnd(PROXY, [`--forward=${record}`]);
      assert.equal(exitCode, 2, stderr);
      assert.match(stderr, new RegExp(`Cannot use --forward.*${message}`));
    }
  });
});

describe("a forward with a PROXY header", () => {
  it("sends it before the client has sent a byte, with the address that a load balancer names", async () => {
    await using origin = await Origin.start();
    const forward = forwardTo(origin.authority, ",proxy-protocol=v1");
    await using pair = await Pair.start({ proxy: [forward, "--http-proxy.proxy-protocol=127.0.0.2"] });
    const address = await addressOf(pair.proxy, origin.authority);
    using direct = await dial(address);
    const { localPort } = direct.socket;
    const port = address.split(":")[1];
    const first = await origin.accept();
    assert.equal(await first.readUntil("\r\n"), `PROXY TCP4 127.0.0.1 127.0.0.1 ${localPort} ${port}\r\n`);
    await first.write("220 ready");
    assert.equal((await direct.read(9)).toString(), "220 ready");
    direct.finish("QUIT");
    assert.equal((await first.readAll()).toString(), "QUIT");
    if (process.platform !== "linux") return; // others have no 127.0.0.2
    using balanced = await dial(address, undefined, "127.0.0.2");
    await balanced.write("PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\nhello");
    const second = await origin.accept();
    assert.equal(await second.readUntil("\r\n"), `PROXY TCP6 2001:db8::7 ::ffff:7f00:1 5000 ${port}\r\n`);
    assert.equal((await second.read(5)).toString(), "hello");
  });

  it("tells nginx behind server names who the client is", withNginx, async () => {
    await using site = await Site.create();
    const { cert, key } = await site.authority.issue({ names: ["a.example"] });
    const tls = { cert: site.folder.write("site.pem", cert), key: site.folder.write("site-key.pem", key) };
    await using nginx = await NginxHttp.startSite(tls, "$proxy_protocol_addr:$proxy_protocol_port", "proxy_protocol");
    const forward = forwardTo(nginx.address, ",sni=a.example,proxy-protocol=v2");
    const { proxy, addresses } = await site.startProxy([forward]);
    await site.startAgent(addresses);
    const port = (await addressOf(proxy, nginx.address)).split(":")[1];
    const args = ["-sS", "--cacert", site.files.ca, "--resolve", `a.example:${port}:127.0.0.1`, "-w", "\\n%{local_ip}:%{local_port}"];
    const { stdout, stderr } = await runToEnd("/usr/bin/curl", [...args, `https://a.example:${port}/`]);
    const [page, local] = stdout.split("\n");
    assert.equal(page, `a.example ${local}`, stderr);
  });
});

describe("a forward of lb", () => {
  it("reaches the agent wherever it is connected", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { lb } = await site.startLb(cache, [forwardTo(origin.authority)]);
    const { addresses } = await site.startProxy([...storeArgs(cache), "--http-proxy.trusted-proxies=127.0.0.1"]);
    await site.startAgent(addresses);
    const address = await addressOf(lb, origin.authority);
    const { client, server } = await connectThrough(address, origin);
    using _ = client;
    await assertRelayed(client, server);
  });

  it("shows the proxy a token, and is refused without one", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start();
    const key = makeTokenKey();
    const tokens = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`];
    const tokenFile = site.folder.write("token", await key.sign({ role: "client" }));
    const { lb } = await site.startLb(cache, [...tokens, forwardTo(origin.authority, `,token-file=${tokenFile}`)]);
    const { proxy, addresses } = await site.startProxy([...storeArgs(cache), ...tokens]);
    const agentArgs = site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth."));
    const agentToken = site.folder.write("agent-token", await key.sign({ role: "agent" }));
    await site.start(AGENT, [...agentArgs, "--auth.type=jwt", `--auth.jwt.token=file:${agentToken}`]).waitFor("connected");
    const address = await addressOf(lb, origin.authority);
    const { client, server } = await connectThrough(address, origin);
    using _ = client;
    await assertRelayed(client, server);
    await proxy.waitFor("request", { method: "CONNECT", agent: AGENT_ID, destination: origin.authority, status: 200 });
    site.folder.write("token", await key.sign({ agentId: "another" }));
    assert.equal(await endingOf(address), "ECONNRESET");
    await lb.waitFor("request", { status: 407, destination: origin.authority });
  });
});

describe("a forward by server name", () => {
  const names = ["exact.site.example", "*.site.example", "deep.zone.site.example"];

  /** A web site for each word, forwards of one address to them, and a client. */
  async function withSites(
    forwards: Readonly<Record<string, string>>,
    body: (context: { address: string; proxy: Program; site: Site; get: (name: string) => Promise<string> }) => Promise<void>,
  ): Promise<void> {
    await using site = await Site.create();
    const { cert, key } = await site.authority.issue({ names });
    const tls = { cert: site.folder.write("site.pem", cert), key: site.folder.write("site-key.pem", key) };
    await using stack = new AsyncDisposableStack();
    const listen = await freeAddress();
    const args: string[] = [];
    for (const [word, more] of Object.entries(forwards)) {
      const { address: to } = stack.use(await NginxHttp.startSite(tls, word));
      args.push(`--forward=listen=${listen},agent=${AGENT_ID},to=${to}${more}`);
    }
    const { proxy, addresses } = await site.startProxy(args);
    await site.startAgent(addresses);
    const get = async (name: string) => {
      const port = listen.split(":")[1];
      const args = ["-sS", "--cacert", site.files.ca, "--resolve", `${name}:${port}:127.0.0.1`, `https://${name}:${port}/`];
      const { stdout, stderr } = await runToEnd("/usr/bin/curl", args);
      return stdout + stderr;
    };
    await body({ address: listen, proxy, site, get });
  }

  it("reaches nginx with the certificate of the site, by the most exact name", withNginx, () =>
    withSites({
      exact: ",sni=Exact.Site.Example.",
      zone: ",sni=*.site.example",
      deeper: ",sni=*.zone.site.example",
    }, async ({ get, proxy }) => {
      assert.equal(await get("exact.site.example"), "exact.site.example exact");
      assert.equal(await get("other.site.example"), "other.site.example zone");
      assert.equal(await get("deep.zone.site.example"), "deep.zone.site.example deeper");
      await proxy.waitFor("request", { method: "FORWARD", serverName: "deep.zone.site.example", status: 200 });
    }));

  it(
    "answers a client that asks for another server, or for none, with the alert unrecognized_name",
    withNginx,
    () =>
      withSites({ zone: ",sni=*.site.example" }, async ({ address, proxy }) => {
        for (
          const [name, reason] of [
            ["site.example", "No forward is for the server site.example"],
            ["other.example", "No forward is for the server other.example"],
            [undefined, "The client names no server"],
          ]
        ) {
          const asked = name === undefined ? ["-noservername"] : ["-servername", name];
          const { stderr } = await runToEnd("/usr/bin/openssl", ["s_client", "-connect", address, ...asked], { input: "" });
          assert.match(stderr, /unrecognized name:.*SSL alert number 112/);
          await proxy.waitFor("request", { method: "FORWARD", serverName: name, reason, status: 502 });
        }
        using http = await dial(address);
        await http.write("GET / HTTP/1.1\r\n\r\n");
        assert.equal(await http.ending(), "ECONNRESET");
        await proxy.waitFor("request", { status: 400, reason: "This is not TLS, but this port accepts only TLS" });
      }),
  );

  it(
    "has a record without names take the rest",
    withNginx,
    () =>
      withSites({ named: ",sni=exact.site.example", rest: "" }, async ({ get, address }) => {
        assert.equal(await get("exact.site.example"), "exact.site.example named");
        assert.equal(await get("other.site.example"), "other.site.example rest");
        const { stdout } = await runToEnd("/usr/bin/curl", ["-sSk", `https://${address}/`]);
        assert.equal(stdout, " rest");
      }),
  );

  it("refuses records that take the same clients", async () => {
    const same = ["--forward=listen=:1,agent=a,to=b:1,sni=*.a.example", "--forward=listen=:1,agent=a,to=c:1,sni=*.A.example."];
    const { exitCode, stderr } = await runToEnd(PROXY, same);
    assert.equal(exitCode, 2, stderr);
    assert.match(stderr, /Cannot use --forward: two records that listen on :1 have sni=\*\.a\.example/);
  });
});

describe("--check-route", () => {
  const records = [
    "listen=:443,agent=site7,to=127.0.0.1:443,sni=*.site7.example,allow=all",
    "listen=:443,agent=forge,to=gitea:3000,sni=git.example,proxy-protocol=v2",
    "listen=:53,network=udp,agent=db,to=ns:53",
    "listen=127.0.0.1:5432,agent=db,to=db:5432,allow=192.0.2.0/24",
  ];
  const rows: [url: string, text: string, exitCode: number][] = [
    ["https://a.site7.example/x", ":443: sni=*.site7.example: to 127.0.0.1:443 as agent site7; allowed: all", 0],
    ["tls://GIT.example:443", ":443: sni=git.example: to gitea:3000 as agent forge, with a PROXY header (v2); allowed: everyone", 0],
    ["https://other.example", ":443: no forward for the server other.example; the client gets the TLS alert unrecognized_name", 1],
    ["https://192.0.2.1", ":443: no forward without a server name; the client gets the TLS alert unrecognized_name", 1],
    ["tcp://proxy.example:5432", "127.0.0.1:5432: the only record: to db:5432 as agent db; allowed: 192.0.2.0/24", 0],
    ["http://a.site7.example:443", ":443: it has only TLS; the client is reset", 1],
    ["http://a.example", "no forward listens on tcp port 80", 1],
    ["udp://a.example:53", ":53: the only record: to ns:53 as agent db; allowed: everyone", 0],
    ["tcp://a.example:53", "no forward listens on tcp port 53", 1],
  ];
  for (const [url, text, code] of rows) {
    it(`shows the way of ${url}, of proxy and lb, and starts nothing`, async () => {
      for (const program of [PROXY, LB]) {
        const { exitCode, stdout, stderr } = await runToEnd(program, [`--forward=${records.join(";")}`, `--check-route=${url}`]);
        assert.deepEqual([stdout, exitCode], [text, code], stderr);
      }
    });
  }

  it("refuses what is no URL", async () => {
    const { exitCode, stderr } = await runToEnd(PROXY, ["--check-route=a.example"]);
    assert.equal(exitCode, 2);
    assert.match(stderr, /Cannot check the route "a\.example": it does not begin with https:/);
  });
});

/** Bytes pass both ways, and each direction ends by itself. */
async function assertRelayed(client: Wire, server: Wire): Promise<void> {
  client.finish("ping");
  assert.equal((await server.readAll()).toString(), "ping");
  server.finish("pong");
  assert.equal((await client.readAll()).toString(), "pong");
}

/** A client that reaches the origin: until the store has the agent's entry, clients are reset. */
async function connectThrough(address: string, origin: Origin): Promise<{ client: Wire; server: Wire }> {
  const accepted = origin.accept();
  for (;;) {
    const client = await dial(address).catch(() => undefined);
    const refused = client === undefined ? undefined : once(client.socket, "close").then(() => undefined);
    const server = await Promise.race([accepted, refused]);
    if (client && server) return { client, server };
    await sleep(20);
  }
}
