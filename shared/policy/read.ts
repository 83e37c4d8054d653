// Reads a policy, YAML or JSON: rules, and tests that they must pass. One bad entry makes the whole policy invalid.
import { type Authority, type Network, parseAuthority } from "../address/authority.ts";
import { checkAgentPattern } from "../auth/agent_list.ts";
import { createWeekClock, parseHours, type Span } from "./hours.ts";
import { checkBandwidth, parseBandwidth } from "../config/bandwidth.ts";
import { destinationProblem, type PolicyQuery, type Rule, type RuleLimit, RuleSet } from "./rules.ts";
import { YamlDocument, YamlError, type YamlNode } from "./yaml.ts";

/** An invalid policy, or one that fails its own tests. The message begins with the line. */
export class PolicyError extends Error {
  override readonly name = "PolicyError";
  /** @param problem the fault in that line */
  constructor(readonly line: number, readonly problem: string, options?: ErrorOptions) {
    super(`line ${line}: ${problem}`, options);
  }
}

/** Texts that are longer are parsed in a thread. */
const LARGE = 256 * 1024;
/** Time in milliseconds for which a policy is read before other tasks have their turn. */
const SLICE_MS = 10;

/**
 * Reads a policy and runs its tests. Other tasks have their turn meanwhile.
 * @param now milliseconds since 1970, for tests without a time
 * @throws {PolicyError}
 */
export async function readPolicy(text: string, now: number): Promise<RuleSet> {
  const reading = read(text.length > LARGE ? await parse(text, YamlDocument.parseInThread) : await parse(text, YamlDocument.parse), now);
  let started = performance.now();
  for (;;) {
    const { done, value } = reading.next();
    if (done) return value;
    if (performance.now() - started < SLICE_MS) continue;
    await new Promise((resolve) => setTimeout(resolve));
    started = performance.now();
  }
}

/** @throws {PolicyError} */
async function parse(text: string, parser: (text: string) => YamlDocument | Promise<YamlDocument>): Promise<YamlDocument> {
  try {
    return await parser(text);
  } catch (cause) {
    if (!(cause instanceof YamlError)) throw cause;
    throw new PolicyError(text.slice(0, cause.at).split("\n").length, cause.message, { cause });
  }
}

/** Yields after each rule and each test. @throws {PolicyError} */
function* read(document: YamlDocument, now: number): Generator<void, RuleSet> {
  try {
    return yield* new Reader(document).read(now);
  } catch (cause) {
    if (!(cause instanceof YamlError)) throw cause;
    throw new PolicyError(document.lineOf(cause.at), cause.message, { cause });
  }
}

/** Who a subject of a policy is. */
const SUBJECT = /^(?:sub|name|group|token):./;
const SUBJECT_FORMS = "sub:ID, name:NAME, group:NAME or token:JTI";
/** Most rules, and most items of all lists together. */
const MAX_RULES = 100_000;
const MAX_ITEMS = 1_000_000;

/** A list that is missing: there are many of them. */
const NOTHING: readonly never[] = [];

type Keys = ReadonlyMap<string, YamlNode>;

class Reader {
  readonly #document: YamlDocument;
  readonly #hours = new Map<string, readonly Span[]>();
  #items = 0;

  constructor(document: YamlDocument) {
    this.#document = document;
  }

