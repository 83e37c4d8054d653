// Formats words for shells, in commands that are printed to be pasted.

/** Quotes a word unless every shell takes it as it is. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
