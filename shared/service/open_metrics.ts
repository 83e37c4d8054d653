// Metrics in the text format OpenMetrics 1.0, with exemplars: https://prometheus.io/docs/specs/om/open_metrics_spec/. The library writes it too,
// but renames counters for good, writes bounds of buckets that parsers refuse, and takes exemplars only with objects for each observation.
import type { MetricObjectWithValues, MetricValue } from "prom-client";

export const OPEN_METRICS_TYPE = "application/openmetrics-text";

/** Whether a request's Accept names the format, and no other text with a higher weight (RFC 9110 §12.5.1). */
export function prefersOpenMetrics(accept = ""): boolean {
  const weightOf = (type: string): number => {
    const weights = accept.toLowerCase().split(",").map((range) => range.split(";").map((part) => part.trim()))
      .filter(([name]) => name === type)
      .map(([, ...parameters]) => Number(parameters.find((parameter) => parameter.startsWith("q="))?.slice(2) ?? 1));
    return Math.max(0, ...weights.filter((weight) => weight >= 0));
  };
  const weight = weightOf(OPEN_METRICS_TYPE);
  return weight > 0 && weight >= weightOf("text/plain");
}

/** One observation of a bucket, to look up. */
export interface Exemplar {
  /** 128 characters at most in all, with their names. */
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
  /** Milliseconds since 1970. */
  readonly at: number;
}

export type Metric = MetricObjectWithValues<MetricValue<string> & { readonly metricName?: string }>;

export type FindExemplar = (metric: string, bound: number, labels: Metric["values"][number]["labels"]) => Exemplar | undefined;

/** @param exemplarOf the exemplar of a histogram's bucket, by its upper bound */
export function formatOpenMetrics(metrics: readonly Metric[], exemplarOf: FindExemplar): string {
  let text = "";
  for (const { name, help, type, values } of metrics) {
    const isCounter = String(type) === "counter";
    const family = isCounter ? name.replace(/_total$/, "") : name;
    text += `# TYPE ${family} ${type}\n# HELP ${family} ${escape(help)}\n`;
    for (const { metricName = isCounter ? `${family}_total` : family, labels, value } of values) {
      const { le } = labels;
      const exemplar = le === undefined ? undefined : exemplarOf(name, Number(le === "+Inf" ? Infinity : le), labels);
      text += `${metricName}${formatLabels(labels)} ${formatNumber(value)}${exemplar ? formatExemplar(exemplar) : ""}\n`;
    }
  }
  return `${text}# EOF\n`;
}

/** The text format of Prometheus, for metrics of several processes. */
export function formatText(metrics: readonly Metric[]): string {
  let text = "";
  for (const { name, help, type, values } of metrics) {
    text += `# HELP ${name} ${help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}\n# TYPE ${name} ${type}\n`;
    for (const { metricName = name, labels, value } of values) text += `${metricName}${formatLabels(labels)} ${formatNumber(value)}\n`;
    text += "\n";
  }
  return text;
}

/** The label by which metrics of several workers differ. */
export const WORKER_LABEL = "worker";

/** The metrics of several workers as those of one service. */
export function joinMetrics(parts: readonly { readonly worker: string; readonly metrics: readonly Metric[] }[]): Metric[] {
  const joined = new Map<string, Metric>();
  for (const { worker, metrics } of parts) {
    for (const metric of metrics) {
      const values = metric.values.map((value) => ({ ...value, labels: { ...value.labels, [WORKER_LABEL]: worker } }));
      joined.set(metric.name, { ...metric, values: [...joined.get(metric.name)?.values ?? [], ...values] });
    }
  }
  return [...joined.values()];
}

function formatExemplar({ labels, value, at }: Exemplar): string {
  return ` # ${formatLabels(labels) || "{}"} ${value} ${at / 1_000}`;
}

function formatLabels(labels: Readonly<Partial<Record<string, string | number>>>): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${name === "le" ? formatBound(value) : escape(String(value))}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

/** Bounds are in one form everywhere: whole numbers have a decimal point. */
function formatBound(bound: string | number | undefined): string {
  return Number.isInteger(Number(bound)) ? Number(bound).toFixed(1) : String(bound);
}

function formatNumber(given: number | string): string {
  const value = Number(given); // of another process in JSON, where infinity has no number
  return Number.isFinite(value) ? String(value) : Number.isNaN(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
}

function escape(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');
}

/** A traced request is worth more than a later one that is not, for this time in milliseconds. */
const TRACED_MS = 60_000;

/** Another request is kept for this time in milliseconds: a scrape reads one of them. */
const KEPT_MS = 1_000;

/** A request of the last second of each bucket of a histogram; the last traced one, if there was one recently. */
export class RequestExemplars {
  readonly #bounds: readonly number[];
  readonly #exemplars: (Exemplar | undefined)[] = [];

  /** @param bounds of the buckets, in ascending order, without infinity */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
  }

  /** @param traceId of a request whose trace is recorded */
  observe(value: number, requestId: string, traceId: string | undefined, at: number): void {
    let bucket = 0;
    while (value > this.#bounds[bucket]!) bucket++;
    const before = this.#exemplars[bucket];
    if (traceId === undefined && before !== undefined && at - before.at < (before.labels["trace_id"] === undefined ? KEPT_MS : TRACED_MS)) {
      return;
    }
    const labels: Exemplar["labels"] = traceId === undefined ? { request_id: requestId } : { trace_id: traceId, request_id: requestId };
    this.#exemplars[bucket] = { labels, value, at };
  }

  of(bound: number): Exemplar | undefined {
    const bucket = this.#bounds.indexOf(bound);
    return this.#exemplars[bucket < 0 ? this.#bounds.length : bucket];
  }
}
