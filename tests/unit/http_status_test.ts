// The response to a refused client: well-formed, whatever its text.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { describe, it } from "node:test";
import { encodeErrorResponse, fieldsOf, ProxyError, reasonOf, ReceivedResponse, statusOf } from "../../shared/http/status.ts";
import { parseProxyStatus } from "../../shared/http/proxy_status.ts";
import { CredentialsError, TunnelError, type TunnelErrorType } from "../../shared/tunnel/errors.ts";
import { parseAnswer } from "../../testing/network.ts";

function encode(refusal: TunnelError): string {
  return Buffer.from(encodeErrorResponse(refusal, "reverse-http-proxy")).toString("latin1");
}

/** The string in `details` (RFC 8941 §3.3.3), unescaped. */
function detailsOf(proxyStatus: string | undefined): string {
  const match = /^reverse-http-proxy;error=[a-z_]+;details="((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$/.exec(proxyStatus ?? "");
  assert.ok(match, `${proxyStatus} is not a structured field`);
  return match[1]!.replace(/\\(.)/g, "$1");
}

describe("refusal", () => {
  it("has a status, an error type and one line of text, and ends the connection", () => {
    const text = encode(new ProxyError(502, "connection_refused", "a:80 refused the connection"));
    assert.equal(
      text,
      "HTTP/1.1 502 Bad Gateway\r\n" +
        'Proxy-Status: reverse-http-proxy;error=connection_refused;details="a:80 refused the connection"\r\n' +
        "Content-Type: text/plain; charset=utf-8\r\n" +
        "Content-Length: 28\r\n" +
        "Connection: close\r\n" +
        "\r\n" +
        "a:80 refused the connection\n",
    );
  });

  it("has the request's id of the log in a field, the text and the reason phrase", () => {
    const text = Buffer.from(encodeErrorResponse(new ProxyError(502, "dns_error", "No such name"), "reverse-http-proxy", { id: "1a-2" }))
      .toString(
        "latin1",
      );
    assert.match(text, /^HTTP\/1\.1 502 Bad Gateway \(dns_error, request 1a-2\)\r\n/);
    assert.match(text, /\r\nX-Request-Id: 1a-2\r\n/);
    assert.match(text, /\r\n\r\nNo such name \(request 1a-2\)\n$/);
  });

  it("has no control character and at most 512 characters of its message, whatever its source", () => {
    const text = encode(new ProxyError(502, "dns_error", `a\r\nb\x1b[31m\u202ec\0${"x".repeat(15_000)}`));
    assert.ok(text.length < 2_000);
    // deno-lint-ignore no-control-regex -- these are what must not be in it
    assert.doesNotMatch(text.replaceAll("\r\n", ""), /[\x00-\x09\x0b-\x1f\x7f]/);
    assert.match(text, /\r\n\r\na\?\?b\?\[31m\?c\?x+\.\.\.\n$/);
  });

  it("that forwards a peer's names this hop after the peer, without an error type of its own", () => {
    const received = parseProxyStatus([["Proxy-Status", 'reverse-http-agent;error=dns_error;details="no such name"']]);
    const proxyStatusOf = (error: TunnelErrorType) =>
      parseAnswer(encode(new TunnelError(error, "Words", { received: new ReceivedResponse(received) }))).field("proxy-status");
    assert.equal(proxyStatusOf("dns_error"), 'reverse-http-agent;error=dns_error;details="no such name", reverse-http-proxy');
    assert.equal(
      proxyStatusOf("tls_protocol_error"),
      'reverse-http-agent;error=dns_error;details="no such name", reverse-http-proxy;error=tls_protocol_error;details="Words"',
    );
  });

  it("has the status of its error type, unless the next hop has chosen one", () => {
    const rows: [error: TunnelError, status: number, fields: Record<string, string>][] = [
      [new TunnelError("dns_timeout", "No"), 504, {}],
      [new TunnelError("destination_ip_prohibited", "No"), 403, {}],
      [new TunnelError("destination_unavailable", "No"), 502, {}],
      [new TunnelError("destination_unavailable", "No", { retryAfterMs: 1_001 }), 503, { "Retry-After": "2" }],
      [new CredentialsError("No"), 407, { "Proxy-Authenticate": 'Basic realm="reverse-http"' }],
      [new CredentialsError("No", { type: "connection_terminated" }), 407, { "Proxy-Authenticate": 'Basic realm="reverse-http"' }],
      [new TunnelError("dns_error", "No", { received: new ReceivedResponse({ members: [] }, 429, [["A", "b"]]) }), 429, { A: "b" }],
    ];
    for (const [error, status, fields] of rows) assert.deepEqual([statusOf(error), Object.fromEntries(fieldsOf(error))], [status, fields]);
  });

  it("has additional fields once", () => {
    const answer = parseAnswer(encode(new ProxyError(405, "http_request_denied", "No", [["Allow", "CONNECT"], ["Retry-After", "1"]])));
    assert.equal(answer.field("allow"), "CONNECT");
    assert.equal(answer.field("retry-after"), "1");
  });

  it("has a reason phrase for every status that is used", () => {
    for (const status of [400, 403, 405, 407, 408, 431, 500, 502, 503, 504, 505]) {
      assert.match(reasonOf(status), /^[A-Z][A-Za-z ]+$/, `${status}`);
    }
    assert.equal(reasonOf(299), "");
  });

  it("escapes quotes and backslashes, and replaces characters that a structured field cannot contain", () => {
    const answer = parseAnswer(encode(new ProxyError(502, "dns_error", 'say "a\\b" caf\xe9 \u20ac')));
    assert.equal(answer.field("proxy-status"), 'reverse-http-proxy;error=dns_error;details="say \\"a\\\\b\\" caf? ?"');
  });

  it("does not show the internal cause", () => {
    const text = encode(new ProxyError(407, "http_request_denied", "No", [], { cause: new Error("the password is hunter2") }));
    assert.doesNotMatch(text, /hunter2/);
  });

  it("is one response with the right length, whatever the message", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (message) => {
        const answer = parseAnswer(encode(new ProxyError(400, "http_request_error", message)));
        assert.equal(answer.status, 400);
        assert.equal(answer.fields.length, 4);
        assert.equal(answer.body.length, Number(answer.field("content-length")));
        assert.equal(detailsOf(answer.field("proxy-status")), message.replace(/[^\x20-\x7e]/gu, "?"));
      }),
      { numRuns: 1_000 },
    );
  });
});
