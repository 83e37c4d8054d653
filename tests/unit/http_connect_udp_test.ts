// Requests for UDP flows (RFC 9298): which destination they name, and which are refused.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { formatAuthority } from "../../shared/address/authority.ts";
import {
  encodeUdpRequest,
  isUdpEstablished,
  parseUdpRequest,
  takesDatagrams,
  UDP_ESTABLISHED_HEAD,
} from "../../shared/http/connect_udp.ts";
import { parseRequestHead, parseResponseHead } from "../../shared/http/head.ts";
import { statusOf } from "../../shared/http/status.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { udpHead } from "../../testing/masque.ts";

const text = (bytes: Uint8Array) => new TextDecoder("latin1").decode(bytes);

/** The destination; the status of a refusal; `undefined` for another request. */
function read(head: string): string | number | undefined {
  try {
    const destination = parseUdpRequest(parseRequestHead(head));
    return destination && formatAuthority(destination);
  } catch (error) {
    if (!(error instanceof TunnelError)) throw error;
    return statusOf(error);
  }
}

const HEAD = udpHead("192.0.2.6:443", "");
const withTarget = (target: string) => HEAD.replace(/ \S+ /, ` ${target} `);

describe("a request for a UDP flow", () => {
  it("returns the destination that it was encoded with", () => {
    for (const destination of [{ host: "db.example", port: 1 }, { host: "192.0.2.6", port: 443 }, { host: "fe80::1%eth0", port: 65_535 }]) {
      const head = text(encodeUdpRequest(destination, [["Host", "proxy"]]));
      assert.deepEqual(parseUdpRequest(parseRequestHead(head)), destination);
    }
    assert.match(text(encodeUdpRequest({ host: "::1", port: 53 }, [])), /^GET \/\.well-known\/masque\/udp\/%3A%3A1\/53\/ HTTP\/1\.1\r\n/);
  });

  it("may have an absolute target of the scheme https, and tokens in any case and order", () => {
    assert.equal(read(withTarget("https://proxy.example:4433/.well-known/masque/udp/192.0.2.6/443/")), "192.0.2.6:443");
    assert.equal(read(HEAD.replace("Connection: Upgrade", "Connection: keep-alive , upgrade")), "192.0.2.6:443");
    assert.equal(read(HEAD.replace("Upgrade: connect-udp", "Upgrade: h2c, Connect-UDP")), "192.0.2.6:443");
    assert.equal(read(HEAD.replace(/Capsule-Protocol: .*\r\n/, "")), "192.0.2.6:443");
  });

  it("is another one with another path, or with http, which is a request to an origin", () => {
    for (const target of ["/", "/.well-known/masque/", "http://a/.well-known/masque/udp/192.0.2.6/443/", "a:443"]) {
      assert.equal(read(withTarget(target)), undefined, target);
    }
  });

  it("is refused unless it is a complete upgrade", () => {
    for (
      const [from, to] of [["GET", "POST"], ["HTTP/1.1", "HTTP/1.0"], [/Connection.*\r\n/, ""], ["connect-udp", "connect-ip"]] as const
    ) {
      assert.equal(read(HEAD.replace(from, to)), 426, String(from));
    }
  });

  it("is refused with content, and for what is no destination", () => {
    assert.equal(read(HEAD.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n")), 400);
    assert.equal(read(HEAD.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n")), 400);
    for (
      const rest of [
        "",
        "a",
        "a/",
        "a/0/",
        "a/65536/",
        "a/53",
        "a/53/x",
        "a/53/?q",
        "%/53/",
        "%ff/53/",
        "a%2Fb/53/",
        "a%0D/53/",
        "[::1]/53/",
        "*/53/",
      ]
    ) {
      assert.equal(read(withTarget(`/.well-known/masque/udp/${rest}`)), 400, rest);
    }
  });

  it("names a destination or is refused, whatever its path", () => {
    fc.assert(fc.property(fc.string(), (rest) => {
      read(withTarget(`/.well-known/masque/udp/${encodeURI(rest.toWellFormed()).replaceAll(" ", "")}/53/`));
    }));
  });

  it("says whether its peer takes QUIC DATAGRAM frames", () => {
    const takes = (more: string) => takesDatagrams(parseRequestHead(HEAD.replace("\r\n\r\n", `\r\n${more}\r\n`)));
    assert.deepEqual(["", "Datagrams: ?1\r\n", "datagrams: ?0\r\n", "Datagrams: ?1\r\nDatagrams: ?1\r\n"].map(takes), [
      false,
      true,
      false,
      false,
    ]);
    const destination = { host: "192.0.2.6", port: 443 };
    assert.ok(takesDatagrams(parseRequestHead(text(encodeUdpRequest(destination, [], true)))));
    assert.ok(!text(encodeUdpRequest(destination, [])).includes("Datagrams"));
  });

  it("is successful with 101 and the same token only", () => {
    assert.ok(isUdpEstablished(parseResponseHead(text(UDP_ESTABLISHED_HEAD))));
    for (const head of ["HTTP/1.1 200 OK\r\nUpgrade: connect-udp\r\n\r\n", "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n"]) {
      assert.ok(!isUdpEstablished(parseResponseHead(head)), head);
    }
  });
});
