// Reads the configuration file, YAML or JSON, into settings with the line of each. It does not interpret the values.
import {
  type Alias,
  type Document,
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  LineCounter,
  type Pair,
  parseDocument,
  type Scalar,
  type YAMLMap,
  type YAMLParseError,
  type YAMLWarning,
} from "yaml";
import { didYouMean, type Setting } from "./sources.ts";
import { ConfigError, type Option, type Options, type RecordKey } from "./option.ts";
import { formatRecord, RECORD_SEPARATOR } from "./records.ts";

/** Limit on keys and items, counted again for each alias. */
const MAX_NODES = 10_000;

/**
 * Reads the settings of a YAML file (JSON is YAML): those of `options`, and of the other services in `family`, which share the file.
 * @throws {ConfigError} for anything unknown or invalid, with its line and the nearest known name
 */
export function readConfig(
  options: Options,
  { name: file, text }: { name: string; text: string },
  family: Readonly<Record<string, Options>> = {},
): ReadonlyMap<string, Setting> {
  const lines = new LineCounter();
  // aliases and merge keys are resolved below, with a limit
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true, merge: false });
  const [problem] = [...document.errors, ...document.warnings];
  if (problem) throw new ConfigError(`Cannot read ${file}:${lines.linePos(problem.pos[0]).line}: ${describeProblem(problem)}`);
  if (document.contents !== null && !isMap(document.contents)) throw new ConfigError(`Cannot read ${file}: it is not a mapping of keys`);
  const all: Options = Object.assign({}, ...Object.values(family), options);
  const lineOf = (node: unknown) => isNode(node) && node.range ? lines.linePos(node.range[0]).line : 1;
  return new Reader(document, all, (node) => `${file}:${lineOf(node)}`).read();
}

class Reader {
  readonly #known: readonly string[];
  readonly #groups: ReadonlySet<string>;
  readonly #settings = new Map<string, Setting>();
  #nodes = 0;

  constructor(
    private readonly document: Document,
    private readonly all: Options,
    private readonly originOf: (node: unknown) => string,
  ) {
    this.#known = Object.keys(all);
    this.#groups = new Set(this.#known.flatMap((name) => [...name.matchAll(/\./g)].map(({ index }) => name.slice(0, index))));
  }

  read(): ReadonlyMap<string, Setting> {
    const { contents } = this.document;
    if (isMap(contents)) this.#readGroup(contents, []);
    return this.#settings;
  }

