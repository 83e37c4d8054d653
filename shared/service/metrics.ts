// Prometheus metrics. Labels have few values, known beforehand: no ids, no hosts, nothing that a peer chooses. Each service has its own
// registry, so that several can run in one process.
import { X509Certificate } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { uptime } from "node:os";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { SessionKind, SessionStats } from "../net/session.ts";
import type { DatagramCounts } from "../net/udp.ts";
import type { TunnelErrorType } from "../tunnel/errors.ts";
import type { StoreEvents } from "../store/circuit_breaker.ts";
import { VERSION } from "../version.ts";
import {
  type FindExemplar,
  formatOpenMetrics,
  formatText,
  joinMetrics,
  type Metric,
  RequestExemplars,
  WORKER_LABEL,
} from "./open_metrics.ts";
import type { StallReport } from "./watchdog.ts";

/** The metrics of one service. */
export class Metrics {
  readonly registry = new Registry();
  readonly #limits: Counter<"limit">;
  /** Exemplars of histograms, by name. */
  readonly #exemplars = new Map<string, Pick<RequestExemplars, "of">>();
  readonly #certificates = new Set<{ readonly use: string; readonly pem: () => string | undefined }>();

  constructor(service: "proxy" | "agent" | "lb") {
    const registers = [this.registry];
    new Gauge({ name: "reverse_http_build_info", help: "Always 1.", labelNames: ["service", "version"], registers })
      .set({ service, version: VERSION }, 1);
    this.#limits = new Counter({
      name: "reverse_http_limit_rejections_total",
      help:
        "Rejections by limit: an option's name without limits., memory (memory-watermark), ports (local ports), head-size or head-time.",
      labelNames: ["limit"],
      registers,
    });
    const certificates = this.#certificates;
    new Gauge({
      name: "reverse_http_certificate_expiry_timestamp_seconds",
      help: "Expiry of the certificate in use, in seconds since 1970.",
      labelNames: ["use"],
      registers,
      collect() {
        this.reset();
        const earliest = new Map<string, number>();
        for (const { use, pem } of certificates) {
          const ends = endOfCertificate(pem());
          if (ends !== undefined) earliest.set(use, Math.min(ends, earliest.get(use) ?? Infinity));
        }
        for (const [use, ends] of earliest) this.set({ use }, ends);
      },
    });
    registerProcess(registers);
  }

  /** All metrics in the text format of Prometheus. */
  async format(): Promise<string> {
    return await this.registry.metrics();
  }

  /** All metrics in the format OpenMetrics, with exemplars. */
  async formatOpen(): Promise<string> {
    return formatOpenMetrics(await this.registry.getMetricsAsJSON(), (metric, bound) => this.#exemplars.get(metric)?.of(bound));
  }

  /** The metrics for another worker, as JSON. */
  async toJson(): Promise<string> {
    return JSON.stringify(
      await this.registry.getMetricsAsJSON(),
      (_key, value: unknown) => Number.isFinite(value) || typeof value !== "number" ? value : String(value),
    );
  }

  /**
   * All metrics and those of other workers, each with the label `worker`.
   * @param others by their label
   */
  async formatWith(own: string, others: ReadonlyMap<string, readonly Metric[]>, isOpen: boolean): Promise<string> {
    const parts = [{ worker: own, metrics: await this.registry.getMetricsAsJSON() as readonly Metric[] }];
    for (const [worker, metrics] of others) parts.push({ worker, metrics });
    const joined = joinMetrics(parts);
    const exemplarOf: FindExemplar = (metric, bound, labels) =>
      labels[WORKER_LABEL] === own ? this.#exemplars.get(metric)?.of(bound) : undefined;
    return isOpen ? formatOpenMetrics(joined, exemplarOf) : formatText(joined);
  }

  /** Counts a limit that was reached; `limit` is one of a few fixed words. */
  limitHit(limit: string, times = 1): void {
    this.#limits.inc({ limit }, times);
  }

  /**
   * Reports the expiry of the first certificate of a chain, until the result is called; `use` is its label. Of several with the same use, the
   * earliest is reported.
   */
  watchCertificate(use: string, pem: () => string | undefined): () => void {
    const watched = { use, pem };
    this.#certificates.add(watched);
    return () => void this.#certificates.delete(watched);
  }

  /** Metrics of tunnels, including plain HTTP requests. `dropped`: datagrams so far that belong to no flow, or were dropped before it. */
  tunnels(open: () => number, dropped = () => 0): TunnelMetrics {
    const metrics = new TunnelMetrics(this.registry, { open, dropped }, (limit) => this.limitHit(limit));
    this.#exemplars.set(SETUP, metrics.setups);
    return metrics;
  }

  /** Metrics of sessions between agents and proxies; `sessions` yields the open ones. */
  sessions(sessions: () => Iterable<MeasuredSession>): void {
    registerSessions([this.registry], sessions);
  }

  /** Counts changes of the transport to a proxy; `reason` is one of a few fixed words. */
  linkChanges(): (change: { to: SessionKind; reason: string }) => void {
    const counter = new Counter({
      name: "reverse_http_link_changes_total",
      help: "Changes of the transport to a proxy, by the new transport and the reason.",
      labelNames: ["link", "reason"],
      registers: [this.registry],
    });
    return ({ to, reason }) => counter.inc({ link: to, reason });
  }

  /** Metrics of the store. */
  store(): StoreEvents {
    const registers = [this.registry];
    const up = new Gauge({
      name: "reverse_http_store_up",
      help: "1 while the store's server responds.",
      labelNames: ["server"],
      registers,
    });
    const errors = new Counter({ name: "reverse_http_store_errors_total", help: "Calls to the store that failed.", registers });
    const seconds = new Histogram({
      name: "reverse_http_store_request_duration_seconds",
      help: "Duration of calls to the store.",
      buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5],
      registers,
    });
    return {
      onServer: (server) => up.set({ server: server.name }, server.up ? 1 : 0),
      onCall({ ok, ms }) {
        seconds.observe(ms / 1_000);
        if (!ok) errors.inc();
      },
    };
  }

  /** Time for which the event loop or the network engine was stalled; the function takes milliseconds. */
  stalls(): (what: StallReport, ms: number) => void {
    const seconds = new Counter({
      name: "reverse_http_stall_seconds_total",
      help: "Time for which the event loop (program), or only the network engine (network), was stalled for a second or more.",
      labelNames: ["component"],
      registers: [this.registry],
    });
    for (const component of ["program", "network"] as const) seconds.inc({ component }, 0);
    return (component, ms) => seconds.inc({ component }, ms / 1_000);
  }

  /** A gauge that is read at each scrape. */
  gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.registry],
      collect() {
        this.set(value());
      },
    });
  }

  /** Counts client connections without a request. */
  clientFailures(): (what: "handshake" | "head") => void {
    const counter = new Counter({
      name: "reverse_http_client_failures_total",
      help: "Client connections without a request: the TLS handshake failed, or the head was malformed.",
      labelNames: ["stage"],
      registers: [this.registry],
    });
    return (stage) => counter.inc({ stage });
  }

  /** A counter without labels. */
  count(name: string, help: string): () => void {
    const counter = new Counter({ name, help, registers: [this.registry] });
    return () => counter.inc();
  }

  /** A counter by outcome, one of a few fixed words. */
  outcomes(name: string, help: string): (outcome: string, times?: number) => void {
    const counter = new Counter({ name, help, labelNames: ["outcome"], registers: [this.registry] });
    return (outcome, times = 1) => counter.inc({ outcome }, times);
  }
}

