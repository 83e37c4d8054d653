// Header sections from untrusted peers: which are accepted, which are refused and with which status, and that no other error occurs.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { describe, it } from "node:test";
import { formatAuthority, parseAuthority } from "../../shared/address/authority.ts";
import { encodeHead, endOfHead, parseRequestHead, parseResponseHead, values } from "../../shared/http/head.ts";
import { statusOf } from "../../shared/http/status.ts";
import { MalformedRequestError } from "../../shared/tunnel/errors.ts";
import { BAD_HOSTS, BAD_PORTS, malformedHeads } from "../../testing/malformed.ts";

/** The status with which a header section is refused; any error but a {@link MalformedRequestError} fails the test. */
function refused(parse: () => unknown): number | "taken" {
  try {
    parse();
    return "taken";
  } catch (error) {
    if (!(error instanceof MalformedRequestError)) throw error;
    assert.match(error.message, /^[A-Z].*[^.]$/);
    return statusOf(error);
  }
}

const LINE = "CONNECT example.com:443 HTTP/1.1\r\n";
const HOST = "Host: example.com:443\r\n";

/** Latin-1 characters, with those that are special to a parser more often. */
const character = fc.oneof(
  { weight: 2, arbitrary: fc.constantFrom("\r", "\n", "\r\n", ":", " ", "\t", "\0", "/", "[", "]", "%", "@", "#", "\x7f", "\x80", "\xff") },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code)) },
);

/** `head` with some characters replaced, inserted or removed. */
function mutationsOf(head: string): fc.Arbitrary<string> {
  const edit = fc.record({ at: fc.nat(head.length - 1), remove: fc.nat(3), insert: fc.array(character, { maxLength: 3 }) });
  return fc.array(edit, { minLength: 1, maxLength: 4 }).map((edits) =>
    edits.reduce((text, { at, remove, insert }) => text.slice(0, at) + insert.join("") + text.slice(at + remove), head)
  );
}

