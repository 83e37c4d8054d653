// Records spans, and sends them to a collector by OTLP over HTTP, with OpenTelemetry's SDK. What waits for the collector is bounded; what does
// not fit, or is not accepted in time, is dropped and counted. The SDK is loaded only if there is a collector.
import { getRandomValues } from "node:crypto";
import { Buffer } from "node:buffer";
import { hostname } from "node:os";
import type { Context, Span as SdkSpan, TimeInput } from "@opentelemetry/api";
import type { ReadableSpan, SpanExporter, SpanProcessor } from "@opentelemetry/sdk-trace-base";
import { withTimeout } from "../async/with_timeout.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { SecretFiles } from "../files/secret_files.ts";
import { messageOf } from "../log/error_message.ts";
import type { Logger } from "../log/logger.ts";
import { printable } from "../net/printable.ts";
import { VERSION } from "../version.ts";
import { parseHeader, parseHeaderLines, parsePair, tracesUrl, type TracingOptions } from "./options.ts";
import type { Attributes, Span, SpanEnd, SpanKind, TraceContext, Tracer } from "./span.ts";

/** Maximum number of spans that wait for the collector or its response. */
const MAX_WAITING = 4_096;
/** Spans in one request. Fewer wait for others for 5 s, or as OTEL_BSP_SCHEDULE_DELAY says: a request costs as much as a dozen tunnels. */
const MAX_BATCH = 512;
/** Time in milliseconds for one request to the collector with its repetitions, and for the last ones when the service closes. */
const EXPORT_TIMEOUT_MS = 5_000;
/** Time in milliseconds for the last requests to a collector that has not accepted the ones before. */
const LAST_ATTEMPT_MS = 500;
/** Largest file with fields, in bytes. */
const MAX_FIELDS = 64 * 1024;
/** Maximum length of an error of the collector in the log, in characters. */
const MAX_REASON = 300;
/** Maximum length of an attribute in characters. */
const MAX_VALUE = 1_000;

export interface TracerDeps {
  /** Name of the service, unless an option gives another one. */
  readonly service: string;
  readonly log: Logger;
  /** Called with the number of spans that were `exported`, `failed` because the collector did not accept them, or `dropped` before. */
  readonly count?: (outcome: "exported" | "failed" | "dropped", spans: number) => void;
}

/** A tracer that is closed with its service. */
export interface OwnedTracer extends Tracer {
  /** Sends what waits, for at most {@link EXPORT_TIMEOUT_MS}. Later spans are dropped. Never rejects. */
  close(): Promise<void>;
}

