// Tells versions of a file apart without reading it, and watches for new ones. Links are followed: a volume of Kubernetes replaces a link, an editor the file.
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

/** The version of a file, which changes whenever its content may have changed, or why there is none. */
export async function versionOf(file: string): Promise<{ version: string; error?: Error }> {
  try {
    const stats = await stat(file);
    const version = `${stats.ino} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs}`;
    return { version, error: stats.isDirectory() ? new Error("it is a directory") : undefined };
  } catch (error) {
    return { version: (error as NodeJS.ErrnoException).code ?? "error", error: error as Error };
  }
}

/**
 * Calls `onChange` when a file has changed, and then not again for an interval, in which its writer finishes; until it is
 * closed. `onChange` never rejects.
 * @param intervalMs in milliseconds
 */
export async function watchFile(file: string, intervalMs: number, onChange: () => Promise<void>): Promise<{ close(): Promise<void> }> {
  const stopping = new AbortController();
  const { signal } = stopping;
  let { version: seen } = await versionOf(file);
  let applied = seen;
  const run = async (): Promise<void> => {
    while (!signal.aborted) {
      await sleep(intervalMs, undefined, { signal }).catch(() => {}); // stopping
      const { version } = await versionOf(file);
      const isStable = version === seen;
      seen = version;
      if (signal.aborted || !isStable || version === applied) continue;
      applied = version;
      await onChange();
    }
  };
  const running = run();
  return {
    async close() {
      stopping.abort();
      await running;
    },
  };
}
