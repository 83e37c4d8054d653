// Option definitions. One definition gives an option's flag, environment variable, configuration key, default, validation, help and type.
import { splitHostPort } from "../address/host_port.ts";
import { RECORD_SEPARATOR, splitRecords } from "./records.ts";

/** Value types by option kind. */
interface Kinds {
  string: string;
  /** A file name. */
  file: string;
  /** `host:port`, `[host]:port` or `:port`. */
  address: string;
  /** Milliseconds; written as in Go: `300ms`, `10s`, `1m30s`, `24h`. */
  duration: number;
  /** `true` or `false`, in any form that Go's strconv.ParseBool accepts: `1`, `t`, `TRUE` … */
  boolean: boolean;
  /** Zero or more. */
  integer: number;
  /** Repeatable, or comma-separated. */
  list: string[];
  /** `key=value` pairs, comma-separated; repeatable, or separated by semicolons. A backslash escapes the next character. */
  records: ConfigRecord[];
}
type Kind = keyof Kinds;
/** The values of one record, by key in camel case. */
type ConfigRecord = Readonly<Record<string, string | number | boolean | string[] | undefined>>;

/** When an option that is reloaded takes effect: for everything, or for connections or tunnels that are opened afterwards. */
const RELOADS = ["at once", "new connections", "new tunnels"] as const;
export type Reload = (typeof RELOADS)[number];

interface OptionOf<K extends Kind> {
  readonly kind: K;
  /** In command-line form. Without a default, an unset option is `undefined`. */
  readonly default?: string;
  /** One sentence: meaning, unit, default, meaning of zero. */
  readonly description: string;
  /** The valid values. Default: any. */
  readonly choices?: readonly string[];
  /** Letter of the short flag. Default: none. */
  readonly short?: string;
  /** Environment variable. Default: derived from the name. */
  readonly env?: string;
  /** The value is never shown. Default `false`. */
  readonly secret?: boolean;
  /** Set for options that restrict access: an empty environment variable is then an error, not unset. The text says what to write instead. */
  readonly guards?: string;
  /** When a new value takes effect on a reload of the configuration. Default: with a restart. */
  readonly reload?: Reload;
  /** Whether a new value may forbid open tunnels or connections. Default `false`. */
  readonly cuts?: boolean;
  /** Why a new value needs a restart. Options of services have either this or `reload`. */
  readonly restart?: string;
  /** Longest duration in milliseconds. Default 576 h, the limit of timers. */
  readonly maxMs?: number;
  /** A word for a duration of zero, which then is no time: `auto`. Default: none. */
  readonly zero?: string;
  /** Returns why a value is invalid, or `undefined`. It never quotes the value of a secret. */
  readonly check?: (value: Kinds[K]) => string | undefined;
}

type KeyKind = Exclude<Kind, "records">;

/** One key of records. It must be set if it is neither a list nor optional and has no default. A list is written by repeating its key. */
export type RecordKey = {
  [K in KeyKind]: Pick<OptionOf<K>, "kind" | "default" | "description" | "choices" | "maxMs" | "check"> & { readonly optional?: true };
}[KeyKind];

interface RecordsOption extends OptionOf<"records"> {
  /** By name as written: `idle-timeout`. */
  readonly keys: Readonly<Record<string, RecordKey>>;
}

type SingleOption = { [K in Exclude<Kind, "records">]: OptionOf<K> }[Exclude<Kind, "records">];

/** One option. */
export type Option = SingleOption | RecordsOption;

/** Options by name: `agent-server.listen-address`. */
export type Options = Readonly<Record<string, Option>>;

type Camel<S extends string> = S extends `${infer A}-${infer B}` ? `${A}${Capitalize<Camel<B>>}` : S;
type OptionalOf<K> = { [N in keyof K]: K[N] extends { optional: true } ? N : never }[keyof K];
type Value<O extends Option | RecordKey> = O extends { keys: infer K extends RecordsOption["keys"] } ? Simplify<
    & { readonly [N in Exclude<keyof K & string, OptionalOf<K>> as Camel<N>]: NonNullable<Value<K[N]>> }
    & { readonly [N in OptionalOf<K> & string as Camel<N>]?: Value<K[N]> }
  >[]
  : O extends { choices: readonly (infer C)[] } ? C
  : O extends { kind: infer K extends Kind }
    ? O extends { default: string } ? Kinds[K] : K extends "list" | "boolean" ? Kinds[K] : Kinds[K] | undefined
  : never;
