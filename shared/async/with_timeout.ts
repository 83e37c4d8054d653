// Waiting with an end.

/** Timers take no more, and fire at once beyond it. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** What it resolves with, `undefined` where that takes longer than so many milliseconds. Rejects as the promise does. */
export async function withTimeout<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<undefined>((resolve) => timer = setTimeout(() => resolve(undefined), Math.min(ms, MAX_TIMER_MS))),
    ]);
  } finally {
    clearTimeout(timer);
  }
}