  *read(now: number): Generator<void, RuleSet> {
    const { root } = this.#document;
    if (root.length === 0) this.#fail(undefined, `a mapping with ${SECTIONS.join(", ")} is required`);
    const at = this.#checkKeys(root, SECTIONS);
    const nodeOf = (name: string) => at.has(name) ? this.#document.node(at.get(name)!) : undefined;
    const keys = new Map(["timezone", "sets"].flatMap((name) => {
      const node = nodeOf(name);
      return node === undefined ? [] : [[name, this.#filled(name, node)] as const];
    }));
    const sets = this.#readSets(keys);
    const timeZone = this.#text(keys, "timezone") ?? "UTC";
    const set = new RuleSet([], this.#attempt(keys.get("timezone"), () => createWeekClock(timeZone)));
    const limits = new Set<string>();
    for (const node of this.#section(at, "rules")) {
      if (set.rules.length === MAX_RULES) this.#fail(node, `it has more than ${MAX_RULES} rules`);
      const rule = this.#readRule(node, sets);
      if (rule.effect === "limit") {
        // the counters of a limit are kept by its name
        if (limits.has(rule.name)) this.#fail(node, `another limit has the name ${JSON.stringify(rule.name)} already`);
        if (limits.add(rule.name).size > MAX_LIMITS) this.#fail(node, `it has more than ${MAX_LIMITS} limits`);
      }
      try {
        set.add(rule);
      } catch (cause) {
        this.#failDestination(node, rule, cause);
      }
      yield;
    }
    if (set.rules.length === limits.size) this.#fail(nodeOf("rules"), "it has no rules; without one, nothing is allowed");
    for (const node of this.#section(at, "tests")) {
      this.#runTest(node, set, now);
      yield;
    }
    return set;
  }

  /** Names the item that cannot be used. */
  #failDestination(node: YamlNode, { effect, destinations }: Rule, cause: unknown): never {
    const list = this.#keys(node, RULE_KEYS).get("destinations");
    const items = list?.kind === "list" ? list.items : [list];
    const bad = destinations.findIndex((pattern) => destinationProblem(effect, pattern) !== undefined);
    if (bad < 0 || !(cause instanceof Error)) throw cause;
    return this.#fail(items[bad], cause.message, cause);
  }

  #readSets(keys: Keys): ReadonlyMap<string, readonly string[]> {
    const node = keys.get("sets");
    if (node === undefined) return new Map();
    if (node.kind !== "map") return this.#fail(node, "sets is not a mapping of names to lists of subjects");
    const sets = node.pairs.map(([key]) => nameOf(key));
    const lists = this.#keys(node, sets);
    return new Map(sets.map((name) => [name, this.#list(lists, name, (item) => checkSubject(item))]));
  }

  #readRule(node: YamlNode, sets: ReadonlyMap<string, readonly string[]>): Rule {
    const keys = this.#keys(node, RULE_KEYS);
    const [effect, ...more] = (["allow", "deny", "limit"] as const).filter((key) => keys.has(key));
    if (effect === undefined || more.length > 0) return this.#fail(node, "a rule has either allow, deny or limit, with its name");
    const subjects = this.#list(keys, "subjects", (item) => {
      if (!item.startsWith("set:")) return checkSubject(item);
      if (!sets.has(item.slice(4))) throw new RangeError(`${JSON.stringify(item)} names a set that is not in sets`);
      return item;
    });
    return {
      effect,
      name: this.#text(keys, effect)!,
      limit: this.#readLimit(node, effect, keys),
      line: this.#lineOf(node),
      subjects: sets.size === 0 ? subjects : subjects.flatMap((item) => item.startsWith("set:") ? sets.get(item.slice(4))! : [item]),
      agents: this.#list(keys, "agents", checkAgents),
      labels: this.#list(keys, "labels", checkLabel),
      destinations: this.#list(keys, "destinations", (item) => item), // the set parses them
      hours: keys.has("hours") ? this.#list(keys, "hours", (text) => this.#readHours(text)).flat() : NOTHING,
    };
  }

  /** Caches the result, because many rules have the same hours. */
  #readHours(text: string): readonly Span[] {
    let spans = this.#hours.get(text);
    if (spans === undefined) this.#hours.set(text, spans = parseHours(text));
    return spans;
  }

