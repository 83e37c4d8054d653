// Measured values in documents: written by the bench, from results that are in the repository.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { readDocument, readDocuments } from "../../testing/documents.ts";
import { ROOT } from "../../testing/programs.ts";
import { chartOf, quote, withoutBlocks, writeBlocks } from "../bench/quotes.ts";
import { readQuoted, type Results } from "../bench/results.ts";

/** Documents with tables of experiments, each of which says when it was made. */
const EXPERIMENTS = ["docs/operating.md"];
const UNIT = /MB\/s|s\/GB|tunnels\/s|µs|\bMB\b/;

/** The formatter pads cells and breaks lines. */
const normalize = (text: string) => text.replace(/-{3,}/g, "---").replace(/\s+/g, " ");

const RESULTS: Results = {
  machine: {
    date: "2026-11-29T20:45:00.000Z",
    cpu: "CPU",
    cores: 2,
    memoryGiB: 8,
    system: "Linux 6.18",
    loadAverage: 0.1,
    network: "veth of MTU 1,500, TCP cubic",
  },
  subjects: [{ name: "one", version: "1.0" }, { name: "two" }],
  runs: [
    { scenario: "down", round: 1, subject: "one", values: { mbPerSecond: 1_000 }, errors: {} },
    { scenario: "down", round: 1, subject: "two", values: { mbPerSecond: 400 }, errors: {} },
    { scenario: "down", round: 2, subject: "one", values: { mbPerSecond: 1_200 }, errors: {} },
    { scenario: "down", round: 2, subject: "two", values: {}, errors: { "transfer: reset": 2 } },
  ],
};

function block(head: string): string {
  return `before\n\n<!-- bench:${head} -->\nold\n<!-- /bench -->\n\nafter\n`;
}

describe("a block of the bench", () => {
  it("has medians of each subject, how they were measured, and what failed", () => {
    const text = writeBlocks(block("name down.mbPerSecond"), () => RESULTS);
    assert.match(text, /^before\n\n<!-- bench:name down\.mbPerSecond -->\n/);
    assert.match(text, /\| download, one tunnel: throughput, MB\/s \| 1,100 \| 400 \|/);
    assert.match(normalize(text), /Measured on 29 November 2026: veth of MTU 1,500, TCP cubic; 2 cores for everything \(CPU, 8 GiB\)/);
    assert.match(text, /medians of 2 alternating rounds\. Versions: one 1\.0\./);
    assert.match(text, /Failures: two, `down`: transfer: reset \(2\)\./);
    assert.match(text, /<!-- \/bench -->\n\nafter\n$/);
    assert.doesNotMatch(text, /\bold\b/);
  });

  it("has all metrics of a scenario, with the ratios of adjacent runs", () => {
    const text = writeBlocks(block("name down"), () => RESULTS);
    assert.match(text, /\| throughput, MB\/s +\| +1,100 \| +400 \| +2\.50 \| +2\.50 … 2\.50 \|/);
  });

  it("is written once: writing it again changes nothing", () => {
    const once = writeBlocks(block("name down.mbPerSecond down"), () => RESULTS);
    assert.equal(writeBlocks(once, () => RESULTS), once);
  });

  const refused: Record<string, readonly [string, RegExp]> = {
    "does not end": ["<!-- bench:name down -->\n", /does not end/],
    "ends twice": [`${block("name down")}<!-- /bench -->\n`, /does not end/],
    "has no items": [block("name"), /no items/],
    "names an unknown scenario": [block("name sideways"), /There is no sideways/],
    "names an unknown metric": [block("name down.colour"), /There is no down\.colour/],
    "names a scenario that was not measured": [block("name rtt"), /no rtt/],
    "names a metric that was not measured": [block("name rtt.p50"), /no rtt/],
  };
  for (const [what, [text, reason]] of Object.entries(refused)) {
    it(`is refused if it ${what}`, () => assert.throws(() => writeBlocks(text, () => RESULTS), reason));
  }
});

describe("documents", () => {
  it("show the tables and the chart of the results in the repository", () => {
    for (const { name, text } of readDocuments()) assert.equal(normalize(writeBlocks(text)), normalize(text), name);
    assert.equal(readFileSync(join(ROOT, "docs", "performance.svg"), "utf8"), chartOf(readQuoted("mtu-1500")));
    assert.match(readDocument("README.md").text, /<!-- bench:/);
    assert.match(readDocument("docs/performance.md").text, /<!-- bench:/);
  });

  it("have no other tables of measured values, but for experiments that say when they were made", () => {
    for (const { name, text } of readDocuments()) {
      const rows = withoutBlocks(text).split("\n").filter((line) => line.startsWith("|") && /\d/.test(line) && UNIT.test(line));
      if (rows.length === 0) continue;
      assert.ok(EXPERIMENTS.includes(name), `${name}: ${rows[0]}`);
      assert.match(text, /\b(January|February|March|April|May|June|July|August|September|October|November|December) 20\d\d\b/, name);
    }
  });

  it("quote a median as the tables show it", () => {
    assert.match(quote("mtu-1500", "down.mbPerSecond"), /^[\d,.]+$/);
    assert.throws(() => quote("mtu-1500", "sideways.mbPerSecond"), /There is no sideways/);
    assert.throws(() => quote("nothing", "down.mbPerSecond"), /There are no results nothing/);
  });
});
