// Numbered text patterns, in which one `*` matches any characters. Finds the matching ones without trying each.

export class TextPatterns {
  readonly #ids = new Map<string, number>();
  /** Patterns with a `*` by the longer part: what stands before it, or behind it. */
  readonly #starts = new Affixes();
  readonly #ends = new Affixes();

  /** Number of different patterns. */
  get size(): number {
    return this.#ids.size;
  }

  /** The number of the pattern, from 0 on. Equal patterns have the same. */
  add(pattern: string): number {
    const known = this.#ids.get(pattern);
    if (known !== undefined) return known;
    const id = this.#ids.size;
    this.#ids.set(pattern, id);
    const star = pattern.indexOf("*");
    if (star < 0) return id;
    const [start, end] = [pattern.slice(0, star), pattern.slice(star + 1)];
    if (start.length >= end.length) this.#starts.add(start, { id, start, end });
    else this.#ends.add(end, { id, start, end });
    return id;
  }

  /** Calls `visit` with the number of each pattern that matches. */
  match(text: string, visit: (id: number) => void): void {
    this.matchExactly(text, visit);
    this.#starts.match(text, true, visit);
    this.#ends.match(text, false, visit);
  }

  /** Calls `visit` only for the pattern that equals the text. */
  matchExactly(text: string, visit: (id: number) => void): void {
    const id = text.includes("*") ? undefined : this.#ids.get(text);
    if (id !== undefined) visit(id);
  }
}

interface Wildcard {
  readonly id: number;
  readonly start: string;
  readonly end: string;
}

class Affixes {
  readonly #patterns = new Map<string, Wildcard[]>();
  readonly #lengths = new Set<number>();

  add(affix: string, pattern: Wildcard): void {
    this.#lengths.add(affix.length);
    const patterns = this.#patterns.get(affix);
    if (patterns) patterns.push(pattern);
    else this.#patterns.set(affix, [pattern]);
  }

  /** @param atStart whether the affixes are those at the start of the text */
  match(text: string, atStart: boolean, visit: (id: number) => void): void {
    for (const length of this.#lengths) {
      if (length > text.length) continue;
      const patterns = this.#patterns.get(atStart ? text.slice(0, length) : text.slice(text.length - length));
      if (patterns === undefined) continue;
      for (const { id, start, end } of patterns) {
        if (text.length >= start.length + end.length && text.startsWith(start) && text.endsWith(end)) visit(id);
      }
    }
  }
}