describe("request head", () => {
  it("has method, target, version and the fields as they were written", () => {
    const head = parseRequestHead("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nX-a:1\r\nx-A: \t2 3\t \r\nEmpty:\r\n\r\n");
    assert.deepEqual(head, {
      method: "CONNECT",
      target: "example.com:443",
      version: "1.1",
      fields: [["Host", "example.com:443"], ["X-a", "1"], ["x-A", "2 3"], ["Empty", ""]],
    });
    assert.deepEqual(values(head.fields, "x-a"), ["1", "2 3"]);
  });

  it("may have every form that RFC 9112 allows", () => {
    const heads = [
      `${LINE}\r\n`,
      "CONNECT example.com:443 HTTP/1.0\r\n\r\n",
      `${LINE}hOST:example.com:443\r\n\r\n`,
      `${LINE}${HOST}A:\t b\t \r\n\r\n`,
      `${LINE}A: caf\xe9 \x80\xff\r\n\r\n`,
      `${LINE}Host: ::1:443\r\n\r\n`,
      `${LINE}Host: fe80::1%eth0\r\n\r\n`,
      `${LINE}!#$%&'*+-.^_\`|~09AZaz: b\r\n\r\n`,
      `${LINE}A: "(),/:;<=>?@[\\]{}"\r\n\r\n`,
      "M-SEARCH * HTTP/1.1\r\n\r\n",
      "connect a:1 HTTP/1.1\r\n\r\n",
      "GET /%zz?^`{|} HTTP/1.1\r\n\r\n",
      "POST http://a/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
      "POST http://a/ HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n",
    ];
    for (const head of heads) assert.equal(refused(() => parseRequestHead(head)), "taken", JSON.stringify(head));
  });

  it("is refused with the right status if its syntax is invalid", () => {
    const heads = malformedHeads().filter(({ isSyntax }) => isSyntax);
    assert.ok(heads.length > 500, `There are only ${heads.length} heads`);
    for (const { head, status } of heads) assert.equal(refused(() => parseRequestHead(head)), status, JSON.stringify(head));
  });

  it("is refused with the reason for common mistakes of clients and load balancers", () => {
    const said: [line: string, message: RegExp][] = [
      ["GET http://a/?q=\xc3\xbc HTTP/1.1", /not ASCII: all other characters must be percent-encoded/],
      ["PROXY TCP4 192.0.2.1 10.0.0.1 5000 80", /PROXY protocol header, but --http-proxy\.proxy-protocol does not list/],
      ["PROXY UNKNOWN", /PROXY protocol header/],
      ["PROXY x y z", /The request line is malformed/],
    ];
    for (const [line, message] of said) {
      assert.throws(() => parseRequestHead(`${line}\r\n\r\n`), { name: "HeadError", status: 400, message });
    }
    assert.equal(parseRequestHead("PROXY http://a/ HTTP/1.1\r\n\r\n").method, "PROXY");
  });

  it("is refused with 400 for a CR or LF alone, wherever it stands", () => {
    const head = `${LINE}${HOST}A: b\r\n\r\n`;
    for (let at = 0; at < head.length; at++) {
      const between = head[at - 1] === "\r" && head[at] === "\n";
      if (between) {
        assert.equal(refused(() => parseRequestHead(head.slice(0, at - 1) + head.slice(at))), 400, `LF alone at ${at}`);
        assert.equal(refused(() => parseRequestHead(head.slice(0, at) + head.slice(at + 1))), 400, `CR alone at ${at}`);
      } else {
        for (const alone of ["\r", "\n"]) {
          const mangled = head.slice(0, at) + alone + head.slice(at);
          assert.equal(refused(() => parseRequestHead(mangled)), 400, JSON.stringify(mangled));
        }
      }
    }
  });

  it("is refused with 400 if it is truncated anywhere", () => {
    const head = `${LINE}${HOST}A: b\r\n\r\n`;
    for (let length = 0; length < head.length; length++) {
      assert.equal(refused(() => parseRequestHead(head.slice(0, length))), 400, JSON.stringify(head.slice(0, length)));
    }
  });

  it("has at most 100 header lines, and is refused with 431 for more", () => {
    const head = (count: number) => `${LINE}${"A: b\r\n".repeat(count)}\r\n`;
    assert.equal(parseRequestHead(head(100)).fields.length, 100);
    assert.equal(refused(() => parseRequestHead(head(101))), 431);
    assert.equal(refused(() => parseRequestHead(head(5_000))), 431);
  });

  it("never raises anything but its own error, whatever the bytes are", () => {
    const valid = `POST http://[::1]:80/a HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 12\r\nX-Name: value, "quoted"\r\n\r\n`;
    const anything = fc.array(character, { maxLength: 200 }).map((parts) => parts.join(""));
    const ended = anything.map((text) => `${text}\r\n\r\n`);
    fc.assert(
      fc.property(fc.oneof(mutationsOf(valid), mutationsOf(`${LINE}${HOST}\r\n`), anything, ended), (head) => {
        refused(() => parseRequestHead(head));
      }),
      { numRuns: 5_000 },
    );
  });

  it("is the same when it is written and parsed again", () => {
    const valid = `POST http://a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Name:\t value \r\n\r\n`;
    let taken = 0;
    fc.assert(
      fc.property(mutationsOf(valid), (text) => {
        if (refused(() => parseRequestHead(text)) !== "taken") return;
        taken++;
        const head = parseRequestHead(text);
        const again = encodeHead(`${head.method} ${head.target} HTTP/${head.version}`, head.fields);
        assert.deepEqual(parseRequestHead(Buffer.from(again).toString("latin1")), head);
        // nothing is hidden in a name or a value
        for (const [name, value] of head.fields) assert.doesNotMatch(`${name}${value}`, /[\r\n\0]/);
        assert.equal(text.split("\r\n").length - 3, head.fields.length);
      }),
      { numRuns: 5_000 },
    );
    assert.ok(taken > 100, `only ${taken} of the heads were taken`);
  });
});

