// The client's address in Forwarded, and its certificate in Client-Cert: their syntax, which proxies are trusted, and that clients cannot forge it.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MissingClientWarnings, TrustedProxies, trustedProxyOptions } from "../../shared/frontend/client_address.ts";
import { clientCertField } from "../../shared/http/client_cert.ts";
import { formatForwarded, parseForwarded, parseNode } from "../../shared/http/forwarded.ts";
import { HeadError } from "../../shared/http/head.ts";
import { addressLimitOptions } from "../../shared/limits/options.ts";
import { LogLimit } from "../../shared/log/limit.ts";
import { LogBook } from "../../testing/network.ts";

describe("the Forwarded field", () => {
  const good: [lines: string[], nodes: (string | undefined)[]][] = [
    [['for="_gazonk"'], ["_gazonk"]],
    [['For="[2001:db8:cafe::17]:4711"'], ["[2001:db8:cafe::17]:4711"]],
    [["for=192.0.2.60;proto=http;by=203.0.113.43"], ["192.0.2.60"]],
    [["for=192.0.2.43, for=198.51.100.17"], ["192.0.2.43", "198.51.100.17"]],
    [["for=192.0.2.43", "proto=https; for=198.51.100.17:80"], ["192.0.2.43", "198.51.100.17:80"]],
    [["by=1.2.3.4, for=unknown"], [undefined, "unknown"]],
    [[', for="a\\"b,;c" ,,'], ['a"b,;c']],
    [["", " \t"], []],
  ];
  for (const [lines, nodes] of good) {
    it(`${JSON.stringify(lines)} names ${nodes.length} proxies`, () => assert.deepEqual(parseForwarded(lines), nodes));
  }

  const bad = [['for="1.1.1.1'], ["for=1.1.1.1;for=2.2.2.2"], ["for"], ["for = 1.1.1.1"], ["for=a b"], ["x".repeat(4_097)], [
    Array(33).fill("for=1.1.1.1").join(),
  ]];
  for (const lines of bad) {
    it(`${JSON.stringify(lines).slice(0, 40)} is malformed`, () => assert.throws(() => parseForwarded(lines), HeadError));
  }

  it("is written so that it is read back", () => {
    for (const client of ["192.0.2.1:5000", "192.0.2.1", "[2001:db8::1]:5000", "[2001:db8::1]"]) {
      assert.deepEqual(parseForwarded([formatForwarded(client)]), [client]);
    }
    assert.equal(formatForwarded("[fe80::1%2]:5000"), 'for="[fe80::1]:5000"');
  });

  it("has addresses in several forms, and nodes without an address", () => {
    assert.deepEqual(parseNode("192.0.2.1:80"), { host: "192.0.2.1", port: 80 });
    assert.deepEqual(parseNode("[2001:db8::1]:_port"), { host: "2001:db8::1" });
    assert.deepEqual(parseNode("2001:db8::1"), { host: "2001:db8::1" });
    assert.deepEqual(parseNode("192.0.2.1:99999"), { host: "192.0.2.1" });
    for (const none of ["unknown", "_hidden", "", "localhost", "192.0.2", "999.1.1.1", "[::1", "[192.0.2.1]", "fe80::1%eth0"]) {
      assert.equal(parseNode(none), undefined, none);
    }
  });
});

