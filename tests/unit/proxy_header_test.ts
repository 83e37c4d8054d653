// The PROXY protocol header that forwards write.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { encodeProxyHeader } from "../../shared/frontend/forwards/proxy_header.ts";

const SIGNATURE = "0d0a0d0a000d0a515549540a";

describe("a PROXY header", () => {
  const rows: [source: string, destination: string, v1: string, v2: string][] = [
    ["192.0.2.7:5000", "192.0.2.1:443", "TCP4 192.0.2.7 192.0.2.1 5000 443", "2111000cc0000207c0000201138801bb"],
    ["[::ffff:192.0.2.7]:5000", "192.0.2.1:443", "TCP4 192.0.2.7 192.0.2.1 5000 443", "2111000cc0000207c0000201138801bb"],
    [
      "[2001:db8::7]:65535",
      "[2001:db8::1]:1",
      "TCP6 2001:db8::7 2001:db8::1 65535 1",
      "2121002420010db800000000000000000000000720010db8000000000000000000000001ffff0001",
    ],
    [
      "[fe80::7%eth0]:5000",
      "[fe80::1%eth0]:443",
      "TCP6 fe80::7 fe80::1 5000 443",
      "21210024fe800000000000000000000000000007fe800000000000000000000000000001138801bb",
    ],
    [
      "192.0.2.7:5000",
      "[2001:db8::1]:443",
      "TCP6 ::ffff:c000:207 2001:db8::1 5000 443",
      "2121002400000000000000000000ffffc000020720010db8000000000000000000000001138801bb",
    ],
  ];
  for (const [source, destination, v1, v2] of rows) {
    it(`from ${source} to ${destination} is what the specification has, in both versions`, () => {
      assert.equal(Buffer.from(encodeProxyHeader("v1", source, destination)).toString(), `PROXY ${v1}\r\n`);
      assert.equal(Buffer.from(encodeProxyHeader("v2", source, destination)).toString("hex"), SIGNATURE + v2);
    });
  }
});
