// From command line, environment and file to values: the first that has one wins, and every mistake says where it stood.
import { LineCounter, parseDocument, visit } from "yaml";
import { camelCase, ConfigError, ENV_PREFIX, envOf, flagOf, type Options, parseValue, ValueError } from "./option.ts";

/** Where a value was set. */
export interface Setting {
  readonly text: string;
  /** `--flag`, `VARIABLE`, `file:line`, `default`. */
  readonly origin: string;
}

export interface Sources {
  /** By option name, as the command line gave them. */
  readonly flags: ReadonlyMap<string, string>;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Name and text of the configuration file. */
  readonly file?: { readonly name: string; readonly text: string };
}

/** The values, and where each came from. */
export interface Resolved {
  readonly values: Record<string, unknown>;
  readonly settings: ReadonlyMap<string, Setting>;
}

/**
 * Command line beats environment beats file beats default.
 * @throws {ConfigError} naming what is wrong, where it stood, and the nearest known name
 */
export function resolve(options: Options, sources: Sources): Resolved {
  checkEnvironment(options, sources.env);
  const file = sources.file === undefined ? new Map<string, Setting>() : readFile(options, sources.file);
  const settings = new Map<string, Setting>();
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(options)) {
    const setting = find(name, sources, envOf(name, option)) ?? file.get(name) ??
      { text: option.default ?? (option.kind === "boolean" ? "false" : ""), origin: "default" };
    settings.set(name, setting);
    const missing = setting.origin === "default" && option.default === undefined && option.kind !== "list" && option.kind !== "boolean";
    assign(values, name, missing ? undefined : parse(options, name, setting));
  }
  return { values, settings };
}

function find(name: string, { flags, env }: Sources, variable: string): Setting | undefined {
  const flag = flags.get(name);
  if (flag !== undefined) return { text: flag, origin: flagOf(name) };
  const value = env[variable];
  return value === undefined ? undefined : { text: value, origin: variable };
}

function parse(options: Options, name: string, { text, origin }: Setting): unknown {
  try {
    return parseValue(options[name]!, text);
  } catch (error) {
    if (!(error instanceof ValueError)) throw error;
    const where = origin === flagOf(name) ? "" : ` (${origin})`;
    // a secret may have been typed in the wrong place
    throw new ConfigError(`Cannot use ${flagOf(name)}${where}: ${options[name]!.secret ? "its value cannot be read" : error.message}`);
  }
}

function assign(values: Record<string, unknown>, name: string, value: unknown): void {
  const keys = name.split(".").map(camelCase);
  let at = values;
  for (const key of keys.slice(0, -1)) at = (at[key] ??= {}) as Record<string, unknown>;
  at[keys.at(-1)!] = value;
}

function checkEnvironment(options: Options, env: Sources["env"]): void {
  const known = Object.entries(options).map(([name, option]) => envOf(name, option));
  for (const variable of Object.keys(env)) {
    if (variable.startsWith(ENV_PREFIX) && !known.includes(variable)) {
      throw new ConfigError(`Unknown environment variable ${variable}${didYouMean(variable, known)}`);
    }
  }
}

/** Settings of a YAML or JSON file, which is YAML too. */
function readFile(options: Options, { name: file, text }: { name: string; text: string }): Map<string, Setting> {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true });
  const [problem] = document.errors;
  if (problem) throw new ConfigError(`Cannot read ${file}: line ${lines.linePos(problem.pos[0]).line}: ${problem.message.split("\n")[0]}`);
  const settings = new Map<string, Setting>();
  const known = Object.keys(options);
  visit(document, {
    Pair(_, pair, path) {
      const keys = [...path.filter((node) => "key" in node).map((node) => String((node as { key: unknown }).key)), String(pair.key)];
      const name = keys.join(".");
      const range = (pair.key as { range?: [number, number, number] } | null)?.range;
      const origin = `${file}:${range ? lines.linePos(range[0]).line : 1}`;
      const value = (pair.value as { toJSON?: () => unknown } | null)?.toJSON?.();
      if (!(name in options)) {
        const isGroup = known.some((option) => option.startsWith(`${name}.`));
        if (!isGroup) throw new ConfigError(`Unknown key ${name} (${origin})${didYouMean(name, known)}`);
        if (value !== null && (typeof value !== "object" || Array.isArray(value))) {
          throw new ConfigError(`Cannot use ${name} (${origin}): it is a group of keys, not a value`);
        }
        return;
      }
      settings.set(name, { text: toText(options, name, value, origin), origin });
      return visit.SKIP;
    },
  });
  if (text.trim() !== "" && document.contents !== null && !("items" in document.contents)) {
    throw new ConfigError(`Cannot read ${file}: it has no keys`);
  }
  return settings;
}

function toText(options: Options, name: string, value: unknown, origin: string): string {
  const isScalar = (item: unknown) => ["string", "number", "boolean"].includes(typeof item);
  if (options[name]!.kind === "list" && Array.isArray(value) && value.every(isScalar)) return value.join(",");
  if (value === null || value === undefined) return "";
  if (!isScalar(value)) throw new ConfigError(`Cannot use ${name} (${origin}): it is not a plain value`);
  return String(value);
}

/** `; did you mean …?` with the nearest of `known`, where one is near. */
export function didYouMean(name: string, known: readonly string[]): string {
  const ranked = known.map((candidate) => [distance(name, candidate), candidate] as const).sort(([a], [b]) => a - b);
  const [nearest] = ranked;
  return nearest && nearest[0] <= Math.max(3, name.length / 3) ? `; did you mean ${nearest[1]}?` : "";
}

/** Insertions, deletions and replacements between two texts (Levenshtein). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length]!;
}
