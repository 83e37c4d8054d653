// The points of a graph, oldest first, with gaps where nothing was measured.

import type { FailureHistory } from "../shared/service/api/types.ts";

/** Values at one time in milliseconds; `undefined` for what is unknown. */
export interface Point {
  readonly time: number;
  readonly values: readonly (number | undefined)[];
}

/** Times in seconds, then the values of each line, as uPlot takes them. `null` interrupts a line. */
export type Columns = [times: number[], ...lines: (number | null)[][]];

/** Columns of `lines` values. Points that are more than `maxGapMs` apart are not connected. */
export function columns(points: readonly Point[], lines: number, maxGapMs: number): Columns {
  const result: Columns = [[], ...Array.from({ length: lines }, () => [])];
  let before: number | undefined;
  for (const { time, values } of points) {
    if (before !== undefined && time - before > maxGapMs) push(result, (before + time) / 2, []);
    push(result, time, values);
    before = time;
  }
  return result;
}

function push([times, ...lines]: Columns, time: number, values: Point["values"]): void {
  times.push(time / 1_000);
  lines.forEach((line, i) => line.push(values[i] ?? null));
}

/** The most frequent causes of failures have a line each; the others share one. */
const MAX_CAUSES = 5;

/** A graph of failures by cause: a name for each line, and numbers for each minute. */
export function causeLines({ minutes, causes }: FailureHistory): { readonly names: readonly string[]; readonly data: Columns } {
  const shown = causes.slice(0, causes.length > MAX_CAUSES + 1 ? MAX_CAUSES : causes.length);
  const lines = shown.map(({ kind, error, counts }) => ({ name: `${error.replaceAll("_", " ")}, ${kind}`, counts }));
  const others = causes.slice(shown.length);
  if (others.length > 0) {
    const counts = minutes.map((_, i) => others.reduce((sum, { counts }) => sum + (counts[i] ?? 0), 0));
    lines.push({ name: "others", counts });
  }
  const times = minutes.map((minute) => Date.parse(minute) / 1_000);
  return { names: lines.map(({ name }) => name), data: [times, ...lines.map(({ counts }) => [...counts])] };
}

/** The indices of values without neighbours, which no line shows. */
export function isolated(values: ArrayLike<number | null | undefined>): number[] {
  return Array.from(values, (value, i) => value != null && values[i - 1] == null && values[i + 1] == null ? i : -1).filter((i) => i >= 0);
}

/** The last `capacity` points with one more. One from before the last, as after the clock was set back, starts over. */
export function append<T>(points: readonly T[], point: T, timeOf: (point: T) => number, capacity: number): readonly T[] {
  const last = points.at(-1);
  if (last === undefined || timeOf(point) < timeOf(last)) return [point];
  return timeOf(point) === timeOf(last) ? points : [...points.slice(1 - capacity), point];
}

/** A counter's increase per second; `undefined` after a restart, which sets it to 0, and for no time. */
export function perSecond(before: number, after: number, elapsedMs: number): number | undefined {
  return after < before || elapsedMs <= 0 ? undefined : (after - before) * 1_000 / elapsedMs;
}
