// An option that stands for others, such as a join string: where its values stand among the sources.
import type { Options } from "./option.ts";
import { resolve, type Resolved, type Sources } from "./sources.ts";

/** An option whose value stands for values of others. */
export interface Expansion {
  readonly option: string;
  /**
   * Returns the values by option name, as on the command line.
   * @throws {ConfigError}
   */
  expand(value: string): Readonly<Record<string, string>>;
}

/** Both results as one. */
export function combine(a: Resolved, b: Resolved): Resolved {
  return { values: merge(a.values, b.values), settings: new Map([...a.settings, ...b.settings]) };
}

/** Adds groups of values to groups of the same name. */
function merge(a: Resolved["values"], b: Resolved["values"]): Resolved["values"] {
  const isGroup = (value: unknown) => typeof value === "object" && value !== null && !Array.isArray(value);
  const entries = Object.entries(b).map(([key, value]) => {
    const both = isGroup(value) && isGroup(a[key]);
    return [key, both ? merge(a[key] as Resolved["values"], value as Resolved["values"]) : value] as const;
  });
  return { ...a, ...Object.fromEntries(entries) };
}

/**
 * Resolves options of which one may stand for others. What it stands for comes after the environment, and before the file unless the file has it.
 * @throws {ConfigError}
 */
export function resolveExpanded(options: Options, expansion: Expansion | undefined, sources: Sources): Resolved {
  if (expansion === undefined) return resolve(options, sources);
  const { option } = expansion;
  const { values: { [option]: value }, settings } = resolve({ [option]: options[option]! }, sources);
  if (typeof value !== "string") return resolve(options, sources);
  const { origin } = settings.get(option)!;
  const meant = Object.entries(expansion.expand(value)).map(([name, text]) => [name, { text, origin }] as const);
  const { file = new Map<string, never>() } = sources;
  const isFromFile = file.get(option)?.origin === origin;
  return resolve(options, { ...sources, file: isFromFile ? new Map([...meant, ...file]) : new Map([...file, ...meant]) });
}