  #readLimit(node: YamlNode, effect: Rule["effect"], keys: Keys): RuleLimit | undefined {
    const wrong = LIMIT_KEYS.find((key) => keys.has(key));
    if (effect !== "limit") return wrong === undefined ? undefined : this.#fail(node, `${wrong} is only for a rule with limit`);
    if (!keys.has("bandwidth") && !keys.has("tunnels")) return this.#fail(node, "a rule with limit has bandwidth, tunnels, or both");
    const read = <T>(key: string, parse: (text: string) => T): T | undefined => {
      const text = this.#text(keys, key);
      return text === undefined ? undefined : this.#attempt(keys.get(key), () => parse(text));
    };
    return {
      bytesPerSecond: read("bandwidth", readBandwidth) ?? 0,
      tunnels: read("tunnels", readTunnels) ?? 0,
      isShared: read("shared", readFlag) ?? false,
    };
  }

  #runTest(node: YamlNode, rules: RuleSet, now: number): void {
    const keys = this.#keys(node, ["expect", "as", "agent", "labels", "to", "at", "rule", "limits"]);
    const [expect, agentId, to, at] = (["expect", "agent", "to", "at"] as const).map((key) => this.#text(keys, key));
    if (expect !== "allow" && expect !== "deny") return this.#fail(node, "a test has expect: allow or expect: deny");
    if (agentId === undefined || to === undefined) return this.#fail(node, "a test has agent and to");
    const time = at === undefined ? now : Date.parse(at);
    if (Number.isNaN(time)) return this.#fail(keys.get("at"), `${JSON.stringify(at)} is not a time like 2026-01-31T09:00:00Z`);
    const query: PolicyQuery = {
      subjects: this.#list(keys, "as", checkSubject),
      agentId,
      labels: this.#list(keys, "labels", checkLabel),
      ...this.#attempt(keys.get("to"), () => parseDestination(to)),
    };
    const { allowed, rule } = rules.decide(query, time);
    const by = rule === undefined ? "no rule applies" : `the rule ${JSON.stringify(rule.name)} in line ${rule.line}`;
    if (allowed !== (expect === "allow")) {
      this.#fail(node, `this test expects ${expect}, and it is ${allowed ? "allowed" : "denied"}: ${by}`);
    }
    if (keys.has("limits")) {
      const [expected, applying] = [this.#list(keys, "limits", (name) => name), rules.limits(query, time).map(({ name }) => name)];
      if (expected.join("\n") !== applying.join("\n")) {
        this.#fail(node, `this test expects the limits ${expected.join(", ")}, and they are: ${applying.join(", ") || "none"}`);
      }
    }
    const wanted = this.#text(keys, "rule");
    if (wanted !== undefined && wanted !== rule?.name) this.#fail(node, `this test expects the rule ${JSON.stringify(wanted)}: ${by}`);
  }

  /** The values of a mapping, whose keys must be known. */
  #keys(node: YamlNode, known: readonly string[]): Keys {
    if (node.kind !== "map") return this.#fail(node, `a mapping with ${known.join(", ")} is required`);
    const keys = this.#checkKeys(node.pairs, known);
    for (const [name, value] of keys) this.#filled(name, value);
    return keys;
  }

  #checkKeys<T>(pairs: readonly (readonly [key: YamlNode, value: T])[], known: readonly string[]): Map<string, T> {
    const keys = new Map<string, T>();
    for (const [key, value] of pairs) {
      const name = nameOf(key);
      if (!known.includes(name)) this.#fail(key, `${JSON.stringify(name)} is unknown; ${known.join(", ")} are valid here`);
      if (keys.has(name)) this.#fail(key, `${name} is not unique: it is there twice`);
      keys.set(name, value);
    }
    return keys;
  }

  #filled(name: string, node: YamlNode): YamlNode {
    return node.kind === "text" && node.isNull ? this.#fail(node, `${name} has no value; leave it out`) : node;
  }

  /** The items of a list at the root. */
  #section(at: ReadonlyMap<string, number>, name: string): Iterable<YamlNode> {
    const index = at.get(name);
    if (index === undefined) return [];
    return this.#document.items(index) ?? this.#fail(this.#filled(name, this.#document.node(index)), `${name} is not a list`);
  }

  #text(keys: Keys, key: string): string | undefined {
    const node = keys.get(key);
    return node === undefined ? undefined : this.#scalar(node);
  }

  /** A list of texts, or one text alone; it must not be empty if it is there. */
  #list<T>(keys: Keys, key: string, read: (item: string) => T): readonly T[] {
    const node = keys.get(key);
    if (node === undefined) return NOTHING;
    const items = node.kind === "list" ? node.items : [node];
    if (items.length === 0) this.#fail(node, `${key} is empty; leave it out for all`);
    this.#items += items.length;
    if (this.#items > MAX_ITEMS) this.#fail(node, `there are more than ${MAX_ITEMS} items`);
    let item: YamlNode | undefined;
    try {
      const values: T[] = [];
      for (item of items) values.push(read(this.#scalar(item)));
      return values;
    } catch (cause) {
      return this.#failFor(item, cause);
    }
  }

  #scalar(node: YamlNode): string {
    if (node.kind === "alias") return this.#fail(node, `a text that begins with * needs quotes: "*${node.name}"`);
    if (node.kind !== "text" || node.isNull || node.text === "") {
      return this.#fail(node, "a text is required; one that begins with [ or {, or has a colon and a space, needs quotes");
    }
    return node.text;
  }

  /** @throws {PolicyError} for the RangeError of `read` */
  #attempt<T>(node: YamlNode | undefined, read: () => T): T {
    try {
      return read();
    } catch (cause) {
      return this.#failFor(node, cause);
    }
  }

  /** @throws {PolicyError} */
  #failFor(node: YamlNode | undefined, cause: unknown): never {
    if (!(cause instanceof Error) || cause instanceof PolicyError) throw cause;
    return this.#fail(node, cause.message, cause);
  }

  #lineOf(node: YamlNode | undefined): number {
    return node === undefined ? 1 : this.#document.lineOf(node.at);
  }

  #fail(node: YamlNode | undefined, why: string, cause?: Error): never {
    throw new PolicyError(this.#lineOf(node), why, { cause });
  }
}

