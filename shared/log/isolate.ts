// What the embedding program gives to be called: a hook or a logger that fails must not change what the caller does. It knows no hook.
import type { Logger } from "./logger.ts";

/** A logger whose methods never throw. What cannot be logged is lost. */
export function isolateLogger(log: Logger): Logger {
  const method = (level: keyof Logger): Logger[keyof Logger] => (message, fields) => call(() => log[level](message, fields), () => {});
  return { trace: method("trace"), debug: method("debug"), info: method("info"), warn: method("warn"), error: method("error") };
}

/** The hook, which never throws: its failure is logged. `undefined` for none. */
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

/** Hooks may be asynchronous, although nothing waits for them. */
function call(hook: () => unknown, failed: (error: unknown) => void): void {
  try {
    const result = hook();
    if (result instanceof Promise) result.catch(failed);
  } catch (error) {
    failed(error);
  }
}
