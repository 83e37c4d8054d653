// Loads something again and again while the page is visible. A hidden page sends nothing.
import { useEffect, useRef, useState } from "preact/hooks";

/** Where a page says whether it is visible: `document`. */
export interface Visibility extends EventTarget {
  readonly hidden: boolean;
}

/**
 * Calls `load` at once, and again `intervalMs` after each call has ended, but not while the page is hidden. A call that still runs when it is
 * hidden is aborted.
 * @param load reports its own errors
 * @param intervalMs `undefined`: once
 * @returns a function that stops it
 */
export function poll(load: (signal: AbortSignal) => Promise<void>, intervalMs: number | undefined, page: Visibility): () => void {
  let running: AbortController | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const stop = () => {
    clearTimeout(timer);
    running?.abort();
    running = undefined;
  };
  const run = async () => {
    const own = running = new AbortController();
    await load(own.signal).catch(() => {});
    if (running === own && intervalMs !== undefined) timer = setTimeout(run, intervalMs);
  };
  const changed = () => {
    stop();
    if (!page.hidden) void run();
  };
  page.addEventListener("visibilitychange", changed);
  changed();
  return () => {
    page.removeEventListener("visibilitychange", changed);
    stop();
  };
}

export interface Polled<T> {
  /** What was loaded last. */
  readonly value?: T;
  /** Why the last attempt failed; `value` is older then. */
  readonly error?: Error;
  /** Loads now. */
  readonly reload: () => void;
}

export interface PollOptions {
  /** `undefined`: once. */
  readonly intervalMs?: number;
  /** What is loaded. A change drops the value. */
  readonly subject: string;
  /** Which part of it is loaded. A change loads at once and keeps the value meanwhile. */
  readonly part?: string;
}

/** {@link poll} in a component. */
export function usePolled<T>(load: (signal: AbortSignal) => Promise<T>, { intervalMs, subject, part = "" }: PollOptions): Polled<T> {
  const [state, setState] = useState<{ subject: string; value?: T; error?: Error }>({ subject });
  const [reloads, setReloads] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const loadOnce = async (signal: AbortSignal) => {
      try {
        const value = await latest.current(signal);
        if (!signal.aborted) setState({ subject, value });
      } catch (error) {
        if (!signal.aborted) setState((before) => ({ ...before.subject === subject ? before : { subject }, error: error as Error }));
      }
    };
    return poll(loadOnce, intervalMs, document);
  }, [subject, part, intervalMs, reloads]);
  const { value, error } = state.subject === subject ? state : {};
  return { value, error, reload: () => setReloads((times) => times + 1) };
}
