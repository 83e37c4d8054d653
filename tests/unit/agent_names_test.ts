// Destinations that name their agent, and the proxy configuration that sends browsers' requests for them to the proxy.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { runInNewContext } from "node:vm";
import { createAgentList } from "../../shared/auth/agent_list.ts";
import { agentNameOptions, splitAgentName } from "../../shared/frontend/agent_names.ts";
import { autoConfigOf, encodeAutoConfig, type ProxyAutoConfig } from "../../shared/frontend/http/proxy_auto_config.ts";
import { HeadError, parseRequestHead } from "../../shared/http/head.ts";
import { ProxyError } from "../../shared/http/status.ts";
import { MalformedRequestError } from "../../shared/tunnel/errors.ts";

describe("a destination with the agent suffix", () => {
  const rows: [host: string, agentId: string, inner: string][] = [
    ["db.site7.rhttp", "site7", "db"],
    ["a.b.c.site7.rhttp", "site7", "a.b.c"],
    ["10.0.0.5.site7.rhttp", "site7", "10.0.0.5"],
    ["site7.rhttp", "site7", "localhost"],
    ["Db.SITE7.RHTTP.", "site7", "Db"],
    ["db.a_b-1.rhttp", "a_b-1", "db"],
  ];
  for (const [host, agentId, inner] of rows) {
    it(`${host} is ${inner} at ${agentId}`, () => {
      for (const suffix of [".rhttp", ".RHttp"]) {
        assert.deepEqual(splitAgentName({ host, port: 22 }, suffix), { agentId, destination: { host: inner, port: 22 } });
      }
    });
  }

  it("is no other destination", () => {
    for (const host of ["db.site7.rhttp.example", "dbrhttp", "rhttp", "127.0.0.1", "fe80::1%a.rhttp"]) {
      assert.equal(splitAgentName({ host, port: 22 }, ".rhttp"), undefined);
    }
    assert.equal(splitAgentName({ host: "db.site7.rhttp", port: 22 }, undefined), undefined);
  });

  it("has a name on both sides of the agent's dot", () => {
    for (const host of [".rhttp", "..rhttp", ".site7.rhttp", "db..rhttp", "db-.site7.rhttp", "a b.site7.rhttp", "db.é.rhttp"]) {
      assert.throws(() => splitAgentName({ host, port: 22 }, ".rhttp"), MalformedRequestError, host);
    }
  });

  it("has a suffix that is a name behind a dot, and that browsers send to a proxy", () => {
    const { check } = agentNameOptions["http-proxy.agent-suffix"];
    for (const text of [".rhttp", ".agents.example.com", ".A_1"]) assert.equal(check(text), undefined, text);
    for (const text of ["rhttp", ".", "..a", ".a.", ".a b", ".7", ".a.7", '.a"', `.${"a".repeat(64)}`, ".a".repeat(51)]) {
      assert.match(String(check(text)), /is not a dot and a name/, text);
    }
    assert.match(String(check(".LOCALHOST")), /browsers send no name/);
  });
});

describe("a list of agents", () => {
  it("matches ids by one * in each pattern, in the same letter case", () => {
    const list = createAgentList(["site-*", "*.zone", "a*z", "4711"]);
    for (const id of ["site-", "site-7", "x.zone", ".zone", "az", "abz", "4711"]) assert.equal(list.allows(id), true, id);
    for (const id of ["site", "Site-7", "zone", "a", "za", "47110", ""]) assert.equal(list.allows(id), false, id);
    assert.equal(createAgentList(["a*a"]).allows("a"), false);
    assert.equal(createAgentList(["*"]).allows("any"), true);
    assert.equal(createAgentList([]).allows("any"), false);
  });

  it("refuses patterns that match no id", () => {
    for (const pattern of ["", "a b", "a*b*", "**", "a\n"]) assert.throws(() => createAgentList([pattern]), RangeError, pattern);
  });
});

