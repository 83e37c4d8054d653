// What the bench calculates: medians, ratios of adjacent runs, verdicts, and the chart of them.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { drawChart } from "../bench/chart.ts";
import { columns, formatTable, formatVerdicts, markdown, type Run, summarize } from "../bench/report.ts";
import { SCENARIOS } from "../bench/scenarios.ts";
import { GO, judge, LIMIT, TARGETS } from "../bench/targets.ts";

const down = SCENARIOS.find(({ name }) => name === "down")!;
const names = ["this", GO, LIMIT.hops];

const run = (subject: string, round: number, mbPerSecond: number, cpuPerGB: number): Run => ({
  scenario: "down",
  subject,
  round,
  values: { mbPerSecond, cpuPerGB },
  errors: {},
});

const runs = [
  run("this", 1, 300, 1),
  run(GO, 1, 100, 4),
  run(LIMIT.hops, 1, 400, 1),
  run("this", 2, 500, 1),
  run(GO, 2, 250, 2),
  run(LIMIT.hops, 2, 500, 1),
];

describe("the report of the bench", () => {
  it("divides values of the same round only", () => {
    const { mbPerSecond } = summarize(down, runs, names);
    assert.equal(mbPerSecond!.medians["this"], 400);
    assert.deepEqual(mbPerSecond!.ratios[GO], { min: 2, median: 2.5, max: 3 });
    assert.deepEqual(summarize(down, runs.slice(0, 2).concat(runs.slice(3, 4)), names).mbPerSecond!.ratios[GO], {
      min: 3,
      median: 3,
      max: 3,
    });
  });

  it("compares each value with its goal, a minimum or a maximum", () => {
    const verdicts = judge({ down: summarize(down, runs, names) }, "this");
    assert.deepEqual(verdicts.map(({ target, value, reached }) => [target.title, target.other, value, reached]), [
      ["MB/s, one tunnel down", GO, 2.5, false],
      ["CPU per GB, proxy + agent", GO, 0.375, false],
      ["MB/s, one tunnel down", LIMIT.hops, 0.875, true],
    ]);
    assert.match(formatVerdicts(verdicts, columns), /at least 2\.6 +2\.50 .*missed: 96 % of it/);
  });

  it("has goals for existing scenarios and metrics only", () => {
    for (const { title, scenario, metric } of TARGETS) {
      assert.ok(SCENARIOS.find(({ name }) => name === scenario)?.metrics[metric], title);
    }
  });

  it("shows what failed, and a table in Markdown", () => {
    const failed = [...runs, { ...run(GO, 3, 1, 1), values: {}, errors: { "status 502": 7 } }];
    const table = formatTable(down, summarize(down, failed, names), failed, names, markdown);
    assert.match(table, /^\| throughput, MB\/s +\| +400 \| +175 \| +2\.50 \| +2\.00 … 3\.00 \|/m);
    assert.match(table, /! Go version, round 3: 7 x status 502/);
  });

  it("draws a bar for each ratio, and none for other values", () => {
    const svg = drawChart(judge({ down: summarize(down, runs, names) }, "this"), "a <machine>");
    assert.equal(svg.match(/fill-opacity/g)?.length, 3);
    assert.match(svg, /a &lt;machine>/);
    assert.match(svg, /2\.50× of 2\.60×/);
  });
});
