// Times in the claims of tokens (RFC 7519 §2). Issuers may write anything there.

/** Latest time of a `Date`, in milliseconds since 1970. */
const MAX_TIME = 8.64e15;

/** The time in milliseconds since 1970, between the limits of a `Date`; `undefined` if the claim is no number. */
export function timeOf(claim: unknown): number | undefined {
  if (typeof claim !== "number" || Number.isNaN(claim)) return undefined;
  return Math.min(Math.max(claim * 1_000, -MAX_TIME), MAX_TIME);
}

/** The time as readable text, or the invalid claim itself. */
export function showTime(claim: unknown): string {
  const time = timeOf(claim);
  return time === undefined || Math.abs(time) === MAX_TIME ? String(claim) : new Date(time).toISOString();
}
