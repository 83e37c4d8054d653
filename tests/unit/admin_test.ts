// The admin server: liveness, readiness, metrics and agents.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { withDefaults } from "../../shared/config/defaults.ts";
import { adminOptions } from "../../shared/config/common_options.ts";
import { operatorOptions } from "../../shared/service/operators/options.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { Admin, type AdminServices } from "../../shared/service/admin.ts";
import { Health } from "../../shared/service/health.ts";
import { Activity } from "../../shared/service/live/activity.ts";
import { Metrics } from "../../shared/service/metrics.ts";
import { type Issued, makeSelfSignedAuthority } from "../../testing/certificates.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import type { SessionStats } from "../../shared/net/session.ts";

const STATS: SessionStats = { rttMs: 0, sentPackets: 0, lostPackets: 0, sentBytes: 0, receivedBytes: 0, congestionWindow: 0, mtu: 0 };

const optionsOf = (listenAddress?: string) => withDefaults({ ...adminOptions, ...operatorOptions }, { admin: { listenAddress } }).admin;

async function setUp() {
  const net = createMemoryNet();
  const [health, metrics, activity] = [new Health(), new Metrics("proxy"), new Activity(net)];
  const admin = (await Admin.open(optionsOf(":9090"), net, silentLogger))!;
  const services: AdminServices = {
    health,
    metrics,
    activity,
    log: silentLogger,
    service: "proxy",
    startedAt: new Date(),
    isDraining: false,
    earlierProcesses: [],
    agents: () => [
      { id: "7", connection: "a", state: "connected", address: "192.0.2.1:5", tunnels: 2, tokenId: "secret-of-the-api" },
      { id: "8", connection: "b", state: "gone", address: "192.0.2.1:6" },
    ],
    population: () => ({ agents: 1 }),
    drain: () => Promise.resolve(),
    reload: () => Promise.resolve(),
  };
  admin.serve(services);
  const ask = async (line: string, accept = "*/*") => {
    const stream = await net.connectTcp({ host: "127.0.0.1", port: 9090, timeoutMs: 1_000 });
    await stream.write(new TextEncoder().encode(`${line} HTTP/1.1\r\nHost: localhost\r\nAccept: ${accept}\r\n\r\n`));
    let text = "";
    for (let data; (data = await stream.read()) !== null;) text += new TextDecoder().decode(data);
    stream.close();
    const [head = "", body = ""] = text.split("\r\n\r\n");
    return { status: Number(head.split(" ")[1]), head, body };
  };
  return { net, health, metrics, admin, ask };
}

