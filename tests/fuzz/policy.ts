// The property that the indexed rules of a policy decide as a reading of them one after the other does.
import assert from "node:assert/strict";
import fc from "fast-check";
import { createAllowList, createDenyList } from "../../shared/address/allow_list.ts";
import { createWeekClock, parseHours, type Span } from "../../shared/policy/hours.ts";
import { type PolicyQuery, type Rule, RuleSet } from "../../shared/policy/rules.ts";

// few values, so that rules and queries meet
const SUBJECTS = ["sub:1", "name:a", "name:ab", "name:abc", "group:a", "group:b", "group:ab", "token:t"];
const SUBJECT_PATTERNS = [...SUBJECTS, "name:*", "name:a*", "name:*c", "name:a*c", "group:*b", "*:a", "*", "nam*e:a"];
const AGENTS = ["a", "aa", "ab", "site-1", "site-12", "site-2", "b-site", "="];
const AGENT_PATTERNS = [...AGENTS, "*", "site-*", "*-1", "s*1", "a*a", "*a", "site-1*", "*site*".slice(1)];
const LABELS = ["region=eu", "region=us", "tier=1"];
const HOSTS = [
  "db",
  "a.db",
  "b.a.db",
  "10.0.0.1",
  "10.0.1.1",
  "10.1.0.1",
  "0x0a000001",
  "::ffff:10.0.0.1",
  "64:ff9b::a00:1",
  "::1",
  "0.0.0.0",
  "2001:db8::1",
  "2001:db9::1",
];
const DESTINATIONS = [
  ...["db", "*.db", "*.a.db", "10.0.0.1", "10.0.0.0/24", "10.0.0.0/8:22-80", "[::1]:443", "127.0.0.1", "::ffff:10.0.0.0/120"],
  ...["udp:db:53", "udp:10.0.0.0/8", "udp:all", "all", "none", "db:22", "a.db:443", "64:ff9b::/96"],
  // the same networks in two notations, and others of the same length
  ...[
    "10.0.0.9/24",
    "10.0.1.0/24",
    "10.1.0.0/16",
    "10.0.0.0/16",
    "2001:db8::/32",
    "2001:db8:1::/32",
    "2001:db9::/32",
    "[2001:db8::]/32:443",
  ],
];
const PORTS = [22, 53, 80, 443];
const HOURS = ["Mon-Fri 08:00-18:00", "Sat,Sun", "22:00-06:00", "Sun 23:00-01:00", "Fri-Mon", "00:00-24:00", "12:00-12:01"];

const some = <T>(values: readonly T[], maxLength: number) => fc.array(fc.constantFrom(...values), { maxLength });
const rule: fc.Arbitrary<Rule> = fc.record({
  effect: fc.constantFrom("allow" as const, "allow" as const, "deny" as const, "limit" as const),
  name: fc.constant(""),
  line: fc.nat(),
  subjects: some(SUBJECT_PATTERNS, 3),
  agents: some(AGENT_PATTERNS, 2),
  labels: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, some(LABELS, 2)),
  destinations: some(DESTINATIONS, 3),
  hours: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, some(HOURS, 2).map((texts) => texts.flatMap(parseHours))),
});
const query: fc.Arbitrary<{ readonly query: PolicyQuery; readonly minute: number }> = fc.record({
  query: fc.record({
    subjects: some(SUBJECTS, 4),
    agentId: fc.constantFrom(...AGENTS),
    labels: some(LABELS, 3),
    destination: fc.record({ host: fc.constantFrom(...HOSTS), port: fc.constantFrom(...PORTS) }),
    network: fc.constantFrom("tcp" as const, "tcp" as const, "udp" as const),
  }),
  minute: fc.nat(7 * 24 * 60 - 1),
});

/** Whether a text has the pattern, by a regular expression. */
const fits = cached((pattern: string, text: string): boolean => {
  const literal = (part: string) => part.replace(/[^]/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`);
  return new RegExp(`^${pattern.split("*").map(literal).join(".*")}$`, "u").test(text);
});

/** Whether a destination has the pattern, in a list of its own. */
const contains = cached((pattern: string, effect: string, network: string, host: string, port: string): boolean => {
  const [destination, over] = [{ host, port: Number(port) }, network as PolicyQuery["network"]];
  return effect === "allow" ? createAllowList([pattern]).allows(destination, over) : createDenyList([pattern]).denies(destination, over);
});

/** Few values are asked for again and again. */
function cached(test: (...texts: string[]) => boolean): (...texts: string[]) => boolean {
  const known = new Map<string, boolean>();
  return (...texts) => {
    const key = texts.join("\n");
    let value = known.get(key);
    if (value === undefined) known.set(key, value = test(...texts));
    return value;
  };
}

function isAt(spans: readonly Span[], minute: number): boolean {
  return spans.length === 0 || spans.some(([first, end]) => {
    for (let m = first; m < end; m++) if (m % (7 * 24 * 60) === minute) return true;
    return false;
  });
}

function applies({ effect, subjects, agents, labels, destinations, hours }: Rule, query: PolicyQuery, minute: number): boolean {
  const { destination: { host, port }, network } = query;
  const isDestination = destinations.length === 0 ||
    destinations.some((pattern) => contains(pattern, effect, network, host, String(port)));
  return isDestination && isAt(hours, minute) && labels.every((label) => query.labels.includes(label)) &&
    (agents.length === 0 || agents.some((pattern) => fits(pattern, query.agentId))) &&
    (subjects.length === 0 || subjects.some((pattern) => query.subjects.some((subject) => fits(pattern, subject))));
}

/** Queries for each policy. */
const QUERIES = 20;

/** Decides as documents say, one rule after the other. */
function reference(rules: readonly Rule[], query: PolicyQuery, minute: number): Rule | undefined {
  return rules.find((rule) => rule.effect === "deny" && applies(rule, query, minute)) ??
    rules.find((rule) => rule.effect === "allow" && applies(rule, query, minute));
}

export const policyProperties: Readonly<Record<string, fc.IProperty<unknown>>> = {
  "the rules of a policy decide as if each were read": fc.property(
    // with many rules, several lists select those that are looked at
    fc.oneof({ weight: 4, arbitrary: fc.array(rule, { maxLength: 12 }) }, fc.array(rule, { minLength: 60, maxLength: 120, size: "max" })),
    fc.array(query, { minLength: QUERIES, maxLength: QUERIES }),
    (rules, queries) => {
      let minute = 0;
      const set = new RuleSet(rules, () => minute);
      for (const each of queries) {
        minute = each.minute;
        const expected = reference(rules, each.query, minute);
        const { allowed, rule } = set.decide(each.query, 0);
        assert.equal(rule, expected, JSON.stringify({ rule, expected, each }));
        assert.equal(allowed, expected?.effect === "allow");
        assert.deepEqual(set.limits(each.query, 0), rules.filter((rule) => rule.effect === "limit" && applies(rule, each.query, minute)));
      }
    },
  ) as fc.IProperty<unknown>,
  "a minute of the week is that of the calendar": fc.property(fc.nat(2 ** 32), (seconds) => {
    const date = new Date(seconds * 1_000);
    const expected = ((date.getUTCDay() + 6) % 7) * 1_440 + date.getUTCHours() * 60 + date.getUTCMinutes();
    assert.equal(createWeekClock("UTC")(seconds * 1_000), expected);
  }) as fc.IProperty<unknown>,
};
