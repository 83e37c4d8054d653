// Policies: which rule decides, what makes a file invalid, its own tests, and what a change ends.
import assert from "node:assert/strict";
import { renameSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { Identity } from "../../shared/auth/authenticator.ts";
import { createWeekClock, isWithin, parseHours } from "../../shared/policy/hours.ts";
import { openPolicy, type Policy, type PolicyRequest, subjectsOf } from "../../shared/policy/policy.ts";
import { parseDestination, PolicyError, readPolicy } from "../../shared/policy/read.ts";
import type { Decision, PolicyQuery } from "../../shared/policy/rules.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { LimitReporter } from "../../shared/limits/limit.ts";
import { TunnelLimits } from "../../shared/limits/tunnels.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

/** A Wednesday. */
const NOON = Date.parse("2026-11-25T12:00:00Z");

const POLICY = `
timezone: Europe/Berlin
sets:
  dba: [name:alice, "group:db-*"]
rules:
  - allow: databases
    subjects: [set:dba, sub:7]
    agents: ["site-*"]
    destinations: ["*.db:5432", 10.0.0.0/8]
  - allow: office
    subjects: group:staff
    labels: [region=eu]
    hours: Mon-Fri 08:00-18:00
  - deny: payroll
    agents: site-9
  - deny: metadata
    destinations: [169.254.169.254]
tests:
  - {expect: allow, as: [name:alice], agent: site-1, to: "a.db:5432", rule: databases}
  - {expect: deny, as: name:bob, agent: site-1, to: "a.db:5432"}
  - {expect: allow, as: group:staff, agent: x, labels: region=eu, to: "udp:host:53", at: "2026-11-25T16:59:00Z"}
  - {expect: deny, as: group:staff, agent: x, labels: region=eu, to: "host:53", at: "2026-11-25T17:00:00Z"}
`;

function query(subjects: string[], agentId: string, to: string, labels: string[] = []): PolicyQuery {
  return { subjects, agentId, labels, ...parseDestination(to) };
}

function named({ allowed, rule }: Decision): string {
  return `${allowed ? "allow" : "deny"} ${rule?.name}`;
}

describe("a policy", () => {
  it("allows what a rule allows and none denies, and says by which rule", async () => {
    const set = await readPolicy(POLICY, NOON);
    const rows: [PolicyQuery, string][] = [
      [query(["name:alice"], "site-1", "a.db:5432"), "allow databases"],
      [query(["group:db-eu"], "site-1", "10.1.2.3:22"), "allow databases"],
      [query(["sub:7"], "site-1", "10.1.2.3:22"), "allow databases"],
      [query(["name:7"], "site-1", "10.1.2.3:22"), "deny undefined"],
      [query(["name:alice"], "site-1", "a.db:22"), "deny undefined"],
      [query(["name:alice"], "site-1", "udp:10.1.2.3:22"), "deny undefined"],
      [query(["name:alice"], "other", "a.db:5432"), "deny undefined"],
      [query(["name:alice"], "site-9", "a.db:5432"), "deny payroll"],
      [query(["group:staff"], "x", "host:80", ["region=eu"]), "allow office"],
      [query(["group:staff"], "x", "host:80", ["region=us"]), "deny undefined"],
      [query(["group:staff"], "x", "[::ffff:169.254.169.254]:80", ["region=eu"]), "deny metadata"],
    ];
    for (const [each, expected] of rows) assert.equal(named(set.decide(each, NOON)), expected, JSON.stringify(each));
    assert.equal(set.decide(rows[0]![0], NOON).rule!.line, 6);
  });

  it("is invalid as a whole with one bad entry, whose line is named", async () => {
    const rows: [text: string, line: number, problem: RegExp][] = [
      ["rules:\n  - allow: a\n    subject: name:a\n", 3, /"subject" is unknown; .*subjects/],
      ["rules:\n  - allow: a\n    subjects: [alice]\n", 3, /"alice" is not sub:ID, name:NAME/],
      ["rules:\n  - allow: a\n    subjects: [set:dba]\n", 3, /a set that is not in sets/],
      ["rules:\n  - allow: a\n    subjects: []\n", 3, /empty/],
      ["rules:\n  - allow: a\n    subjects:\n", 3, /no value/],
      ["rules:\n  - allow: a\n    agents: [a*b*]\n", 3, /more than one \*/],
      ["rules:\n  - allow: a\n    agents: [*]\n", 3, /./],
      ["rules:\n  - allow: a\n    agents: *x\n", 3, /needs quotes|alias/i],
      ["rules:\n  - allow: a\n    labels: [eu]\n", 3, /label name=value/],
      ["rules:\n  - allow: a\n    destinations: [db:0]\n", 3, /port/],
      ["rules:\n  - allow: a\n    destinations:\n      - db\n      - '::1:80'\n", 5, /may be meant as an address and a port/],
      ["rules:\n  - allow: a\n    hours: [Mon-Fri 8-18]\n", 3, /is not a time like/],
      ["rules:\n  - allow: a\n    hours: Mo 08:00-18:00\n", 3, /is not a day/],
      ["rules:\n  - allow: a\n    hours: 08:00-25:00\n", 3, /is not a time from/],
      ["rules:\n  - allow: a\n    deny: b\n", 2, /either allow, deny or limit/],
      ["rules:\n  - subjects: name:a\n", 2, /either allow, deny or limit/],
      ["rules:\n  - limit: a\n", 2, /has bandwidth, tunnels, or both/],
      ["rules:\n  - allow: a\n    bandwidth: 1MiB\n", 2, /bandwidth is only for a rule with limit/],
      ["rules:\n  - limit: a\n    bandwidth: fast\n", 3, /"fast" is not like/],
      ["rules:\n  - limit: a\n    bandwidth: 0\n", 3, /no limit; leave it out/],
      ["rules:\n  - limit: a\n    tunnels: 0\n", 3, /a rule with deny allows none/],
      ["rules:\n  - limit: a\n    tunnels: 1\n    shared: yes\n", 4, /not true or false/],
      ["rules:\n  - limit: a\n    tunnels: 1\n", 2, /no rules/],
      ["rules:\n  - allow: a\n  - limit: a\n    tunnels: 1\n  - limit: a\n    tunnels: 2\n", 5, /another limit has the name "a"/],
      [
        "rules:\n  - allow: a\n  - limit: b\n    tunnels: 1\ntests:\n  - {expect: allow, agent: a, to: 'db:1', limits: [c]}\n",
        6,
        /the limits c, and they are: b/,
      ],
      ["rules: []\n", 1, /no rules/],
      ["", 1, /a mapping with/],
      ["- allow: a\n", 1, /a mapping with/],
      ["rules:\n  - allow: a\n    labels: [a=b, ]\n    hours: [~]\n", 4, /a text is required/],
      ["rules:\n  - allow: !!str a\n", 2, /a tag/],
      ["rules: {}\n", 1, /rules is not a list/],
      ["timezone: Mars/Olympus\nrules:\n  - allow: a\n", 1, /Mars/],
      ["rules:\n  - allow: a\n\trules: x\n", 3, /./],
      ["rules:\n  - allow: a\nrules:\n  - allow: b\n", 3, /unique/i],
      [
        "rules:\n  - allow: a\ntests:\n  - {expect: deny, agent: a, to: 'db:1'}\n",
        4,
        /expects deny, and it is allowed: the rule "a" in line 2/,
      ],
      ["rules:\n  - deny: a\ntests:\n  - {expect: allow, agent: a, to: 'db:1'}\n", 4, /expects allow, and it is denied/],
      ["rules:\n  - allow: a\n  - allow: b\ntests:\n  - {expect: allow, agent: a, to: 'db:1', rule: b}\n", 5, /expects the rule "b"/],
      ["rules:\n  - allow: a\ntests:\n  - {expect: allow, agent: a, to: db}\n", 4, /port|target/i],
      ["rules:\n  - allow: a\ntests:\n  - {expect: allow, agent: a, to: 'db:1', at: noon}\n", 4, /"noon" is not a time/],
    ];
    for (const [text, line, problem] of rows) {
      await assert.rejects(readPolicy(text, NOON), (error) => {
        assert.ok(error instanceof PolicyError, `${text}: ${error}`);
        assert.match(error.message, problem, text);
        assert.equal(error.line, line, text);
        return true;
      });
    }
  });

  it("is read in slices if it is large, so that others have their turn", async () => {
    const rules = Array.from(
      { length: 4_000 },
      (_, i) => `  - allow: rule ${i}\n    subjects: [name:u${i}]\n    destinations: ["d${i}:443", 'e${i}:1']\n`,
    );
    const text = `rules:\n${rules.join("")}`;
    assert.ok(text.length > 256 * 1024);
    let turns = 0;
    const timer = setInterval(() => turns++);
    const set = await readPolicy(text, NOON);
    clearInterval(timer);
    assert.equal(set.rules.length, 4_000);
    assert.ok(turns >= 2, `${turns} turns`);
    assert.equal(named(set.decide(query(["name:u3999"], "a", "d3999:443"), NOON)), "allow rule 3999");
    const bad: [text: string, line: number][] = [
      [text.replace("d3000:443", "d3000:0"), 3 * 3_000 + 4],
      [`${text}\t- x`, 12_002],
    ];
    for (const [each, line] of bad) await assert.rejects(readPolicy(each, NOON), (error: PolicyError) => error.line === line);
  });

  it("means the same and has the same lines when it is parsed in parts", async () => {
    const items = (item: (i: number) => string) => Array.from({ length: 6_000 }, (_, i) => item(i)).join("");
    const allowed = "tests:\n  - {expect: allow, as: group:x, agent: site-5999, to: 'db:1', rule: rule 5999}\n";
    const denied = "tests:\n  - {expect: deny, agent: site-5999, to: 'db:1'}\n";
    const one = (i: number) => `  - allow: rule ${i}\n    agents: [site-${i}]\n    hours: 00:00-24:00\n`;
    const whole = `rules:\n${items(one)}`;
    assert.ok(whole.length > 256 * 1024);
    const valid = {
      "two spaces": [whole + allowed, 3 * 5_999 + 2],
      "no end of the last line": [`${allowed}${whole}`.trimEnd(), 3 * 5_999 + 4],
      "CRLF": [(whole + allowed).replaceAll("\n", "\r\n"), 3 * 5_999 + 2],
      "no indentation": [`# first\nrules:\n${items(one).replaceAll(/^ {2}/mg, "")}${allowed}`, 3 * 5_999 + 3],
      "comments and empty lines": [`rules:\n${items((i) => `${one(i)}# next\n\n`)}${allowed}`, 5 * 5_999 + 2],
      "texts that look like items": [
        `rules:\n${
          items((i) =>
            `  - agents: [site-${i}]\n    subjects: [group:x, "group:a\n      - allow: b"]\n    hours: |-\n      00:00-24:00\n    allow: rule ${i}\n`
          )
        }${allowed}`,
        6 * 5_999 + 2,
      ],
      "a flow sequence": [
        `rules: [\n${items((i) => `  {allow: rule ${i}, agents: [site-${i}], hours: 00:00-24:00},\n`)}  ]\n${allowed}`,
        6_001,
      ],
    } satisfies Record<string, [string, number]>;
    for (const [what, [text, line]] of Object.entries(valid)) {
      const set = await readPolicy(text, NOON);
      assert.deepEqual([set.rules.length, set.rules[5_999]!.name, set.rules[5_999]!.line], [6_000, "rule 5999", line], what);
    }
    const invalid = {
      "a test that fails behind the rules": [whole + denied, 18_003],
      "a test that fails before the rules": [denied + whole, 2],
      "a tag": [whole.replace("allow: rule 4000", "allow: !!str rule 4000"), 3 * 4_000 + 2],
      "a second document": [`${whole}---\nrules: []\n`, 18_003],
      "a second document within the list": [`rules:\n${items(one).replaceAll(/^ {2}/mg, "")}---\n- allow: x\n`, 18_003],
      "an unterminated text": [whole.replace("rule 4000\n", '"rule 4000\n'), 3 * 4_000 + 3],
      "a wrong indentation": [whole.replace("    agents: [site-4000]", "   agents: [site-4000]"), 3 * 4_000 + 3],
      "a key behind the rules": [`${whole}other: x\n`, 18_002],
    } satisfies Record<string, [string, number]>;
    for (const [what, [text, line]] of Object.entries(invalid)) {
      await assert.rejects(readPolicy(text, NOON), (error) => {
        assert.ok(error instanceof PolicyError, `${what}: ${error}`);
        assert.equal(error.line, line, `${what}: ${error.message}`);
        return true;
      });
    }
  });

  it("has hours that begin and end in its time zone, on the next day too", () => {
    const clock = createWeekClock("Europe/Berlin");
    const rows: [hours: string, at: string, isWithin: boolean][] = [
      ["Mon-Fri 08:00-18:00", "2026-11-25T07:00:00Z", true],
      ["Mon-Fri 08:00-18:00", "2026-11-25T06:59:59Z", false],
      ["Mon-Fri 08:00-18:00", "2026-07-01T06:00:00Z", true],
      ["Sat,Sun", "2026-11-28T00:00:00Z", true],
      ["Sat,Sun", "2026-11-27T22:59:00Z", false],
      ["Sun 22:00-06:00", "2026-11-30T04:59:00Z", true],
      ["Sun 22:00-06:00", "2026-11-30T05:00:00Z", false],
      ["Fri-Mon", "2026-11-30T12:00:00Z", true],
      ["Fri-Mon", "2026-12-01T12:00:00Z", false],
      ["22:00-06:00", "2026-11-25T23:00:00Z", true],
    ];
    for (const [hours, at, expected] of rows) assert.equal(isWithin(parseHours(hours), clock(Date.parse(at))), expected, `${hours} ${at}`);
  });
});

/** An open policy, its clock, and its log. */
async function withPolicy(
  text: string,
  body: (bench: {
    authorize: (identity: Partial<Identity>, request?: Partial<PolicyRequest>) => AbortSignal;
    replace: (text: string) => Promise<void>;
    passTo: (now: number) => Promise<void>;
    log: LogBook;
  }) => Promise<void>,
): Promise<void> {
  using folder = new Folder();
  const log = new LogBook();
  let now = NOON;
  const policy = await openPolicy(folder.write("policy.yaml", text), { log, now: () => now });
  try {
    await body({
      log,
      authorize: (identity, request) =>
        policy.authorize({ agentId: "", ...identity }, {
          agentId: "site-1",
          labels: [],
          destination: { host: "db", port: 5432 },
          network: "tcp",
          ...request,
        }).signal,
      replace: async (text) => {
        renameSync(folder.write("new", text), join(folder.path, "policy.yaml"));
        await policy.reload();
      },
      passTo: async (at) => {
        now = at;
        await policy.reload();
      },
    });
  } finally {
    policy.close();
  }
}

const ALICE = "rules:\n  - allow: a\n    subjects: [name:alice, group:ops]\n";

describe("limits of a policy", () => {
  const LIMITED = `rules:
  - allow: all
  - limit: guests
    subjects: group:guests
    bandwidth: 1MiB
    tunnels: 2
  - limit: office
    agents: site-*
    bandwidth: 10MiB
    shared: true
tests:
  - {expect: allow, as: group:guests, agent: site-1, to: "db:5432", limits: [guests, office]}
  - {expect: allow, as: group:guests, agent: x, to: "udp:db:53", limits: guests}
`;
  const quotas = (policy: Policy, identity: Partial<Identity>, agentId = "site-1") =>
    policy.authorize({ agentId, ...identity }, { agentId, labels: [], destination: { host: "db", port: 1 }, network: "tcp" }).quotas;

  it("apply for each client, or for all together", async () => {
    using folder = new Folder();
    const policy = await openPolicy(folder.write("p.yaml", LIMITED), { log: silentLogger, now: () => NOON });
    const guest = { groups: ["guests"] };
    const [ann, again, bob] = ["oidc ann", "oidc ann", "oidc bob"].map((client) => quotas(policy, { ...guest, client }));
    policy.close();
    assert.deepEqual(ann!.map(({ name, bytesPerSecond, tunnels }) => [name, bytesPerSecond, tunnels]), [["guests", 2 ** 20, 2], [
      "office",
      10 * 2 ** 20,
      0,
    ]]);
    assert.deepEqual(ann, again);
    assert.notEqual(ann![0]!.key, bob![0]!.key);
    assert.equal(ann![1]!.key, bob![1]!.key);
    assert.deepEqual(quotas(policy, {}, "x"), []);
  });

  it("refuse tunnels above their number, and share their rates by key", () => {
    const rates: number[] = [];
    const counted: string[] = [];
    const reports = new LimitReporter({ log: silentLogger, count: (limit) => void counted.push(limit) });
    const createRate = ({ bytesPerSecond }: { bytesPerSecond: number }) => {
      rates.push(bytesPerSecond);
      return { take: () => Promise.resolve(), close: () => {} };
    };
    const limits = new TunnelLimits({ ...withDefaults(proxyOptions, {}).limits, createRate, reports });
    const quota = (client: string) => ({ key: client, name: "guests", bytesPerSecond: 1_000, tunnels: 2 });
    const open = (client: string) => limits.open({ agentId: "a", client, quotas: [quota(client)] });
    const [first, second] = [open("ann"), open("ann")];
    assert.equal(first.rates[0], second.rates[0]);
    assert.throws(() => open("ann"), { name: "LimitReached", limit: "policy", message: /limit "guests" permits no more tunnels/ });
    open("bob").close();
    first.close();
    open("ann").close();
    second.close();
    limits.close();
    assert.deepEqual([rates, counted], [[1_000, 1_000], ["policy"]]);
  });
});

describe("the policy of a proxy", () => {
  it("refuses with the reason for the log alone", async () => {
    await withPolicy(ALICE, ({ authorize }) => {
      authorize({ name: "alice" });
      authorize({ groups: ["x", "ops"] });
      assert.throws(() => authorize({ name: "bob" }), (error) => {
        assert.ok(error instanceof TunnelError);
        assert.equal(error.message, 'The policy does not allow db:5432 through the agent "site-1"');
        assert.match((error.cause as Error).message, /^no rule of .*policy.yaml allows it$/);
        return true;
      });
      return Promise.resolve();
    });
    assert.deepEqual(subjectsOf({ subject: "7", name: "a", groups: ["g"], tokenId: "t" }), ["sub:7", "name:a", "token:t", "group:g"]);
  });

  it("ends what a new policy does not allow, and nothing else", async () => {
    await withPolicy(ALICE, async ({ authorize, replace, log }) => {
      const [alice, ops] = [authorize({ name: "alice" }), authorize({ groups: ["ops"] })];
      await replace(ALICE.replace("name:alice, ", ""));
      assert.deepEqual([alice.aborted, ops.aborted], [true, false]);
      assert.match((alice.reason as Error).message, /^The policy no longer allows it: no rule of/);
      assert.throws(() => authorize({ name: "alice" }), TunnelError);
      assert.equal(log.logged("policy reloaded").length, 1);
      await replace(`${ALICE}  - deny: all ops\n    subjects: group:ops\n`);
      assert.match((ops.reason as Error).message, /rule "all ops" \(.*policy.yaml:4\)/);
    });
  });

  it("stays in force when its file becomes invalid, fails its tests, or is removed", async () => {
    await withPolicy(ALICE, async ({ authorize, replace, log }) => {
      const alice = authorize({ name: "alice" });
      await replace("rules:\n  - allow: a\n    subjects: alice\n");
      await replace("rules:\n  - deny: a\ntests:\n  - {expect: allow, agent: a, to: 'db:1'}\n");
      assert.equal(alice.aborted, false);
      authorize({ name: "alice" });
      assert.throws(() => authorize({ name: "bob" }), TunnelError);
      const reasons = log.logged("policy is missing or invalid; the previous one stays in force").map(({ reason }) => String(reason));
      assert.match(reasons[0]!, /^line 3: /);
      assert.match(reasons[1]!, /^line 4: this test/);
    });
    await assert.rejects(openPolicy("/nowhere", { log: silentLogger }), ConfigError);
    using folder = new Folder();
    await assert.rejects(openPolicy(folder.write("p.yaml", "rules: 7"), { log: silentLogger }), /Cannot use --auth.policy-file .*line 1/);
  });

  it("ends tunnels when their hours are over", async () => {
    await withPolicy("rules:\n  - allow: a\n    hours: 08:00-13:00\n", async ({ authorize, passTo }) => {
      const signal = authorize({});
      await passTo(NOON + 59 * 60_000);
      assert.equal(signal.aborted, false);
      await passTo(NOON + 60 * 60_000);
      assert.equal(signal.aborted, true);
    });
  });

  it("says that an agent is not connected whose labels decide, so that lb looks for it elsewhere", async () => {
    const text = "rules:\n  - allow: a\n    labels: [region=eu]\n  - deny: b\n    destinations: [no]\n";
    await withPolicy(text, ({ authorize }) => {
      assert.throws(() => authorize({}), { type: "destination_unavailable", message: "The agent is not connected to this proxy" });
      assert.throws(() => authorize({}, { destination: { host: "no", port: 1 } }), { type: "http_request_denied" });
      return Promise.resolve();
    });
    await withPolicy(ALICE, ({ authorize }) => {
      assert.throws(() => authorize({}), { type: "http_request_denied" });
      authorize({ name: "alice" }); // the dialer says whether it is connected
      return Promise.resolve();
    });
  });

  it("needs the labels of each connection of the agent", async () => {
    await withPolicy("rules:\n  - allow: a\n    labels: [region=eu]\n", ({ authorize }) => {
      authorize({}, { labels: [["region=eu"], ["x=y", "region=eu"]] });
      for (const labels of [[], [["region=us"]], [["region=eu"], []]]) assert.throws(() => authorize({}, { labels }), TunnelError);
      return Promise.resolve();
    });
  });
});
