// A cache of verified tokens, which saves the signature check of repeated ones. Only the last ones are kept.

/** Maximum number of tokens. */
const MAX_CACHED = 1000;

export class VerifiedTokens<T> {
  readonly #tokens = new Map<string, T>();

  /**
   * The cached token for the key, or else the result of `verify`.
   * @param key all that the result depends on
   * @throws what `verify` throws, which is not kept
   */
  async get(key: string, verify: () => Promise<T>): Promise<T> {
    const known = this.#tokens.get(key);
    this.#tokens.delete(key);
    const token = known ?? await verify();
    this.#tokens.set(key, token);
    if (this.#tokens.size > MAX_CACHED) this.#tokens.delete(this.#tokens.keys().next().value!);
    return token;
  }

  clear(): void {
    this.#tokens.clear();
  }
}