  #readGroup(group: YAMLMap, path: readonly string[]): void {
    for (const pair of this.#pairsOf(group)) {
      this.#count(pair.key);
      const key = keyOf(pair);
      const name = [...path, key].join(".");
      const origin = this.originOf(pair.key);
      if (Object.hasOwn(this.all, name)) this.#readOption(name, pair.value, origin);
      else {
        if (!this.#groups.has(name)) {
          throw new ConfigError(`Unknown key ${name} (${origin})${didYouMean(name, [...this.#known, ...this.#groups])}`);
        }
        const fail = (why: string) => new ConfigError(`Cannot use ${name} (${origin}): ${why}`);
        const value = this.#follow(pair.value, fail, false);
        if (isNothing(value)) throw fail("it is a group of keys and has none; leave it out");
        if (!isMap(value)) throw fail("it is a group of keys, not a value");
        this.#readGroup(value, [...path, key]);
      }
    }
  }

  #readOption(name: string, node: unknown, origin: string): void {
    const option = this.all[name]!;
    const fail = (why: string) => new ConfigError(`Cannot use ${name} (${origin}): ${why}`);
    const before = this.#settings.get(name);
    if (before) throw fail(`it is set twice, first in line ${before.origin.split(":").at(-1)}`);
    this.#settings.set(name, { text: this.#toText(name, option, node, fail), origin });
  }

  /**
   * The pairs of a group, then those merged in by `<<` that it does not set itself.
   * @param merging the groups that are being merged into
   */
  *#pairsOf(group: YAMLMap, merging: readonly YAMLMap[] = []): Generator<Pair> {
    const keys = new Set(group.items.map(keyOf));
    const merged: YAMLMap[] = [];
    for (const pair of group.items) {
      if (!isMerge(pair)) {
        yield pair;
        continue;
      }
      const fail = (why: string) => new ConfigError(`Cannot use << (${this.originOf(pair.key)}): ${why}`);
      const value = this.#follow(pair.value, fail, false);
      for (const node of isSeq(value) ? value.items : [value]) {
        this.#count(pair.key);
        const map = this.#follow(node, fail, false);
        if (!isMap(map)) throw fail("only groups of keys can be merged");
        if (map === group || merging.includes(map)) throw fail("a group cannot be merged into itself");
        merged.push(map);
      }
    }
    for (const map of merged) {
      for (const pair of this.#pairsOf(map, [...merging, group])) {
        this.#count(pair.key);
        const key = keyOf(pair);
        if (keys.has(key)) continue; // the group's own keys take precedence, then the first merge
        keys.add(key);
        yield pair;
      }
    }
  }

  /** Counts a node each time it is reached: nested aliases can expand a few lines exponentially. */
  #count(node: unknown): void {
    if (++this.#nodes > MAX_NODES) {
      throw new ConfigError(`Cannot read ${this.originOf(node)}: there are more than ${MAX_NODES} keys and items`);
    }
  }

  /** Resolves an alias. */
  #follow(node: unknown, fail: (why: string) => ConfigError, secret: boolean): unknown {
    if (!isAlias(node)) return node;
    const target = node.resolve(this.document);
    if (target === undefined) throw fail(secret ? "a value that begins with * needs quotes" : describeAlias(node));
    return target;
  }

  /** Formats a value as on the command line. */
  #toText(name: string, option: Option, node: unknown, fail: (why: string) => ConfigError): string {
    const { kind, secret = false } = option;
    if (secret && isScalar(node) && node.anchor !== undefined) throw fail("a value that begins with & needs quotes");
    const value = this.#follow(node, fail, secret);
    if (isNothing(value)) return "";
    if (option.kind === "records" && isSeq(value)) {
      return value.items.map((item, i) => this.#toRecord(name, option.keys, item, (why) => fail(`record ${i + 1}: ${why}`)))
        .join(RECORD_SEPARATOR);
    }
    const items = kind === "list" && isSeq(value) ? value.items : [value];
    const texts = items.map((item) => {
      this.#count(item);
      const scalar = this.#follow(item, fail, secret);
      if (!isPlain(scalar)) {
        throw fail("it is not a plain value; a value that begins with [ or {, or contains a colon and a space, needs quotes");
      }
      const text = textOf(scalar);
      if (items.length > 1 && text === "") throw fail("an item is empty");
      return text;
    });
    return texts.join(",");
  }

  /** Formats one record of a list. */
  #toRecord(name: string, keys: Readonly<Record<string, RecordKey>>, node: unknown, fail: (why: string) => ConfigError): string {
    const record = this.#follow(node, fail, false);
    if (!isMap(record)) throw fail("it is not a mapping of keys");
    const pairs: [string, string][] = [];
    for (const pair of this.#pairsOf(record)) {
      this.#count(pair.key);
      const key = keyOf(pair);
      if (!Object.hasOwn(keys, key)) {
        throw new ConfigError(`Unknown key ${name}.${key} (${this.originOf(pair.key)})${didYouMean(key, Object.keys(keys))}`);
      }
      const value = this.#follow(pair.value, fail, false);
      const items = keys[key]!.kind === "list" && isSeq(value) ? value.items : [value];
      for (const item of items) {
        this.#count(item);
        const plain = this.#follow(item, fail, false);
        if (!isNothing(plain) && !isPlain(plain)) throw fail(`${key} is not a plain value`);
        pairs.push([key, isPlain(plain) ? textOf(plain) : ""]);
      }
    }
    return formatRecord(pairs);
  }
}

function keyOf({ key }: Pair): string {
  return isScalar(key) ? String(key.value) : String(key);
}

function isMerge({ key }: Pair): boolean {
  return isScalar(key) && key.value === "<<" && key.type === "PLAIN";
}

/** The text as written: 007 is a valid agent id. A block's final newline is dropped. */
function textOf({ value, source, type }: Scalar<string | number | boolean>): string {
  if (typeof value !== "string") return source ?? String(value);
  return type?.startsWith("BLOCK_") ? value.replace(/\n$/, "") : value;
}

function describeAlias({ source }: Alias): string {
  return `*${source} is a YAML alias without an anchor &${source}; a pattern that begins with * needs quotes: "*${source}"`;
}

/** Describes a problem without the parser's excerpt, which may contain a secret. */
function describeProblem({ code, message }: YAMLParseError | YAMLWarning): string {
  const known = PROBLEMS[code];
  return known ?? message.split("\n")[0]!.replace(/ at line \d+, column \d+:?$/, "");
}

const PROBLEMS: Readonly<Record<string, string>> = {
  TAB_AS_INDENT: "it is indented with a tab; YAML allows only spaces",
  DUPLICATE_KEY: "this key is set twice",
  MULTIPLE_DOCS: "a second YAML document begins here; only one is allowed",
  BAD_ALIAS: "a value that begins with * needs quotes",
  BAD_DQ_ESCAPE: "a backslash in double quotes begins an escape sequence; write \\\\ for a backslash, or use single quotes",
  TAG_RESOLVE_FAILED: "a value that begins with ! needs quotes",
  UNEXPECTED_TOKEN: "it is not valid YAML; a value that begins with [, {, &, * or ! needs quotes",
};

function isNothing(node: unknown): boolean {
  return node === null || (isScalar(node) && node.value === null);
}

function isPlain(node: unknown): node is Scalar<string | number | boolean> {
  return isScalar(node) && ["string", "number", "boolean"].includes(typeof node.value);
}
