// The first view: what happens now, graphs of the last ten minutes, and failures by cause.
import type { JSX } from "preact";
import { useLayoutEffect, useMemo, useState } from "preact/hooks";
import type { FailureCount, FailureHistory, Sample } from "../shared/service/api/types.ts";
import { useSession } from "./api.ts";
import { Chart } from "./chart.tsx";
import { bytes, count, milliseconds, rate, words } from "./format.ts";
import { href } from "./route.ts";
import { usePolled } from "./poll.ts";
import { append, causeLines, type Columns, columns, perSecond, type Point } from "./series.ts";

/** The server takes one each two seconds, and keeps those of ten minutes. */
const MAX_SAMPLES = 300;
const MAX_GAP_MS = 7_000;

const timeOf = ({ at }: Sample) => Date.parse(at);

/** The server's samples, and those of the status since. */
function useHistory(): readonly Sample[] {
  const { api, status: { now, instance } } = useSession();
  const [samples, setSamples] = useState<readonly Sample[]>([]);
  const last = samples.at(-1);
  const isBehind = last === undefined || timeOf(now) - timeOf(last) > MAX_GAP_MS;
  useLayoutEffect(() => {
    if (!isBehind) return setSamples((before) => append(before, now, timeOf, MAX_SAMPLES));
    const controller = new AbortController();
    api.get<readonly Sample[]>("history", {}, controller.signal).then(
      (loaded) => setSamples(append(loaded, now, timeOf, MAX_SAMPLES)),
      () => {}, // the next sample tries again
    );
    return () => controller.abort();
  }, [now.at, instance]);
  return samples;
}

/** Values of each sample, with the one before it. */
function columnsOf(
  samples: readonly Sample[],
  lines: number,
  pick: (sample: Sample, before: Sample | undefined) => Point["values"],
): Columns {
  return columns(samples.map((sample, i) => ({ time: timeOf(sample), values: pick(sample, samples[i - 1]) })), lines, MAX_GAP_MS);
}

function increase(name: "refused" | "broken") {
  return (sample: Sample, before: Sample | undefined) => before && perSecond(before[name], sample[name], timeOf(sample) - timeOf(before));
}

const perSecondText = (value: number) => `${value < 10 && value > 0 ? value.toFixed(1) : count(Math.round(value))}/s`;
const [refused, broken] = [increase("refused"), increase("broken")];

export function Overview(): JSX.Element {
  const { status } = useSession();
  const samples = useHistory();
  const data = useMemo(() => ({
    rate: columnsOf(samples, 2, ({ sentRate, receivedRate }) => [receivedRate, sentRate]),
    tunnels: columnsOf(samples, 2, ({ tunnels, clients }) => [tunnels, clients]),
    opened: columnsOf(samples, 1, ({ openRate }) => [openRate]),
    setup: columnsOf(samples, 2, ({ setupMs }) => [setupMs?.p50, setupMs?.p99]),
    failures: columnsOf(samples, 2, (sample, before) => [refused(sample, before), broken(sample, before)]),
    agents: columnsOf(samples, 1, ({ agents }) => [agents]),
  }), [samples]);
  const { now, failures, problems, service } = status;
  const agents = service === "agent" ? "Connections" : "Agents";
  return (
    <>
      <h1 class="hidden">Overview</h1>
      {Object.entries(problems).map(([cause, reason]) => <p key={cause} class="error">Not ready: {reason}</p>)}
      <ul class="tiles">
        <Tile title={agents} value={count(now.agents)} to={["agents"]} />
        <Tile title="Tunnels" value={count(now.tunnels)} to={["tunnels"]} />
        <Tile title="Received" value={rate(now.receivedRate)} />
        <Tile title="Sent" value={rate(now.sentRate)} />
        <Tile title="Opened" value={perSecondText(now.openRate)} />
        <Tile title="Failures in an hour" value={count(failures.reduce((sum, { count }) => sum + count, 0))} to={["failures"]} />
        <Tile title="Memory" value={bytes(now.memory)} />
      </ul>
      <div class="charts">
        <Chart title="Rate" lines={["Received", "Sent"]} data={data.rate} format={rate} least={1_000} />
        <Chart title="Tunnels" lines={["Tunnels", "Clients"]} data={data.tunnels} format={whole} />
        <Chart title="Set-up time" lines={["p50", "p99"]} data={data.setup} format={milliseconds} />
        <Chart title="Failures" lines={["Refused", "Broken"]} data={data.failures} format={perSecondText} />
        <Chart title="Opened" lines={["Tunnels opened"]} data={data.opened} format={perSecondText} />
        <Chart title={agents} lines={[agents]} data={data.agents} format={whole} />
        {failures.length > 0 && <CausesOverTime />}
      </div>
      <Causes failures={failures} />
    </>
  );
}

const whole = (value: number) => count(Math.round(value));

function Tile({ title, value, to }: { title: string; value: string; to?: readonly string[] }): JSX.Element {
  const content = (
    <>
      <span class="name">{title}</span> <span class="value">{value}</span>
    </>
  );
  return <li>{to === undefined ? <div>{content}</div> : <a href={href(to)}>{content}</a>}</li>;
}

/** Time between two requests for the graph of causes, in milliseconds. */
const CAUSES_MS = 10_000;

function CausesOverTime(): JSX.Element | null {
  const { api } = useSession();
  const { value } = usePolled((signal) => api.get<FailureHistory>("failures/history", {}, signal), { intervalMs: CAUSES_MS, subject: "" });
  const lines = useMemo(() => value && causeLines(value), [value]);
  if (lines === undefined || lines.names.length === 0) return null;
  return <Chart title="Failures by cause, a minute" lines={lines.names} data={lines.data} format={whole} isWide />;
}

function Causes({ failures }: { failures: readonly FailureCount[] }): JSX.Element {
  const most = Math.max(...failures.map(({ count }) => count));
  return (
    <section class="card" aria-labelledby="causes">
      <h2 id="causes">Failures of the last hour by cause</h2>
      {failures.length === 0 && <p class="empty">None.</p>}
      <ul class="causes">
        {[...failures].sort((a, b) => b.count - a.count).map(({ kind, error, count: times }) => (
          <li key={`${kind} ${error}`}>
            <a href={href(["failures"], { error, kind })}>{words(error)}</a>
            <span class="kind">{kind}</span>
            <span class={`share ${kind}`} aria-hidden="true">
              <span style={{ width: `${100 * times / most}%` }} />
            </span>
            <b>{count(times)}</b>
          </li>
        ))}
      </ul>
    </section>
  );
}
