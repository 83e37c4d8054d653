// A tracer that keeps what its spans say.
import type { Span, SpanEnd, TraceContext, Tracer } from "../shared/tracing/span.ts";

/** The trace of all its spans. */
export const TRACE_ID = "a".repeat(32);

export class RecordingTracer implements Tracer {
  readonly parents: (TraceContext | undefined)[] = [];
  readonly ends: SpanEnd[] = [];

  start(parent: TraceContext | undefined): Span {
    this.parents.push(parent);
    const context = { traceId: TRACE_ID, spanId: String(this.parents.length).padStart(16, "0"), isSampled: true, state: parent?.state };
    const span: Span = { context, isRecorded: true, child: () => span, end: (describe) => void this.ends.push(describe?.() ?? {}) };
    return span;
  }
}
