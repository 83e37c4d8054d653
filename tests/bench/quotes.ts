// Measured values in documents. A block from <!-- bench:NAME ITEM… --> to <!-- /bench --> is written from the results of that name: an item
// SCENARIO.METRIC is a row of a table with a column for each subject, an item SCENARIO is a table of all its metrics with ratios.
import { drawChart } from "./chart.ts";
import { format, formatTable, markdown, summarize } from "./report.ts";
import { describeShortly, readQuoted, type Results } from "./results.ts";
import type { Metric, Scenario } from "./scenario.ts";
import { SCENARIOS } from "./scenarios.ts";
import { judge } from "./targets.ts";

const BLOCK = /<!-- bench:([\w-]+)((?: [\w.-]+)*) -->\n([^]*?)<!-- \/bench -->/g;

/** `text` with the tables of the newest results. */
export function writeBlocks(text: string, read: (name: string) => Results = readQuoted): string {
  const opened = text.match(/<!-- bench:/g)?.length ?? 0;
  const closed = text.match(/<!-- \/bench -->/g)?.length ?? 0;
  if (opened !== closed || opened !== Array.from(text.matchAll(BLOCK)).length) throw new Error("A block of the bench does not end");
  return text.replaceAll(BLOCK, (_, name: string, items: string) => {
    const body = renderBlock(name, items.trim().split(" ").filter((item) => item !== ""), read(name));
    return `<!-- bench:${name}${items} -->\n\n${body}\n\n<!-- /bench -->`;
  });
}

/** The chart of docs/performance.md. */
export function chartOf({ subjects, runs, machine }: Results): string {
  const names = subjects.map(({ name }) => name);
  const summary = SCENARIOS.map((scenario) => [
    scenario.name,
    summarize(scenario, runs.filter((run) => run.scenario === scenario.name), names),
  ]);
  return drawChart(judge(Object.fromEntries(summary), names[0]!), describeShortly(machine));
}

/** The text without its blocks. */
export function withoutBlocks(text: string): string {
  return text.replaceAll(BLOCK, "");
}

/** The median of this program, as a document quotes it in a sentence. */
export function quote(name: string, item: string): string {
  const { runs, subjects } = readQuoted(name);
  const { scenario, key, metric } = find(item);
  const value =
    summarize(scenario, runs.filter((run) => run.scenario === scenario.name), [subjects[0]!.name])[key!]!.medians[subjects[0]!.name];
  if (value === undefined) throw new Error(`The results ${name} have no ${item}`);
  return format(value, metric!.digits ?? 0);
}

function renderBlock(name: string, items: readonly string[], results: Results): string {
  if (items.length === 0) throw new Error(`The block bench:${name} has no items`);
  const parts = [];
  const rows = items.filter((item) => item.includes("."));
  if (rows.length > 0) parts.push(renderRows(rows, results));
  for (const item of items.filter((item) => !item.includes("."))) parts.push(renderScenario(item, results));
  parts.push(describe(items, results));
  return parts.join("\n\n");
}

function renderRows(items: readonly string[], { subjects, runs }: Results): string {
  const names = subjects.map(({ name }) => name);
  const rows = items.map((item) => {
    const { scenario, key, metric } = find(item);
    const own = runs.filter((run) => run.scenario === scenario.name);
    if (own.length === 0) throw new Error(`The results have no ${scenario.name}`);
    const { medians } = summarize(scenario, own, names)[key!]!;
    const cell = (value: number | undefined) => value === undefined ? "-" : format(value, metric!.digits ?? 0);
    return [`${scenario.title}: ${metric!.title}${metric!.unit && `, ${metric!.unit}`}`, ...names.map((name) => cell(medians[name]))];
  });
  return markdown([["", ...names], ...rows]);
}

function renderScenario(item: string, { subjects, runs }: Results): string {
  const { scenario } = find(item);
  // failures are listed once, below the tables
  const own = runs.filter((run) => run.scenario === scenario.name).map((run) => ({ ...run, errors: {} }));
  const names = subjects.map(({ name }) => name);
  if (own.length === 0) throw new Error(`The results have no ${scenario.name}`);
  return formatTable(scenario, summarize(scenario, own, names), own, names, markdown);
}

function find(item: string): { scenario: Scenario; key?: string; metric?: Metric } {
  const [name, key] = item.split(".");
  const scenario = SCENARIOS.find((scenario) => scenario.name === name);
  const metric = key === undefined ? undefined : scenario?.metrics[key];
  if (!scenario || key !== undefined && !metric) throw new Error(`There is no ${item} in the scenarios of the bench`);
  return { scenario, key, metric };
}

/** How the values were measured, and what failed. */
function describe(items: readonly string[], { machine, subjects, runs }: Results): string {
  const names = new Set(items.map((item) => item.split(".")[0]!));
  const shown = runs.filter(({ scenario }) => names.has(scenario));
  const rounds = new Set(shown.map(({ scenario, round }) => `${scenario} ${round}`)).size / names.size;
  const versions = subjects.flatMap(({ name, version }) => version === undefined ? [] : [`${name} ${version}`]);
  const date = new Date(machine.date).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" });
  const failures = new Map<string, number>();
  for (const { subject, scenario, errors } of shown) {
    for (const [error, count] of Object.entries(errors)) {
      const key = `${subject}, \`${scenario}\`: ${error}`;
      failures.set(key, (failures.get(key) ?? 0) + count);
    }
  }
  return [
    `Measured on ${date}: ${machine.network}; ${machine.cores} cores for everything (${machine.cpu}, ` +
    `${machine.memoryGiB} GiB), ${machine.system}, load average ${machine.loadAverage.toFixed(1)} before; ` +
    `${rounds === 1 ? "one run each" : `medians of ${Number(rounds.toFixed(1))} alternating rounds`}. Versions: ${versions.join(", ")}.`,
    ...(failures.size > 0 ? [`Failures: ${Array.from(failures, ([key, count]) => `${key} (${count})`).join("; ")}.`] : []),
  ].join("\n\n");
}
