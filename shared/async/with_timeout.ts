// Waiting with a timeout.

/** The longest timer; longer ones fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Resolves as `promise` does, or with `undefined` after `ms` milliseconds. Rejects as the promise does. */
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
