// Scenarios of throughput, new tunnels and round trips, and their CPU time.
import { setTimeout as sleep } from "node:timers/promises";
import type { Topology } from "./setups.ts";
import type { LoadResult } from "./processes.ts";
import { divide } from "./report.ts";
import { costOf, errorsOf, percentiles, type Scenario, toNumber } from "./scenario.ts";

const OTHERS = ["tool", "tcp", "hops", "bare"] as const;

const PEAKS = {
  proxyPeakMiB: { title: "proxy memory, peak", unit: "MiB", digits: 1 },
  agentPeakMiB: { title: "agent memory, peak", unit: "MiB", digits: 1 },
};

/** `count` tunnels, opened one after the other and timed together. */
export function bulk(name: string, title: string, mode: string, count: number, topology: Topology = {}): Scenario {
  const gb = { unit: "s/GB", digits: 2 };
  return {
    name,
    title,
    topology,
    others: topology.lb ? [] : OTHERS,
    metrics: {
      mbPerSecond: { title: "throughput", unit: "MB/s" },
      cpuPerGB: { title: "CPU of both ends", ...gb },
      proxyCpuPerGB: { title: "CPU, proxy", ...gb },
      agentCpuPerGB: { title: "CPU, agent", ...gb },
      ...(topology.lb ? { lbCpuPerGB: { title: "CPU, lb", ...gb } } : {}),
      loadCpuPerGB: { title: "CPU of the load generator, without origin", ...gb },
      ...PEAKS,
    },
    run: async ({ sizes, pair, load }) => {
      const bytes = count > 1 ? sizes.sharedBytes : mode === "both" ? sizes.bulkBytes / 2 : sizes.bulkBytes;
      await load(mode, "--bytes", sizes.warmUpBytes, "--tunnels", count);
      const { result, cpu, after } = await costOf(pair, () => load(mode, "--bytes", bytes, "--tunnels", count));
      const gigabytes = toNumber(result.bytes)! / 1e9;
      const each = (seconds: number | undefined) => gigabytes > 0 && seconds !== undefined ? seconds / gigabytes : undefined;
      return {
        values: {
          mbPerSecond: toNumber(result.mbPerSecond),
          cpuPerGB: each(cpu && cpu.proxy + cpu.agent),
          proxyCpuPerGB: each(cpu?.proxy),
          agentCpuPerGB: each(cpu?.agent),
          lbCpuPerGB: each(cpu?.lb),
          loadCpuPerGB: each(toNumber(result.cpuSeconds)),
          proxyPeakMiB: after?.proxy.peakMiB,
          agentPeakMiB: after?.agent.peakMiB,
        },
        errors: errorsOf(result),
      };
    },
  };
}

