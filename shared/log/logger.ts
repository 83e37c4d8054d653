// The logger: formats lines as text or JSON. The caller writes them.
import { getAnsiColorFormatter, getJsonLinesFormatter, type LogLevel as RecordLevel, type LogRecord } from "@logtape/logtape";

/** Log levels, from the most to the least verbose. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
/** Lowest level that is logged. */
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Log formats. */
export const LOG_FORMATS = ["text", "json"] as const;
/** `text` for people; `json` for machines, one object per line. */
export type LogFormat = (typeof LOG_FORMATS)[number];

/** Fields of a line; `undefined` values are omitted. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

/** Logs constant messages, with everything variable in fields. */
export type Logger = { readonly [level in LogLevel]: (message: string, fields?: LogFields) => void };

/** The level of a log, which can be changed while it is used. */
export interface LogLevelControl {
  /** Messages below this level are dropped. */
  level: LogLevel;
}

/** A log whose format can be changed, too. */
export interface LogControl extends LogLevelControl {
  /** The format of later lines. */
  format: LogFormat;
}

/** The method of a level that is not logged. A caller that compares with it saves the preparation of a line. */
export const ignoreLine: Logger[LogLevel] = () => {};

/** Options of {@link createLogger}. */
export interface LoggerOptions {
  /** Format of the lines. */
  format: LogFormat;
  /** Messages below this level are dropped. */
  level: LogLevel;
  /** Writes a line, which ends with a newline. */
  write: (line: string) => void;
  /** Colour for terminals, with the format `text`. Default `false`. */
  color?: boolean;
  /** Fields of every line, before those of the message. Default none. */
  fields?: LogFields;
}

/**
 * Creates a logger.
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
export function createLogger(options: LoggerOptions): Logger & LogControl {
  return new LineLogger(options);
}

/** Formats records at or above its level. */
class LineLogger implements Logger, LogControl {
  readonly #methods: Logger;
  readonly #color: boolean;
  #lowest: number;
  #format: LogFormat;
  #formatLine: LineFormat;

  constructor({ format, level, write, color = false, fields: common }: LoggerOptions) {
    this.#color = color;
    this.#lowest = LOG_LEVELS.indexOf(level);
    this.#format = format;
    this.#formatLine = formatOf(format, color);
    const method = (name: LogLevel) => (message: string, fields: LogFields = {}) =>
      write(this.#formatLine(Date.now(), name, message, common === undefined ? fields : { ...common, ...definedOf(fields) }));
    this.#methods = {
      trace: method("trace"),
      debug: method("debug"),
      info: method("info"),
      warn: method("warn"),
      error: method("error"),
    };
  }

  get format(): LogFormat {
    return this.#format;
  }

  set format(format: LogFormat) {
    this.#format = format;
    this.#formatLine = formatOf(format, this.#color);
  }

  get level(): LogLevel {
    return LOG_LEVELS[this.#lowest]!;
  }

  set level(level: LogLevel) {
    this.#lowest = LOG_LEVELS.indexOf(level);
  }

  get trace(): Logger["trace"] {
    return this.#lowest > 0 ? ignoreLine : this.#methods.trace;
  }

  get debug(): Logger["debug"] {
    return this.#lowest > 1 ? ignoreLine : this.#methods.debug;
  }

  get info(): Logger["info"] {
    return this.#lowest > 2 ? ignoreLine : this.#methods.info;
  }

  get warn(): Logger["warn"] {
    return this.#lowest > 3 ? ignoreLine : this.#methods.warn;
  }

  get error(): Logger["error"] {
    return this.#methods.error;
  }
}

/** Formats a line. Fields that are `undefined` are left out. */
type LineFormat = (timestamp: number, level: LogLevel, message: string, fields: LogFields) => string;

function formatOf(format: LogFormat, color: boolean): LineFormat {
  if (format === "json") return byLibrary(getJsonLinesFormatter({ properties: "flatten" }));
  return color ? byLibrary(colorFormatter()) : textFormat();
}

function byLibrary(formatRecord: (record: LogRecord) => string): LineFormat {
  return (timestamp, level, message, fields) =>
    formatRecord({
      category: [],
      level: level === "warn" ? "warning" : level,
      message: [message],
      rawMessage: message,
      timestamp,
      properties: definedOf(fields),
    });
}

function definedOf(fields: LogFields): LogFields {
  const defined: Record<string, LogFields[string]> = {};
  for (const key in fields) if (fields[key] !== undefined) defined[key] = fields[key];
  return defined;
}

/** Logs nothing. */
export const silentLogger: Logger & LogControl = createLogger({ format: "text", level: "error", write: () => {} });

const LEVEL_NAMES: Readonly<Record<RecordLevel | LogLevel, string>> = {
  trace: "TRACE",
  debug: "DEBUG",
  info: "INFO ",
  warn: "WARN ",
  warning: "WARN ",
  error: "ERROR",
  fatal: "FATAL",
};

/** `2026-01-31T12:00:00.000Z INFO  message key=value key="two words"`, always on one line. Not by the library: each tunnel has a line. */
function textFormat(): LineFormat {
  let [last, time] = [NaN, ""]; // under load many lines have the same
  return (timestamp, level, message, fields) => {
    if (timestamp !== last) [last, time] = [timestamp, new Date(timestamp).toISOString()];
    return `${time} ${LEVEL_NAMES[level]} ${message}${formatFields(fields)}\n`;
  };
}

/** As {@link textFormat}, with colours for a terminal. */
function colorFormatter(): (record: LogRecord) => string {
  return getAnsiColorFormatter({
    timestamp: "rfc3339",
    format: ({ timestamp, level, message, record }) => `${timestamp} ${level} ${message}${formatFields(record.properties)}`,
    level: (name) => LEVEL_NAMES[name],
  });
}

function formatFields(fields: Readonly<Record<string, unknown>>): string {
  let text = "";
  for (const key in fields) if (fields[key] !== undefined) text += ` ${key}=${quoteIfNeeded(fields[key])}`;
  return text;
}

/** Escapes values so that a peer can inject neither lines nor fields. */
function quoteIfNeeded(value: unknown): string {
  if (typeof value !== "string") return String(value);
  return /^[\x21\x23-\x3c\x3e-\x7e]+$/.test(value)
    ? value
    : JSON.stringify(value).replace(/[\x7f-\x9f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
