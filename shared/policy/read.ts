// Reads a policy, YAML or JSON: rules, and tests that they must pass. One bad entry makes the whole policy invalid.
import { isAlias, isMap, isNode, isScalar, isSeq, LineCounter, parseDocument, type YAMLMap } from "yaml";
import { type Authority, type Network, parseAuthority } from "../address/authority.ts";
import { createAgentList } from "../auth/agent_list.ts";
import { createWeekClock, parseHours } from "./hours.ts";
import { type PolicyQuery, type Rule, RuleSet } from "./rules.ts";

/** An invalid policy, or one that fails its own tests. The message begins with the line. */
export class PolicyError extends Error {
  override readonly name = "PolicyError";
  /** @param problem what is wrong there */
  constructor(readonly line: number, readonly problem: string, options?: ErrorOptions) {
    super(`line ${line}: ${problem}`, options);
  }
}

/**
 * Reads a policy and runs its tests.
 * @param now milliseconds since 1970, for tests without a time
 * @throws {PolicyError}
 */
export function readPolicy(text: string, now: number): RuleSet {
  return new Reader(text).read(now);
}

/** Who a subject of a policy is. */
const SUBJECT = /^(?:sub|name|group|token):./;
const SUBJECT_FORMS = "sub:ID, name:NAME, group:NAME or token:JTI";
/** Most rules, and most items of all lists together. */
const MAX_RULES = 100_000;
const MAX_ITEMS = 1_000_000;

type Keys = ReadonlyMap<string, { readonly node: unknown; readonly line: number }>;

class Reader {
  readonly #lines = new LineCounter();
  readonly #root: unknown;
  #items = 0;

