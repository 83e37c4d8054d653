// What a page has seen of one thing since it was opened, for its graphs: the server keeps no history of single agents and tunnels.
import { useLayoutEffect, useState } from "preact/hooks";
import { append, type Columns, columns, type Point } from "./series.ts";

export interface Seen<T> {
  readonly time: number;
  readonly state: T;
}

const MAX_STATES = 300;
const MAX_GAP_MS = 7_000;

/** The states that `state` has had, each time it was loaded. */
export function useStates<T>(state: T | undefined): readonly Seen<T>[] {
  const [states, setStates] = useState<readonly Seen<T>[]>([]);
  useLayoutEffect(() => {
    if (state === undefined) return;
    setStates((before) => append(before, { time: Date.now(), state }, ({ time }) => time, MAX_STATES));
  }, [state]);
  return states;
}

/** Values of each state, with the one before it. */
export function statesToColumns<T>(
  states: readonly Seen<T>[],
  lines: number,
  pick: (state: T, before: T | undefined) => Point["values"],
): Columns {
  return columns(states.map(({ time, state }, i) => ({ time, values: pick(state, states[i - 1]?.state) })), lines, MAX_GAP_MS);
}
