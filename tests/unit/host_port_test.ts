// host:port in every form, and the errors about other texts.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ProxyEndpoints } from "../../agent/proxy_endpoints.ts";
import { checkRemote, formatHostPort, splitHostPort } from "../../shared/address/host_port.ts";

describe("host:port", () => {
  const good: [text: string, host: string, port: number][] = [
    ["localhost:80", "localhost", 80],
    [":0", "", 0],
    [":65535", "", 65535],
    ["127.0.0.1:80", "127.0.0.1", 80],
    ["[::1]:80", "::1", 80],
    ["[fe80::1%eth0]:4242", "fe80::1%eth0", 4242],
    ["[::ffff:10.0.0.1]:1", "::ffff:10.0.0.1", 1],
    ["a-b_c.example.:443", "a-b_c.example.", 443],
    ["xn--bcher-kva.example:00080", "xn--bcher-kva.example", 80],
  ];
  for (const [text, host, port] of good) {
    it(`is read of ${text}`, async () => {
      assert.deepEqual(splitHostPort(text), { host, port });
      assert.deepEqual(splitHostPort(formatHostPort({ host, port })), { host, port });
      if (host === "" || port === 0) return;
      const target = await new ProxyEndpoints([text]).acquire();
      assert.deepEqual([target.host, target.port, target.serverName], [host, port, host.replace(/%.*/, "")]);
    });
  }

  it("may lack a port if there is a default", () => {
    assert.deepEqual(["a", "[::1]", "a:1"].map((text) => splitHostPort(text, 7).port), [7, 7, 1]);
    assert.throws(() => splitHostPort("", 7), RangeError);
  });

  const bad: [text: string, said: RegExp][] = [
    ["", /is not host:port/],
    ["4242", /; write :4242$/],
    ["host", /; its port is missing$/],
    ["::1:4242", /; write an IPv6 address in brackets/],
    ["fe80::1%eth0:4242", /; write an IPv6 address in brackets/],
    ["[zz]:4242", /no valid IPv6 address in its brackets/],
    ["[]:4242", /in its brackets/],
    ["[127.0.0.1]:4242", /in its brackets/],
    ["[fe80::1%]:4242", /in its brackets/],
    ["[fe80::1%a b]:4242", /in its brackets/],
    ["[::1:4242", /is not host:port/],
    ["::1]:4242", /is not host:port/],
    ["[::1]4242", /is not host:port/],
    ["a/b:4242", /; an address has no path$/],
    ["a:4242/b", /; an address has no path$/],
    ["user@host:1", /; write host:1 without a user$/],
    ["user:password@host:1", /; write host:1 without a user$/],
    ["https://u@host:1/x", /; write host:1 alone$/],
    ["https://u:password@host:1/x", /; write host:1 alone$/],
    ["quic://[::1]:1", /; write \[::1\]:1 alone$/],
    [" host:1", /; it begins or ends with a space/],
    ["host:1 ", /; it begins or ends with a space/],
    ["ho st:1", /has an invalid host/],
    ["host: 1", /is not host:port/],
    ["host:http", /is not host:port/],
    ["host:-1", /is not host:port/],
    ["host:1.5", /is not host:port/],
    ["host:", /is not host:port/],
    ["host:65536", /a port above 65535$/],
    ["host:123456", /is not host:port/],
    ["b\u00fccher.example:80", /; write xn--bcher-kva\.example:80$/],
    ["-host:1", /has an invalid host/],
    ["a..b:1", /has an invalid host/],
    ["10.0.0:1", /has an invalid host/],
    ["10.0.0.256:1", /has an invalid host/],
    [`${"a".repeat(64)}:1`, /has an invalid host/],
    ["host\0:1", /has an invalid host/],
    ["0x7f000001:1", /; an IPv4 address has four decimal numbers$/],
    ["127.1:1", /; an IPv4 address has four decimal numbers$/],
    ["0177.0.0.1:1", /; an IPv4 address has four decimal numbers$/],
    ["host?x:1", /has an invalid host/],
  ];
  for (const [text, said] of bad) {
    it(`is not ${JSON.stringify(text.slice(0, 40))}`, () => {
      assert.throws(() => splitHostPort(text), (error) => {
        assert.ok(error instanceof RangeError);
        assert.ok(error.message.startsWith(JSON.stringify(text.replace(":password@", ":***@"))), error.message);
        assert.ok(!error.message.includes("password"), error.message);
        assert.match(error.message, said);
        return true;
      });
      assert.notEqual(checkRemote(text), undefined);
    });
  }

  it("to connect to has a host and a port", () => {
    for (const text of [":4242", "host:0", "host:00", "[::1]:0"]) assert.match(checkRemote(text)!, /has no host or no port/);
    for (const text of ["host:1", "[::1]:65535"]) assert.equal(checkRemote(text), undefined);
  });
});
