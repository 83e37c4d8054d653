// What an option is. One definition gives its flag, environment variable, configuration key, default, validation, help and type.
import { splitHostPort } from "../address/host_port.ts";

/** Values by kind of option. */
interface Kinds {
  string: string;
  /** A file's name. */
  file: string;
  /** `host:port`, `[host]:port` or `:port`. */
  address: string;
  /** Milliseconds; written as in Go: `300ms`, `10s`, `1m30s`, `24h`. */
  duration: number;
  /** `true` or `false`; or as Go's strconv.ParseBool takes them: `1`, `t`, `TRUE` … */
  boolean: boolean;
  /** Zero or more. */
  integer: number;
  /** Repeatable, or comma-separated. */
  list: string[];
}
type Kind = keyof Kinds;

interface OptionOf<K extends Kind> {
  readonly kind: K;
  /** As it is written on the command line; without one, it is missing where nobody sets it. */
  readonly default?: string;
  /** One sentence: meaning, unit, meaning of zero. */
  readonly description: string;
  /** The values there are. */
  readonly choices?: readonly string[];
  /** The letter of its short flag. */
  readonly short?: string;
  /** The environment variable, where it is not made of the name. */
  readonly env?: string;
  /** Never shown. */
  readonly secret?: boolean;
  /** It limits who or what gets in. So an empty variable is an error instead of not given, and this is what to write. */
  readonly guards?: string;
  /** The longest duration in milliseconds. Default 576h: timers take no more. */
  readonly maxMs?: number;
  /** Why a value cannot be used; `undefined` where it can. Of a secret it never quotes the value. */
  readonly check?: (value: Kinds[K]) => string | undefined;
}

/** One option. */
export type Option = { [K in Kind]: OptionOf<K> }[Kind];

/** Options by name: `agent-server.listen-address`. */
export type Options = Readonly<Record<string, Option>>;

type Camel<S extends string> = S extends `${infer A}-${infer B}` ? `${A}${Capitalize<Camel<B>>}` : S;
type Value<O extends Option> = O extends { choices: readonly (infer C)[] } ? C
  : O extends { kind: infer K extends Kind }
    ? O extends { default: string } ? Kinds[K] : K extends "list" | "boolean" ? Kinds[K] : Kinds[K] | undefined
  : never;
type Nest<N extends string, V> = N extends `${infer Head}.${infer Rest}` ? { [K in Camel<Head>]: Nest<Rest, V> } : { [K in Camel<N>]: V };
type Intersect<U> = (U extends unknown ? (u: U) => void : never) extends (i: infer I) => void ? I : never;
type Simplify<T> = T extends readonly unknown[] ? T : T extends object ? { [K in keyof T]: Simplify<T[K]> } : T;

/** The values of options as an object: `--agent-server.listen-address` is `agentServer.listenAddress`. */
export type ValuesOf<O extends Options> = Simplify<Intersect<{ [N in keyof O & string]: Nest<N, Value<O[N]>> }[keyof O & string]>>;

/** Keeps the literal types that {@link ValuesOf} needs. */
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

export function camelCase(name: string): string {
  return name.replace(/-(.)/g, (_, c: string) => c.toUpperCase());
}

/** A mistake of the user's: bad option, key, variable or value. For exit code 2. */
export class ConfigError extends Error {
  /** Always that. */
  override readonly name = "ConfigError";
}

/** Why a value cannot be used. The message does not name the option: whoever knows where the value stood does. */
export class ValueError extends Error {
  override readonly name = "ValueError";
  /** @param quotes whether the message may have the value in it, which a secret's must not */
  constructor(message: string, readonly quotes = true) {
    super(message);
  }
}

/**
 * The value that `text` stands for.
 * @throws {ValueError}
 */
export function parseValue(option: Option, text: string): Kinds[Kind] {
  return checkValue(option, parseKind(option, text));
}

/**
 * Returns `value` where the option can have it.
 * @throws {ValueError}
 */
export function checkValue(option: Option, value: unknown): Kinds[Kind] {
  const { kind, choices, check } = option;
  const fits = kind === "list" ? Array.isArray(value) && value.every((item) => typeof item === "string") : hasType(value, TYPES[kind]);
  if (!fits) throw new ValueError(`${JSON.stringify(value)} is not a ${kind}`);
  const known = value as Kinds[Kind];
  const problem = kindProblem(option, known);
  if (problem !== undefined) throw new ValueError(problem);
  if (choices && !choices.includes(known as string)) throw new ValueError(`${JSON.stringify(value)} is not one of ${choices.join(", ")}`);
  const refused = (check as ((value: Kinds[Kind]) => string | undefined) | undefined)?.(known);
  if (refused !== undefined) throw new ValueError(refused, !option.secret);
  return known;
}

/** What the parser of texts refuses, of a value that a program gives. */
function kindProblem({ kind, maxMs = MAX_DURATION_MS }: Option, value: Kinds[Kind]): string | undefined {
  if (typeof value === "number") {
    if (!Number.isInteger(value) || value < 0) return `${value} is not a whole number from 0 on`;
    if (kind === "duration" && value > maxMs) return `${value} is more than ${maxMs} milliseconds`;
    if (kind === "integer" && value > MAX_INTEGER) return `${value} is more than ${MAX_INTEGER}`;
  }
  if (kind === "address" && typeof value === "string") checkListenAddress(value);
  return undefined;
}

const TYPES = { string: "string", file: "string", address: "string", duration: "number", integer: "number", boolean: "boolean" } as const;

function hasType(value: unknown, type: string): boolean {
  const actual = typeof value;
  return actual === type;
}

function parseInteger(text: string): number {
  if (!/^[0-9]{1,9}$/.test(text)) throw new ValueError(`${JSON.stringify(text)} is not a whole number from 0 to ${MAX_INTEGER}`);
  if (/^0[0-9]/.test(text)) throw new ValueError(`${JSON.stringify(text)} begins with 0: write ${Number(text)}`); // elsewhere it is octal
  return Number(text);
}

const MAX_INTEGER = 999_999_999;

/**
 * Refuses what was given and holds nothing: what was meant is not known.
 * @throws {ValueError}
 */
export function refuseEmpty({ guards, default: usual }: Option, value: unknown): void {
  if (usual === "" || (value !== "" && !(Array.isArray(value) && value.length === 0))) return;
  throw new ValueError(`it is empty; ${guards ?? "leave it out for the default"}`, false);
}

function parseKind({ kind, choices, maxMs }: Option, text: string): Kinds[Kind] {
  switch (kind) {
    case "boolean":
      if (/^(1|t|T|true|TRUE|True)$/.test(text)) return true;
      if (/^(0|f|F|false|FALSE|False)$/.test(text)) return false;
      throw new ValueError(`${JSON.stringify(text)} is not true or false`);
    case "duration":
      return parseGoDuration(text, maxMs);
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

/** As Go's time.ParseDuration reads it, and days of 24 hours, but for negative ones; whole milliseconds, and what is more than nothing never becomes nothing. */
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

/** Both letters that look like a mu: micro sign and Greek. */
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

/** Timers take no more: some 24 days. */
const MAX_DURATION_MS = 576 * 3_600_000;

/**
 * Returns `text` where it is `host:port`, `[host]:port` or `:port`.
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
