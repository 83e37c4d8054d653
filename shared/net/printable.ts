// Sanitizes untrusted text for logs and responses.

/** Control and format characters, line separators and lone surrogates, which can hide, reorder or break a line. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** Replaces unprintable characters with `?` and truncates to `maxLength` characters. */
export function printable(text: string, maxLength = 256): string {
  const truncated = text.length > maxLength ? `${text.slice(0, maxLength - 3)}...` : text;
  return truncated.replace(UNPRINTABLE, "?");
}