type Nest<N extends string, V> = N extends `${infer Head}.${infer Rest}` ? { [K in Camel<Head>]: Nest<Rest, V> } : { [K in Camel<N>]: V };
type Intersect<U> = (U extends unknown ? (u: U) => void : never) extends (i: infer I) => void ? I : never;
type Simplify<T> = T extends readonly unknown[] ? T : T extends object ? { [K in keyof T]: Simplify<T[K]> } : T;

/** The option values as a nested object: `--agent-server.listen-address` is `agentServer.listenAddress`. */
export type ValuesOf<O extends Options> = Simplify<Intersect<{ [N in keyof O & string]: Nest<N, Value<O[N]>> }[keyof O & string]>>;

/** Returns `options` with the literal types that {@link ValuesOf} needs. */
export function defineOptions<const O extends Options>(options: O): O {
  return options;
}

export function flagOf(name: string): string {
  return `--${name}`;
}

export function envOf(name: string, option: Option): string {
  return option.env ?? `${ENV_PREFIX}${name.toUpperCase().replace(/[.-]/g, "_")}`;
}

export const ENV_PREFIX = "REVERSE_HTTP_";
/** Prefix of the variables of clients, which may be in the environment of a service. */
export const CLIENT_ENV_PREFIX = `${ENV_PREFIX}CLIENT_`;

/** What separates the values of an option that can be repeated; `undefined` for one that cannot. */
export function separatorOf({ kind }: Option): string | undefined {
  return kind === "list" ? "," : kind === "records" ? RECORD_SEPARATOR : undefined;
}

/** Whether a record must have the key. */
export function isRequired({ kind, default: value, optional }: RecordKey): boolean {
  return kind !== "list" && value === undefined && !optional;
}

/** The description for help and documentation; for records, of their keys too. */
export function describeOption(option: Option): string {
  if (option.kind !== "records") return option.description;
  const keys = Object.entries(option.keys).map(([key, { description, default: value }]) =>
    `${key}: ${description}${value === undefined ? "" : ` (default ${value})`}`
  );
  return `${option.description} Written ${recordForm(option.keys)}, repeatable or separated by semicolons. ${keys.join(" ")}`;
}

/** How a record is written: `listen=ADDRESS,agent=STRING[,sni=ITEM]...`, with keys that may be left out in brackets. */
function recordForm(keys: RecordsOption["keys"]): string {
  return Object.entries(keys).map(([key, definition], i) => {
    const isList = definition.kind === "list";
    const pair = `${i > 0 ? "," : ""}${key}=${isList ? "ITEM" : definition.kind.toUpperCase()}`;
    return isRequired(definition) ? pair : `[${pair}]${isList ? "..." : ""}`;
  }).join("");
}

export function camelCase(name: string): string {
  return name.replace(/-(.)/g, (_, c: string) => c.toUpperCase());
}

/** Invalid configuration: an unknown or bad option, key, variable or value. Leads to exit code 2. */
export class ConfigError extends Error {
  /** Always `ConfigError`. */
  override readonly name = "ConfigError";
}

/** An invalid value. The message does not name the option; the caller, which knows the origin of the value, adds it. */
export class ValueError extends Error {
  override readonly name = "ValueError";
  /** @param quotes whether the message may contain the value; then it is not shown for a secret */
  constructor(message: string, readonly quotes = true) {
    super(message);
  }
}

/**
 * Parses the value of `option` from its command-line form.
 * @throws {ValueError}
 */
export function parseValue(option: Option, text: string): Kinds[Kind] {
  return checkValue(option, option.kind === "records" ? parseRecords(option.keys, text) : parseKind(option, text));
}

/**
 * Returns `value` if it is valid for `option`.
 * @throws {ValueError}
 */
