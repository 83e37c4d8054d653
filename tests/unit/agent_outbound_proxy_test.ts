// Which outbound proxy leads to a server: URLs, and the variables of the environment.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import {
  checkOutboundProxy,
  createBypass,
  type Environment,
  readOutboundRoute,
  RejectedCredentials,
  type Server,
} from "../../agent/outbound_proxy.ts";
import { splitHostPort } from "../../shared/address/host_port.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { OutboundProxy } from "../../shared/net/session.ts";

function server(address: string, serverName?: string): Server {
  const { host, port } = splitHostPort(address);
  return { host, port, serverName: serverName ?? host };
}

async function proxyFor(address: string, proxy: string | undefined, environment: Environment = {}): Promise<OutboundProxy | undefined> {
  return (await readOutboundRoute({ proxy, transport: "auto" }, environment)).proxyFor(server(address));
}

/** `[user[:password]@]host:port` of the proxy of the environment. */
async function inEnvironment(environment: Environment, address = "proxy.example:443"): Promise<string | undefined> {
  const proxy = await proxyFor(address, undefined, environment);
  return proxy &&
    `${proxy.protocol}://${proxy.username === undefined ? "" : `${proxy.username}:${proxy.password}@`}${proxy.host}:${proxy.port}`;
}

describe("the URL of an outbound proxy", () => {
  for (
    const [url, want] of [
      ["http://proxy.corp:3128", { protocol: "http", host: "proxy.corp", port: 3128 }],
      ["HTTP://proxy.corp/", { protocol: "http", host: "proxy.corp", port: 80 }],
      ["http://[2001:db8::1]:8080", { protocol: "http", host: "2001:db8::1", port: 8080 }],
      ["http://al%20ice:p%40ss%3A%2F@10.0.0.1:80", {
        protocol: "http",
        host: "10.0.0.1",
        port: 80,
        username: "al ice",
        password: "p@ss:/",
      }],
      ["http://alice@p:1", { protocol: "http", host: "p", port: 1, username: "alice", password: "" }],
      ["socks5://p", { protocol: "socks5", host: "p", port: 1080 }],
      ["socks5h://a:b@[::1]:9", { protocol: "socks5", host: "::1", port: 9, username: "a", password: "b" }],
    ] as const
  ) {
    it(`may be ${url}`, async () => {
      assert.equal(checkOutboundProxy(url), undefined);
      assert.deepEqual(await proxyFor("127.0.0.1:1", url), want); // the option leads to every server
    });
  }

  for (
    const [url, problem] of [
      ["proxy.corp:3128", /^"proxy.corp:3128" is not a URL like/],
      ["10.0.0.1:3128", /^"10.0.0.1:3128" is not a URL like/],
      ["http://", /^"http:\/\/" is not a URL/],
      ["http://alice:s3cret", /^its value is not a URL/],
      ["http://alice:s3cret@h:99999", /^"http:\/\/\*\*\*@h:99999" is not a URL/],
      ["http://alice:s3#cret@h:1", /is not a URL like .* # %23/],
      ["alice:s3cret@h:1", /^"\*\*\*@h:1" is not a URL/],
      ["https://alice:s3cret@h", /^"https:\/\/\*\*\*@h" is neither an http: nor a socks5: URL; TLS to the proxy itself is not supported$/],
      ["socks4://h:1", /^"socks4:\/\/h:1" is neither/],
      ["http://a:s3cret@h:1/path", /^"http:\/\/\*\*\*@h:1\/path" has a path/],
      ["http://a:s3cret@h?x=1", /has a path/],
      ["http://h:0", /has no host or no port/],
      ["http://a:s3cret%zz@h", /^its user or password has a % /],
      ["http://a%3Ab:s3cret@h", /^its user has a colon$/],
      ["http://a:s3cret%0d%0a@h", /^its user or password has a control character$/],
      [`socks5://a:${"s".repeat(256)}@h`, /^its user or password is longer than 255 bytes$/],
      ["alice:s3cret", /^its value is not a URL/],
      ["alice:s3cret:h:3128", /^its value is not a URL/],
      ["http://alice:s3cret:h:3128", /^its value is not a URL/],
      ["file:http://alice:s3cret@h", /^file: is followed by a URL/],
      ["http://a:s3c\nret@h", /^"http:\/\/\*\*\*@h" has a space or a control character/],
      ["http://a:s3 cret@h", /has a space or a control character/],
      ["http://a:s3cret@h\u202e:x", /^"http:\/\/\*\*\*@h\?:x" is not a URL/],
      ["http://a:s3cret%ff@h", /is not UTF-8/],
      ["http://a:s3cret@0.0.0.0:1", /^0\.0\.0\.0:1 is the wildcard address/],
      ["socks5://[::]:1", /^\[::\]:1 is the wildcard address/],
      ["socks5://:s3cret@h", /^it has a password without a user$/],
    ] as const
  ) {
    it(`is not ${url.slice(0, 40)}`, () => {
      const found = checkOutboundProxy(url) ?? "";
      assert.match(found, problem);
      assert.ok(!found.includes("cret"), found);
    });
  }

  it("may be in a file, of which errors name no password", async () => {
    const folder = await mkdtemp(join(tmpdir(), "reverse-http-"));
    const file = join(folder, "url");
    const read = () => readOutboundRoute({ proxy: `file:${file}`, transport: "tls" }, {});
    try {
      await assert.rejects(read, {
        name: "ConfigError",
        message: `Cannot read --agent-client.proxy file:${file}: the file does not exist`,
      });
      await writeFile(file, "http://a:s3cret@h:70000\n");
      await assert.rejects(
        read,
        (error: Error) => error instanceof ConfigError && !error.message.includes("s3cret") && error.message.includes(file),
      );
      await writeFile(file, "http://a:s3cret@h:7000\n");
      const route = await read();
      assert.equal(route.file, file);
      assert.equal(route.proxyFor(server("p:1"))?.password, "s3cret");
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("cannot be used with QUIC alone, which needs none", async () => {
    await assert.rejects(readOutboundRoute({ proxy: "http://h:1", transport: "quic" }, {}), ConfigError);
    const environment = { HTTPS_PROXY: "nonsense://" };
    const route = await readOutboundRoute({ proxy: undefined, transport: "quic" }, environment);
    assert.equal(route.proxyFor(server("p:1")), undefined);
    assert.equal(await proxyFor("p:1", "none", environment), undefined);
  });
});

describe("the environment", () => {
  it("names the proxy in HTTPS_PROXY before ALL_PROXY, in either case", async () => {
    const all = { HTTPS_PROXY: "http://a:1", https_proxy: "http://b:1", ALL_PROXY: "socks5://c:1", all_proxy: "socks5h://d:1" };
    assert.equal(await inEnvironment(all), "http://a:1");
    assert.equal(await inEnvironment({ ...all, HTTPS_PROXY: "" }), "http://b:1");
    assert.equal(await inEnvironment({ ...all, HTTPS_PROXY: "", https_proxy: undefined }), "socks5://c:1");
    assert.equal(await inEnvironment({ all_proxy: all.all_proxy }), "socks5://d:1");
    assert.equal(await inEnvironment({ HTTP_PROXY: "http://a:1" }), undefined);
    assert.equal(await inEnvironment({ HTTPS_PROXY: "u:p@proxy.corp:3128" }), "http://u:p@proxy.corp:3128");
  });

  it("is refused with the variable, and without the password", async () => {
    await assert.rejects(inEnvironment({ https_proxy: "ftp://u:s3cret@h" }), (error: Error) => {
      assert.match(error.message, /^Cannot use https_proxy: "ftp:\/\/\*\*\*@h" is neither .*--agent-client.proxy/);
      return error instanceof ConfigError && !error.message.includes("s3cret");
    });
  });

  it("may have spaces around it, and none within", async () => {
    assert.equal(await inEnvironment({ HTTPS_PROXY: " http://a:1\r\n" }), "http://a:1");
    assert.equal(await inEnvironment({ HTTPS_PROXY: " \n", https_proxy: "http://b:1" }), "http://b:1");
    await assert.rejects(inEnvironment({ HTTPS_PROXY: "http://a:s3\tcret@h" }), ConfigError);
  });

  it("is overruled by the option", async () => {
    const environment = { HTTPS_PROXY: "http://a:1", NO_PROXY: "*" };
    assert.equal((await proxyFor("p.example:1", "http://b:2", environment))?.host, "b");
    assert.equal(await inEnvironment(environment), undefined);
    assert.equal(await inEnvironment({ HTTPS_PROXY: "http://a:1", no_proxy: "proxy.example" }), undefined);
  });

  it("never leads to this machine through a proxy", async () => {
    for (const address of ["localhost:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "LOCALHOST:1"]) {
      assert.equal(await inEnvironment({ HTTPS_PROXY: "http://a:1" }, address), undefined, address);
    }
  });
});

describe("NO_PROXY", () => {
  for (
    const [list, direct, proxied] of [
      ["", [], ["a.example:443", "192.0.2.1:1", "[2001:db8::1]:1"]],
      ["*", ["a.example:443", "192.0.2.1:1"], []],
      ["b.example,*", ["a.example:443"], []],
      ["corp.example", ["corp.example:443", "a.corp.example:1", "A.B.Corp.Example.:1"], ["mycorp.example:443", "corp.example.org:443"]],
      [".corp.example", ["corp.example:443", "a.corp.example:1"], ["mycorp.example:443"]],
      ["*.corp.example", ["corp.example:443", "a.corp.example:1"], ["mycorp.example:443"]],
      [" a.example , b.example\tc.example", ["a.example:1", "b.example:1", "c.example:1"], ["d.example:1"]],
      ["a.example:8443", ["a.example:8443", "b.a.example:8443"], ["a.example:443"]],
      ["10.0.0.0/8", ["10.255.0.1:1", "[::ffff:10.0.0.1]:1"], ["11.0.0.1:1", "ten.example:1"]],
      ["10.0.0.0/8:443", ["10.0.0.1:443"], ["10.0.0.1:1"]],
      ["192.0.2.1", ["192.0.2.1:1"], ["192.0.2.10:1"]],
      ["192.0.2.1:443", ["192.0.2.1:443"], ["192.0.2.1:1"]],
      ["2001:db8::1", ["[2001:db8::1]:1", "[2001:DB8:0::1]:1"], ["[2001:db8::2]:1"]],
      ["[2001:db8::1]:443", ["[2001:db8::1]:443"], ["[2001:db8::1]:1"]],
      ["2001:db8::/32", ["[2001:db8:ffff::1]:1"], ["[2001:db9::1]:1"]],
      ["/,10.0.0.0/99,a b..c,http://x.example,fine.example", ["fine.example:1"], ["10.0.0.1:1", "x.example:1"]],
    ] as const
  ) {
    it(`may be ${JSON.stringify(list)}`, () => {
      const bypasses = createBypass(list);
      for (const address of direct) assert.ok(bypasses(server(address)), address);
      for (const address of proxied) assert.ok(!bypasses(server(address)), address);
    });
  }

  it("applies to a name as well as to the address that it was resolved to", () => {
    const resolved = server("10.0.0.1:443", "a.example");
    assert.ok(createBypass("a.example")(resolved));
    assert.ok(createBypass("10.0.0.0/8")(resolved));
    assert.ok(!createBypass("b.example,11.0.0.0/8")(resolved));
  });
});

describe("credentials that an outbound proxy has rejected", () => {
  const proxy: OutboundProxy = { protocol: "http", host: "p", port: 1, username: "alice", password: "a" };
  const fail = (code: NetError["code"]) => () => Promise.reject(new NetError(code, code));

  it("are not sent to it again for 10 minutes, while others are", async () => {
    let now = 0;
    const rejected = new RejectedCredentials(() => now);
    const attempt = (to: OutboundProxy | undefined) => rejected.connect(to, () => Promise.resolve("connected"));
    await assert.rejects(rejected.connect(proxy, fail("outbound-proxy-credentials")), { code: "outbound-proxy-credentials" });
    now = 599_999;
    await assert.rejects(attempt({ ...proxy }), { code: "outbound-proxy-credentials" });
    assert.equal(await attempt({ ...proxy, password: "b" }), "connected");
    assert.equal(await attempt({ ...proxy, host: "q" }), "connected");
    assert.equal(await attempt(undefined), "connected");
    now = 600_000;
    assert.equal(await attempt(proxy), "connected");
  });

  it("are told from other failures", async () => {
    const rejected = new RejectedCredentials();
    await assert.rejects(rejected.connect(proxy, fail("outbound-proxy")), { code: "outbound-proxy" });
    assert.equal(await rejected.connect(proxy, () => Promise.resolve(1)), 1);
  });
});
