// Decides by rules who may reach what. Rules are indexed by subject, agent and destination, so that a decision looks at those alone that one
// of the three selects. Knows no files.
import { DestinationPatterns } from "../address/allow_list.ts";
import type { Authority, Network } from "../address/authority.ts";
import { isWithin, type Span } from "./hours.ts";
import { TextPatterns } from "./text_patterns.ts";

/** The limits of a rule with the effect `limit`. */
export interface RuleLimit {
  /** Bytes per second, both directions together. 0: no limit. */
  readonly bytesPerSecond: number;
  /** Tunnels at once. 0: no limit. */
  readonly tunnels: number;
  /** Whether all clients to whom it applies share it; otherwise each has it alone. */
  readonly isShared: boolean;
}

/** One rule. It applies if everything that it has matches; a list matches if one of its items does. */
export interface Rule {
  readonly effect: "allow" | "deny" | "limit";
  readonly name: string;
  /** Where it is in the policy's file, from 1 on. */
  readonly line: number;
  /** Patterns of `sub:…`, `name:…`, `group:…` and `token:…`, with at most one `*`. Empty: everyone. */
  readonly subjects: readonly string[];
  /** Patterns of agent ids. Empty: all. */
  readonly agents: readonly string[];
  /** Labels that the agent must have, all of them: `name=value`. */
  readonly labels: readonly string[];
  /** The limit, if that is the effect of the rule. */
  readonly limit?: RuleLimit;
  /** Allow-list patterns; in a rule that denies or limits they match as in a deny-list. Empty: all, TCP and UDP. */
  readonly destinations: readonly string[];
  /** Empty: at any time. */
  readonly hours: readonly Span[];
}

/** Who asks for what. */
export interface PolicyQuery {
  /** `sub:…`, `name:…`, `token:…`, and `group:…` for each group. */
  readonly subjects: readonly string[];
  readonly agentId: string;
  /** The agent's labels: `name=value`. */
  readonly labels: readonly string[];
  readonly destination: Authority;
  readonly network: Network;
}

export interface Decision {
  readonly allowed: boolean;
  /** The first rule in the file that decides; missing if none applies, which denies. */
  readonly rule?: Rule;
}

/** Decides by rules: denies a request that any rule denies, then allows one that any rule allows, and denies all others. */
export class RuleSet {
  readonly #denying = new RuleIndex("deny");
  readonly #allowing = new RuleIndex("allow");
  readonly #limiting = new RuleIndex("deny");
  /** All that rules name. */
  readonly #labels = new Set<string>();
  readonly #rules: Rule[] = [];
  #usesTime = false;

  /**
   * @param minuteOf the minute of the week at a time in milliseconds since 1970
   * @throws {RangeError} naming an invalid destination
   */
  constructor(rules: readonly Rule[], readonly minuteOf: (at: number) => number) {
    for (const rule of rules) this.add(rule);
  }

  get rules(): readonly Rule[] {
    return this.#rules;
  }

  /** Whether decisions depend on the time. */
  get usesTime(): boolean {
    return this.#usesTime;
  }

