// The soak's judgement: it must find every violation, whatever happens at the same time.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ResourceUse } from "../soak/installation.ts";
import { errorsOf, grown, judge, judgeOrigin, type Suffered } from "../soak/soak.ts";
import type { Conversation, Failure } from "../soak/traffic.ts";

const KILLED: Suffered = {
  fault: { name: "killed", cut: ["one", "both"], refused: ["one"], killed: true },
  from: 1_000,
  to: 2_000,
  wellMs: 500,
};
const CUT: Suffered = { ...KILLED, fault: { name: "cut", cut: ["one"], refused: ["one"] } };

const RESET: Failure = { begun: true, message: "ECONNRESET", violation: false };
const REFUSED: Failure = { begun: false, status: 502, message: "HTTP/1.1 502", violation: false };
const LOST: Failure = {
  ...REFUSED,
  message: `No answer: ${JSON.stringify('HTTP/1.1 502\r\nProxy-Status: p; details="The connection to the destination was lost"\r\n\r\n')}`,
};
const SHORT: Failure = { begun: true, message: "stream 5 finished after 10 of 20 bytes", violation: true };
const WRONG: Failure = { begun: true, message: "stream 5 differs within 10 bytes after 0 of 20", violation: true };

function ended(failure: Failure | undefined, changed: Partial<Conversation> = {}): Conversation {
  return { seed: 4, kind: "small", agent: "one", startedAt: 1_500, endedAt: 1_600, bytes: 20, failure, ...changed };
}

describe("judge", () => {
  it("allows the losses that a fault declares, and none at other times", () => {
    for (const failure of [RESET, REFUSED]) {
      assert.equal(judge(ended(failure), [CUT]), undefined);
      assert.match(judge(ended(failure), [])!, /^small through agent one, stream 4, .* during nothing: /);
      assert.equal(judge(ended(failure, { startedAt: 0, endedAt: 1_000 }), [CUT]), undefined);
      assert.equal(judge(ended(failure, { startedAt: 2_000, endedAt: 3_000 }), [CUT]), undefined);
      assert.ok(judge(ended(failure, { startedAt: 0, endedAt: 999 }), [CUT]));
      assert.ok(judge(ended(failure, { startedAt: 2_001, endedAt: 3_000 }), [CUT]));
    }
    assert.equal(judge(ended(undefined), []), undefined);
  });

  it("allows no losses of other agents, and no refusals if only tunnels may be cut", () => {
    for (const failure of [RESET, REFUSED]) assert.ok(judge(ended(failure, { agent: "two" }), [CUT, KILLED]));
    assert.equal(judge(ended(RESET, { agent: "both" }), [KILLED]), undefined);
    assert.ok(judge(ended(REFUSED, { agent: "both" }), [KILLED]));
  });

  it("counts a request that was sent already as under way", () => {
    assert.equal(judge(ended(LOST, { agent: "both" }), [KILLED]), undefined);
    assert.ok(judge(ended(LOST, { agent: "both" }), [CUT]));
    assert.ok(judge(ended(LOST, { agent: "both" }), []));
  });

  it("allows a premature end only if a process was killed, and never wrong bytes, silence or another status", () => {
    assert.equal(judge(ended(SHORT), [KILLED]), undefined);
    assert.ok(judge(ended(SHORT), [CUT]));
    assert.ok(judge(ended(WRONG), [KILLED]));
    assert.ok(judge(ended({ ...RESET, message: "There were no bytes or an end in 25000 ms" }), [KILLED]));
    for (const status of [200, 400, 407, 500]) assert.ok(judge(ended({ ...REFUSED, status }), [KILLED]));
    assert.equal(judge(ended({ ...REFUSED, status: undefined, message: "ECONNREFUSED" }), [KILLED]), undefined);
  });

  it("finds the conversation of an origin's report", () => {
    assert.equal(judgeOrigin(SHORT.message, [ended(undefined)], [KILLED]), undefined);
    assert.match(judgeOrigin(SHORT.message, [ended(undefined)], [])!, /^at an origin: small through agent one, stream 4/);
    assert.ok(judgeOrigin(WRONG.message, [ended(undefined)], [KILLED]));
    assert.ok(judgeOrigin(SHORT.message, [], [KILLED]));
    assert.ok(judgeOrigin("a request head was changed", [ended(undefined)], [KILLED]));
  });
});

describe("errorsOf", () => {
  it("reports every error except a brief stall of the network", () => {
    const still = { level: "ERROR", message: "network engine stalled" };
    const runs = { level: "WARN", message: "network engine recovered" };
    assert.deepEqual(errorsOf([runs, { level: "INFO", message: "listening" }, still, runs]), []);
    assert.deepEqual(errorsOf([still, runs, still]), [`an error was logged: ${JSON.stringify(still)}`]);
    assert.equal(errorsOf([{ level: "ERROR", message: "request failed" }, runs]).length, 1);
  });
});

describe("grown", () => {
  const use: ResourceUse = { name: "lb", tunnels: 0, links: 1, descriptors: 10, threads: 8, residentMiB: 80 };

  it("reports a process's growth, remaining tunnels and missing links", () => {
    assert.deepEqual(grown([use], [use]), []);
    assert.deepEqual(grown([use], [{ ...use, descriptors: 2, threads: 1, residentMiB: 10 }]), []);
    assert.deepEqual(grown([use], [{ ...use, descriptors: 100 }]), ["lb has grown from 10 to 100 descriptors"]);
    assert.deepEqual(grown([use], [{ ...use, residentMiB: 1_000 }]), ["lb has grown from 80 to 1000 residentMiB"]);
    assert.deepEqual(grown([use], [{ ...use, threads: 100 }]), ["lb has grown from 8 to 100 threads"]);
    assert.deepEqual(grown([use], [{ ...use, tunnels: 1 }]), ["lb has 1 unused open tunnels"]);
    assert.deepEqual(grown([use], [{ ...use, links: 0 }]), ["lb has 0 links, and had 1"]);
  });
});
