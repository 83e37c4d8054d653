// What the bench makes of figures: medians, ratios of runs that stand beside each other, verdicts, and the chart of them.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { drawChart } from "../bench/chart.ts";
import { columns, formatTable, formatVerdicts, markdown, type Run, summarize } from "../bench/report.ts";
import { SCENARIOS } from "../bench/scenarios.ts";
import { AGAINST, judge, LIMIT, TARGETS } from "../bench/targets.ts";

const down = SCENARIOS.find(({ name }) => name === "down")!;
const names = ["this", AGAINST, LIMIT.hops];

const run = (subject: string, round: number, mbPerSecond: number, cpuPerGB: number): Run => ({
  scenario: "down",
  subject,
  round,
  figures: { mbPerSecond, cpuPerGB },
  errors: {},
});

const runs = [
  run("this", 1, 300, 1),
  run(AGAINST, 1, 100, 4),
  run(LIMIT.hops, 1, 400, 1),
  run("this", 2, 500, 1),
  run(AGAINST, 2, 250, 2),
  run(LIMIT.hops, 2, 500, 1),
];

describe("the report of the bench", () => {
  it("divides figures of the same round only", () => {
    const { mbPerSecond } = summarize(down, runs, names);
    assert.equal(mbPerSecond!.medians["this"], 400);
    assert.deepEqual(mbPerSecond!.ratios[AGAINST], { min: 2, median: 2.5, max: 3 });
    assert.deepEqual(summarize(down, runs.slice(0, 2).concat(runs.slice(3, 4)), names).mbPerSecond!.ratios[AGAINST], {
      min: 3,
      median: 3,
      max: 3,
    });
  });

  it("holds each figure to what is to be reached, the small ones to the most", () => {
    const verdicts = judge({ down: summarize(down, runs, names) }, "this");
    assert.deepEqual(verdicts.map(({ target, value, reached }) => [target.title, target.other, value, reached]), [
      ["MB/s, one tunnel down", AGAINST, 2.5, false],
      ["CPU per GB, proxy + agent", AGAINST, 0.375, false],
      ["MB/s, one tunnel down", LIMIT.hops, 0.875, true],
    ]);
    assert.match(formatVerdicts(verdicts, columns), /at least 2\.6 +2\.50 .*missed: 96 % of it/);
  });

  it("names scenarios and metrics that there are in what is to be reached", () => {
    for (const { title, scenario, metric } of TARGETS) {
      assert.ok(SCENARIOS.find(({ name }) => name === scenario)?.metrics[metric], title);
    }
  });

  it("shows what failed, and a table in Markdown", () => {
    const failed = [...runs, { ...run(AGAINST, 3, 1, 1), figures: {}, errors: { "status 502": 7 } }];
    const table = formatTable(down, summarize(down, failed, names), failed, names, markdown);
    assert.match(table, /^\| speed, MB\/s \| 400 \| 175 \| 2\.50 \| 2\.00 … 3\.00 \|/m);
    assert.match(table, /! against, round 3: 7 x status 502/);
  });

  it("draws a bar for each ratio, and nothing of what is none", () => {
    const svg = drawChart(judge({ down: summarize(down, runs, names) }, "this"), "a <machine>");
    assert.equal(svg.match(/fill-opacity/g)?.length, 3);
    assert.match(svg, /a &lt;machine>/);
    assert.match(svg, /2\.50× of 2\.60×/);
  });
});