export function rate(clients: number, topology: Topology = {}): Scenario {
  const ms = { unit: "ms", digits: 2 };
  const cpu = { unit: "s", digits: 3 };
  const who = clients === 1 ? "1 client" : `${clients} clients`;
  return {
    name: `${topology.lb ? "lb-" : ""}rate${clients}`,
    title: `${topology.lb ? "through lb: " : ""}short tunnels, ${who}`,
    topology,
    others: topology.lb ? [] : OTHERS,
    metrics: {
      perSecond: { title: "tunnels", unit: "/s" },
      setupP50: { title: "set-up p50", ...ms },
      setupP90: { title: "set-up p90", ...ms },
      setupP99: { title: "set-up p99", ...ms },
      setupP999: { title: "set-up p99.9", ...ms },
      totalP50: { title: "time to the answer p50", ...ms },
      totalP90: { title: "time to the answer p90", ...ms },
      totalP99: { title: "time to the answer p99", ...ms },
      totalP999: { title: "time to the answer p99.9", ...ms },
      proxyCpuPer1000: { title: "CPU for 1,000 tunnels, proxy", ...cpu },
      agentCpuPer1000: { title: "CPU for 1,000 tunnels, agent", ...cpu },
      ...(topology.lb ? { lbCpuPer1000: { title: "CPU for 1,000 tunnels, lb", ...cpu } } : {}),
      loadCpuPer1000: { title: "CPU for 1,000 tunnels, load generator", ...cpu },
      ...PEAKS,
    },
    run: async ({ sizes, pair, load }) => {
      await load("rate", "--clients", clients, "--seconds", sizes.warmUpSeconds);
      const { result, cpu, after } = await costOf(pair, () => load("rate", "--clients", clients, "--seconds", sizes.rateSeconds));
      const thousands = toNumber(result.tunnels)! / 1000;
      const each = (seconds: number | undefined) => thousands > 0 && seconds !== undefined ? seconds / thousands : undefined;
      const [setup, total] = [percentiles(result.setupMs), percentiles(result.totalMs)];
      return {
        values: {
          perSecond: toNumber(result.perSecond),
          setupP50: setup.p50,
          setupP90: setup.p90,
          setupP99: setup.p99,
          setupP999: setup.p999,
          totalP50: total.p50,
          totalP90: total.p90,
          totalP99: total.p99,
          totalP999: total.p999,
          proxyCpuPer1000: each(cpu?.proxy),
          agentCpuPer1000: each(cpu?.agent),
          lbCpuPer1000: each(cpu?.lb),
          loadCpuPer1000: each(toNumber(result.cpuSeconds)),
          proxyPeakMiB: after?.proxy.peakMiB,
          agentPeakMiB: after?.agent.peakMiB,
        },
        errors: errorsOf(result),
      };
    },
  };
}

/** The first short tunnels after the start, while the runtime has compiled nothing yet. */
export function coldRate(clients: number): Scenario {
  const cpu = { unit: "s", digits: 3 };
  return {
    name: `cold${clients}`,
    title: `the first 500 and 3,000 short tunnels after the start, ${clients} clients`,
    others: ["tool"],
    metrics: {
      firstPerSecond: { title: "the first 500 tunnels", unit: "/s" },
      perSecond: { title: "the first 3,000 tunnels", unit: "/s" },
      proxyCpuPer1000: { title: "CPU for 1,000 of them, proxy", ...cpu },
      agentCpuPer1000: { title: "CPU for 1,000 of them, agent", ...cpu },
    },
    run: async ({ sizes, pair, load }) => {
      let first: LoadResult = {};
      const { result, cpu } = await costOf(pair, async () => {
        first = await load("rate", "--clients", clients, "--tunnels", sizes.firstTunnels);
        return await load("rate", "--clients", clients, "--tunnels", sizes.nextTunnels);
      });
      const [firstTunnels, nextTunnels] = [first, result].map(({ tunnels }) => toNumber(tunnels) ?? 0) as [number, number];
      const [firstPerSecond, nextPerSecond] = [first, result].map(({ perSecond }) => toNumber(perSecond) ?? 0) as [number, number];
      const tunnels = firstTunnels + nextTunnels;
      const each = (seconds: number | undefined) => seconds === undefined ? undefined : seconds / tunnels * 1000;
      return {
        values: {
          firstPerSecond,
          perSecond: tunnels / (firstTunnels / firstPerSecond + nextTunnels / nextPerSecond),
          proxyCpuPer1000: each(cpu?.proxy),
          agentCpuPer1000: each(cpu?.agent),
        },
        errors: errorsOf(first, result),
      };
    },
  };
}

