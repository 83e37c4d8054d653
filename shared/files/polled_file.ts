// A file that is polled for changes. Its last valid value is kept while the file is missing or invalid.
import { versionOf } from "./version.ts";

export class PolledFile<T> {
  #version: string | undefined;
  #value: T | undefined;
  #missing = 0;

  /**
   * @param read reads and parses the file; throws if the content is invalid
   */
  constructor(readonly name: string, private readonly read: (name: string) => Promise<T>) {}

  /** The last valid value. */
  get value(): T {
    if (this.#value === undefined) throw new Error(`${this.name} has not been read yet`);
    return this.#value;
  }

  /** Number of consecutive polls that found no file. */
  get missing(): number {
    return this.#missing;
  }

  /**
   * Reads the file if it has changed since the last poll. Returns whether there is a new value. Each error is thrown once; the value stays.
   * @throws {Error} if the file cannot be read or is invalid
   */
  async poll(): Promise<boolean> {
    const { version, error } = await versionOf(this.name);
    this.#missing = version === "ENOENT" ? this.#missing + 1 : 0;
    if (version === this.#version) return false;
    // set before reading: a write in between is then a new version at the next poll
    this.#version = version;
    if (error !== undefined) throw error;
    this.#value = await this.read(this.name);
    return true;
  }
}