export function checkValue(option: Option, value: unknown): Kinds[Kind] {
  if (option.kind === "records") return checkRecords(option, value);
  const { kind, choices, check } = option;
  const fits = kind === "list" ? Array.isArray(value) && value.every((item) => typeof item === "string") : hasType(value, TYPES[kind]);
  if (!fits) throw new ValueError(`${JSON.stringify(value)} is not a ${kind}`);
  const known = value as Kinds[Kind];
  const problem = kindProblem(option, known);
  if (problem !== undefined) throw new ValueError(problem);
  if (choices && !choices.includes(known as string)) throw new ValueError(`${JSON.stringify(value)} is not one of ${choices.join(", ")}`);
  const failure = (check as ((value: Kinds[Kind]) => string | undefined) | undefined)?.(known);
  if (failure !== undefined) throw new ValueError(failure, !option.secret);
  return known;
}

function parseRecords(keys: RecordsOption["keys"], text: string): ConfigRecord[] {
  return splitRecords(text).map((pairs, i) => {
    const fail = (why: string) => recordError(keys, i, why);
    if (pairs.length === 0) throw fail("it is empty");
    const record: Record<string, ConfigRecord[string]> = {};
    for (const [key, value] of pairs) {
      if (value === undefined) throw fail(`${JSON.stringify(key)} is not key=value`);
      const definition = Object.hasOwn(keys, key) ? keys[key] : undefined;
      if (definition === undefined) throw fail(`${JSON.stringify(key)} is an unknown key`);
      const name = camelCase(key);
      const before = record[name];
      if (before !== undefined && !Array.isArray(before)) {
        throw fail(`${key} is set twice, to ${JSON.stringify(before)} and ${JSON.stringify(value)}`);
      }
      if (value === "") throw fail(`${key} is empty`);
      const parsed = inRecord(i, key, () => parseValue(definition, value));
      record[name] = Array.isArray(before) && Array.isArray(parsed) ? [...before, ...parsed] : parsed;
    }
    return record;
  });
}

/** Checks the keys of records, and fills in defaults. */
function checkRecords({ keys, check, secret }: RecordsOption, value: unknown): ConfigRecord[] {
  if (!Array.isArray(value)) throw new ValueError(`${JSON.stringify(value)} is not a list of records`);
  const records = value.map((given: unknown, i) => {
    const fail = (why: string) => recordError(keys, i, why);
    if (typeof given !== "object" || given === null || Array.isArray(given)) throw fail(`${JSON.stringify(given)} is not an object`);
    const left = new Map(Object.entries(given).filter(([, value]) => value !== undefined));
    const record: Record<string, ConfigRecord[string]> = {};
    for (const [key, definition] of Object.entries(keys)) {
      const name = camelCase(key);
      const value = left.get(name) ??
        (definition.default !== undefined ? parseValue(definition, definition.default) : definition.kind === "list" ? [] : undefined);
      left.delete(name);
      if (value === undefined && isRequired(definition)) throw fail(`it has no ${key}`);
      if (value === undefined) continue;
      if (value === "") throw fail(`${key} is empty`);
      record[name] = inRecord(i, key, () => checkValue(definition, value));
    }
    for (const key of left.keys()) throw fail(`${JSON.stringify(key)} is an unknown key`);
    return record;
  });
  const failure = check?.(records);
  if (failure !== undefined) throw new ValueError(failure, !secret);
  return records;
}

/** @throws {ValueError} of `work`, naming record and key */
function inRecord(index: number, key: string, work: () => Kinds[Kind]): ConfigRecord[string] {
  try {
    return work() as ConfigRecord[string]; // keys are no records
  } catch (error) {
    throw error instanceof ValueError ? new ValueError(`record ${index + 1}: ${key}: ${error.message}`) : error;
  }
}

function recordError(keys: RecordsOption["keys"], index: number, why: string): ValueError {
  return new ValueError(`record ${index + 1}: ${why}; write ${recordForm(keys)}`);
}

/** Checks a value that an embedding program gives as the text parser does. */
function kindProblem({ kind, maxMs = MAX_DURATION_MS }: SingleOption, value: Kinds[Kind]): string | undefined {
  if (typeof value === "number") {
    if (!Number.isInteger(value) || value < 0) return `${value} is not a whole number of 0 or more`;
    if (kind === "duration" && value > maxMs) return `${value} is more than ${maxMs} milliseconds`;
    if (kind === "integer" && value > MAX_INTEGER) return `${value} is more than ${MAX_INTEGER}`;
  }
  if (kind === "address" && typeof value === "string") checkListenAddress(value);
  return kind === "file" && typeof value === "string" ? pemContentProblem(value) : undefined;
}

