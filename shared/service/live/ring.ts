// The last items of a sequence, bounded in number.

export class Ring<T> {
  readonly #items: T[] = [];
  readonly #size: number;
  /** Where the next item goes once it is full. */
  #next = 0;

  /** @param size most items, 1 or more */
  constructor(size: number) {
    this.#size = size;
  }

  /** Replaces the oldest item if it is full. */
  push(item: T): void {
    if (this.#items.length < this.#size) this.#items.push(item);
    else {
      this.#items[this.#next] = item;
      this.#next = (this.#next + 1) % this.#size;
    }
  }

  /** All items, the oldest first. */
  toArray(): T[] {
    return [...this.#items.slice(this.#next), ...this.#items.slice(0, this.#next)];
  }
}
