// The configuration file, YAML or JSON: its keys to settings with their lines. What the values mean, it does not know.
import { type Document, isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument, type Scalar, visit, type YAMLParseError } from "yaml";
import { didYouMean, type Setting } from "./config.ts";
import { ConfigError, type Option, type Options } from "./option.ts";

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
  if (problem) throw new ConfigError(`Cannot read ${file}:${lines.linePos(problem.pos[0]).line}: ${describeProblem(problem)}`);
  if (document.contents !== null && !isMap(document.contents)) throw new ConfigError(`Cannot read ${file}: it has no keys`);
  const settings = new Map<string, Setting>();
  const all: Options = Object.assign({}, ...Object.values(family), options);
  const known = Object.keys(all);
  visit(document, {
    Pair(_, pair, path) {
      const keys = [...path.filter((node) => "key" in node).map((node) => String((node as { key: unknown }).key)), String(pair.key)];
      const name = keys.join(".");
      const range = (pair.key as { range?: [number, number, number] } | null)?.range;
      const origin = `${file}:${range ? lines.linePos(range[0]).line : 1}`;
      const value = follow(pair.value, document);
      if (!Object.hasOwn(all, name)) {
        const isGroup = known.some((option) => option.startsWith(`${name}.`));
        if (!isGroup) throw new ConfigError(`Unknown key ${name} (${origin})${didYouMean(name, known)}`);
        if (!isMap(value) && !isNothing(value)) {
          throw new ConfigError(`Cannot use ${name} (${origin}): it is a group of keys, not a value`);
        }
        return;
      }
      const before = settings.get(name);
      if (before) {
        throw new ConfigError(`Cannot use ${name} (${origin}): it is there twice, first in line ${before.origin.split(":").at(-1)}`);
      }
      settings.set(name, { text: toText(all[name]!, name, value, origin, document), origin });
      return visit.SKIP;
    },
  });
  return settings;
}

/** Without the place, which stands before it, and the lines around it, which may hold a secret. */
function describeProblem({ code, message }: YAMLParseError): string {
  if (code === "TAB_AS_INDENT") return "it is indented by a tab, and YAML takes only spaces";
  if (code === "DUPLICATE_KEY") return "this key is there twice";
  return message.split("\n")[0]!.replace(/ at line \d+, column \d+:?$/, "");
}

/** What an alias stands for; `undefined` where there is no such anchor. */
function follow(node: unknown, document: Document): unknown {
  return isAlias(node) ? node.resolve(document) : node;
}

function isNothing(node: unknown): boolean {
  return node === null || (isScalar(node) && node.value === null);
}

/** As it could stand on the command line. */
function toText(option: Option, name: string, node: unknown, origin: string, document: Document): string {
  if (isNothing(node)) return "";
  const nodes = option.kind === "list" && isSeq(node) ? node.items.map((item) => follow(item, document)) : [node];
  if (!nodes.every(isPlain)) throw new ConfigError(`Cannot use ${name} (${origin}): it is not a plain value`);
  // as it was written: 007 is an agent's id too
  return nodes.map(({ value, source }) => typeof value === "string" ? value : source ?? String(value)).join(",");
}

function isPlain(node: unknown): node is Scalar<string | number | boolean> {
  return isScalar(node) && ["string", "number", "boolean"].includes(typeof node.value);
}
