// Numbers with their nouns, in messages.

/**
 * Formats `1 agent`, `2 agents`.
 * @param plural default: the noun with an s
 */
export function quantity(count: number, noun: string, plural = `${noun}s`): string {
  return `${count} ${count === 1 ? noun : plural}`;
}
