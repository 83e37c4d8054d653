// The configuration file, YAML or JSON: its keys to settings with their lines. What the values mean, it does not know.
import { LineCounter, parseDocument, visit } from "yaml";
import { didYouMean, type Setting } from "./config.ts";
import { ConfigError, type Options } from "./option.ts";

/**
 * Settings of a YAML or JSON file, which is YAML too: those of `options`, and of whoever in `family` reads the same file.
 * @throws {ConfigError} naming what is wrong, its line, and the nearest known name
 */
export function readConfig(
  options: Options,
  { name: file, text }: { name: string; text: string },
  family: Readonly<Record<string, Options>> = {},
): ReadonlyMap<string, Setting> {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true });
  const [problem] = document.errors;
  if (problem) throw new ConfigError(`Cannot read ${file}: line ${lines.linePos(problem.pos[0]).line}: ${problem.message.split("\n")[0]}`);
  const settings = new Map<string, Setting>();
  const all: Options = Object.assign({}, ...Object.values(family), options);
  const known = Object.keys(all);
  visit(document, {
    Pair(_, pair, path) {
      const keys = [...path.filter((node) => "key" in node).map((node) => String((node as { key: unknown }).key)), String(pair.key)];
      const name = keys.join(".");
      const range = (pair.key as { range?: [number, number, number] } | null)?.range;
      const origin = `${file}:${range ? lines.linePos(range[0]).line : 1}`;
      const value = (pair.value as { toJSON?: () => unknown } | null)?.toJSON?.();
      if (!Object.hasOwn(all, name)) {
        const isGroup = known.some((option) => option.startsWith(`${name}.`));
        if (!isGroup) throw new ConfigError(`Unknown key ${name} (${origin})${didYouMean(name, known)}`);
        if (value !== null && (typeof value !== "object" || Array.isArray(value))) {
          throw new ConfigError(`Cannot use ${name} (${origin}): it is a group of keys, not a value`);
        }
        return;
      }
      settings.set(name, { text: toText(all, name, value, origin), origin });
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
