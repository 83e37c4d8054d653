// Spans and their contexts: what is taken from a peer, which requests are recorded, and what waits for a collector.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, it } from "node:test";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import { endOfRequest } from "../../shared/service/live/trace.ts";
import type { LiveTunnel } from "../../shared/service/live/tunnel.ts";
import { addressAttributes } from "../../shared/tracing/attributes.ts";
import { parseTraceContext, traceFields, withTrace } from "../../shared/tracing/context.ts";
import { parseHeaderLines, parsePair, tracesUrl, type TracingOptions } from "../../shared/tracing/options.ts";
import { checkTracingOptions, openTracer } from "../../shared/tracing/otlp.ts";
import { inSpan, type Span, type SpanEnd } from "../../shared/tracing/span.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { Folder } from "../../testing/programs.ts";

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const SPAN = "b7ad6b7169203331";
const PARENT = { traceId: TRACE, spanId: SPAN, isSampled: true };
const OPTIONS: TracingOptions = {
  otlpEndpoint: undefined,
  otlpHeadersFile: undefined,
  otlpHeaders: [],
  samplingRatio: "1",
  serviceName: undefined,
  resourceAttributes: [],
};

describe("the context of a trace", () => {
  it("is read from one valid traceparent, also of a later version", () => {
    const read = (...values: string[]) => parseTraceContext(values.map((value) => ["TraceParent", value] as const));
    assert.deepEqual(read(`00-${TRACE}-${SPAN}-01`), { ...PARENT, state: undefined });
    assert.equal(read(`00-${TRACE}-${SPAN}-02`)?.isSampled, false);
    assert.equal(read(`cc-${TRACE}-${SPAN}-03-later`)?.isSampled, true);
    const invalid = [
      "",
      `00-${TRACE}-${SPAN}`,
      `00-${TRACE}-${SPAN}-01-more`,
      `ff-${TRACE}-${SPAN}-01`,
      `00-${TRACE.toUpperCase()}-${SPAN}-01`,
      `00-${"0".repeat(32)}-${SPAN}-01`,
      `00-${TRACE}-${"0".repeat(16)}-01`,
      `00-${TRACE}-${SPAN}-1`,
      `00-${TRACE}0-${SPAN}-01`,
      ` 00-${TRACE}-${SPAN}-01\n`,
    ];
    for (const value of invalid) assert.equal(read(value), undefined, value);
    assert.equal(read(`00-${TRACE}-${SPAN}-01`, `00-${TRACE}-${SPAN}-01`), undefined);
  });

  it("has the state of other vendors, if that is short and printable", () => {
    const state = (...values: string[]) =>
      parseTraceContext([["traceparent", `00-${TRACE}-${SPAN}-01`], ...values.map((value) => ["tracestate", value] as const)])?.state;
    assert.equal(state("a=1", "b=2"), "a=1,b=2");
    assert.equal(state("a=\u00e4"), undefined);
    assert.equal(state(`a=${"1".repeat(511)}`), undefined);
  });

  it("replaces the client's in a request that is forwarded, unless nothing is traced", () => {
    const fields = [["Traceparent", "x"], ["A", "1"], ["tracestate", "y"]] as const;
    const span = { context: { ...PARENT, state: "v=1" } } as Span;
    assert.deepEqual(withTrace(fields, span), [["A", "1"], ["traceparent", `00-${TRACE}-${SPAN}-01`], ["tracestate", "v=1"]]);
    assert.equal(withTrace(fields, undefined), fields);
    assert.deepEqual(traceFields(undefined), []);
  });
});

