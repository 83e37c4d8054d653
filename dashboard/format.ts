// Numbers, times and untrusted text as the page shows them.

/** Control and format characters, line separators and lone surrogates, which can hide or reorder text. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** Text from a peer with its unprintable characters as escapes, such as `\u202e`. */
export function visible(text: string): string {
  return text.replace(UNPRINTABLE, (char) => `\\u${char.codePointAt(0)!.toString(16).padStart(4, "0")}`);
}

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** `1.5 MB`, with units of 1,000. */
export function bytes(count: number): string {
  let value = Math.max(0, count);
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1_000;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ${UNITS[unit]}`;
}

/** `1.5 MB/s`; a dash if it is unknown, as after a restart. */
export function rate(bytesPerSecond: number | undefined): string {
  return bytesPerSecond === undefined ? "–" : `${bytes(bytesPerSecond)}/s`;
}

/** `connection_refused` as words. */
export const words = (error: string): string => error.replaceAll("_", " ");

/** `12,345`. */
export const count = (value: number): string => value.toLocaleString("en-US");

/** `850 µs`, `12.5 ms`, `3.2 s`; a dash if it is unknown. */
export function milliseconds(ms: number | undefined): string {
  if (ms === undefined) return "–";
  if (ms < 1) return `${Math.round(ms * 1_000)} µs`;
  if (ms < 999.5) return `${ms < 99.95 ? ms.toFixed(1).replace(/\.0$/, "") : ms.toFixed(0)} ms`;
  return duration(ms);
}

/** `45 s`, `3 min 5 s`, `2 h 10 min`, `14 d`: the two largest units, and of 10 or more one. */
export function duration(ms: number): string {
  const seconds = Math.max(0, ms) / 1_000;
  if (seconds < 10) return `${seconds.toFixed(1).replace(/\.0$/, "")} s`;
  const parts: [unit: string, size: number][] = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  let rest = Math.floor(seconds);
  const shown: string[] = [];
  for (const [unit, size] of parts) {
    const value = Math.floor(rest / size);
    rest -= value * size;
    if (value > 0) shown.push(`${value} ${unit}`);
    else if (shown.length > 0) break;
    if (shown.length === 2 || value >= 10) break;
  }
  return shown.join(" ");
}

/** `in 14 d`, or `expired`; a dash if it is unknown. */
export function timeLeft(expiresAt: string | undefined): string {
  if (expiresAt === undefined) return "–";
  const ms = Date.parse(expiresAt) - Date.now();
  return ms > 0 ? `in ${duration(ms)}` : "expired";
}

/** A share between 0 and 1 as `1.2 %`; a dash if it is unknown. */
export function percent(share: number | undefined): string {
  return share === undefined ? "–" : `${share === 0 ? "0" : (share * 100).toFixed(share < 0.1 ? 2 : 1)} %`;
}

/** The local time. */
export const timeOfDay = (time: number): string => dateTime(time).split(" ")[1]!;

/** The local date and time. */
export function dateTime(time: number): string {
  const date = new Date(time);
  const two = (value: number) => String(value).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ` +
    `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