describe("trusted proxies", () => {
  const trusted = new TrustedProxies(["10.0.0.0/8", "2001:db8:ffff::/48"]);
  const forwarded = (...lines: string[]) => lines.map((line) => ["Forwarded", line] as const);

  it("are those in the configured networks, and none by default", () => {
    for (const remote of ["10.1.2.3:1", "[::ffff:10.1.2.3]:1", "[2001:db8:ffff::1]:1"]) assert.ok(trusted.trusts(remote), remote);
    for (const remote of ["11.1.2.3:1", "[2001:db8::1]:1"]) assert.ok(!trusted.trusts(remote), remote);
    assert.ok(!new TrustedProxies([]).trusts("10.1.2.3:1"));
  });

  const cases: [what: string, lines: string[], client: string][] = [
    ["the client that it names", ['for="192.0.2.1:5000"'], "192.0.2.1:5000"],
    [
      "the nearest that is not trusted, whatever a client has written before it",
      ["for=1.1.1.1", "for=192.0.2.1, for=10.0.0.2"],
      "192.0.2.1",
    ],
    ["an address of IPv6", ['for="[2001:db8::1]:5000"'], "[2001:db8::1]:5000"],
    ["the farthest, where all are trusted", ["for=10.0.0.3, for=10.0.0.2"], "10.0.0.3"],
    ["its own, where it says nothing", [], "10.0.0.1:7"],
    ["its own, where it does not know", ["for=1.1.1.1, for=unknown"], "10.0.0.1:7"],
    ["that of the last one known, where that hides its client", ["for=_secret, for=10.0.0.2"], "10.0.0.2"],
  ];
  for (const [what, lines, client] of cases) {
    it(`tell ${what}`, () => assert.equal(trusted.clientOf("10.0.0.1:7", forwarded(...lines)), client));
  }

  it("stand for many clients under their own address, as do senders of PROXY headers", () => {
    const listed = new TrustedProxies(["10.0.0.0/8"], ["192.0.2.1"]);
    for (const proxy of ["10.1.2.3:1", "10.1.2.3", "192.0.2.1:7", "[::ffff:192.0.2.1]:7"]) assert.ok(listed.isIntermediary(proxy), proxy);
    for (const client of ["11.1.2.3:1", "192.0.2.2:7", "[2001:db8::1]"]) assert.ok(!listed.isIntermediary(client), client);
    assert.ok(!listed.trusts("192.0.2.1:7"), "a header of the PROXY protocol is no Forwarded field");
    assert.ok(!new TrustedProxies([]).isIntermediary("10.1.2.3:1"));
  });

  it("cause a warning if they name no client: once an hour each, ten a minute", () => {
    let now = 0;
    const log = new LogBook();
    const logLimit = new LogLimit({ log });
    const warnings = new MissingClientWarnings(logLimit, () => now);
    const proxies = () => log.entries.filter(({ level }) => level === "warn").map(({ fields }) => fields.proxy);
    for (let i = 0; i < 100; i++) for (const proxy of ["10.0.0.1:7", `10.0.0.1:${i + 8}`, "[2001:db8::1]:7"]) warnings.warn(proxy);
    assert.deepEqual(proxies(), ["10.0.0.1", "2001:db8::1"]);
    now = 3_600_000;
    warnings.warn("10.0.0.1:7");
    assert.deepEqual(proxies(), ["10.0.0.1", "2001:db8::1", "10.0.0.1"]);
    for (let i = 0; i < 1_000; i++) warnings.warn(`10.1.${i >> 8}.${i & 255}:7`);
    assert.equal(proxies().length, 10);
    logLimit.close();
  });

  it("report the client's certificate, one in Client-Cert, where they are trusted with that too", () => {
    const reporting = new TrustedProxies(["10.0.0.0/8"], [], true);
    const certificateOf = (...values: string[]) => reporting.certificateOf(values.map((value) => ["client-cert", value] as const));
    assert.deepEqual(certificateOf(clientCertField(new Uint8Array([1, 2, 3, 4]))[1]), new Uint8Array([1, 2, 3, 4]));
    assert.deepEqual(certificateOf(":AQID:"), new Uint8Array([1, 2, 3]));
    assert.equal(certificateOf(), undefined);
    assert.equal(trusted.certificateOf([["Client-Cert", ":AQID:"]]), undefined);
    for (const malformed of [["AQID"], ["::"], [":AQID:x"], [":A*ID:"], [":AQID:, :AQID:"], [":AQID:", ":AQID:"], [""]]) {
      assert.throws(() => certificateOf(...malformed), HeadError, malformed.join());
    }
  });

  it("never pass on a forged address of a client", () => {
    assert.throws(() => trusted.clientOf("10.0.0.1:7", forwarded('for="1.1.1.1, for=192.0.2.1')), HeadError);
  });

  it("are configured as addresses and networks only", () => {
    for (const { check } of Object.values(trustedProxyOptions)) {
      assert.equal(check(["10.0.0.1", "10.0.0.0/8", "::1", "[2001:db8::]/32"]), undefined);
      for (const bad of ["lb.example", "10.0.0.1:80", "*.example", "10.0.0.1-10.0.0.9", "", "all", "None"]) assert.ok(check([bad]), bad);
    }
    for (const word of ["all", "None"]) assert.equal(addressLimitOptions["limits.exempt-addresses"].check([word]), undefined);
  });
});