/**
 * Creates the tracer that the options name, `undefined` for none.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function openTracer(options: TracingOptions, deps: TracerDeps): Promise<OwnedTracer | undefined> {
  const { otlpEndpoint, samplingRatio, serviceName, resourceAttributes } = options;
  if (otlpEndpoint === undefined) return undefined;
  await checkTracingOptions(options);
  const [api, sdk, { OTLPTraceExporter }, { resourceFromAttributes }] = await Promise.all([
    import("@opentelemetry/api"),
    import("@opentelemetry/sdk-trace-base"),
    import("@opentelemetry/exporter-trace-otlp-http"),
    import("@opentelemetry/resources"),
  ]);
  const url = tracesUrl(otlpEndpoint);
  const otlp = new OTLPTraceExporter({ url, headers: fieldsOf(options, deps.log), timeoutMillis: EXPORT_TIMEOUT_MS });
  const queue = new Queue(otlp, url, deps);
  const limits = { maxQueueSize: MAX_WAITING, maxExportBatchSize: MAX_BATCH };
  queue.processor = new sdk.BatchSpanProcessor(queue, { ...limits, exportTimeoutMillis: EXPORT_TIMEOUT_MS });
  const provider = new sdk.BasicTracerProvider({
    resource: resourceFromAttributes({
      "host.name": hostname(),
      "service.instance.id": crypto.randomUUID(),
      "service.version": VERSION,
      ...Object.fromEntries(resourceAttributes.flatMap((pair) => [parsePair(pair) ?? []])),
      "service.name": serviceName ?? deps.service,
    }),
    sampler: new sdk.AlwaysOnSampler(), // an unsampled request gets no span at all
    spanProcessors: [queue],
    spanLimits: { attributeValueLengthLimit: MAX_VALUE },
  });
  const tracer = provider.getTracer("reverse-http", VERSION);
  const ratio = Number(samplingRatio);
  const ids = new RandomIds();
  const kinds = { server: api.SpanKind.SERVER, client: api.SpanKind.CLIENT };

  const start: StartSpan = (kind, name, parent, attributes, startTime) =>
    tracer.startSpan(name, { kind: kinds[kind], attributes, startTime, root: parent === undefined }, parent ?? api.ROOT_CONTEXT);
  const inside = (span: SdkSpan) => api.trace.setSpan(api.ROOT_CONTEXT, span);
  const below = ({ traceId, spanId, state }: TraceContext) =>
    api.trace.setSpanContext(api.ROOT_CONTEXT, {
      traceId,
      spanId,
      traceFlags: api.TraceFlags.SAMPLED,
      isRemote: true,
      traceState: state === undefined ? undefined : api.createTraceState(state),
    });
  return {
    start(parent, startedAt) {
      const isSampled = parent?.isSampled ?? Math.random() < ratio;
      if (!isSampled) return new UnrecordedSpan(parent ?? { traceId: ids.next(16), spanId: ids.next(8), isSampled });
      const span = start("server", "request", parent && below(parent), {}, epochMs(startedAt));
      return new RecordedSpan(span, parent?.state, start, inside);
    },
    async close() {
      const timeoutMs = queue.hasFailed ? LAST_ATTEMPT_MS : EXPORT_TIMEOUT_MS;
      await withTimeout(timeoutMs, provider.shutdown().catch(() => {})); // what fails is logged and counted
    },
  };
}

/**
 * Checks the file that the options name.
 * @throws {ConfigError}
 */
export async function checkTracingOptions({ otlpEndpoint, otlpHeadersFile: file }: TracingOptions): Promise<void> {
  if (file === undefined) return;
  if (otlpEndpoint === undefined) throw new ConfigError("Cannot use --tracing.otlp-headers-file: --tracing.otlp-endpoint is not set");
  await readFields(file).catch((cause) => {
    throw new ConfigError(`Cannot use --tracing.otlp-headers-file ${JSON.stringify(file)}: ${messageOf(cause)}`, { cause });
  });
}

/** @throws {Error} saying what is wrong with the file */
async function readFields(file: string): Promise<Record<string, string>> {
  const text = await readText(file, MAX_FIELDS).catch((cause) => {
    throw new Error(describeFileError(cause), { cause });
  });
  const fields = parseHeaderLines(text);
  if (fields === undefined) throw new Error("not every line is name: value");
  return fields;
}

/** The fields for each request to the collector: a file may be renewed. */
function fieldsOf({ otlpHeaders, otlpHeadersFile: file }: TracingOptions, log: Logger): () => Promise<Record<string, string>> {
  const fixed = Object.fromEntries(otlpHeaders.flatMap((pair) => [parseHeader(pair) ?? []]));
  if (file === undefined) return () => Promise.resolve(fixed);
  const secrets = new SecretFiles(log);
  return async () => {
    await secrets.check("--tracing.otlp-headers-file", file);
    return { ...fixed, ...await readFields(file) };
  };
}

/** Counts the spans between their end and the collector's response, drops those beyond the limit, and reports when exporting fails. */
class Queue implements SpanProcessor, SpanExporter {
  /** Collects spans into batches, and calls {@link export}. */
  processor?: SpanProcessor;
  readonly #exporter: SpanExporter;
  readonly #url: string;
  readonly #deps: TracerDeps;
  #waiting = 0;
  /** Whether the last export has failed. */
  hasFailed = false;

  constructor(exporter: SpanExporter, url: string, deps: TracerDeps) {
    this.#exporter = exporter;
    this.#url = url;
    this.#deps = deps;
  }

  onStart(): void {}

