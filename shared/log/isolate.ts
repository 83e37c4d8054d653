// Isolates hooks and loggers of an embedding program: if they fail, the caller continues.
import { ignoreLine, type Logger } from "./logger.ts";

/** Returns a logger whose methods never throw. Lines that cannot be logged are lost. */
export function isolateLogger(log: Logger): Logger {
  const method = (level: keyof Logger): Logger[keyof Logger] => {
    if (log[level] === ignoreLine) return ignoreLine;
    return (message, fields) => {
      try {
        const result: unknown = log[level](message, fields);
        if (result instanceof Promise) result.catch(() => {}); // an embedding program's method may be asynchronous
      } catch { /* the line is lost */ }
    };
  };
  return { trace: method("trace"), debug: method("debug"), info: method("info"), warn: method("warn"), error: method("error") };
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