/** The transport and statistics of a session. */
export interface MeasuredSession {
  readonly transport: SessionKind;
  stats(): SessionStats;
}

/** The result of a tunnel, or of a request that got none. */
export interface TunnelEnd {
  /** The response's status. */
  readonly status: number;
  /** Error type of RFC 9209, if it failed. */
  readonly error?: TunnelErrorType;
  /** Milliseconds from the request's head to the connection to the destination; missing if there was none. */
  readonly setupMs?: number;
  /** Milliseconds from the request's head to the end of the tunnel; present if `setupMs` is. */
  readonly totalMs?: number;
  /** Ids of the request and, if it is recorded, of its trace: for exemplars. */
  readonly id?: string;
  readonly traceId?: string;
  /** Bytes to the destination, and back. */
  readonly sent: number;
  readonly received: number;
  /** Of a UDP flow, where this service has sent and received its datagrams, or has dropped some. */
  readonly datagrams?: DatagramCounts;
}

/** The histogram of times to set up a tunnel, and the bounds of its buckets in seconds. */
const SETUP = "reverse_http_tunnel_setup_duration_seconds";
const SETUP_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export class TunnelMetrics {
  /** Requests in the buckets of the histogram of set-up times. */
  readonly setups = new RequestExemplars(SETUP_BOUNDS);
  readonly #ended: Counter<"outcome">;
  readonly #refused: Counter<"status" | "error_type">;
  /** Counted since the last scrape: a counter with labels costs more than all else that the end of a tunnel does. */
  readonly #uncollected = { completed: 0, broken: 0, sent: 0, received: 0 };
  readonly #setup: Histogram;
  readonly #duration: Histogram;
  readonly #datagrams: Counter<"outcome">;
  readonly #limitHit: (limit: string) => void;

  constructor(registry: Registry, { open, dropped }: Record<"open" | "dropped", () => number>, limitHit: (limit: string) => void) {
    const registers = [registry];
    this.#limitHit = limitHit;
    const uncollected = this.#uncollected;
    let droppedBefore = 0;
    const take = (what: keyof typeof uncollected): number => {
      const count = uncollected[what];
      uncollected[what] = 0;
      return count;
    };
    new Gauge({
      name: "reverse_http_tunnels_active",
      help: "Tunnels and plain HTTP requests that are connected to their destination.",
      registers,
      collect() {
        this.set(open());
      },
    });
    this.#ended = new Counter({
      name: "reverse_http_tunnels_total",
      help: "Tunnels and requests that have ended: completed, broken (ended by an error after they had begun) or refused.",
      labelNames: ["outcome"],
      registers,
      collect() {
        for (const outcome of ["completed", "broken"] as const) this.inc({ outcome }, take(outcome));
      },
    });
    for (const outcome of ["completed", "broken", "refused"]) this.#ended.inc({ outcome }, 0);
    this.#refused = new Counter({
      name: "reverse_http_requests_rejected_total",
      help: "Requests that were refused, by status and error type (RFC 9209).",
      labelNames: ["status", "error_type"],
      registers,
    });
    new Counter({
      name: "reverse_http_tunnel_bytes_total",
      help: "Bytes of tunnels that have ended: sent to destinations and received from them.",
      labelNames: ["direction"],
      registers,
      collect() {
        for (const direction of ["sent", "received"] as const) this.inc({ direction }, take(direction));
      },
    });
    this.#setup = new Histogram({
      name: SETUP,
      help: "Time from a request's head to the connection to its destination.",
      buckets: SETUP_BOUNDS,
      registers,
    });
    this.#duration = new Histogram({
      name: "reverse_http_tunnel_duration_seconds",
      help: "Time from a request's head to the end of its tunnel.",
      buckets: [0.01, 0.1, 1, 10, 60, 600, 3_600, 21_600, 86_400],
      registers,
    });
    this.#datagrams = new Counter({
      name: "reverse_http_udp_datagrams_total",
      help:
        "Datagrams of UDP flows that have ended: sent to destinations, received from them, and dropped. Of agents; proxy and lb count those " +
        "that they have dropped because a client did not read them, or at the sockets of forwards and SOCKS clients.",
      labelNames: ["outcome"],
      registers,
      collect() {
        const total = dropped();
        if (total > droppedBefore) this.inc({ outcome: "dropped" }, total - droppedBefore);
        droppedBefore = total;
      },
    });
  }

  ended({ status, error, setupMs, totalMs, id, traceId, sent, received, datagrams }: TunnelEnd): void {
    if (setupMs === undefined) {
      this.#ended.inc({ outcome: "refused" });
      this.#refused.inc({ status: String(status), error_type: error ?? "none" });
      if (status === 431) this.#limitHit("head-size");
      else if (status === 408) this.#limitHit("head-time");
      return;
    }
    this.#setup.observe(setupMs / 1_000);
    if (id !== undefined) this.setups.observe(setupMs / 1_000, id, traceId, Date.now());
    if (totalMs !== undefined) this.#duration.observe(totalMs / 1_000);
    const uncollected = this.#uncollected;
    uncollected[error === undefined ? "completed" : "broken"]++;
    uncollected.sent += sent;
    uncollected.received += received;
    if (!datagrams) return;
    this.#datagrams.inc({ outcome: "sent" }, datagrams.aToB);
    this.#datagrams.inc({ outcome: "received" }, datagrams.bToA);
    this.#datagrams.inc({ outcome: "dropped" }, datagrams.dropped);
  }
}

