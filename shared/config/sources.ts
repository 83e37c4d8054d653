// Resolves option values from the command line, the environment and the configuration file, in this order. Errors name the origin.
import {
  camelCase,
  ConfigError,
  ENV_PREFIX,
  envOf,
  flagOf,
  type Option,
  type Options,
  parseValue,
  refuseEmpty,
  separatorOf,
  ValueError,
} from "./option.ts";

/** The text of a value and where it was set. */
export interface Setting {
  readonly text: string;
  /** `--flag`, `VARIABLE`, `file:line`, `default`. */
  readonly origin: string;
}

export interface Sources {
  /** Values from the command line, by option name. */
  readonly flags: ReadonlyMap<string, string>;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Settings of the configuration file; see `readConfig` in file.ts. */
  readonly file?: ReadonlyMap<string, Setting>;
}

/** The values, and the origin of each. */
export interface Resolved {
  readonly values: Record<string, unknown>;
  readonly settings: ReadonlyMap<string, Setting>;
}

/**
 * Resolves every option: the command line takes precedence over the environment, the file, and the default.
 * @throws {ConfigError} naming the option, the origin of the value, and the problem
 */
export function resolve(options: Options, sources: Sources): Resolved {
  const settings = new Map<string, Setting>();
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(options)) {
    const setting = find(name, sources, option) ?? sources.file?.get(name) ??
      { text: option.default ?? (option.kind === "boolean" ? "false" : ""), origin: "default" };
    settings.set(name, setting);
    const isEmptyByDefault = option.kind === "boolean" || separatorOf(option) !== undefined;
    const missing = setting.origin === "default" && option.default === undefined && !isEmptyByDefault;
    assignValue(values, name, missing ? undefined : parse(options, name, setting));
  }
  return { values, settings };
}

/** An empty variable counts as unset, except for options that restrict access: {@link parse} rejects it there. */
function find(name: string, { flags, env }: Sources, option: Option): Setting | undefined {
  const flag = flags.get(name);
  if (flag !== undefined) return { text: flag, origin: flagOf(name) };
  const variable = envOf(name, option);
  const value = env[variable];
  return value === undefined || (value === "" && option.guards === undefined) ? undefined : { text: value, origin: variable };
}

function parse(options: Options, name: string, { text, origin }: Setting): unknown {
  try {
    if (origin !== "default") refuseEmpty(options[name]!, text);
    return parseValue(options[name]!, text);
  } catch (error) {
    if (!(error instanceof ValueError)) throw error;
    const where = origin === flagOf(name) ? "" : ` (${origin})`;
    // the value may be a mistyped secret
    throw new ConfigError(
      `Cannot use ${flagOf(name)}${where}: ${options[name]!.secret && error.quotes ? "its value is invalid" : error.message}`,
    );
  }
}

/** Sets the value of an option in the nested object of all values. */
export function assignValue(values: Record<string, unknown>, name: string, value: unknown): void {
  const keys = name.split(".").map(camelCase);
  let at = values;
  for (const key of keys.slice(0, -1)) at = (at[key] ??= {}) as Record<string, unknown>;
  at[keys.at(-1)!] = value;
}

/** The value of an option in the nested object of all values. */
export function valueOf(values: Readonly<Record<string, unknown>>, name: string): unknown {
  return name.split(".").map(camelCase).reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], values);
}

/**
 * Checks that every variable with the prefix `REVERSE_HTTP_` belongs to `options` or to a service in `family`, which may share the environment.
 * @throws {ConfigError} naming the first unknown variable and the nearest known one
 */
export function checkEnvironment(options: Options, env: Sources["env"], family: Readonly<Record<string, Options>> = {}): void {
  const known = [options, ...Object.values(family)].flatMap((all) => Object.entries(all).map(([name, option]) => envOf(name, option)));
  for (const variable of Object.keys(env)) {
    if (variable.startsWith(ENV_PREFIX) && !known.includes(variable) && !isOfOrchestrator(variable, env)) {
      const plain = variable.slice(ENV_PREFIX.length);
      const hint = known.includes(plain) ? `; did you mean ${plain}?` : didYouMean(variable, known, ENV_PREFIX);
      throw new ConfigError(`Unknown environment variable ${variable}${hint}`);
    }
  }
}

/** Kubernetes sets such variables in every container for each service, possibly one named reverse-http. */
function isOfOrchestrator(variable: string, env: Sources["env"]): boolean {
  const [, service] =
    /^(.+?)_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)$/.exec(variable) ?? [];
  return service !== undefined && env[`${service}_SERVICE_HOST`] !== undefined;
}

/**
 * Returns `; did you mean …?` with the candidates that end with `name`, or else the nearest one; empty if none is near.
 * `prefix`, by default empty, is that of all names: it does not make them alike.
 */
export function didYouMean(name: string, known: readonly string[], prefix = ""): string {
  const longer = known.filter((candidate) => candidate.endsWith(`.${name.replace(/^--/, "")}`));
  if (longer.length > 0 && longer.length < 4) return `; did you mean ${longer.join(" or ")}?`;
  const ranked = known.map((candidate) => [distance(name, candidate), candidate] as const).sort(([a], [b]) => a - b);
  const [nearest] = ranked;
  return nearest && nearest[0] <= Math.max(3, (name.length - prefix.length) / 3) ? `; did you mean ${nearest[1]}?` : "";
}

/** Levenshtein distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length]!;
}