/** Short tunnels of 10 clients beside downloads through the same agent. */
export function rateBeside(downloads: number, topology: Topology = {}): Scenario {
  const ms = { unit: "ms", digits: 2 };
  const clients = 10;
  return {
    name: `${topology.lb ? "lb-" : ""}rate${clients}-beside${downloads}`,
    title: `${topology.lb ? "through lb: " : ""}short tunnels, ${clients} clients, beside ${downloads} downloads through the same agent`,
    topology,
    metrics: {
      perSecond: { title: "tunnels", unit: "/s" },
      totalP50: { title: "time to the answer p50", ...ms },
      totalP99: { title: "time to the answer p99", ...ms },
      downloadsMbPerSecond: { title: "throughput of the downloads", unit: "MB/s" },
    },
    run: async ({ sizes: { warmUpSeconds, headStartSeconds, rateSeconds }, load }) => {
      await load("rate", "--clients", clients, "--seconds", warmUpSeconds);
      const flows = Array.from(
        { length: downloads },
        () => load("flow", "--head-start", headStartSeconds, "--seconds", rateSeconds),
      );
      const short = sleep(headStartSeconds * 1_000).then(() => load("rate", "--clients", clients, "--seconds", rateSeconds));
      const [result, ...rest] = await Promise.all([short, ...flows]);
      const { p50, p99 } = percentiles(result.totalMs);
      return {
        values: {
          perSecond: toNumber(result.perSecond),
          totalP50: p50,
          totalP99: p99,
          downloadsMbPerSecond: rest.reduce((sum, { mbPerSecond }) => sum + (toNumber(mbPerSecond) ?? 0), 0),
        },
        errors: errorsOf(result, ...rest),
      };
    },
  };
}

export function rtt(name: string, title: string, { beside = false, lb }: Topology & { beside?: boolean } = {}): Scenario {
  const micros = { unit: "µs" };
  const options = beside ? ["--beside"] : [];
  return {
    name,
    title,
    topology: { lb },
    others: lb ? [] : OTHERS,
    metrics: {
      p50: { title: "p50", ...micros },
      p90: { title: "p90", ...micros },
      p99: { title: "p99", ...micros },
      p999: { title: "p99.9", ...micros },
      ...(beside ? { besideMbPerSecond: { title: "throughput of the download", unit: "MB/s" } } : {}),
    },
    run: async ({ sizes, load }) => {
      await load("rtt", "--seconds", sizes.warmUpSeconds, ...options);
      const result = await load("rtt", "--seconds", sizes.rttSeconds, ...options);
      const ms = percentiles(result.rttMs);
      const inMicros = (value: number | undefined) => value === undefined ? undefined : value * 1000;
      return {
        values: {
          p50: inMicros(ms.p50),
          p90: inMicros(ms.p90),
          p99: inMicros(ms.p99),
          p999: inMicros(ms.p999),
          besideMbPerSecond: toNumber(result.besideMbPerSecond),
        },
        errors: errorsOf(result),
      };
    },
  };
}

/** Datagrams of 1,200 bytes to a published UDP port, which the origin sends back. */
export function udp(perSecond: number): Scenario {
  const micros = { unit: "µs" };
  return {
    name: `udp${perSecond}`,
    title: `${perSecond.toLocaleString("en")} datagrams of 1,200 bytes a second to a published UDP port, and back`,
    topology: { udp: true },
    others: ["tool"],
    metrics: {
      lostPercent: { title: "lost", unit: "%", digits: 2 },
      p50: { title: "round trip p50", ...micros },
      p99: { title: "round trip p99", ...micros },
      cpuPer1000: { title: "CPU of both ends for 1,000 datagrams", unit: "s", digits: 4 },
    },
    run: async ({ sizes, pair, load }) => {
      const options = ["--per-second", perSecond, "--size", 1_200];
      await load("udp", ...options, "--seconds", sizes.warmUpSeconds / 5);
      const { result, cpu } = await costOf(pair, () => load("udp", ...options, "--seconds", sizes.rateSeconds));
      const { p50, p99 } = percentiles(result.rttMs);
      const inMicros = (ms: number | undefined) => ms === undefined ? undefined : ms * 1000;
      return {
        values: {
          lostPercent: toNumber(result.lostPercent),
          p50: inMicros(p50),
          p99: inMicros(p99),
          cpuPer1000: cpu && (cpu.proxy + cpu.agent) / toNumber(result.sent)! * 1000,
        },
        errors: errorsOf(result),
      };
    },
  };
}

