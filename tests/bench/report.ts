// Results side by side: medians, ratios and tables. It measures nothing and starts nothing.
import type { Outcome, Scenario, Values } from "./scenario.ts";
import type { Verdict } from "./targets.ts";

/** One run of one scenario on one subject. Runs of one round are adjacent in time. */
export interface Run extends Outcome {
  readonly scenario: string;
  readonly round: number;
  readonly subject: string;
}

/** Of the quotients of values of the same round. */
export interface Ratio {
  readonly min: number;
  readonly median: number;
  readonly max: number;
}

export interface MetricSummary {
  readonly unit: string;
  readonly title: string;
  /** Medians by subject. */
  readonly medians: Values;
  /** The first subject's value divided by another's. */
  readonly ratios: Record<string, Ratio>;
}

/** The first of `subjects` is compared with the others. */
export function summarize(scenario: Scenario, runs: readonly Run[], subjects: readonly string[]): Record<string, MetricSummary> {
  const [own, ...others] = subjects;
  const of = (subject: string, key: string) =>
    runs.filter((run) => run.subject === subject).map(({ round, values }) => ({ round, value: values[key] }));
  return Object.fromEntries(
    Object.entries(scenario.metrics).map(([key, { title, unit }]) => {
      const medians: Values = {};
      for (const subject of subjects) medians[subject] = median(of(subject, key).map(({ value }) => value));
      const ratios: Record<string, Ratio> = {};
      for (const other of others) {
        const base = new Map(of(other, key).map(({ round, value }) => [round, value]));
        const quotients = of(own!, key).map(({ round, value }) => divide(value, base.get(round))).filter((quotient) =>
          quotient !== undefined
        );
        if (quotients.length > 0) {
          ratios[other] = { min: Math.min(...quotients), median: median(quotients)!, max: Math.max(...quotients) };
        }
      }
      return [key, { title, unit, medians, ratios }];
    }),
  );
}

/** The table of one scenario, for a terminal or in Markdown. */
export function formatTable(
  scenario: Scenario,
  summary: Record<string, MetricSummary>,
  runs: readonly Run[],
  subjects: readonly string[],
  layout: (rows: string[][]) => string = columns,
): string {
  const [own, ...others] = subjects.filter((subject) => runs.some((run) => run.subject === subject));
  const spread = runs.some(({ round }) => round > 1);
  const header = [
    `${scenario.name}: ${scenario.title}`,
    own!,
    ...others.flatMap((other) => [other, `${own}/${other}`, ...(spread ? ["min … max"] : [])]),
  ];
  const rows = Object.entries(summary).map(([key, { title, unit, medians, ratios }]) => {
    const digits = scenario.metrics[key]!.digits ?? 0;
    const show = (value: number | undefined) => value === undefined ? "-" : format(value, digits);
    return [
      `${title}${unit && `, ${unit}`}`,
      show(medians[own!]),
      ...others.flatMap((other) => {
        const ratio = ratios[other];
        return [
          show(medians[other]),
          ratio ? quotient(ratio.median) : "-",
          ...(spread ? [ratio ? `${quotient(ratio.min)} … ${quotient(ratio.max)}` : "-"] : []),
        ];
      }),
    ];
  });
  return [layout([header, ...rows]), ...formatErrors(runs)].join("\n");
}

/** The targets, and by how much one is missed. */
export function formatVerdicts(verdicts: readonly Verdict[], layout: (rows: string[][]) => string = columns): string {
  const rows = verdicts.map(({ target: { title, other, least, most }, value, min, max, reached }) => {
    const wanted = least ?? most!;
    const share = reached ? "reached" : `missed: ${((least !== undefined ? value / wanted : wanted / value) * 100).toFixed(0)} % of it`;
    return [
      title,
      other ?? "",
      `${least !== undefined ? "at least" : "at most"} ${wanted.toLocaleString("en-US")}`,
      quotient(value),
      min === undefined || min === max ? "" : `${quotient(min)} … ${quotient(max!)}`,
      share,
    ];
  });
  return layout([["target", "with", "wanted", "median", "min … max", ""], ...rows]);
}

/** For a terminal. */
export function columns([header, ...rows]: string[][]): string {
  const lines = [header!, ...rows.map(([first, ...rest]) => [`  ${first}`, ...rest])];
  const widths = header!.map((_, column) => Math.max(...lines.map((row) => row[column]!.length)));
  const line = (row: string[]) =>
    row.map((cell, column) => column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)).join("  ");
  return lines.map(line).join("\n");
}

/** Aligned, as the formatter of documents wants it. */
export function markdown([header, ...rows]: string[][]): string {
  const widths = header!.map((_, column) => Math.max(3, ...[header!, ...rows].map((row) => row[column]!.length)));
  const pad = (cell: string, column: number) => column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!);
  const line = (cells: string[]) => `| ${cells.join(" | ")} |`;
  const rule = widths.map((width, column) => column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`);
  return [line(header!.map(pad)), line(rule), ...rows.map((row) => line(row.map(pad)))].join("\n");
}

function formatErrors(runs: readonly Run[]): string[] {
  return runs.flatMap(({ subject, round, errors }) =>
    Object.entries(errors).map(([error, count]) => `  ! ${subject}, round ${round}: ${count} x ${error}`)
  );
}

export function median(values: readonly (number | undefined)[]): number | undefined {
  const sorted = values.filter((value) => value !== undefined).sort((a, b) => a - b);
  if (sorted.length === 0) return undefined;
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1]! + sorted[half]!) / 2;
}

export function divide(value: number | undefined, by: number | undefined): number | undefined {
  return value === undefined || by === undefined || by === 0 ? undefined : value / by;
}

function quotient(value: number): string {
  return Math.abs(value) < 100 ? value.toFixed(Math.abs(value) < 0.1 ? 3 : 2) : value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

export function format(value: number, digits: number): string {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