/** A collector that answers with `status`, or not at all. */
async function startCollector(status: number | undefined) {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (part) => body += part).on("end", () => {
      requests.push(body);
      if (status !== undefined) response.writeHead(status, { "Content-Type": "application/json" }).end("{}");
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    requests,
    otlpEndpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

async function start(options: Partial<TracingOptions>) {
  const counts: Record<string, number> = { exported: 0, failed: 0, dropped: 0 };
  const lines: string[] = [];
  const note = (message: string) => void lines.push(message);
  const tracer = await openTracer({ ...OPTIONS, ...options }, {
    service: "reverse-http-proxy",
    log: { ...silentLogger, warn: note, info: note },
    count: (outcome, spans) => void (counts[outcome]! += spans),
  });
  return { tracer: tracer!, counts, lines };
}

describe("a tracer", () => {
  it("does not exist without a collector", async () => {
    assert.equal(await openTracer(OPTIONS, { service: "x", log: silentLogger }), undefined);
  });

  it("records what the client's trace records, and a fraction of the rest", async () => {
    await using collector = await startCollector(200);
    const never = await start({ ...collector, samplingRatio: "0" });
    const always = await start({ ...collector, samplingRatio: "1" });
    assert.deepEqual(
      [undefined, PARENT, { ...PARENT, isSampled: false }].map((parent) => [
        never.tracer.start(parent, 0).isRecorded,
        always.tracer.start(parent, 0).isRecorded,
      ]),
      [[false, true], [true, true], [false, false]],
    );
    const half = await start({ ...collector, samplingRatio: "0.5" });
    const recorded = Array.from({ length: 1_000 }, () => half.tracer.start(undefined, 0)).filter(({ isRecorded }) => isRecorded);
    assert.ok(recorded.length > 350 && recorded.length < 650, String(recorded.length));
    for (const { tracer } of [never, always, half]) await tracer.close();
  });

  it("passes on contexts of requests that are not recorded: the client's, or a new one for each", async () => {
    await using collector = await startCollector(200);
    const { tracer } = await start({ ...collector, samplingRatio: "0" });
    const unsampled = { ...PARENT, isSampled: false };
    const span = tracer.start(unsampled, 0);
    assert.equal(span.child("client", "x", () => assert.fail("not asked")).context, unsampled);
    const traceIds = Array.from({ length: 500 }, () => tracer.start(undefined, 0).context);
    for (const { traceId, spanId } of traceIds) assert.match(`${traceId}-${spanId}`, /^[0-9a-f]{32}-[0-9a-f]{16}$/);
    assert.equal(new Set(traceIds.map(({ traceId }) => traceId)).size, 500);
    await tracer.close();
  });

  it("sends what it has when it is closed, with the names of the service", async () => {
    await using collector = await startCollector(200);
    const { tracer, counts } = await start({ ...collector, resourceAttributes: ["deployment.environment.name=a%20b"] });
    const span = tracer.start({ ...PARENT, state: "v=1" }, performance.now() - 1_000);
    span.child("client", "dial agent", () => ({ a: 1, b: undefined })).end(() => ({
      error: { type: "dns_error", message: "no\u001b name" },
    }));
    span.end(() => ({ name: "CONNECT", openedAt: performance.now() }));
    await tracer.close();
    assert.deepEqual(counts, { exported: 2, failed: 0, dropped: 0 });
    const [{ resource, scopeSpans: [{ spans }] }] = JSON.parse(collector.requests[0]!).resourceSpans;
    const names = Object.fromEntries(
      resource.attributes.map(({ key, value }: { key: string; value: { stringValue: string } }) => [key, value.stringValue]),
    );
    assert.deepEqual([names["service.name"], names["deployment.environment.name"]], ["reverse-http-proxy", "a b"]);
    const [dial, request] = spans;
    assert.deepEqual([request.name, request.parentSpanId, request.traceState], ["CONNECT", SPAN, "v=1"]);
    assert.equal(dial.parentSpanId, request.spanId);
    assert.deepEqual([dial.status.code, dial.status.message], [2, "no? name"]);
    assert.ok(Number(request.endTimeUnixNano) - Number(request.startTimeUnixNano) >= 1e9);
  });

  it("bounds what waits for a collector that does not respond, and counts the rest", async () => {
    await using collector = await startCollector(undefined);
    const { tracer, counts } = await start(collector);
    for (let i = 0; i < 5_000; i++) tracer.start(undefined, 0).end();
    assert.deepEqual(counts, { exported: 0, failed: 0, dropped: 5_000 - 4_096 });
  });

  it("tells once that the collector does not accept spans", async () => {
    await using collector = await startCollector(400);
    const { tracer, counts, lines } = await start(collector);
    for (let i = 0; i < 1_024; i++) tracer.start(undefined, 0).end(); // two batches
    await tracer.close();
    assert.deepEqual([counts["failed"], lines], [1_024, ["traces cannot be exported"]]);
  });
});

describe("work in a span", () => {
  it("has its error, or what describes its result", async () => {
    const ends: SpanEnd[] = [];
    const span = { isRecorded: true, end: (describe: () => SpanEnd = () => ({})) => void ends.push(describe()) } as Span;
    assert.equal(await inSpan(span, () => Promise.resolve(1), (result) => ({ attributes: { result } })), 1);
    const refused = new TunnelError("connection_refused", "It refused", { cause: new Error("ECONNREFUSED") });
    await assert.rejects(inSpan(span, () => Promise.reject(refused)), refused);
    await assert.rejects(inSpan(span, () => Promise.reject(new NetError("timed-out", "It was late"))));
    await assert.rejects(inSpan(undefined, () => Promise.reject(refused)), refused);
    assert.deepEqual(ends, [
      { attributes: { result: 1 } },
      { error: { type: "connection_refused", message: "It refused: ECONNREFUSED" } },
      { error: { type: "timed-out", message: "It was late" } },
    ]);
  });
});

describe("the span of a request", () => {
  const tunnel: LiveTunnel = { key: "k", id: "r", startedAt: 0, destination: "[::1]:5432", client: "192.0.2.1:5", sent: 1, received: 2 };

  it("is named by the method, or by what the client speaks instead of HTTP", () => {
    const nameOf = (more: Parameters<typeof endOfRequest>[0]) => endOfRequest(more).name;
    const named = [{ method: "GET" }, { method: "X\u001b" }, { method: "FORWARD" }, { method: "CONNECT", protocol: "socks5" }, {}];
    assert.deepEqual(named.map((more) => nameOf({ ...tunnel, ...more })), ["GET", "HTTP", "forward", "socks5", "CONNECT"]);
    const { attributes = {} } = endOfRequest({ ...tunnel, protocol: "socks5", status: 200 });
    assert.deepEqual(
      [
        attributes["server.address"],
        attributes["server.port"],
        attributes["network.protocol.name"],
        attributes["http.response.status_code"],
      ],
      ["::1", 5432, "socks5", undefined],
    );
  });

  it("has failed unless the client is to blame", () => {
    const end = (more: Partial<LiveTunnel>) => {
      const { error, attributes } = endOfRequest({ ...tunnel, reason: "why", ...more });
      return [error, attributes?.["error.type"], attributes?.["reverse_http.reason"]];
    };
    assert.deepEqual(end({ status: 403, proxyError: "http_request_denied" }), [undefined, "http_request_denied", "why"]);
    assert.deepEqual(end({ status: 502, proxyError: "dns_error" }), [{ type: "dns_error", message: "why" }, undefined, undefined]);
    const broken = { status: 200, connectedAt: 1, proxyError: "connection_terminated" } as const;
    assert.deepEqual(end(broken)[0], { type: "connection_terminated", message: "why" });
    assert.deepEqual(end({ status: 200 }), [undefined, undefined, undefined]);
  });
});

describe("options of traces", () => {
  it("name the collector's address, with the path of traces", () => {
    assert.deepEqual(["http://c:4318", "http://c/otlp/", "https://c/v1/traces", "http://c?a=b"].map(tracesUrl), [
      "http://c:4318/v1/traces",
      "http://c/otlp/v1/traces",
      "https://c/v1/traces",
      "http://c/v1/traces?a=b",
    ]);
  });

  it("have pairs that are percent-encoded, and files with fields", () => {
    assert.deepEqual([parsePair(" a = b%20c=d "), parsePair("a"), parsePair("=a"), parsePair("a=%zz")], [
      ["a", "b c=d"],
      undefined,
      undefined,
      undefined,
    ]);
    assert.deepEqual(parseHeaderLines("# c\n\nAuthorization: Bearer a:b\r\nX: \n"), { Authorization: "Bearer a:b", X: "" });
    for (const text of ["no colon", ": x", "a b: c", "a: \u00e4"]) assert.equal(parseHeaderLines(text), undefined, text);
  });

  it("refuse a file that cannot be used, without its content", async () => {
    using folder = new Folder();
    const otlpHeadersFile = folder.write("fields", "Bearer secret");
    await assert.rejects(
      checkTracingOptions({ ...OPTIONS, otlpEndpoint: "http://127.0.0.1:1", otlpHeadersFile }),
      (error) => error instanceof ConfigError && /not every line is name: value/.test(error.message) && !error.message.includes("secret"),
    );
    await assert.rejects(checkTracingOptions({ ...OPTIONS, otlpHeadersFile }), /otlp-endpoint is not set/);
  });

  it("split addresses", () => {
    assert.deepEqual(["h:1", "[::1]:2", "h"].map((address) => addressAttributes("server", address)), [
      { "server.address": "h", "server.port": 1 },
      { "server.address": "::1", "server.port": 2 },
      { "server.address": "h", "server.port": undefined },
    ]);
  });
});