describe("response head", () => {
  it("has status, reason and fields", () => {
    assert.deepEqual(parseResponseHead("HTTP/1.1 200 Connection established\r\nA: b\r\n\r\n"), {
      version: "1.1",
      status: 200,
      reason: "Connection established",
      fields: [["A", "b"]],
    });
  });

  it("may lack a reason, be HTTP/1.0 or interim, or have the additions of other agents", () => {
    const heads: [string, number][] = [
      ["HTTP/1.1 200\r\n\r\n", 200],
      ["HTTP/1.1 200 \r\n\r\n", 200],
      ["HTTP/1.0 200 OK\r\n\r\n", 200],
      ["HTTP/1.1 100 Continue\r\n\r\n", 100],
      ["HTTP/1.1 999 caf\xe9\tx\r\n\r\n", 999],
      ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200],
      ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 200],
    ];
    for (const [head, status] of heads) assert.equal(parseResponseHead(head).status, status, JSON.stringify(head));
  });

  it("is refused if its status line is malformed", () => {
    const lines = [
      "",
      "HTTP/1.1",
      "HTTP/1.1 ",
      "HTTP/1.1 20",
      "HTTP/1.1 2000",
      "HTTP/1.1 099 Low",
      "HTTP/1.1 000 None",
      "HTTP/1.1 2x0 OK",
      "HTTP/1.1 +20 OK",
      " HTTP/1.1 200 OK",
      "HTTP/1.1 200OK",
      "HTTP 200 OK",
      "HTTP/1 200 OK",
      "HTTP/1.10 200 OK",
      "ICY 200 OK",
      "SSH-2.0-OpenSSH",
      "GET / HTTP/1.1",
    ];
    for (const line of lines) assert.equal(refused(() => parseResponseHead(`${line}\r\n\r\n`)), 400, JSON.stringify(line));
    assert.equal(refused(() => parseResponseHead("HTTP/2.0 200 OK\r\n\r\n")), 505);
    assert.equal(refused(() => parseResponseHead(`HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(1_001)}\r\n`)), 431);
  });

  it("is parsed as leniently as clients do, and normalized", () => {
    const heads: [head: string, fields: [string, string][]][] = [
      ["HTTP/1.1 200 OK\nA: b\nC: d\n\n", [["A", "b"], ["C", "d"]]],
      ["HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\n", [["A", "b"], ["C", "d"]]],
      ["HTTP/1.1 200 OK\r\nX-Protection : 1\r\nB\t : 2\r\n\r\n", [["X-Protection", "1"], ["B", "2"]]],
      ["HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\n\r\n", [["A", "b c d"]]],
      ["HTTP/1.1 200 OK\r\nA: b\0c\rd\x7fe\r\n\r\n", [["A", "b c d e"]]],
      ["HTTP/1.1 200 OK\r\nA (b): c\r\nno field\r\n: d\r\nE: f\r\n\r\n", [["E", "f"]]],
      [`HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(1_000)}\r\n`, Array<[string, string]>(1_000).fill(["A", "b"])],
    ];
    for (const [head, fields] of heads) assert.deepEqual(parseResponseHead(head).fields, fields, JSON.stringify(head));
    const lines: [line: string, version: string, reason: string][] = [
      ["http/1.1 200 ok", "1.1", "ok"],
      ["HTTP/1.1  200\tOK", "1.1", "OK"],
      ["HTTP/1.2 200 OK", "1.1", "OK"],
      ["HTTP/1.1 200 O\0K", "1.1", "O K"],
      ["HTTP/1.0 200", "1.0", ""],
    ];
    for (const [line, version, reason] of lines) {
      assert.deepEqual(parseResponseHead(`${line}\r\n\r\n`), { version, status: 200, reason, fields: [] }, JSON.stringify(line));
    }
  });

  it("is parsed in linear time", () => {
    const long = 64 * 1024;
    for (const part of [" ", "\t", "\r", ":", " :", "\n ", "a ", "A: b\n "]) {
      const startedAt = performance.now();
      refused(() => parseResponseHead(`HTTP/1.1 200 OK\r\na${part.repeat(long / part.length)}b: c\r\n\r\n`));
      assert.ok(performance.now() - startedAt < 2_000, JSON.stringify(part)); // a square of it is a minute
    }
  });

  it("ends at its first empty line, wherever the bytes are split", () => {
    for (const head of ["A\r\nB\r\n\r\n", "A\nB\n\n", "A\r\nB\n\r\n", "A\r\nB\r\n\n"]) {
      const all = Buffer.from(`${head}body\n\n`);
      assert.equal(endOfHead(all), head.length, JSON.stringify(head));
      for (let part = 0; part < head.length; part++) {
        assert.equal(endOfHead(all.subarray(0, part)), -1, JSON.stringify(head.slice(0, part)));
        assert.equal(endOfHead(all, part), head.length, `${JSON.stringify(head)} after ${part}`);
      }
    }
  });

  it("never raises anything but its own error, whatever the bytes are", () => {
    const valid = "HTTP/1.1 200 Connection established\r\nContent-Length: 0\r\nProxy-Status: reverse-http\r\n\r\n";
    fc.assert(fc.property(mutationsOf(valid), (head) => void refused(() => parseResponseHead(head))), { numRuns: 3_000 });
  });
});