  onEnd(span: ReadableSpan): void {
    if (this.#waiting >= MAX_WAITING) return this.#deps.count?.("dropped", 1);
    this.#waiting++;
    this.processor?.onEnd(span);
  }

  export(spans: ReadableSpan[], done: Parameters<SpanExporter["export"]>[1]): void {
    this.#exporter.export(spans, (result) => {
      this.#waiting -= spans.length;
      this.#report(spans.length, result.code === 0 ? undefined : result.error ?? new Error("it does not accept them"));
      done({ code: 0 }); // the failure is reported, and the SDK would only tell its global handler
    });
  }

  /** A failure is logged once, until exporting works again. */
  #report(spans: number, error: Error | undefined): void {
    const { log, count } = this.#deps;
    count?.(error === undefined ? "exported" : "failed", spans);
    const endpoint = this.#url;
    if (error !== undefined && !this.hasFailed) {
      log.warn("traces cannot be exported", { endpoint, reason: describeExportError(error) });
    } else if (error === undefined && this.hasFailed) log.info("traces are exported again", { endpoint });
    this.hasFailed = error !== undefined;
  }

  async forceFlush(): Promise<void> {
    await this.processor?.forceFlush();
  }

  /** Called as a processor, and then by the processor as an exporter. */
  #shutdown?: Promise<void>;
  async shutdown(): Promise<void> {
    if (this.#shutdown) return await this.#exporter.shutdown();
    await (this.#shutdown = this.processor?.shutdown() ?? Promise.resolve());
  }
}

/** The SDK's errors have the status as `code`, and the collector's text as `data`. */
function describeExportError({ message, code, data }: Error & { readonly code?: unknown; readonly data?: unknown }): string {
  let text = message || "it does not accept them";
  for (const part of [code, data]) {
    if (part !== undefined && part !== "" && !text.includes(String(part))) text += `: ${String(part)}`;
  }
  return printable(text, MAX_REASON);
}

type StartSpan = (kind: SpanKind, name: string, parent: Context | undefined, attributes: Attributes, startTime?: TimeInput) => SdkSpan;

/** A span that the SDK records. */
class RecordedSpan implements Span {
  readonly context: TraceContext;
  readonly isRecorded = true;
  readonly #span: SdkSpan;
  readonly #start: StartSpan;
  readonly #inside: (span: SdkSpan) => Context;

  constructor(span: SdkSpan, state: string | undefined, start: StartSpan, inside: (span: SdkSpan) => Context) {
    const { traceId, spanId } = span.spanContext();
    this.context = { traceId, spanId, isSampled: true, state };
    this.#span = span;
    this.#start = start;
    this.#inside = inside;
  }

  child(kind: SpanKind, name: string, attributes: () => Attributes): Span {
    const span = this.#start(kind, name, this.#inside(this.#span), attributes());
    return new RecordedSpan(span, this.context.state, this.#start, this.#inside);
  }

  end(describe: () => SpanEnd = () => ({})): void {
    const { name, attributes, error, openedAt } = describe();
    if (name !== undefined) this.#span.updateName(name);
    if (attributes) this.#span.setAttributes(attributes);
    if (openedAt !== undefined) this.#span.addEvent("tunnel opened", epochMs(openedAt));
    if (error) {
      this.#span.setAttribute("error.type", error.type);
      this.#span.setStatus({ code: ERROR_STATUS, message: printable(error.message, MAX_VALUE) });
    }
    this.#span.end();
  }
}

/** `SpanStatusCode.ERROR`, whose module is loaded only if there is a collector. */
const ERROR_STATUS = 2;

/** A span of a trace that is not recorded: its context is passed on, so that no peer records a part of the trace. */
class UnrecordedSpan implements Span {
  readonly isRecorded = false;
  constructor(readonly context: TraceContext) {}

  child(): Span {
    return this;
  }

  end(): void {}
}

function epochMs(at: number): number {
  return Date.now() - performance.now() + at;
}

/** Takes random bytes from the system a few thousand at once: a call for each id costs more than all else of an unrecorded span. */
class RandomIds {
  readonly #bytes = Buffer.alloc(4_096);
  #used = this.#bytes.length;

  /** `bytes` random bytes in hexadecimal digits. */
  next(bytes: number): string {
    if (this.#used + bytes > this.#bytes.length) {
      getRandomValues(this.#bytes);
      this.#used = 0;
    }
    return this.#bytes.toString("hex", this.#used, this.#used += bytes);
  }
}
