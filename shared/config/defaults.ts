// Options that an embedding program gives: the same defaults and checks as on the command line.
import { resolve } from "./sources.ts";
import { camelCase, checkValue, ConfigError, flagOf, type Options, refuseEmpty, ValueError, type ValuesOf } from "./option.ts";

/** Values of which any may be left out. */
export type PartialValues<T> = T extends readonly (infer R extends object)[] ? PartialValues<R>[]
  : T extends readonly unknown[] ? T
  : T extends object ? { [K in keyof T]?: PartialValues<T[K]> }
  : T;

/**
 * Fills in the defaults of the options that `given` leaves out.
 * @param presets values that replace defaults, by name and as on the command line
 * @throws {ConfigError} for a value that the command line would reject, and for an unknown key
 */
export function withDefaults<O extends Options>(
  options: O,
  given: PartialValues<ValuesOf<O>>,
  presets: Readonly<Record<string, string>> = {},
): ValuesOf<O> {
  const file = new Map(Object.entries(presets).map(([name, text]) => [name, { text, origin: "preset" }]));
  const { values } = resolve(options, { flags: new Map(), env: {}, file });
  const known = new Map(Object.entries(options).map(([name, option]) => [name.split(".").map(camelCase).join("."), { name, option }]));
  const merge = (into: Record<string, unknown>, from: Record<string, unknown>, path: string) => {
    for (const [key, value] of Object.entries(from)) {
      if (value === undefined) continue;
      const at = `${path}${key}`;
      const match = known.get(at);
      const group = into[key];
      if (match) into[key] = checked(match.name, match.option, value);
      else if (group && value && typeof group === "object" && typeof value === "object") {
        merge(group as Record<string, unknown>, value as Record<string, unknown>, `${at}.`);
      } else throw new ConfigError(`Unknown option ${at}`);
    }
  };
  merge(values, given as Record<string, unknown>, "");
  return values as ValuesOf<O>;
}

function checked(name: string, option: Options[string], value: unknown): unknown {
  try {
    refuseEmpty(option, value);
    return checkValue(option, value);
  } catch (error) {
    throw error instanceof ValueError
      ? new ConfigError(`Cannot use ${flagOf(name)}: ${option.secret && error.quotes ? "its value is invalid" : error.message}`)
      : error;
  }
}