  /**
   * Adds a rule behind the others.
   * @throws {RangeError} naming an invalid destination; the set cannot be used then
   */
  add(rule: Rule): void {
    const indexes = { deny: this.#denying, allow: this.#allowing, limit: this.#limiting };
    indexes[rule.effect].add(rule);
    for (const label of rule.labels) this.#labels.add(label);
    this.#rules.push(rule);
    this.#usesTime ||= rule.hours.length > 0;
  }

  /** Whether it depends on labels, which are not known, that an agent is allowed. */
  mightAllow(query: Omit<PolicyQuery, "labels">, at: number): boolean {
    if (this.#labels.size === 0) return false;
    const minute = this.usesTime ? this.minuteOf(at) : 0;
    return this.#denying.find({ ...query, labels: [] }, minute) === undefined &&
      this.#allowing.find({ ...query, labels: [...this.#labels] }, minute) !== undefined;
  }

  /**
   * The limits that apply to what is allowed, in the order of the file.
   * @param at milliseconds since 1970
   */
  limits(query: PolicyQuery, at: number): Rule[] {
    return this.#limiting.findAll(query, this.usesTime ? this.minuteOf(at) : 0);
  }

  /** @param at milliseconds since 1970 */
  decide(query: PolicyQuery, at: number): Decision {
    const minute = this.usesTime ? this.minuteOf(at) : 0;
    const denying = this.#denying.find(query, minute);
    if (denying) return { allowed: false, rule: denying };
    const rule = this.#allowing.find(query, minute);
    return { allowed: rule !== undefined, rule };
  }
}

/** Why a pattern of destinations cannot be used; `undefined` if it can. */
export function destinationProblem(effect: Rule["effect"], pattern: string): string | undefined {
  try {
    new DestinationPatterns(effect === "allow" ? effect : "deny").add(pattern);
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

/** The lists of a rule that do not match. */
export function mismatches(rule: Rule, query: PolicyQuery, minute: number): string[] {
  const nothing = { ...rule, subjects: [], agents: [], labels: [], destinations: [], hours: [] };
  const lists = ["subjects", "agents", "labels", "destinations", "hours"] as const;
  return lists.filter((list) => {
    const only: Rule = { ...nothing, [list]: rule[list] };
    const set = new RuleSet([only], () => minute);
    return (rule.effect === "limit" ? set.limits(query, 0)[0] : set.decide(query, 0).rule) === undefined;
  });
}

/** A rule with the numbers of its patterns. */
interface IndexedRule {
  readonly rule: Rule;
  readonly subjects: readonly number[];
  readonly agents: readonly number[];
  readonly destinations: readonly number[];
}

/** The rules by the patterns of one of their lists. */
class Postings {
  readonly #rules: number[][] = [];
  /** The rules whose list is empty. */
  readonly #always: number[] = [];
  /** The last search in which each pattern matched. */
  readonly #matchedIn: number[] = [];
  #matched: number[] = [];
  #search = 0;

  add(rule: number, patterns: readonly number[]): void {
    if (patterns.length === 0) this.#always.push(rule);
    for (const pattern of patterns) {
      const rules = this.#rules[pattern] ??= [];
      if (rules.at(-1) !== rule) rules.push(rule); // a list may have a pattern twice
    }
  }

  /** Begins a search: `match` calls `visit` for each pattern that matches. */
  search(match: (visit: (pattern: number) => void) => void): void {
    this.#search++;
    this.#matched = [];
    match((pattern) => {
      if (this.#matchedIn[pattern] === this.#search) return;
      this.#matchedIn[pattern] = this.#search;
      this.#matched.push(pattern);
    });
  }

  /** Number of rules that the matching patterns select, with duplicates. */
  get count(): number {
    return this.#matched.reduce((sum, pattern) => sum + this.#rules[pattern]!.length, this.#always.length);
  }

  /** Whether the list of a rule matches. */
  matches(patterns: readonly number[]): boolean {
    return patterns.length === 0 || patterns.some((pattern) => this.#matchedIn[pattern] === this.#search);
  }

  *selected(): Generator<readonly number[]> {
    yield this.#always;
    for (const pattern of this.#matched) yield this.#rules[pattern]!;
  }
}

/** Marks a label as a pattern of agents: no agent id has it. */
const LABEL = "\0";

class RuleIndex {
  readonly #rules: IndexedRule[] = [];
  readonly #subjects = { patterns: new TextPatterns(), rules: new Postings() };
  /** By agent patterns; a rule without agents is found by its first label. */
  readonly #agents = { patterns: new TextPatterns(), rules: new Postings() };
  readonly #destinations: { readonly patterns: DestinationPatterns; readonly rules: Postings };

  constructor(effect: "allow" | "deny") {
    this.#destinations = { patterns: new DestinationPatterns(effect), rules: new Postings() };
  }

  /** @throws {RangeError} naming an invalid destination */
  add(rule: Rule): void {
    const agents = rule.agents.length > 0 ? rule.agents : rule.labels.slice(0, 1).map((label) => LABEL + label);
    const indexed: IndexedRule = {
      rule,
      subjects: rule.subjects.map((pattern) => this.#subjects.patterns.add(pattern)),
      agents: agents.map((pattern) => this.#agents.patterns.add(pattern)),
      destinations: rule.destinations.map((pattern) => this.#destinations.patterns.add(pattern)),
    };
    const number = this.#rules.push(indexed) - 1;
    this.#subjects.rules.add(number, indexed.subjects);
    this.#agents.rules.add(number, indexed.agents);
    this.#destinations.rules.add(number, indexed.destinations);
  }

  /** The first rule that applies. */
  find(query: PolicyQuery, minute: number): Rule | undefined {
    let first = this.#rules.length;
    for (const selected of this.#select(query)) {
      for (const i of selected) {
        if (i >= first) break; // they are in order
        if (this.#applies(this.#rules[i]!, query.labels, minute)) first = i;
      }
    }
    return this.#rules[first]?.rule;
  }

  /** All rules that apply, in their order. */
  findAll(query: PolicyQuery, minute: number): Rule[] {
    const found = new Set<number>();
    for (const selected of this.#select(query)) {
      for (const i of selected) if (this.#applies(this.#rules[i]!, query.labels, minute)) found.add(i);
    }
    return [...found].sort((a, b) => a - b).map((i) => this.#rules[i]!.rule);
  }

  /** Lists of rules, each in order, in which all are that apply: those with the fewest. */
  #select({ subjects, agentId, labels, destination, network }: PolicyQuery): Iterable<readonly number[]> {
    if (this.#rules.length === 0) return [];
    this.#subjects.rules.search((visit) => {
      for (const subject of subjects) this.#subjects.patterns.match(subject, visit);
    });
    this.#agents.rules.search((visit) => {
      this.#agents.patterns.match(agentId, visit);
      for (const label of labels) this.#agents.patterns.matchExactly(LABEL + label, visit);
    });
    this.#destinations.rules.search((visit) => this.#destinations.patterns.match(destination, network).forEach(visit));
    const all = [this.#subjects.rules, this.#agents.rules, this.#destinations.rules];
    return all.reduce((best, postings) => postings.count < best.count ? postings : best).selected();
  }

  #applies({ rule, subjects, agents, destinations }: IndexedRule, labels: readonly string[], minute: number): boolean {
    return this.#subjects.rules.matches(subjects) && this.#agents.rules.matches(agents) && this.#destinations.rules.matches(destinations) &&
      rule.labels.every((label) => labels.includes(label)) && (rule.hours.length === 0 || isWithin(rule.hours, minute));
  }
}