const SECTIONS = ["timezone", "sets", "rules", "tests"];
const LIMIT_KEYS = ["bandwidth", "tunnels", "shared"];
const RULE_KEYS = ["allow", "deny", "limit", "subjects", "agents", "labels", "destinations", "hours", ...LIMIT_KEYS];
/** Most limits: all that apply are enforced. */
const MAX_LIMITS = 1_000;

function nameOf(key: YamlNode): string {
  return key.kind === "text" ? key.text : "";
}

/** @throws {RangeError} */
function readBandwidth(text: string): number {
  const problem = checkBandwidth(text);
  if (problem !== undefined) throw new RangeError(problem);
  const bytesPerSecond = parseBandwidth(text);
  if (bytesPerSecond === 0) throw new RangeError("a bandwidth of 0 would be no limit; leave it out");
  return bytesPerSecond;
}

/** @throws {RangeError} */
function readTunnels(text: string): number {
  if (!/^[1-9][0-9]{0,8}$/.test(text)) {
    throw new RangeError(`${JSON.stringify(text)} is not a number of tunnels from 1 on; a rule with deny allows none`);
  }
  return Number(text);
}

/** @throws {RangeError} */
function readFlag(text: string): boolean {
  if (text !== "true" && text !== "false") throw new RangeError(`${JSON.stringify(text)} is not true or false`);
  return text === "true";
}

/** @throws {RangeError} */
function checkAgents(pattern: string): string {
  checkAgentPattern(pattern);
  return pattern;
}

/**
 * Returns `text` if it is a subject.
 * @throws {RangeError}
 */
export function checkSubject(text: string): string {
  if (!SUBJECT.test(text)) throw new RangeError(`${JSON.stringify(text)} is not ${SUBJECT_FORMS}`);
  if (text.indexOf("*") !== text.lastIndexOf("*")) throw new RangeError(`${JSON.stringify(text)} has more than one *`);
  return text;
}

/** @throws {RangeError} */
export function checkLabel(text: string): string {
  if (!/^[^=]+=./.test(text)) throw new RangeError(`${JSON.stringify(text)} is not a label name=value`);
  return text;
}

/**
 * Parses `host:port` or `udp:host:port`.
 * @throws {Error}
 */
export function parseDestination(text: string): { destination: Authority; network: Network } {
  const [, udp] = /^udp:(.*:.*)$/i.exec(text) ?? [];
  return { destination: parseAuthority(udp ?? text), network: udp === undefined ? "tcp" : "udp" };
}
