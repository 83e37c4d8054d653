// A file whose content counts as long as it can be read: looked at again and again, and kept as it was while it is missing or spoilt.
import { stat } from "node:fs/promises";

export class WatchedFile<T> {
  #version: string | undefined;
  #value: T | undefined;
  #missing = 0;

  /**
   * @param read what the file stands for; what it throws says why it cannot be used
   */
  constructor(readonly name: string, private readonly read: (name: string) => Promise<T>) {}

  /** As it was last read without a fault. */
  get value(): T {
    if (this.#value === undefined) throw new Error(`${this.name} was not read yet`);
    return this.#value;
  }

  /** Looks in a row that found no file of this name. */
  get missing(): number {
    return this.#missing;
  }

  /**
   * Reads the file where it is another than at the last look. Whether there is a new value. A fault is thrown once, and the value stays.
   * @throws {Error} why it cannot be read, or not be used
   */
  async poll(): Promise<boolean> {
    const { version, error } = await this.#examine();
    this.#missing = version === "ENOENT" ? this.#missing + 1 : 0;
    if (version === this.#version) return false;
    // before it is read: what is written meanwhile is another version at the next look
    this.#version = version;
    if (error !== undefined) throw error;
    this.#value = await this.read(this.name);
    return true;
  }

  async #examine(): Promise<{ version: string; error?: Error }> {
    try {
      const stats = await stat(this.name);
      const version = `${stats.ino} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs}`;
      return { version, error: stats.isDirectory() ? new Error("it is a directory") : undefined };
    } catch (error) {
      return { version: (error as NodeJS.ErrnoException).code ?? "error", error: error as Error };
    }
  }
}
