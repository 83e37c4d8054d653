// The place of a request in a trace, as HTTP fields carry it: W3C Trace Context (https://www.w3.org/TR/trace-context-1/).
import { type Fields, values } from "../http/head.ts";
import type { Span, TraceContext } from "./span.ts";

const TRACEPARENT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;
/** Characters of tracestate that are passed on (§3.3.1.5); a longer one is dropped. */
const MAX_STATE = 512;

/** The context that a peer has sent; `undefined` if there is none, or it is not valid. A valid one is safe to log. */
export function parseTraceContext(fields: Fields): TraceContext | undefined {
  const parents = values(fields, "traceparent");
  if (parents.length !== 1) return undefined;
  const [, version, traceId, spanId, flags, rest] = TRACEPARENT.exec(parents[0]!) ?? [];
  // version 00 has four parts; later ones may have more (§3.2.4)
  if (version === undefined || version === "ff" || (version === "00" && rest !== undefined)) return undefined;
  if (/^0+$/.test(traceId!) || /^0+$/.test(spanId!)) return undefined;
  const state = values(fields, "tracestate").join(",");
  const isValidState = state.length <= MAX_STATE && /^[\x20-\x7e]+$/.test(state);
  return {
    traceId: traceId!,
    spanId: spanId!,
    isSampled: (Number.parseInt(flags!, 16) & 1) === 1,
    state: isValidState ? state : undefined,
  };
}

/** The fields for a peer, whose spans become children of the context's span; empty without a context. */
export function traceFields(span: Pick<Span, "context"> | undefined): Fields {
  if (span === undefined) return [];
  const { traceId, spanId, isSampled, state } = span.context;
  const parent = ["traceparent", `00-${traceId}-${spanId}-0${isSampled ? 1 : 0}`] as const;
  return state === undefined ? [parent] : [parent, ["tracestate", state]];
}

const NAMES = ["traceparent", "tracestate"];

/** The fields of a request that is forwarded, with the context of `span` instead of the client's. Without a span, they stay. */
export function withTrace(fields: Fields, span: Span | undefined): Fields {
  if (span === undefined) return fields;
  return [...fields.filter(([name]) => !NAMES.includes(name.toLowerCase())), ...traceFields(span)];
}
