// Tells versions of a file apart without reading it. Links are followed: a volume of Kubernetes replaces a link, an editor the file.
import { stat } from "node:fs/promises";

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
