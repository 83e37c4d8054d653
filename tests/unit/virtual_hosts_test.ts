// Virtual hosts: which forward takes a request, and which records cannot share a listener.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { withDefaults } from "../../shared/config/defaults.ts";
import { checkRoute } from "../../shared/frontend/forwards/check_route.ts";
import { type Forward, forwardOptions } from "../../shared/frontend/forwards/forwards.ts";
import { normalizePath, VirtualHosts } from "../../shared/frontend/forwards/virtual_hosts.ts";
import { refusal } from "../../testing/refusal.ts";

type Record = { host?: string[]; path?: string[]; [key: string]: unknown };

/** Forwards whose agents have the names of the keys. */
function forwardsOf(records: { [agent: string]: Record }): Forward[] {
  const given = Object.entries(records).map(([agent, record]) => ({ listen: ":80", network: "http", agent, to: "web:80", ...record }));
  return withDefaults(forwardOptions, { forward: given as never }).forward;
}

describe("virtual hosts", () => {
  const hosts = new VirtualHosts(
    ":80",
    "http",
    forwardsOf({
      app: { host: ["App.example."] },
      api: { host: ["app.example"], path: ["/api", "/v2/"] },
      deep: { host: ["app.example"], path: ["/api/deep"] },
      zone: { host: ["*.example"] },
      longer: { host: ["*.a.example"] },
      files: { host: ["*.a.example"], path: ["/files"] },
      shared: { path: ["/shared"] },
      rest: {},
    }),
  );
  const rows: [host: string | undefined, path: string, agent: string][] = [
    ["app.example", "/", "app"],
    ["APP.EXAMPLE.", "/apis", "app"],
    ["app.example", "/api", "api"],
    ["app.example", "/api/", "api"],
    ["app.example", "/v2/x", "api"],
    ["app.example", "/v2", "api"],
    ["app.example", "/api;v=1/x", "api"],
    ["app.example", "/api/deep/er", "deep"],
    ["app.example", "/api/deeper", "api"],
    ["app.example", "/shared", "app"],
    ["b.example", "/", "zone"],
    ["b.c.example", "/shared", "zone"],
    ["b.a.example", "/", "longer"],
    ["b.a.example", "/files/x", "files"],
    ["a.example", "/files/x", "zone"],
    ["example", "/", "rest"],
    ["192.0.2.1", "/shared/x", "shared"],
    [undefined, "/", "rest"],
  ];
  for (const [host, path, agent] of rows) {
    it(`have ${agent} take ${host}${path}`, () => assert.equal(hosts.match(host, path)?.forward.agent, agent));
  }

  it("take no request that no record is for", () => {
    const few = new VirtualHosts(":80", "http", forwardsOf({ app: { host: ["app.example"], path: ["/api"] } }));
    assert.equal(few.match("app.example", "/"), undefined);
    assert.equal(few.match("example", "/api"), undefined);
    assert.equal(few.match(undefined, "/api"), undefined);
  });

  it("compare paths without regard to spellings that servers take for the same", () => {
    for (
      const [path, normalized] of [["/a%70i", "/api"], ["//a///b", "/a/b"], ["/%c3%a4", "/%C3%A4"], ["/a%2fb", "/a%2Fb"], ["/...", "/..."]]
    ) {
      assert.equal(normalizePath(path!), normalized);
    }
    const elsewhere = ["/..", "/a/../b", "/a/./b", "/a/%2e%2E/b", "/a%2f..%2fb", "/a\\..\\b", "/a%5C..", "/a/..;x/b", "/."];
    for (const path of elsewhere) assert.equal(normalizePath(path), undefined, path);
  });
});

describe("the option forward for http", () => {
  const parse = (...records: Record[]) => refusal(() => forwardsOf(Object.fromEntries(records.map((record, i) => [`a${i}`, record]))));

  it("refuses what cannot work", () => {
    const https = { network: "https", certFile: "c", keyFile: "k" };
    const rows: [records: Record[], why: RegExp][] = [
      [[{}, {}], /: two records that listen on :80 have no host and no path$/],
      [[{ host: ["a.example"] }, { host: ["A.example."] }], /: two records that listen on :80 have host=a\.example and no path$/],
      [[{ path: ["/a"] }, { path: ["/b", "/a/"] }], /: two records that listen on :80 have no host and path=\/a$/],
      [[{ network: "tcp" }, {}], /: two records that listen on :80 have network=tcp and network=http$/],
      [[{ network: "tcp", host: ["a.example"] }], /: the record that listens on :80 has host and network=tcp$/],
      [[{ network: "udp", path: ["/a"] }], /has path and network=udp$/],
      [[{ network: "tcp", auth: "token" }], /has auth and network=tcp$/],
      [[{ sni: ["a.example"] }], /has sni and network=http$/],
      [[{ proxyProtocol: "v1" }], /has proxy-protocol and network=http$/],
      [[{ certFile: "c" }], /has cert-file and network=http$/],
      [[{ network: "https", certFile: "c" }], /has cert-file and no key-file$/],
      [[{ network: "https", keyFile: "k" }], /has key-file and no cert-file$/],
      [[{ network: "https", clientCaFile: "a" }], /has client-ca-file and no cert-file$/],
      [
        [{ ...https, path: ["/a"] }, { ...https, certFile: "other" }],
        /two records without host that listen on :80 have cert-file=c and cert-file=other$/,
      ],
      [
        [{ ...https, host: ["a.example", "b.example"] }, { ...https, host: ["B.example"], path: ["/a"], clientCaFile: "ca" }],
        /two records with host=b\.example that listen on :80 have client-ca-file= and client-ca-file=ca$/,
      ],
      [[{ auth: "token", tokenFile: "t" }], /has token-file and auth=token/],
      [[{ host: ["a b"] }], /record 1: host: "a b" is neither a name nor \*\.zone$/],
      [[{ path: ["api"] }], /record 1: path: "api" is not a path that begins with \//],
      [[{ path: ["/a/../b"] }], /record 1: path: /],
      [[{ path: ["/a?b"] }], /record 1: path: /],
    ];
    for (const [records, why] of rows) assert.match(parse(...records), why);
  });

  it("has a dry run that says which record takes a URL", () => {
    const forwards = forwardsOf({
      api: { host: ["app.example"], path: ["/api"], auth: "token" },
      zone: { host: ["*.example"], allow: ["192.0.2.0/24"] },
    });
    const rows: [url: string, text: string, isServed: boolean][] = [
      ["http://App.example/api/x?y", ":80: host=app.example,path=/api: to web:80 as agent api; allowed: everyone with a token", true],
      ["http://app.example", ":80: host=*.example: to web:80 as agent zone; allowed: 192.0.2.0/24", true],
      ["http://example/x", ":80: no forward for example/x; the client gets 404", false],
      ["http://app.example/../x", ":80: the path has dot segments; the client gets 400", false],
      ["https://app.example:80", ":80: it has only http", false],
      ["tcp://app.example:80", ":80: it has only http", false],
    ];
    for (const [url, text, isServed] of rows) assert.deepEqual(checkRoute(forwards, url), { text: `${text}\n`, isServed });
  });
});
