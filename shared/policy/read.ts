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

/** Time in milliseconds for which a policy is read before other tasks have their turn. */
const SLICE_MS = 10;

/**
 * Reads a policy and runs its tests. Other tasks have their turn meanwhile.
 * @param now milliseconds since 1970, for tests without a time
 * @throws {PolicyError}
 */
export async function readPolicy(text: string, now: number): Promise<RuleSet> {
  const reading = read(text, now);
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
function* read(text: string, now: number): Generator<void, RuleSet> {
  return yield* new Reader(yield* parse(text)).read(now);
}

/** @throws {PolicyError} */
function* parse(text: string): Generator<void, YamlDocument> {
  try {
    return yield* YamlDocument.parse(text, "rules");
  } catch (cause) {
    if (!(cause instanceof YamlError)) throw cause;
    throw new PolicyError(text.slice(0, cause.at).split("\n").length, cause.message, { cause });
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

/** The values of a mapping with few keys. */
class Keys {
  readonly #names: string[] = [];
  readonly #values: YamlNode[] = [];

  add(name: string, value: YamlNode): void {
    this.#names.push(name);
    this.#values.push(value);
  }

  get(name: string): YamlNode | undefined {
    const at = this.#names.indexOf(name);
    return at < 0 ? undefined : this.#values[at];
  }
}

/** Decisions made before a policy takes effect: the runtime has then compiled the code when the first client is waiting. */
const MAX_SAMPLES = 2_000;
/** Hosts of each kind that rules tell apart. */
const SAMPLE_HOSTS = ["a.b.example", "192.0.2.1", "2001:db8::1"];

/** Queries of clients and agents that rules throughout the policy name. */
function* sampleQueries(rules: readonly Rule[]): Generator<PolicyQuery, void> {
  const step = Math.ceil(rules.length / MAX_SAMPLES);
  for (let i = 0; i < rules.length; i += step) {
    const { subjects, agents, labels } = rules[i]!;
    const host = SAMPLE_HOSTS[i % SAMPLE_HOSTS.length]!;
    yield { subjects, agentId: agents[0] ?? "", labels, destination: { host, port: 443 }, network: "tcp" };
  }
}

class Reader {
  readonly #document: YamlDocument;
  readonly #hours = new Map<string, readonly Span[]>();
  #count = 0;

  constructor(document: YamlDocument) {
    this.#document = document;
  }

  /**
   * Yields after each rule and each test.
   * @throws {PolicyError}
   */
  *read(now: number): Generator<void, RuleSet> {
    const { root } = this.#document;
    if (root === undefined || this.#document.isEnd(this.#document.first(root))) {
      return this.#fail(undefined, `a mapping with ${SECTIONS.join(", ")} is required`);
    }
    const keys = this.#keys(root, SECTIONS);
    const sets = this.#readSets(keys);
    const timeZone = this.#text(keys, "timezone") ?? "UTC";
    const set = new RuleSet([], this.#attempt(keys.get("timezone"), () => createWeekClock(timeZone)));
    const limits = new Set<string>();
    for (const node of this.#section(keys, "rules")) {
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
    if (set.rules.length === limits.size) this.#fail(keys.get("rules"), "it has no rules; without one, nothing is allowed");
    for (const node of this.#section(keys, "tests")) {
      this.#runTest(node, set, now);
      yield;
    }
    for (const query of sampleQueries(set.rules)) {
      set.decide(query, now);
      yield;
    }
    return set;
  }

  /** Names the item that cannot be used. */
  #failDestination(node: YamlNode, { effect, destinations }: Rule, cause: unknown): never {
    const bad = destinations.findIndex((pattern) => destinationProblem(effect, pattern) !== undefined);
    if (bad < 0 || !(cause instanceof Error)) throw cause;
    const list = this.#keys(node, RULE_KEYS).get("destinations")!;
    return this.#fail(this.#document.kindOf(list) === "list" ? [...this.#items(list)][bad] : list, cause.message, cause);
  }

  #readSets(keys: Keys): ReadonlyMap<string, readonly string[]> {
    const node = keys.get("sets");
    if (node === undefined) return new Map();
    const document = this.#document;
    if (document.kindOf(node) !== "map") return this.#fail(node, "sets is not a mapping of names to lists of subjects");
    const sets = new Map<string, readonly string[]>();
    for (let key = document.first(node), value; !document.isEnd(key); key = document.behind(value)) {
      value = document.behind(key);
      const name = this.#scalar(key);
      if (sets.has(name)) this.#fail(key, `${name} is not unique: it is there twice`);
      if (document.isNull(value)) this.#fail(value, `${name} has no value; leave it out`);
      sets.set(name, this.#texts(value, name, checkSubject));
    }
    return sets;
  }

  #readRule(node: YamlNode, sets: ReadonlyMap<string, readonly string[]>): Rule {
    const keys = this.#keys(node, RULE_KEYS);
    const effects = EFFECTS.filter((key) => keys.get(key) !== undefined);
    if (effects.length !== 1) return this.#fail(node, "a rule has either allow, deny or limit, with its name");
    const effect = effects[0]!;
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
      hours: keys.get("hours") === undefined ? NOTHING : this.#list(keys, "hours", (text) => this.#readHours(text)).flat(),
    };
  }

  /** Caches the result, because many rules have the same hours. */
  #readHours(text: string): readonly Span[] {
    let spans = this.#hours.get(text);
    if (spans === undefined) this.#hours.set(text, spans = parseHours(text));
    return spans;
  }

  #readLimit(node: YamlNode, effect: Rule["effect"], keys: Keys): RuleLimit | undefined {
    const wrong = LIMIT_KEYS.find((key) => keys.get(key) !== undefined);
    if (effect !== "limit") return wrong === undefined ? undefined : this.#fail(node, `${wrong} is only for a rule with limit`);
    if ((keys.get("bandwidth") ?? keys.get("tunnels")) === undefined) {
      return this.#fail(node, "a rule with limit has bandwidth, tunnels, or both");
    }
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
    if (keys.get("limits") !== undefined) {
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
    const document = this.#document;
    if (document.kindOf(node) !== "map") return this.#fail(node, `a mapping with ${known.join(", ")} is required`);
    const keys = new Keys();
    for (let key = document.first(node), value; !document.isEnd(key); key = document.behind(value)) {
      value = document.behind(key);
      const name = this.#nameOf(key, known);
      if (keys.get(name) !== undefined) this.#fail(key, `${name} is not unique: it is there twice`);
      if (document.isNull(value)) this.#fail(value, `${name} has no value; leave it out`);
      keys.add(name, value);
    }
    return keys;
  }

  #nameOf(key: YamlNode, known: readonly string[]): string {
    for (const name of known) if (this.#document.isText(key, name)) return name;
    const name = this.#document.kindOf(key) === "text" ? this.#document.textOf(key) : "";
    return known.includes(name) ? name : this.#fail(key, `${JSON.stringify(name)} is unknown; ${known.join(", ")} are valid here`);
  }

  /** The items of a list at the root. */
  #section(keys: Keys, name: string): Iterable<YamlNode> {
    const node = keys.get(name);
    if (node === undefined) return NOTHING;
    return this.#document.kindOf(node) === "list" ? this.#items(node) : this.#fail(node, `${name} is not a list`);
  }

  *#items(list: YamlNode): Generator<YamlNode, void> {
    const document = this.#document;
    for (let item = document.first(list); !document.isEnd(item); item = document.behind(item)) yield item;
  }

  #text(keys: Keys, key: string): string | undefined {
    const node = keys.get(key);
    return node === undefined ? undefined : this.#scalar(node);
  }

  /** A list of texts, or one text alone; it must not be empty if it is there. */
  #list<T>(keys: Keys, key: string, read: (item: string) => T): readonly T[] {
    const node = keys.get(key);
    return node === undefined ? NOTHING : this.#texts(node, key, read);
  }

  #texts<T>(node: YamlNode, name: string, read: (item: string) => T): readonly T[] {
    const document = this.#document;
    if (document.kindOf(node) !== "list") return [this.#readText(node, read)];
    const values: T[] = [];
    for (let item = document.first(node); !document.isEnd(item); item = document.behind(item)) values.push(this.#readText(item, read));
    return values.length > 0 ? values : this.#fail(node, `${name} is empty; leave it out for all`);
  }

  #readText<T>(node: YamlNode, read: (text: string) => T): T {
    if (++this.#count > MAX_ITEMS) this.#fail(node, `there are more than ${MAX_ITEMS} items`);
    const text = this.#scalar(node);
    try {
      return read(text);
    } catch (cause) {
      return this.#failFor(node, cause);
    }
  }

  #scalar(node: YamlNode): string {
    const document = this.#document;
    const kind = document.kindOf(node);
    if (kind === "alias") return this.#fail(node, `a text that begins with * needs quotes: "*${document.textOf(node)}"`);
    const text = kind === "text" && !document.isNull(node) ? document.textOf(node) : "";
    if (text !== "") return text;
    return this.#fail(node, "a text is required; one that begins with [ or {, or has a colon and a space, needs quotes");
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
    return node === undefined ? 1 : this.#document.lineOf(node);
  }

  #fail(node: YamlNode | undefined, why: string, cause?: Error): never {
    throw new PolicyError(this.#lineOf(node), why, { cause });
  }
}

const SECTIONS = ["timezone", "sets", "rules", "tests"];
const EFFECTS = ["allow", "deny", "limit"] as const;
const LIMIT_KEYS = ["bandwidth", "tunnels", "shared"];
const RULE_KEYS = ["allow", "deny", "limit", "subjects", "agents", "labels", "destinations", "hours", ...LIMIT_KEYS];
/** Most limits: all that apply are enforced. */
const MAX_LIMITS = 1_000;

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
