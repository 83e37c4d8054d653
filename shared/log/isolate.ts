// Isolates hooks and loggers of an embedding program: if they fail, the caller continues.
import { ignoreLine, type Logger } from "./logger.ts";

/** Returns a logger whose methods never throw. Lines that cannot be logged are lost. */
export function isolateLogger(log: Logger): Logger {
  const method = (level: keyof Logger): Logger[keyof Logger] => (message, fields) => {
    try {
      const result: unknown = log[level](message, fields);
      if (result instanceof Promise) result.catch(() => {}); // an embedding program's method may be asynchronous
    } catch { /* the line is lost */ }
  };
  const [trace, debug, info, warn, error] = [method("trace"), method("debug"), method("info"), method("warn"), method("error")];
  // the level may change meanwhile
  return {
    get trace() {
      return log.trace === ignoreLine ? ignoreLine : trace;
    },
    get debug() {
      return log.debug === ignoreLine ? ignoreLine : debug;
    },
    get info() {
      return log.info === ignoreLine ? ignoreLine : info;
    },
    get warn() {
      return log.warn === ignoreLine ? ignoreLine : warn;
    },
    error,
  };
}

/** Returns a hook that never throws and logs failures instead; `undefined` without a hook. */
export function isolateHook<A extends unknown[]>(
  name: string,
  hook: ((...args: A) => unknown) | undefined,
  log: Logger,
): ((...args: A) => void) | undefined {
  if (hook === undefined) return undefined;
  const failed = (error: unknown) =>
    log.error("hook failed", { hook: name, error: error instanceof Error ? error.stack ?? error.message : String(error) });
  return (...args) => call(() => hook(...args), failed);
}

/** Hooks may be asynchronous, although the caller does not wait for them. */
function call(hook: () => unknown, failed: (error: unknown) => void): void {
  try {
    const result = hook();
    if (result instanceof Promise) result.catch(failed);
  } catch (error) {
    failed(error);
  }
}
