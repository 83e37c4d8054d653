// Text that a peer chose, as it may appear in logs and answers.

/** Control and format characters, line separators and halves of surrogate pairs: what can hide, reorder or break a line. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** `text` with `?` for what cannot be printed, cut off behind `most` characters. */
export function printable(text: string, most = 256): string {
  const cut = text.length > most ? `${text.slice(0, most - 3)}...` : text;
  return cut.replace(UNPRINTABLE, "?");
}
