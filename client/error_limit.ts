// A limit on the lines about failed connections: programs try again.
import { LogLimit } from "../shared/log/limit.ts";
import { ignoreLine, type Logger } from "../shared/log/logger.ts";

/** What {@link limitErrors} counts. */
export const ERRORS = "errors";

/** Admits ten lines in a minute, and reports how many were left out. */
export function limitErrors(report: (line: string) => void): LogLimit {
  const warn: Logger["warn"] = (_, { suppressed = 0 } = {}) => report(`${suppressed} more errors in this minute`);
  return new LogLimit({ log: { trace: ignoreLine, debug: ignoreLine, info: ignoreLine, warn, error: ignoreLine } });
}