/** Returns why `text` is no file name if it is the content of a PEM file, as text or in base64. The message does not quote it. */
export function pemContentProblem(text: string): string | undefined {
  const isContent = /^\s*(?:-----BEGIN |LS0tLS1CRUdJTi)/.test(text);
  return isContent ? "its value is the content of a PEM file; write the content to a file, and the name of the file here" : undefined;
}

const TYPES = { string: "string", file: "string", address: "string", duration: "number", integer: "number", boolean: "boolean" } as const;

function hasType(value: unknown, type: string): boolean {
  const actual = typeof value;
  return actual === type;
}

function parseInteger(text: string): number {
  if (!/^[0-9]{1,9}$/.test(text)) throw new ValueError(`${JSON.stringify(text)} is not a whole number from 0 to ${MAX_INTEGER}`);
  if (/^0[0-9]/.test(text)) throw new ValueError(`${JSON.stringify(text)} begins with 0: write ${Number(text)}`); // Go reads it as octal
  return Number(text);
}

const MAX_INTEGER = 999_999_999;

/**
 * Rejects an option that is set to an empty value: the intention is unclear.
 * @throws {ValueError}
 */
export function refuseEmpty({ guards, default: defaultText }: Option, value: unknown): void {
  if (defaultText === "" || (value !== "" && !(Array.isArray(value) && value.length === 0))) return;
  throw new ValueError(`it is empty; ${guards ?? "leave it out for the default"}`, false);
}

function parseKind({ kind, choices, maxMs, zero }: SingleOption, text: string): Kinds[Kind] {
  switch (kind) {
    case "boolean":
      if (/^(1|t|T|true|TRUE|True)$/.test(text)) return true;
      if (/^(0|f|F|false|FALSE|False)$/.test(text)) return false;
      throw new ValueError(`${JSON.stringify(text)} is not true or false`);
    case "duration":
      return text === zero ? 0 : parseGoDuration(text, maxMs);
    case "integer":
      return parseInteger(text);
    case "address":
      return checkListenAddress(text);
    case "list":
      return text === "" ? [] : text.split(",").map((item) => item.trim());
    case "string":
    case "file":
      return choices?.find((choice) => choice.toLowerCase() === text.toLowerCase()) ?? text;
  }
}

/** Parses as Go's time.ParseDuration does, plus days of 24 hours, minus negative values. Rounds to milliseconds, but never down to zero. */
function parseGoDuration(text: string, maxMs = MAX_DURATION_MS): number {
  const quoted = JSON.stringify(text);
  if (/^\+?0$/.test(text)) return 0;
  if (/^\+?(?:\d+\.?\d*|\.\d+)$/.test(text)) throw new ValueError(`${quoted} has no unit: write for example ${text}s or ${text}ms`);
  if (!/^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d))+$/.test(text)) {
    throw new ValueError(`${quoted} is not a duration like 300ms, 10s, 1m30s, 24h or 7d`);
  }
  if (text.startsWith("-")) throw new ValueError(`${quoted} is negative`);
  let ms = 0;
  for (const [, count, unit] of text.matchAll(/([\d.]+)([a-zµμ]+)/g)) ms += Number(count) * UNITS_MS[unit!]!;
  if (!(ms <= maxMs)) throw new ValueError(`${quoted} is longer than ${maxMs / 3_600_000}h`);
  return ms > 0 ? Math.max(1, Math.round(ms)) : 0;
}

/** Includes both letters that look like a mu: the micro sign and the Greek letter. */
const UNITS_MS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  "µs": 1e-3,
  "μs": 1e-3,
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** The limit of timers, about 24 days. */
const MAX_DURATION_MS = 576 * 3_600_000;

/**
 * Returns `text` if it is `host:port`, `[host]:port` or `:port`.
 * @throws {ValueError}
 */
export function checkListenAddress(text: string): string {
  try {
    splitHostPort(text);
    return text;
  } catch (error) {
    throw error instanceof RangeError ? new ValueError(error.message) : error;
  }
}