/** The value of one series. */
function valueOf(text: string, series: string): number | undefined {
  const line = text.split("\n").find((line) => line.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
}

describe("admin", () => {
  it("listens on loopback only if its address has no host, and not at all without an address", async () => {
    const { net, admin } = await setUp();
    assert.equal(admin.address, "127.0.0.1:9090");
    assert.equal(await Admin.open(optionsOf(), net, silentLogger), undefined);
    await assert.rejects(Admin.open(optionsOf(":9090"), net, silentLogger), { code: "address-in-use" });
    await admin.close();
  });

  it("reports that it is alive, and whether it is ready or all reasons why not", async () => {
    const { health, admin, ask } = await setUp();
    assert.deepEqual([(await ask("GET /healthz")).status, (await ask("GET /readyz")).status], [200, 200]);
    health.setUnready("draining");
    health.setUnready("store", "no answer of memcached at a:1");
    const { status, body } = await ask("GET /readyz");
    assert.equal(status, 503);
    assert.deepEqual(JSON.parse(body), { ready: false, problems: { draining: "draining", store: "no answer of memcached at a:1" } });
    assert.equal((await ask("GET /healthz")).status, 200);
    assert.equal((await ask("GET /readyz?exclude=store")).status, 503);
    assert.equal((await ask("GET /readyz?exclude=store&exclude=draining")).status, 200);
    health.setReady("draining");
    const { status: excluded, body: told } = await ask("GET /readyz?exclude=store");
    assert.equal(excluded, 200);
    assert.deepEqual(Object.keys(JSON.parse(told).problems), ["store"], "What is excluded is no longer told");
    health.setReady("store");
    assert.equal((await ask("GET /readyz")).status, 200);
    await admin.close();
  });

  it("lists agents as JSON, and metrics in the format of Prometheus", async () => {
    const { admin, ask } = await setUp();
    const { head, body } = await ask("GET /agents");
    assert.match(head, /\r\nContent-Type: application\/json\r\n/);
    assert.deepEqual(JSON.parse(body), [{ id: "7", address: "192.0.2.1:5", tunnels: 2 }]);
    const metrics = await ask("GET /metrics");
    assert.match(metrics.head, /\r\nContent-Type: text\/plain; version=0\.0\.4; charset=utf-8\r\n/);
    assert.ok(valueOf(metrics.body, "process_resident_memory_bytes")! > 1e6);
    assert.ok(valueOf(metrics.body, "process_cpu_seconds_total")! > 0);
    await admin.close();
  });

  it("has metrics in OpenMetrics for those who prefer it, as Prometheus does", async () => {
    const { admin, ask } = await setUp();
    const types = async (accept: string) =>
      /\r\nContent-Type: ([^;]*); version=([0-9.]*);/.exec((await ask("GET /metrics", accept)).head)!.slice(1).join(" ");
    const prometheus =
      "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5," +
      "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    assert.equal(await types(prometheus), "application/openmetrics-text 1.0.0");
    for (const accept of ["*/*", "text/plain", "text/plain;q=0.9,application/openmetrics-text;q=0.5", "image/png"]) {
      assert.equal(await types(accept), "text/plain 0.0.4", accept);
    }
    await admin.close();
  });

  it("serves the dashboard, which nothing else may frame or script", async () => {
    const { admin, ask } = await setUp();
    const { head, status } = await ask("GET /");
    assert.ok(status === 200 || status === 503, "Without a build there is an explanation");
    assert.match(head, /\r\nContent-Security-Policy: default-src 'none';.*frame-ancestors 'none'/i);
    assert.match(head, /\r\nX-Content-Type-Options: nosniff\r\n/i);
    await admin.close();
  });

  it("responds to HEAD without a body, and refuses other methods, unknown paths and malformed requests", async () => {
    const { admin, ask } = await setUp();
    const { status, head, body } = await ask("HEAD /healthz");
    assert.deepEqual([status, body], [200, ""]);
    assert.match(head, /\r\nContent-Length: 16\r\n/);
    const posted = await ask("POST /healthz");
    assert.equal(posted.status, 405);
    assert.match(posted.head, /\r\nAllow: GET, HEAD\r\n/);
    assert.equal((await ask("GET /nothing")).status, 404);
    assert.equal((await ask("GET /healthz/x")).status, 404);
    assert.equal((await ask("nonsense")).status, 400);
    await admin.close();
  });
});

describe("OpenMetrics", () => {
  it("have the requests of buckets as exemplars, and leave the other format as it is", async () => {
    const metrics = new Metrics("lb");
    const tunnels = metrics.tunnels(() => 0);
    const end = { status: 200, totalMs: 1, sent: 0, received: 0 };
    tunnels.ended({ ...end, setupMs: 7, id: "r-1" });
    tunnels.ended({ ...end, setupMs: 8, id: "r-2", traceId: "a".repeat(32) });
    tunnels.ended({ ...end, setupMs: 9, id: "r-3" }); // that of a trace stays
    tunnels.ended({ ...end, setupMs: 20_000, id: "r-4" });
    metrics.outcomes("reverse_http_spans_total", 'Of a "kind"\\ \n')("exported", 2);
    const before = await metrics.format();
    const text = await metrics.formatOpen();
    const lines = text.split("\n");
    assert.deepEqual(lines.slice(-2), ["# EOF", ""]);
    const exemplar = (le: string) => {
      const line = lines.find((line) => line.startsWith(`reverse_http_tunnel_setup_duration_seconds_bucket{le="${le}"} `))!;
      const [, count, labels, value, at] = /^\S+ (\d+)(?: # (\{.*\}) (\S+) (\S+))?$/.exec(line)!;
      if (at !== undefined) assert.ok(Math.abs(Number(at) - Date.now() / 1_000) < 60);
      return [count, labels, value];
    };
    assert.deepEqual(["0.005", "0.01", "10.0", "+Inf"].map(exemplar), [
      ["0", undefined, undefined],
      ["3", `{trace_id="${"a".repeat(32)}",request_id="r-2"}`, "0.008"],
      ["3", undefined, undefined],
      ["4", '{request_id="r-4"}', "20"],
    ]);
    assert.match(
      text,
      /^# TYPE reverse_http_spans counter\n# HELP reverse_http_spans Of a \\"kind\\"\\\\ \\n\nreverse_http_spans_total\{outcome="exported"\} 2$/m,
    );
    const others = (text: string) => text.split("\n").filter((line) => !line.startsWith("process_"));
    assert.deepEqual(others(await metrics.format()), others(before));
  });
});

describe("metrics", () => {
  it("count tunnels by outcome, refusals by status and error type, and limits", async () => {
    const metrics = new Metrics("lb");
    const tunnels = metrics.tunnels(() => 3);
    tunnels.ended({ status: 200, setupMs: 7, totalMs: 5_000, sent: 10, received: 1_000 });
    tunnels.ended({ status: 200, setupMs: 7, error: "connection_terminated", sent: 1, received: 0 });
    tunnels.ended({ status: 503, error: "connection_limit_reached", sent: 0, received: 0 });
    metrics.limitHit("connections");
    tunnels.ended({ status: 431, error: "http_request_error", sent: 0, received: 0 });
    const text = await metrics.registry.metrics();
    const expected = {
      "reverse_http_tunnels_active": 3,
      'reverse_http_tunnels_total{outcome="completed"}': 1,
      'reverse_http_tunnels_total{outcome="broken"}': 1,
      'reverse_http_tunnels_total{outcome="refused"}': 2,
      'reverse_http_requests_rejected_total{status="503",error_type="connection_limit_reached"}': 1,
      'reverse_http_tunnel_bytes_total{direction="sent"}': 11,
      'reverse_http_tunnel_bytes_total{direction="received"}': 1_000,
      'reverse_http_tunnel_setup_duration_seconds_bucket{le="0.005"}': 0,
      'reverse_http_tunnel_setup_duration_seconds_bucket{le="0.01"}': 2,
      'reverse_http_tunnel_duration_seconds_bucket{le="1"}': 0,
      'reverse_http_tunnel_duration_seconds_bucket{le="10"}': 1,
      'reverse_http_limit_rejections_total{limit="connections"}': 1,
      'reverse_http_limit_rejections_total{limit="head-size"}': 1,
    };
    for (const [series, value] of Object.entries(expected)) assert.equal(valueOf(text, series), value, series);
  });

  it("report the certificate of a use that expires first, and keep it beside a listener without TLS", async () => {
    const metrics = new Metrics("proxy");
    const [early, late] = await Promise.all([1, 2].map((days) => makeSelfSignedAuthority({ names: ["proxy.test"], days })));
    const expiry = async () =>
      valueOf(await metrics.registry.metrics(), 'reverse_http_certificate_expiry_timestamp_seconds{use="clients"}');
    const ends = (issued: Issued) => Date.parse(new X509Certificate(issued.cert).validTo) / 1_000;
    let first: string | undefined = early!.cert;
    metrics.watchCertificate("clients", () => first);
    metrics.watchCertificate("clients", () => late!.cert);
    metrics.watchCertificate("clients", () => undefined);
    assert.equal(await expiry(), ends(early!));
    first = undefined;
    assert.equal(await expiry(), ends(late!));
  });

  it("summarize round-trip times of open connections, and count the packets of all, closed ones too", async () => {
    const metrics = new Metrics("proxy");
    let stats = Array.from(
      { length: 100 },
      (_, i): SessionStats => ({ ...STATS, rttMs: i + 1, sentBytes: 1, sentPackets: 10, lostPackets: 1 }),
    );
    let connections = stats.map((_, i) => ({ transport: "quic" as const, stats: () => stats[i]! }));
    metrics.sessions(() => connections);
    const first = await metrics.registry.metrics();
    assert.equal(valueOf(first, 'reverse_http_quic_rtt_seconds{percentile="50"}'), 0.05);
    assert.equal(valueOf(first, 'reverse_http_quic_rtt_seconds{percentile="100"}'), 0.1);
    stats = stats.map((of) => ({ ...of, sentPackets: 15 }));
    stats[0] = STATS; // it is closed
    const read = async (name: string) => valueOf(await metrics.registry.metrics(), name);
    assert.equal(await read("reverse_http_quic_packets_sent_total"), 1_000 + 99 * 5);
    connections = [];
    assert.equal(await read("reverse_http_quic_packets_sent_total"), 1_000 + 99 * 5);
    assert.equal(await read("reverse_http_quic_packets_lost_total"), 100);
    assert.equal(await read('reverse_http_quic_rtt_seconds{percentile="50"}'), undefined);
  });
});
