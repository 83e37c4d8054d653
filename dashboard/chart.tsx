// A graph over time, by uPlot, with the last values, or those below the pointer, as text.
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { timeOfDay } from "./format.ts";
import { type Columns, isolated } from "./series.ts";
import { useTheme } from "./theme.ts";

interface ChartProps {
  readonly title: string;
  /** The name of each line. */
  readonly lines: readonly string[];
  readonly data: Columns;
  readonly format: (value: number) => string;
  /** The least value at the top of the scale, so that noise does not look like much. Default 1. */
  readonly least?: number;
  /** Whether it is as wide as the page. Default `false`. */
  readonly isWide?: boolean;
}

/** In pixels, as in style.css. */
const HEIGHT = 150;

export function Chart({ title, lines, data, format, least = 1, isWide = false }: ChartProps): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const latest = useRef(data);
  latest.current = data;
  const theme = useTheme();
  const [pointed, setPointed] = useState<number>();

  useEffect(() => {
    const element = box.current!;
    const chart = plot.current = new uPlot(options(element, { lines, format, least, setPointed }), latest.current, element);
    const observer = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      chart.destroy();
    };
  }, [theme, lines.join("\n")]);
  useLayoutEffect(() => plot.current?.setData(data), [data]); // drawn in the frame of the text

  return (
    <figure class={isWide ? "chart wide" : "chart"}>
      <figcaption>
        <h2>
          {title}
          {pointed !== undefined && data[0][pointed] !== undefined && <span class="at">at {timeOfDay(data[0][pointed] * 1_000)}</span>}
        </h2>
        <ul>
          {lines.map((line, i) => {
            const value = data[i + 1]?.at(pointed ?? -1) ?? undefined;
            return (
              <li key={line} class={`line-${i}`}>
                {line} <b>{value === undefined ? "–" : format(value)}</b>
              </li>
            );
          })}
        </ul>
      </figcaption>
      <div ref={box} class="plot" aria-hidden="true" />
    </figure>
  );
}

interface PlotOptions extends Required<Pick<ChartProps, "lines" | "format" | "least">> {
  /** Called with the index of the point below the pointer. */
  readonly setPointed: (index: number | undefined) => void;
}

/** Colors are those of the theme, in style.css. */
function options(element: HTMLElement, { lines, format, least, setPointed }: PlotOptions): uPlot.Options {
  const styles = getComputedStyle(element);
  const color = (name: string) => styles.getPropertyValue(`--${name}`).trim();
  const axis = {
    stroke: color("muted"),
    font: `12px ${styles.fontFamily}`,
    grid: { stroke: color("line"), width: 1 },
    ticks: { show: false },
  };
  const filter = (chart: uPlot, line: number) => isolated(chart.data[line]!);
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [8, 28, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    hooks: { setCursor: [(chart) => setPointed(chart.cursor.idx ?? undefined)] },
    scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.1, least)] } },
    axes: [
      { ...axis, size: 28, space: 80, values: "{HH}:{mm}:{ss}" as unknown as uPlot.Axis.Values },
      { ...axis, size: 72, space: 40, values: (_, ticks) => ticks.map((tick) => tick === 0 ? "0" : format(tick)) },
    ],
    series: [
      {},
      ...lines.map((label, i) => {
        const stroke = color(`line-${i}`);
        return { label, stroke, width: 2, points: { show: true, size: 4, width: 0, fill: stroke, filter } };
      }),
    ],
  };
}