  constructor(text: string) {
    const document = parseDocument(text, { lineCounter: this.#lines, uniqueKeys: true, merge: false });
    const [problem] = [...document.errors, ...document.warnings];
    if (problem) {
      const { line } = this.#lines.linePos(problem.pos[0]);
      throw new PolicyError(line, problem.message.split("\n")[0]!.replace(/ at line \d+, column \d+:?$/, ""), { cause: problem });
    }
    this.#root = document.contents;
  }

  read(now: number): RuleSet {
    const keys = this.#keys(this.#root, ["timezone", "sets", "rules", "tests"]);
    const sets = this.#readSets(keys);
    const rules = this.#maps(keys, "rules").map((node) => this.#readRule(node, sets));
    if (rules.length === 0) this.#fail(this.#root, "it has no rules; without one, nothing is allowed");
    if (rules.length > MAX_RULES) this.#fail(this.#root, `it has more than ${MAX_RULES} rules`);
    const timeZone = this.#text(keys, "timezone") ?? "UTC";
    const minuteOf = this.#attempt(keys.get("timezone")?.node, () => createWeekClock(timeZone));
    const set = new RuleSet(rules, minuteOf);
    for (const node of this.#maps(keys, "tests")) this.#runTest(node, set, now);
    return set;
  }

  #readSets(keys: Keys): ReadonlyMap<string, readonly string[]> {
    const node = keys.get("sets")?.node;
    if (node === undefined) return new Map();
    if (!isMap(node)) return this.#fail(node, "sets is not a mapping of names to lists of subjects");
    const sets = node.items.map(({ key }) => String(key));
    const lists = this.#keys(node, sets);
    return new Map(sets.map((name) => [name, this.#list(lists, name, (item) => checkSubject(item))]));
  }

  #readRule(node: unknown, sets: ReadonlyMap<string, readonly string[]>): Rule {
    const keys = this.#keys(node, ["allow", "deny", "subjects", "agents", "labels", "destinations", "hours"]);
    const [allow, deny] = [this.#text(keys, "allow"), this.#text(keys, "deny")];
    const name = allow ?? deny;
    if (name === undefined || (allow !== undefined && deny !== undefined)) {
      return this.#fail(node, "a rule has either allow or deny, with its name");
    }
    const subjects = this.#list(keys, "subjects", (item) => {
      if (!item.startsWith("set:")) return checkSubject(item);
      if (!sets.has(item.slice(4))) throw new RangeError(`${JSON.stringify(item)} names a set that is not in sets`);
      return item;
    });
    const destinations = this.#list(keys, "destinations", (item) => {
      new RuleSet([{ ...NO_RULE, effect: allow === undefined ? "deny" : "allow", destinations: [item] }], () => 0); // parses it
      return item;
    });
    return {
      effect: allow === undefined ? "deny" : "allow",
      name,
      line: this.#lineOf(node),
      subjects: subjects.flatMap((item) => item.startsWith("set:") ? sets.get(item.slice(4))! : [item]),
      agents: this.#list(keys, "agents", (item) => {
        createAgentList([item]);
        return item;
      }),
      labels: this.#list(keys, "labels", checkLabel),
      destinations,
      hours: this.#list(keys, "hours", parseHours).flat(),
    };
  }

  #runTest(node: unknown, rules: RuleSet, now: number): void {
    const keys = this.#keys(node, ["expect", "as", "agent", "labels", "to", "at", "rule"]);
    const [expect, agentId, to, at] = (["expect", "agent", "to", "at"] as const).map((key) => this.#text(keys, key));
    if (expect !== "allow" && expect !== "deny") return this.#fail(node, "a test has expect: allow or expect: deny");
    if (agentId === undefined || to === undefined) return this.#fail(node, "a test has agent and to");
    const time = at === undefined ? now : Date.parse(at);
    if (Number.isNaN(time)) return this.#fail(keys.get("at")?.node, `${JSON.stringify(at)} is not a time like 2026-01-31T09:00:00Z`);
    const query: PolicyQuery = {
      subjects: this.#list(keys, "as", checkSubject),
      agentId,
      labels: this.#list(keys, "labels", checkLabel),
      ...this.#attempt(keys.get("to")?.node, () => parseDestination(to)),
    };
    const { allowed, rule } = rules.decide(query, time);
    const by = rule === undefined ? "no rule applies" : `the rule ${JSON.stringify(rule.name)} in line ${rule.line}`;
    if (allowed !== (expect === "allow")) {
      this.#fail(node, `this test expects ${expect}, and it is ${allowed ? "allowed" : "denied"}: ${by}`);
    }
    const wanted = this.#text(keys, "rule");
    if (wanted !== undefined && wanted !== rule?.name) this.#fail(node, `this test expects the rule ${JSON.stringify(wanted)}: ${by}`);
  }

  /** The values of a mapping, whose keys must be known. */
  #keys(node: unknown, known: readonly string[]): Keys {
    if (!isMap(node)) return this.#fail(node, `a mapping with ${known.join(", ")} is required`);
    return new Map((node as YAMLMap).items.map(({ key, value }) => {
      const name = isScalar(key) ? String(key.value) : "";
      if (!known.includes(name)) this.#fail(key, `${JSON.stringify(name)} is unknown; ${known.join(", ")} are valid here`);
      if (value === null || (isScalar(value) && value.value === null)) this.#fail(key, `${name} has no value; leave it out`);
      return [name, { node: value, line: this.#lineOf(key) }];
    }));
  }

  #maps(keys: Keys, key: string): unknown[] {
    const node = keys.get(key)?.node;
    if (node === undefined) return [];
    return isSeq(node) ? node.items : this.#fail(node, `${key} is not a list`);
  }

  #text(keys: Keys, key: string): string | undefined {
    const node = keys.get(key)?.node;
    return node === undefined ? undefined : this.#scalar(node);
  }

  /** A list of texts, or one text alone; it must not be empty if it is there. */
  #list<T>(keys: Keys, key: string, read: (item: string) => T): T[] {
    const node = keys.get(key)?.node;
    if (node === undefined) return [];
    const items = isSeq(node) ? node.items : [node];
    if (items.length === 0) this.#fail(node, `${key} is empty; leave it out for all`);
    this.#items += items.length;
    if (this.#items > MAX_ITEMS) this.#fail(node, `there are more than ${MAX_ITEMS} items`);
    return items.map((item) => this.#attempt(item, () => read(this.#scalar(item))));
  }

  #scalar(node: unknown): string {
    if (isAlias(node)) return this.#fail(node, `a text that begins with * needs quotes: "*${node.source}"`);
    const value = isScalar(node) ? node.value : undefined;
    const isText = typeof value === "string" || typeof value === "number" || typeof value === "boolean";
    if (!isText || value === "") {
      return this.#fail(node, "a text is required; one that begins with [ or {, or has a colon and a space, needs quotes");
    }
    return typeof value === "string" ? value : (isScalar(node) && node.source) || String(value);
  }

  /** @throws {PolicyError} for the RangeError of `read` */
  #attempt<T>(node: unknown, read: () => T): T {
    try {
      return read();
    } catch (cause) {
      if (!(cause instanceof Error) || cause instanceof PolicyError) throw cause;
      return this.#fail(node, cause.message, cause);
    }
  }

  #lineOf(node: unknown): number {
    return isNode(node) && node.range ? this.#lines.linePos(node.range[0]).line : 1;
  }

  #fail(node: unknown, why: string, cause?: Error): never {
    throw new PolicyError(this.#lineOf(node), why, { cause });
  }
}

const NO_RULE: Rule = { effect: "allow", name: "", line: 0, subjects: [], agents: [], labels: [], destinations: [], hours: [] };

/**
 * Returns `text` if it is a subject.
 * @throws {RangeError}
 */
export function checkSubject(text: string): string {
  if (!SUBJECT.test(text)) throw new RangeError(`${JSON.stringify(text)} is not ${SUBJECT_FORMS}`);
  if (text.split("*").length > 2) throw new RangeError(`${JSON.stringify(text)} has more than one *`);
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
