// Proxy-Status of several hops: members are kept, each after the one closer to the origin, and malformed fields are dropped.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { formatProxyStatus, parseProxyStatus } from "../../shared/http/proxy_status.ts";

const parse = (...lines: string[]) => parseProxyStatus(lines.map((line) => ["Proxy-Status", line] as const));
/** The field for the next hop. */
const passOn = (...lines: string[]) => formatProxyStatus(parse(...lines).members, "reverse-http-lb");

describe("Proxy-Status", () => {
  const good: [what: string, lines: string[], passedOn: string, error?: string, details?: string][] = [
    [
      "of one hop",
      ['reverse-http-agent; error=dns_error; details="say \\"a\\""'],
      'reverse-http-agent;error=dns_error;details="say \\"a\\""',
      "dns_error",
      'say "a"',
    ],
    [
      "of several hops, in one field and another",
      ["a;error=connection_refused, b", '"c d";next-hop=e'],
      'a;error=connection_refused, b, "c d";next-hop=e',
      "connection_refused",
    ],
    ["whose cause is the second hop's", ["a, b;error=dns_timeout;details=x"], "a, b;error=dns_timeout;details=x", "dns_timeout"],
    ["with two causes, of which the closest to the origin counts", ["a;error=dns_error, b;error=dns_timeout"], "", "dns_error"],
    ["with a cause that is not known", ["a;error=flux_failure"], "a;error=flux_failure"],
    ["with a cause that has no value", ["a;error"], "a;error"],
    ["with a cause that is text", ['a;error="dns_error"'], 'a;error="dns_error"'],
    ["with a cause in a text", ['a;details="; error=dns_error"'], 'a;details="; error=dns_error"'],
  ];
  for (const [what, lines, passedOn, error, details] of good) {
    it(`${what} is forwarded and parsed`, () => {
      const found = parse(...lines);
      assert.equal(found.error, error);
      assert.equal(found.details, details);
      assert.equal(passOn(...lines), `${passedOn || lines.join(", ")}, reverse-http-lb`);
    });
  }

  const bad = [
    "",
    ",",
    "a,",
    "a b",
    "a;error=",
    'a;details="open',
    'a;details="\\n"',
    'a;details="caf\xe9"',
    'a;details="\t"',
    "a;Error=dns_error",
    "(a b);error=dns_error",
    "1;error=dns_error",
    "?1",
    "@9999999999999999",
    "a, ",
    `a;details="${"x".repeat(4_100)}"`,
    Array(33).fill("a").join(","),
  ];
  for (const line of bad) {
    it(`${JSON.stringify(line.slice(0, 30))} is dropped`, () => {
      assert.deepEqual(parse(line), { members: [] });
      assert.equal(passOn(line), "reverse-http-lb");
      assert.deepEqual(parse("a;error=dns_error", line === "" ? "," : line), { members: [] }, "a part of it was taken");
    });
  }

  it("has at most 256 characters of a peer's details", () => {
    const { details } = parse(`a;error=dns_error;details="${"x".repeat(4_000)}"`);
    assert.equal(details, `${"x".repeat(253)}...`);
    assert.equal(passOn(`a;details="${"x".repeat(4_000)}"`), `a;details="${details}", reverse-http-lb`);
  });

  it("is a list that the next hop can parse, whatever the peer and the text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), fc.string({ unit: "binary" }), (line, details) => {
        const { members } = parse(line);
        const field = formatProxyStatus(members, "reverse-http-proxy", { error: "dns_error", details });
        assert.match(field, /^[\x20-\x7e]+$/);
        assert.equal(parse(field).members.length, members.length + 1);
      }),
      { numRuns: 1_000 },
    );
  });
});