/** Packets are counted at each scrape; those between the last scrape and a session's end are missed. */
function registerSessions(registers: Registry[], sessions: () => Iterable<MeasuredSession>): void {
  // the first to be collected: it sets the others
  new Gauge({
    name: "reverse_http_links_active",
    help: "Connections between agents and proxies by transport: QUIC, TLS, or TLS within a WebSocket.",
    labelNames: ["link"],
    registers,
    collect() {
      const times = { quic: [] as number[], tls: [] as number[] };
      const counts: Record<SessionKind, number> = { quic: 0, tls: 0, websocket: 0 };
      for (const session of sessions()) {
        const { transport } = session;
        const stats = session.stats();
        counts[transport]++;
        if (transport === "quic") countPackets(session, stats);
        if (stats.sentBytes > 0) times[transport === "quic" ? "quic" : "tls"].push(stats.rttMs);
      }
      for (const link of ["quic", "tls", "websocket"] as const) this.set({ link }, counts[link]);
      for (const link of ["quic", "tls"] as const) setPercentiles(rtts[link], times[link]);
    },
  });
  const packets = (name: string, help: string) => new Counter({ name, help, registers });
  const sent = packets("reverse_http_quic_packets_sent_total", "QUIC packets sent.");
  const lost = packets("reverse_http_quic_packets_lost_total", "QUIC packets sent that were lost.");
  // not quantile, which belongs to summaries
  const roundTrips = (name: string, help: string) => new Gauge({ name, help, labelNames: ["percentile"], registers });
  const rtts = {
    quic: roundTrips("reverse_http_quic_rtt_seconds", "Round-trip time over all QUIC connections."),
    tls: roundTrips("reverse_http_tls_rtt_seconds", "Round-trip time over all agent connections on TLS, also within WebSockets."),
  };
  const seen = new WeakMap<MeasuredSession, { sent: number; lost: number }>();
  const countPackets = (session: MeasuredSession, { sentPackets, lostPackets }: SessionStats): void => {
    const before = seen.get(session) ?? { sent: 0, lost: 0 };
    // statistics are zero once the session is closed
    sent.inc(Math.max(0, sentPackets - before.sent));
    lost.inc(Math.max(0, lostPackets - before.lost));
    seen.set(session, { sent: sentPackets, lost: lostPackets });
  };
}

