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
  #formatRecord: (record: LogRecord) => string;

  constructor({ format, level, write, color = false, fields: common = {} }: LoggerOptions) {
    this.#color = color;
    this.#lowest = LOG_LEVELS.indexOf(level);
    this.#format = format;
    this.#formatRecord = formatterOf(format, color);
    const method = (name: LogLevel) => {
      const recordLevel: RecordLevel = name === "warn" ? "warning" : name;
      return (message: string, fields: LogFields = {}) => {
        const properties: Record<string, unknown> = { ...common };
        for (const key in fields) if (fields[key] !== undefined) properties[key] = fields[key];
        const record: LogRecord = {
          category: [],
          level: recordLevel,
          message: [message],
          rawMessage: message,
          timestamp: Date.now(),
          properties,
        };
        write(this.#formatRecord(record));
      };
    };
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
    this.#formatRecord = formatterOf(format, this.#color);
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

function formatterOf(format: LogFormat, color: boolean): (record: LogRecord) => string {
  if (format === "json") return getJsonLinesFormatter({ properties: "flatten" });
  return color ? colorFormatter() : formatText;
}

/** Logs nothing. */
export const silentLogger: Logger & LogControl = createLogger({ format: "text", level: "error", write: () => {} });

const LEVEL_NAMES: Readonly<Record<RecordLevel, string>> = {
  trace: "TRACE",
  debug: "DEBUG",
  info: "INFO ",
  warning: "WARN ",
  error: "ERROR",
  fatal: "FATAL",
};

/** `2026-01-31T12:00:00.000Z INFO  message key=value key="two words"`, always on one line. Not by the library: each tunnel has a line. */
function formatText({ timestamp, level, rawMessage, properties }: LogRecord): string {
  return `${new Date(timestamp).toISOString()} ${LEVEL_NAMES[level]} ${rawMessage}${formatFields(properties)}\n`;
}

/** As {@link formatText}, with colours for a terminal. */
function colorFormatter(): (record: LogRecord) => string {
  return getAnsiColorFormatter({
    timestamp: "rfc3339",
    format: ({ timestamp, level, message, record }) => `${timestamp} ${level} ${message}${formatFields(record.properties)}`,
    level: (name) => LEVEL_NAMES[name],
  });
}

function formatFields(fields: Record<string, unknown>): string {
  let text = "";
  for (const key in fields) text += ` ${key}=${quoteIfNeeded(fields[key])}`;
  return text;
}

/** Escapes values so that a peer can inject neither lines nor fields. */
function quoteIfNeeded(value: unknown): string {
  if (typeof value !== "string") return String(value);
  return /^[\x21\x23-\x3c\x3e-\x7e]+$/.test(value)
    ? value
    : JSON.stringify(value).replace(/[\x7f-\x9f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
