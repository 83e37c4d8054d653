// The text form of records: `key=value,key=value`, separated by semicolons. A backslash escapes the next character. Knows no options.

/** A pair of a record. The value is missing if there is no equals sign. */
export type Pair = readonly [key: string, value?: string];

/** The separator of records, and of the pairs of one. */
export const RECORD_SEPARATOR = ";";
const PAIR_SEPARATOR = ",";

/** Splits a text into records, without interpreting keys and values. White space around both is dropped. */
export function splitRecords(text: string): Pair[][] {
  if (text === "") return [];
  return split(text, RECORD_SEPARATOR).map((record) => record.trim() === "" ? [] : split(record, PAIR_SEPARATOR).map(toPair));
}

function toPair(text: string): Pair {
  const equals = text.indexOf("=");
  if (equals < 0) return [unescape(text).trim()];
  return [unescape(text.slice(0, equals)).trim(), unescape(text.slice(equals + 1)).trim()];
}

/** The inverse of {@link splitRecords} for one record. */
export function formatRecord(pairs: readonly (readonly [key: string, value: string])[]): string {
  return pairs.map(([key, value]) => `${key}=${value.replace(/[\\,;]/g, "\\$&")}`).join(PAIR_SEPARATOR);
}

/** Splits at separators that are not escaped. The parts keep their escapes. */
function split(text: string, separator: string): string[] {
  const parts: string[] = [];
  let start = 0;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\") at++; // the next one is escaped
    else if (text[at] === separator) {
      parts.push(text.slice(start, at));
      start = at + 1;
    }
  }
  return [...parts, text.slice(start)];
}

function unescape(text: string): string {
  return text.replace(/\\([^])/gu, "$1");
}
