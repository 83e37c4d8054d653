// Waiting with an end.

/** What it resolves with, `undefined` where that takes longer than so many milliseconds. Rejects as the promise does. */
export async function within<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    return await Promise.race([promise, new Promise<undefined>((resolve) => timer = setTimeout(() => resolve(undefined), ms))]);
  } finally {
    clearTimeout(timer);
  }
}
