// Spans of distributed traces, as the parts of a request see them. Knows neither HTTP nor a collector.
import { NetError } from "../net/errors.ts";
import { describeTunnelError, TunnelError } from "../tunnel/errors.ts";

/** The place of a request in a trace: the span that what follows is a part of. */
export interface TraceContext {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** 16 hexadecimal digits. */
  readonly spanId: string;
  /** Whether the trace's spans are recorded. */
  readonly isSampled: boolean;
  /** Passed on unchanged. */
  readonly state?: string;
}

/** Named by OpenTelemetry's semantic conventions where they have a name; `undefined` values are left out. */
export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** `server`: it serves a peer's request. `client`: it waits for a peer. */
export type SpanKind = "server" | "client";

export interface SpanError {
  /** An error type of RFC 9209, or the code of an error of the network. */
  readonly type: string;
  /** With the cause, which a client does not learn. */
  readonly message: string;
}

/** What is known at the end of a span. */
export interface SpanEnd {
  /** Replaces the name. */
  readonly name?: string;
  readonly attributes?: Attributes;
  /** The span has failed. */
  readonly error?: SpanError;
  /** When the tunnel was open, on the monotonic clock in milliseconds. */
  readonly openedAt?: number;
}

/** An operation that takes time. */
export interface Span {
  readonly context: TraceContext;
  /** Whether it is exported. */
  readonly isRecorded: boolean;
  /** Starts a part of it. */
  child(kind: SpanKind, name: string, attributes: () => Attributes): Span;
  /** Called once. `describe` is called only if the span is recorded. */
  end(describe?: () => SpanEnd): void;
}

/** Starts spans of requests. */
export interface Tracer {
  /**
   * @param parent the client's; its decision whether to record counts
   * @param startedAt on the monotonic clock in milliseconds
   */
  start(parent: TraceContext | undefined, startedAt: number): Span;
}

/** Runs `work` as the whole of a span. */
export function inSpan<T>(span: Span | undefined, work: () => Promise<T>, describe?: (result: T) => SpanEnd): Promise<T> {
  return span?.isRecorded ? recorded(span, work, describe) : work();
}

async function recorded<T>(span: Span, work: () => Promise<T>, describe?: (result: T) => SpanEnd): Promise<T> {
  try {
    const result = await work();
    span.end(describe && (() => describe(result)));
    return result;
  } catch (error) {
    span.end(() => ({ error: spanError(error) }));
    throw error;
  }
}

export function spanError(error: unknown): SpanError {
  if (error instanceof TunnelError) return { type: error.type, message: describeTunnelError(error) };
  if (error instanceof NetError) return { type: error.code, message: error.message };
  return { type: "proxy_internal_error", message: error instanceof Error ? error.message : String(error) };
}
