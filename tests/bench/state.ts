// Scenarios of idle programs, tunnels and agents, and of memory after a load.
import { setTimeout as sleep } from "node:timers/promises";
import { type Context, cpuPercent, errorsOf, needPair, type Outcome, toNumber, type Usages, usages, type Values } from "./scenario.ts";
import { median } from "./report.ts";

export async function idle({ sizes, pair }: Context): Promise<Outcome> {
  const programs = needPair(pair);
  await sleep(sizes.settleMs); // memory of the start is returned
  const [proxyCpuPercent, agentCpuPercent] = await cpuPercent([programs.proxy, programs.agent], sizes.idleMs, () => sleep(sizes.idleMs));
  const { proxy, agent } = usages(programs);
  return {
    values: {
      listeningMs: programs.listeningMs,
      connectedMs: programs.connectedMs,
      proxyRssMiB: proxy.rssMiB,
      agentRssMiB: agent.rssMiB,
      proxyPssMiB: proxy.pssMiB,
      agentPssMiB: agent.pssMiB,
      proxyCpuPercent,
      agentCpuPercent,
    },
    errors: {},
  };
}

export async function tunnels({ sizes, pair, hold }: Context): Promise<Outcome> {
  const programs = needPair(pair);
  await sleep(sizes.settleMs); // memory of the start is returned
  const before = usages(programs);
  const held = await hold(sizes.idleTunnels);
  const open = toNumber(held.opened.open) ?? 0;
  await sleep(sizes.settleMs); // and memory of opening them
  const during = usages(programs);
  const closed = await held.close();
  await sleep(sizes.settleMs);
  const after = usages(programs);
  const each = (of: "proxy" | "agent") => open > 0 ? (during[of].rssMiB - before[of].rssMiB) * 1024 / open : undefined;
  return {
    values: {
      open,
      alive: toNumber(closed.alive),
      openSeconds: toNumber(held.opened.seconds),
      proxyKiBEach: each("proxy"),
      agentKiBEach: each("agent"),
      proxyFilesKept: after.proxy.files - before.proxy.files,
      agentFilesKept: after.agent.files - before.agent.files,
      ...beforeAndAfter(before, after),
    },
    errors: errorsOf(held.opened, closed),
  };
}

/** Measures an active agent's downloads without the others, beside them, and without them again, so that a drift of the machine is halved. */
export async function agents({ sizes, pair, load, swarm }: Context): Promise<Outcome> {
  const { proxy } = needPair(pair);
  const results: Awaited<ReturnType<typeof load>>[] = [];
  const speed = async () => {
    const speeds = [];
    for (let i = 0; i < sizes.repeats; i++) {
      const result = await load("down", "--bytes", sizes.bulkBytes / 2);
      results.push(result);
      speeds.push(toNumber(result.mbPerSecond));
    }
    return median(speeds);
  };
  await load("down", "--bytes", sizes.warmUpBytes);
  const alone = [await speed()];
  await sleep(sizes.settleMs);
  const before = proxy.usage();
  const held = await swarm(sizes.idleAgents);
  const connected = toNumber(held.opened.connected) ?? 0;
  await sleep(sizes.settleMs);
  const [proxyCpuPercent, swarmCpuPercent] = await cpuPercent([proxy, held], sizes.idleMs, () => sleep(sizes.idleMs));
  const during = proxy.usage();
  const beside = await speed();
  const closed = await held.close();
  await sleep(sizes.settleMs);
  alone.push(await speed());
  const without = alone[0] !== undefined && alone[1] !== undefined ? (alone[0] + alone[1]) / 2 : undefined;
  return {
    values: {
      connected,
      alive: toNumber(closed.alive),
      connectSeconds: toNumber(held.opened.seconds),
      proxyKiBEach: connected > 0 ? (during.rssMiB - before.rssMiB) * 1024 / connected : undefined,
      proxyCpuPercent,
      swarmCpuPercent,
      aloneMbPerSecond: without,
      besideMbPerSecond: beside,
      slowdownPercent: without !== undefined && beside !== undefined ? (1 - beside / without) * 100 : undefined,
    },
    errors: errorsOf(held.opened, closed, ...results),
  };
}

export async function memory({ sizes, pair, load }: Context): Promise<Outcome> {
  const programs = needPair(pair);
  await sleep(sizes.settleMs); // memory of the start is returned
  const before = usages(programs);
  const loads = [
    await load("down", "--bytes", sizes.bulkBytes),
    await load("up", "--bytes", sizes.bulkBytes),
    await load("down", "--bytes", sizes.sharedBytes, "--tunnels", 8),
    await load("rate", "--clients", 90, "--seconds", sizes.rateSeconds),
  ];
  await sleep(sizes.restMs);
  const after = usages(programs);
  return {
    values: { ...beforeAndAfter(before, after), proxyPeakMiB: after.proxy.peakMiB, agentPeakMiB: after.agent.peakMiB },
    errors: errorsOf(...loads),
  };
}

function beforeAndAfter(before: Usages, after: Usages): Values {
  return {
    proxyBeforeMiB: before.proxy.rssMiB,
    proxyAfterMiB: after.proxy.rssMiB,
    agentBeforeMiB: before.agent.rssMiB,
    agentAfterMiB: after.agent.rssMiB,
    proxyAfterToBefore: after.proxy.rssMiB / before.proxy.rssMiB,
    agentAfterToBefore: after.agent.rssMiB / before.agent.rssMiB,
  };
}