describe("authority", () => {
  it("is a host and a port, in every valid form", () => {
    const table: [string, string, number][] = [
      ["example.com:443", "example.com", 443],
      ["EXAMPLE.com:443", "EXAMPLE.com", 443],
      ["example.com.:443", "example.com.", 443],
      ["localhost:1", "localhost", 1],
      ["a:65535", "a", 65_535],
      ["a:00080", "a", 80],
      ["_dmarc.a-b.example:53", "_dmarc.a-b.example", 53],
      ["xn--bcher-kva.example:80", "xn--bcher-kva.example", 80],
      ["127.0.0.1:80", "127.0.0.1", 80],
      ["[::1]:80", "::1", 80],
      ["[2001:DB8::1]:80", "2001:DB8::1", 80],
      ["[::ffff:10.0.0.1]:80", "::ffff:10.0.0.1", 80],
      ["[fe80::1%eth0]:80", "fe80::1%eth0", 80],
      ["[fe80::1%25eth0]:80", "fe80::1%eth0", 80],
      ["::1:443", "::1", 443],
      [":::443", "::", 443],
      ["2001:db8::7:8:443", "2001:db8::7:8", 443],
      ["1:2:3:4:5:6:7:8:443", "1:2:3:4:5:6:7:8", 443],
      ["::ffff:10.0.0.1:443", "::ffff:10.0.0.1", 443],
      ["fe80::1%eth0:443", "fe80::1%eth0", 443],
      [`${"a".repeat(63)}.example:80`, `${"a".repeat(63)}.example`, 80],
    ];
    for (const [text, host, port] of table) assert.deepEqual(parseAuthority(text), { host, port }, text);
  });

  it("is refused with 400 if host or port is missing or malformed", () => {
    for (const host of BAD_HOSTS) assert.equal(refused(() => parseAuthority(`${host}:80`)), 400, JSON.stringify(host));
    for (const port of BAD_PORTS) {
      for (const host of ["a", "[::1]"]) assert.equal(refused(() => parseAuthority(`${host}:${port}`)), 400, `${host}:${port}`);
    }
    for (const text of ["", "a", "[::1]", "http://a:80", "a:80/", "80"]) assert.equal(refused(() => parseAuthority(text)), 400, text);
  });

  it("has the default port only if there is one and none is given", () => {
    assert.deepEqual(parseAuthority("a", 80), { host: "a", port: 80 });
    assert.deepEqual(parseAuthority("[::1]", 80), { host: "::1", port: 80 });
    assert.deepEqual(parseAuthority("a:81", 80), { host: "a", port: 81 });
    assert.equal(refused(() => parseAuthority("a:0", 80)), 400);
    for (const text of ["::1", "::1:80", "1:2:3:4:5:6:7:8"]) assert.equal(refused(() => parseAuthority(text, 80)), 400, text);
  });

  it("is written with brackets around IPv6, and parsed back", () => {
    assert.equal(formatAuthority({ host: "::1", port: 80 }), "[::1]:80");
    for (const zone of ["eth0", "1", "25", "251", "2525", "25eth0"]) {
      const authority = { host: `fe80::1%${zone}`, port: 80 };
      assert.deepEqual(parseAuthority(formatAuthority(authority)), authority);
    }
    const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$/);
    const name = fc.array(label, { minLength: 1, maxLength: 4 }).map((labels) => labels.join("."));
    fc.assert(fc.property(fc.oneof(name, fc.ipV4(), fc.ipV6()), fc.integer({ min: 1, max: 65_535 }), (host, port) => {
      assert.deepEqual(parseAuthority(formatAuthority({ host, port })), { host, port });
    }));
  });

  it("never raises anything but its own error, whatever the characters are", () => {
    const texts = fc.oneof(fc.array(character, { maxLength: 30 }).map((parts) => parts.join("")), mutationsOf("[fe80::1%25eth0]:8080"));
    fc.assert(
      fc.property(texts, (text) => {
        if (refused(() => parseAuthority(text)) !== "taken") return;
        const { host, port } = parseAuthority(text);
        assert.match(host, /^[0-9A-Za-z_.:%~-]+$/);
        assert.ok(port >= 1 && port <= 65_535);
      }),
      { numRuns: 3_000 },
    );
  });
});

describe("head written out", () => {
  it("has one byte per character", () => {
    const head = encodeHead("HTTP/1.1 200 OK", [["A", "caf\xe9"], ["B", ""]]);
    assert.equal(Buffer.from(head).toString("latin1"), "HTTP/1.1 200 OK\r\nA: caf\xe9\r\nB: \r\n\r\n");
  });
});
