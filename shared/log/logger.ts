// Logs: a line for people, or a line of JSON for machines. Where the lines go is the caller's business.
import {
  getAnsiColorFormatter,
  getJsonLinesFormatter,
  getTextFormatter,
  type LogLevel as RecordLevel,
  type LogRecord,
} from "@logtape/logtape";

/** From the most to the least talkative. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
/** What is less important than it is dropped. */
export type LogLevel = (typeof LOG_LEVELS)[number];

/** For people, and for machines. */
export const LOG_FORMATS = ["text", "json"] as const;
/** `text` for people, `json` for machines: one object a line. */
export type LogFormat = (typeof LOG_FORMATS)[number];

/** What a line says besides its message; `undefined` is left out. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

/** Takes messages in a few fixed words, and what varies as fields. */
export type Logger = { readonly [level in LogLevel]: (message: string, fields?: LogFields) => void };

/** How a logger writes. */
export interface LoggerOptions {
  /** For people or for machines. */
  format: LogFormat;
  /** Messages below it are dropped. */
  level: LogLevel;
  /** Gets every line, its newline included. */
  write: (line: string) => void;
  /** Colours for a terminal, with the format `text`. Default `false`. */
  color?: boolean;
}

/**
 * A logger that writes lines.
 * @example
 * ```ts
 * import { createLogger } from "@reverse-http/reverse-http";
 *
 * const log = createLogger({ format: "json", level: "info", write: (line) => console.log(line.trimEnd()) });
 * log.info("order received", { id: 42 });
 * log.debug("below the level");
 * // prints: .*"message":"order received".*"id":42.*
 * ```
 */
export function createLogger({ format, level, write, color = false }: LoggerOptions): Logger {
  const formatRecord = format === "json" ? getJsonLinesFormatter({ properties: "flatten" }) : textFormatter(color);
  const lowest = LOG_LEVELS.indexOf(level);
  const method = (name: LogLevel) => {
    if (LOG_LEVELS.indexOf(name) < lowest) return () => {};
    const recordLevel: RecordLevel = name === "warn" ? "warning" : name;
    return (message: string, fields: LogFields = {}) => {
      const properties: Record<string, unknown> = {};
      for (const key in fields) if (fields[key] !== undefined) properties[key] = fields[key];
      const record: LogRecord = {
        category: [],
        level: recordLevel,
        message: [message],
        rawMessage: message,
        timestamp: Date.now(),
        properties,
      };
      write(formatRecord(record));
    };
  };
  return { trace: method("trace"), debug: method("debug"), info: method("info"), warn: method("warn"), error: method("error") };
}

/** Says nothing. */
export const silentLogger: Logger = createLogger({ format: "text", level: "error", write: () => {} });

const LEVEL_NAMES: Readonly<Record<RecordLevel, string>> = {
  trace: "TRACE",
  debug: "DEBUG",
  info: "INFO ",
  warning: "WARN ",
  error: "ERROR",
  fatal: "FATAL",
};

/** `2026-01-31T12:00:00.000Z INFO  message key=value key="two words"`, one line whatever the values hold. */
function textFormatter(color: boolean): (record: LogRecord) => string {
  const formatter = color ? getAnsiColorFormatter : getTextFormatter;
  return formatter({
    timestamp: "rfc3339",
    format: ({ timestamp, level, message, record }) => {
      let line = `${timestamp} ${level} ${message}`;
      for (const key in record.properties) line += ` ${key}=${quoteIfNeeded(record.properties[key])}`;
      return line;
    },
    level: (name) => LEVEL_NAMES[name],
  });
}

/** Nothing that a peer sends can begin a new line, or a field of its own. */
function quoteIfNeeded(value: unknown): string {
  if (typeof value !== "string") return String(value);
  return /^[\x21\x23-\x3c\x3e-\x7e]+$/.test(value)
    ? value
    : JSON.stringify(value).replace(/[\x7f-\x9f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