export function lossy(name: string, title: string, link: NonNullable<Topology["link"]>): Scenario {
  return {
    name,
    title,
    topology: { link },
    others: ["hops"],
    metrics: {
      mbPerSecond: { title: "throughput of one download", unit: "MB/s", digits: 2 },
      totalP50: { title: "a short tunnel, time to the answer p50", unit: "ms" },
    },
    run: async ({ sizes, load }) => {
      const flow = await load("flow", "--head-start", sizes.headStartSeconds, "--seconds", sizes.lossySeconds);
      const short = await load("rate", "--clients", 10, "--seconds", sizes.rateSeconds);
      return {
        values: { mbPerSecond: toNumber(flow.mbPerSecond), totalP50: percentiles(short.totalMs).p50 },
        errors: errorsOf(flow, short),
      };
    },
  };
}

/** One client and its agent, beside the load of another agent. */
export function isolation(name: string, title: string, neighbour: NonNullable<Topology["neighbour"]>): Scenario {
  const ms = { unit: "ms", digits: 2 };
  const ratio = { unit: "", digits: 2 };
  return {
    name,
    title,
    topology: { neighbour },
    metrics: {
      aloneP50: { title: "set-up p50 alone", ...ms },
      aloneP99: { title: "set-up p99 alone", ...ms },
      downloadsP50: { title: "set-up p50 beside 4 downloads", ...ms },
      downloadsP99: { title: "set-up p99 beside 4 downloads", ...ms },
      floodP50: { title: "set-up p50 beside 50 clients", ...ms },
      floodP99: { title: "set-up p99 beside 50 clients", ...ms },
      downloadsToAloneP50: { title: "set-up p50, beside downloads to alone", ...ratio },
      downloadsToAloneP99: { title: "set-up p99, beside downloads to alone", ...ratio },
      floodToAloneP50: { title: "set-up p50, beside clients to alone", ...ratio },
      floodToAloneP99: { title: "set-up p99, beside clients to alone", ...ratio },
      downloadsMbPerSecond: { title: "throughput of the downloads", unit: "MB/s" },
      floodPerSecond: { title: "tunnels of the 50 clients", unit: "/s" },
    },
    run: async ({ sizes: { warmUpSeconds, headStartSeconds, rateSeconds }, load, loadNeighbour }) => {
      const client = (seconds: number) => load("rate", "--clients", 1, "--seconds", seconds);
      const beside = async (others: Promise<LoadResult>[]) => {
        const [one, ...rest] = await Promise.all([sleep(headStartSeconds * 1_000).then(() => client(rateSeconds)), ...others]);
        return { one, rest };
      };
      const four = () => [1, 2, 3, 4].map(() => loadNeighbour!("flow", "--head-start", headStartSeconds, "--seconds", rateSeconds));
      const fifty = () => [loadNeighbour!("rate", "--clients", 50, "--seconds", headStartSeconds + rateSeconds)];
      await client(warmUpSeconds);
      const alone = await client(rateSeconds);
      const downloads = await beside(four());
      const flood = await beside(fifty()); // the last, because limits refuse new tunnels for a while after it
      const [a, d, f] = [alone, downloads.one, flood.one].map(({ setupMs }) => percentiles(setupMs));
      const { "status 503": refused, ...errors } = errorsOf(alone, downloads.one, ...downloads.rest, flood.one, ...flood.rest);
      return {
        values: {
          aloneP50: a!.p50,
          aloneP99: a!.p99,
          downloadsP50: d!.p50,
          downloadsP99: d!.p99,
          floodP50: f!.p50,
          floodP99: f!.p99,
          downloadsToAloneP50: divide(d!.p50, a!.p50),
          downloadsToAloneP99: divide(d!.p99, a!.p99),
          floodToAloneP50: divide(f!.p50, a!.p50),
          floodToAloneP99: divide(f!.p99, a!.p99),
          downloadsMbPerSecond: downloads.rest.reduce((sum, { mbPerSecond }) => sum + (toNumber(mbPerSecond) ?? 0), 0),
          floodPerSecond: toNumber(flood.rest[0]!.perSecond),
        },
        // limits are there to refuse
        errors: refused === undefined || neighbour.proxyOptions ? errors : { ...errors, "status 503": refused },
      };
    },
  };
}