describe("/proxy.pac", () => {
  const head = (fields: string, method = "GET") => parseRequestHead(`${method} /proxy.pac HTTP/1.1\r\n${fields}\r\n`);
  const read = (fields: string, config: ProxyAutoConfig, method?: string): [head: string, body: string] => {
    const text = Buffer.from(encodeAutoConfig(head(fields, method), config)).toString();
    const end = text.indexOf("\r\n\r\n") + 4;
    return [text.slice(0, end), text.slice(end)];
  };
  /** What a browser does for the hosts. */
  const decide = (script: string, ...hosts: string[]): string[] => {
    const context = { hosts, decisions: [] as string[] };
    // a URL that fails when it is used: the host alone decides
    runInNewContext(`${script}\nfor (const host of hosts) decisions.push(FindProxyForURL(null, host));`, context);
    return [...context.decisions];
  };

  it("sends names with the suffix to the proxy, and others directly", () => {
    const [text, script] = read("Host: Proxy.example:3128\r\n", { tls: false, suffix: ".rHttp" });
    assert.match(text, /^HTTP\/1\.1 200 OK\r\nContent-Type: application\/x-ns-proxy-autoconfig\r\n/);
    assert.match(text, new RegExp(`^Content-Length: ${script.length}\r$`, "m"));
    const through = "PROXY Proxy.example:3128";
    assert.deepEqual(
      decide(script, "db.site7.rhttp", "SITE7.RHTTP", "site7.rhttp.", "rhttp", "xrhttp", "site7.rhttp.example", "intranet", "::1", "[::1]"),
      [through, through, through, ...Array.from({ length: 6 }, () => "DIRECT")],
    );
  });

  it("sends everything to the proxy without a suffix, never directly", () => {
    const [, script] = read("Host: [::1]\r\n", { tls: true });
    assert.deepEqual(decide(script, "intranet", "::1", "EXAMPLE.COM"), Array.from({ length: 3 }, () => "HTTPS [::1]:443"));
  });

  it("offers the listener for SOCKS after the one for HTTP, unless a browser would leave TLS for it", () => {
    const options = (enable: boolean, listenAddress?: string) => ({ httpProxy: { pac: true, tls: { enable } }, socks: { listenAddress } });
    const rows: [config: ProxyAutoConfig | undefined, decision: string][] = [
      [autoConfigOf(options(false, ":1080")), "PROXY [::1]:3128; SOCKS5 [::1]:1080"],
      [autoConfigOf(options(false)), "PROXY [::1]:3128"],
      [autoConfigOf(options(false, "127.0.0.1:0")), "PROXY [::1]:3128"],
      [autoConfigOf(options(true, ":1080")), "HTTPS [::1]:3128"],
    ];
    for (const [config, decision] of rows) assert.deepEqual(decide(read("Host: [::1]:3128\r\n", config!)[1], "a"), [decision]);
  });

  it("has no code of a hostile Host", () => {
    const hostile = ['a";alert(1);"', "a\\u0022", "a;DIRECT", "a'b:1", "a b", "x/*", "</script>", "a:99999", "a:", "é", "a\u2028b", ""];
    for (const host of hostile) {
      assert.throws(
        () => read(`Host: ${host}\r\n`, { tls: false, suffix: ".rhttp" }),
        (error) => error instanceof HeadError || error instanceof MalformedRequestError,
        host,
      );
    }
    for (const fields of ["", "Host: a\r\nHost: b\r\n"]) assert.throws(() => read(fields, { tls: false }), HeadError);
  });

  it("has no body for HEAD, and is for no other method", () => {
    const [text, body] = read("Host: a\r\n", { tls: false }, "HEAD");
    assert.deepEqual([/^Content-Length: [1-9]/m.test(text), body], [true, ""]);
    assert.throws(() => read("Host: a\r\n", { tls: false }, "POST"), (error) => error instanceof ProxyError && error.status === 405);
  });
});
