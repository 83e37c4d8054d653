// A lock between processes: a file that exists while one of them has it.
import { randomUUID } from "node:crypto";
import { link, open, readFile, rename, rm, stat } from "node:fs/promises";

/** Time in milliseconds between two attempts to take a lock. */
const RETRY_MS = 50;

export interface LockOptions {
  /** Time in milliseconds after which a lock counts as left behind. The task must have ended by then. */
  readonly staleMs: number;
  /** Time in milliseconds to wait for the lock. */
  readonly timeoutMs: number;
}

/**
 * Runs the task while this process alone has the lock `file`.
 * @throws {Error} of the file system, or if the lock is not free in time
 */
export async function withLock<T>(file: string, { staleMs, timeoutMs }: LockOptions, task: () => Promise<T>): Promise<T> {
  const id = randomUUID();
  for (const deadline = performance.now() + timeoutMs; !await take(file, id);) {
    await removeStale(file, id, staleMs);
    if (performance.now() >= deadline) throw new Error(`another process has the lock ${file}`);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  try {
    return await task();
  } finally {
    // it is another's if this one took too long
    if (await readFile(file, "utf8").catch(() => "") === id) await rm(file, { force: true });
  }
}

async function take(file: string, id: string): Promise<boolean> {
  let handle;
  try {
    handle = await open(file, "wx", 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
  try {
    await handle.writeFile(id);
  } finally {
    await handle.close();
  }
  return true;
}

/** Removes a lock whose process has died. */
async function removeStale(file: string, id: string, staleMs: number): Promise<void> {
  const isStale = async (name: string) => Date.now() - (await stat(name)).mtimeMs > staleMs;
  const aside = `${file}.${id}`;
  try {
    if (!await isStale(file)) return;
    await rename(file, aside);
    // another process may have replaced it meanwhile: it gets its lock back
    if (!await isStale(aside)) await link(aside, file);
    await rm(aside, { force: true });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "ENOENT" && code !== "EEXIST") throw error;
  }
}
