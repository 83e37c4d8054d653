// Draws measured ratios and their goals as an SVG: bars on a logarithmic scale, longer is better.
import type { Verdict } from "./targets.ts";

const WIDTH = 860;
const LABELS = 270;
const VALUES = 110;
const ROW = 22;
const TITLE = 34;
const AXIS = 24;
const REACHED = "#2a7d5f";
const MISSED = "#b8652a";

/** One group of bars for each program or baseline that is compared with. */
export function drawChart(verdicts: readonly Verdict[], caption: string): string {
  const ratios = verdicts.filter(({ target: { other, difference } }) => other !== undefined && !difference);
  const groups = Map.groupBy(ratios, ({ target }) => target.other!);
  let y = 30;
  const parts: string[] = [];
  for (const [other, group] of groups) {
    parts.push(...drawGroup(`times as good as ${other}`, group, y));
    y += TITLE + group.length * ROW + AXIS;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y + 30}" viewBox="0 0 ${WIDTH} ${y + 30}" ` +
    `font-family="system-ui, sans-serif" font-size="12" fill="#222">`,
    `<rect width="100%" height="100%" fill="#fff"/>`,
    text(12, 20, caption, `fill="#666"`),
    ...parts,
    text(12, y + 16, "bar: median · line: from the lowest to the highest ratio of adjacent runs · mark: goal", `fill="#666"`),
    `</svg>`,
    "",
  ].join("\n");
}

/** For what should be small, the reciprocal. */
function better({ target, value, min, max }: Verdict) {
  const [low, high] = [min ?? value, max ?? value];
  if (target.least !== undefined) return { value, low, high, wanted: target.least };
  return { value: 1 / value, low: 1 / high, high: 1 / low, wanted: 1 / target.most! };
}

function drawGroup(title: string, verdicts: readonly Verdict[], top: number): string[] {
  const rows = verdicts.map((verdict) => ({ verdict, ...better(verdict) }));
  const all = rows.flatMap(({ low, high, wanted }) => [low, high, wanted]);
  const [least, most] = [Math.min(0.5, ...all) * 0.95, Math.max(2, ...all) * 1.05];
  const space = WIDTH - LABELS - VALUES;
  const x = (value: number) => LABELS + Math.log(value / least) / Math.log(most / least) * space;
  const first = top + TITLE;
  const bottom = first + rows.length * ROW;
  const marks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128].filter((mark) => mark >= least && mark <= most);
  return [
    text(12, top + 22, title, `font-weight="600"`),
    ...marks.flatMap((mark) => [
      `<line x1="${n(x(mark))}" x2="${n(x(mark))}" y1="${first - 4}" y2="${bottom}" stroke="${mark === 1 ? "#888" : "#ddd"}"/>`,
      text(x(mark), bottom + 14, `${mark}×`, `text-anchor="middle" fill="#666"`),
    ]),
    ...rows.flatMap(({ verdict, value, low, high, wanted }, index) => {
      const y = first + index * ROW;
      const middle = y + ROW / 2 - 2;
      const [from, to] = [Math.min(x(1), x(value)), Math.max(x(1), x(value))];
      return [
        text(LABELS - 10, middle + 4, verdict.target.title, `text-anchor="end"`),
        `<rect x="${n(from)}" y="${y + 2}" width="${n(Math.max(to - from, 1))}" height="${ROW - 8}" ` +
        `fill="${verdict.reached ? REACHED : MISSED}" fill-opacity="0.8"/>`,
        `<line x1="${n(x(low))}" x2="${n(x(high))}" y1="${middle}" y2="${middle}" stroke="#222"/>`,
        `<line x1="${n(x(wanted))}" x2="${n(x(wanted))}" y1="${y - 1}" y2="${y + ROW - 3}" stroke="#222" stroke-width="2.5"/>`,
        text(WIDTH - VALUES + 12, middle + 4, `${value.toFixed(value < 10 ? 2 : 0)}× of ${wanted.toFixed(2)}×`),
      ];
    }),
  ];
}

function text(x: number, y: number, content: string, attributes = ""): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${n(x)}" y="${n(y)}" ${attributes}>${escaped}</text>`;
}

function n(value: number): string {
  return value.toFixed(1);
}