function setPercentiles(gauge: Gauge<"percentile">, ms: number[]): void {
  ms.sort((a, b) => a - b);
  gauge.reset();
  for (const percentile of ms.length === 0 ? [] : [50, 90, 99, 100]) {
    gauge.set({ percentile }, ms[Math.ceil(percentile / 100 * ms.length) - 1]! / 1_000);
  }
}

/** Process metrics under the names of Prometheus' client libraries. Linux only. */
function registerProcess(registers: Registry[]): void {
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  if (readProcess() === undefined) return;
  const bootedAt = readBootTime();
  if (bootedAt !== undefined) {
    const startedAt = bootedAt + readProcess()!.startedAfterBoot;
    gauge("process_start_time_seconds", "When the process was started, in seconds since 1970.", () => startedAt);
  }
  gauge("process_resident_memory_bytes", "Memory in use.", () => readProcess()?.residentBytes ?? 0);
  gauge("process_open_fds", "Open file descriptors.", () => readdirSync("/proc/self/fd").length);
  let before = 0;
  new Counter({
    name: "process_cpu_seconds_total",
    help: "CPU time used.",
    registers,
    collect() {
      const now = readProcess()?.cpuSeconds ?? before;
      this.inc(Math.max(0, now - before));
      before = now;
    },
  });
}

/** USER_HZ: clock ticks per second in /proc, always 100 on Linux. */
const TICKS = 100;

/** Seconds since 1970. If systemd hides /proc/stat (ProcSubset=pid), the uptime gives it. */
function readBootTime(): number | undefined {
  try {
    return Number(/^btime ([0-9]+)$/m.exec(readFileSync("/proc/stat", "utf8"))![1]);
  } catch {
    const sinceBoot = uptime();
    return sinceBoot > 0 ? Date.now() / 1_000 - sinceBoot : undefined;
  }
}

/** See proc(5). */
function readProcess(): { startedAfterBoot: number; cpuSeconds: number; residentBytes: number } | undefined {
  try {
    const text = readFileSync("/proc/self/stat", "utf8");
    // the program's name, in parentheses, may contain spaces and parentheses
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ").map(Number);
    return {
      startedAfterBoot: fields[19]! / TICKS,
      cpuSeconds: (fields[11]! + fields[12]!) / TICKS,
      residentBytes: Number(/^VmRSS:\s*([0-9]+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1_024,
    };
  } catch {
    return undefined;
  }
}

function endOfCertificate(pem: string | undefined): number | undefined {
  if (pem === undefined) return undefined;
  try {
    return Date.parse(new X509Certificate(pem).validTo) / 1_000;
  } catch {
    return undefined;
  }
}
