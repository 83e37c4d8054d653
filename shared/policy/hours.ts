// Times of the week: `Mon-Fri 08:00-18:00`, in the time zone of the policy.

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY = 24 * 60;
const WEEK = 7 * DAY;

/** Minutes of the week from Monday 00:00 on, `[first, end)`; the end may be in the next week. */
export type Span = readonly [first: number, end: number];

/**
 * Parses days, a time of the day, or both: `Mon-Fri 08:00-18:00`, `Sat,Sun`, `22:00-06:00`. A time that ends before it begins ends on the next
 * day.
 * @throws {RangeError} saying what is wrong
 */
export function parseHours(text: string): Span[] {
  const [, days, from, to] = /^([A-Za-z,-]+)?(?:(?:^|\s+)([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2}))?$/.exec(text.trim()) ?? [];
  if (days === undefined && from === undefined) throw new RangeError(`${JSON.stringify(text)} is not a time like Mon-Fri 08:00-18:00`);
  const [first, last] = from === undefined ? [0, DAY] : [parseTime(from), parseTime(to!)];
  if (first === last) throw new RangeError(`${JSON.stringify(text)} ends when it begins; leave the time out for whole days`);
  const length = last > first ? last - first : last + DAY - first;
  return parseDays(days).map((day) => [day * DAY + first, day * DAY + first + length]);
}

function parseTime(text: string): number {
  const [hours, minutes] = text.split(":").map(Number) as [number, number];
  if (hours * 60 + minutes > DAY || minutes > 59) throw new RangeError(`${JSON.stringify(text)} is not a time from 00:00 to 24:00`);
  return hours * 60 + minutes;
}

function parseDays(text: string | undefined): number[] {
  if (text === undefined) return DAYS.map((_, day) => day);
  return text.split(",").flatMap((part) => {
    const ends = part.split("-").map((name) => DAYS.indexOf(name.toLowerCase()));
    const [first, last = first] = ends;
    if (ends.length > 2 || ends.includes(-1)) {
      throw new RangeError(`${JSON.stringify(part)} is not a day or a range of days, as Mon-Fri is`);
    }
    return Array.from({ length: (last! - first! + 7) % 7 + 1 }, (_, i) => (first! + i) % 7);
  });
}

/** Whether the minute of the week is in any span. */
export function isWithin(spans: readonly Span[], minute: number): boolean {
  return spans.some(([first, end]) => (first <= minute && minute < end) || (first <= minute + WEEK && minute + WEEK < end));
}

/**
 * Returns the minute of the week at a time in milliseconds since 1970.
 * @throws {RangeError} for an unknown time zone
 */
export function createWeekClock(timeZone: string): (at: number) => number {
  const format = new Intl.DateTimeFormat("en-US", { timeZone, weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  let [known, minute] = [-1, 0];
  return (at) => {
    const current = Math.floor(at / 60_000);
    if (current !== known) {
      const parts = Object.fromEntries(format.formatToParts(current * 60_000).map(({ type, value }) => [type, value]));
      minute = DAYS.indexOf(parts.weekday!.toLowerCase()) * DAY + Number(parts.hour) * 60 + Number(parts.minute);
      known = current;
    }
    return minute;
  };
}
