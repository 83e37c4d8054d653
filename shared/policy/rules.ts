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

/** The rules by the patterns of one of their lists, and which of these match a query: an inverted index. */
class Postings {
  /** By pattern. Most have one rule, which is stored without a list. */
  readonly #rules: (number | number[])[] = [];
  /** The rules whose list is empty. */
  readonly #always: number[] = [];
  #size = 0;
  /** By pattern: the last search in which it matched. */
  #matchedIn = new Uint32Array();
  /** By rule: the last search in which it was marked, or {@link ALWAYS}. */
  #markedIn = new Uint32Array();
  #matched: number[] = [];
  #search = 0;

  /** Adds the next rule. */
  add(rule: number, patterns: readonly number[]): void {
    this.#size++;
    if (patterns.length === 0) this.#always.push(rule);
    for (const pattern of patterns) {
      if (pattern >= this.#rules.length) { // a new pattern has the next number
        this.#rules.push(rule);
        continue;
      }
      const rules = this.#rules[pattern]!;
      if (typeof rules === "number") { if (rules !== rule) this.#rules[pattern] = [rules, rule]; }
      // a list may have a pattern twice
      else if (rules[rules.length - 1] !== rule) rules.push(rule);
    }
  }

  /** Begins a search. */
  begin(): void {
    if (this.#markedIn.length < this.#size || this.#search === ALWAYS - 1) {
      this.#matchedIn = new Uint32Array(this.#rules.length);
      this.#markedIn = new Uint32Array(this.#size);
      for (const rule of this.#always) this.#markedIn[rule] = ALWAYS;
      this.#search = 0;
    }
    this.#search++;
    this.#matched = [];
  }

  /** Called in a search for each pattern that matches. */
  readonly visit = (pattern: number): void => {
    if (this.#matchedIn[pattern] === this.#search) return;
    this.#matchedIn[pattern] = this.#search;
    this.#matched.push(pattern);
  };

  /** Number of rules that are selected, with duplicates: those whose list is empty, and those of the matching patterns. */
  get count(): number {
    return this.#always.length + this.matchedCount;
  }

  /** Number of rules of the matching patterns, with duplicates. */
  get matchedCount(): number {
    let sum = 0;
    for (const pattern of this.#matched) {
      const rules = this.#rules[pattern]!;
      sum += typeof rules === "number" ? 1 : rules.length;
    }
    return sum;
  }

  /** Whether the list of a rule matches. */
  matches(patterns: readonly number[]): boolean {
    if (patterns.length === 0) return true;
    for (const pattern of patterns) if (this.#matchedIn[pattern] === this.#search) return true;
    return false;
  }

  /** Marks the rules that are selected, for {@link isMarked}. */
  mark(): void {
    for (const pattern of this.#matched) {
      const rules = this.#rules[pattern]!;
      if (typeof rules === "number") this.#markedIn[rules] = this.#search;
      else for (const rule of rules) this.#markedIn[rule] = this.#search;
    }
  }

  isMarked(rule: number): boolean {
    const search = this.#markedIn[rule]!;
    return search === this.#search || search === ALWAYS;
  }

  /** Calls `visit` with the rules of each pattern that matches, in their order, until it returns false. */
  forEachSelected(visit: (rule: number) => boolean): void {
    visitAll(this.#always, visit);
    for (const pattern of this.#matched) {
      const rules = this.#rules[pattern]!;
      if (typeof rules === "number") visit(rules);
      else visitAll(rules, visit);
    }
  }
}

/** Marks a rule in every search. */
const ALWAYS = 2 ** 32 - 1;

function visitAll(rules: readonly number[], visit: (rule: number) => boolean): void {
  for (const rule of rules) if (!visit(rule)) return;
}

/** The numbers of the patterns. */
function addAll(table: { add(pattern: string): number }, patterns: readonly string[]): readonly number[] {
  if (patterns.length === 0) return NOTHING;
  const numbers: number[] = [];
  for (const pattern of patterns) numbers.push(table.add(pattern));
  return numbers;
}

/** A list that is missing: there are many of them. */
const NOTHING: readonly never[] = [];

/** Marks a label as a pattern of agents: no agent id has it. */
const LABEL = "\0";

class RuleIndex {
  readonly #rules: IndexedRule[] = [];
  readonly #subjects = { patterns: new TextPatterns(), rules: new Postings() };
  /** By agent patterns; a rule without agents is found by its first label. */
  readonly #agents = { patterns: new TextPatterns(), rules: new Postings() };
  readonly #destinations: { readonly patterns: DestinationPatterns; readonly rules: Postings };
  /** Whether the patterns of destinations that match the query are found. */
  #hasDestinations = false;

  constructor(effect: "allow" | "deny") {
    this.#destinations = { patterns: new DestinationPatterns(effect), rules: new Postings() };
  }

  /** @throws {RangeError} naming an invalid destination */
  add(rule: Rule): void {
    const agents = rule.agents.length > 0 || rule.labels.length === 0 ? rule.agents : [LABEL + rule.labels[0]!];
    const indexed: IndexedRule = {
      rule,
      subjects: addAll(this.#subjects.patterns, rule.subjects),
      agents: addAll(this.#agents.patterns, agents),
      destinations: addAll(this.#destinations.patterns, rule.destinations),
    };
    const number = this.#rules.push(indexed) - 1;
    this.#subjects.rules.add(number, indexed.subjects);
    this.#agents.rules.add(number, indexed.agents);
    this.#destinations.rules.add(number, indexed.destinations);
  }

  /** The first rule that applies. */
  find(query: PolicyQuery, minute: number): Rule | undefined {
    let first = this.#rules.length;
    this.#forEachCandidate(query, (i) => {
      if (i >= first) return false;
      if (this.#applies(this.#rules[i]!, query, minute)) first = i;
      return true;
    });
    return this.#rules[first]?.rule;
  }

  /** All rules that apply, in their order. */
  findAll(query: PolicyQuery, minute: number): Rule[] {
    const found = new Set<number>();
    this.#forEachCandidate(query, (i) => {
      if (this.#applies(this.#rules[i]!, query, minute)) found.add(i);
      return true;
    });
    return [...found].sort((a, b) => a - b).map((i) => this.#rules[i]!.rule);
  }

  /** Calls `visit` with the rules that may apply: those of the list that selects fewest, and of the next one if that selects not many more. */
  #forEachCandidate(query: PolicyQuery, visit: (rule: number) => boolean): void {
    if (this.#rules.length === 0) return;
    this.#hasDestinations = false;
    const { subjects, agentId, labels } = query;
    const bySubject = this.#subjects.rules;
    bySubject.begin();
    for (const subject of subjects) this.#subjects.patterns.match(subject, bySubject.visit);
    if (bySubject.count === 0) return;
    const byAgent = this.#agents.rules;
    byAgent.begin();
    this.#agents.patterns.match(agentId, byAgent.visit);
    for (const label of labels) this.#agents.patterns.matchExactly(LABEL + label, byAgent.visit);
    const best = bySubject.count <= byAgent.count ? bySubject : byAgent;
    if (best.count <= FEW) return best.forEachSelected(visit);
    const [first, second] = [bySubject, byAgent, this.#matchDestinations(query)].sort((a, b) => a.count - b.count) as [Postings, Postings];
    if (second.matchedCount > MARKED_FOR_EACH * first.count) return first.forEachSelected(visit);
    second.mark();
    first.forEachSelected((rule) => second.isMarked(rule) ? visit(rule) : true);
  }

  /** Finds the patterns of destinations that match, once for a query: often, subject and agent leave no rule that needs them. */
  #matchDestinations({ destination, network }: PolicyQuery): Postings {
    const { patterns, rules } = this.#destinations;
    if (!this.#hasDestinations) {
      rules.begin();
      patterns.match(destination, network, rules.visit);
      this.#hasDestinations = true;
    }
    return rules;
  }

  #applies({ rule, subjects, agents, destinations }: IndexedRule, query: PolicyQuery, minute: number): boolean {
    return this.#subjects.rules.matches(subjects) && this.#agents.rules.matches(agents) &&
      rule.labels.every((label) => query.labels.includes(label)) && (rule.hours.length === 0 || isWithin(rule.hours, minute)) &&
      (destinations.length === 0 || this.#matchDestinations(query).matches(destinations));
  }
}

/** Rules that are looked at without trying whether the destination selects fewer. */
const FEW = 16;
/** Rules that are marked to spare looking at one: marks are in one array, and a rule is in several objects. */
const MARKED_FOR_EACH = 16;
