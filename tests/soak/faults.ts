// The faults of a soak. Each declares the losses that it may cause; any other loss meanwhile is a violation.
import { setTimeout as sleep } from "node:timers/promises";
import type { Weather } from "../../testing/udp_relay.ts";
import { type AgentName, AGENTS, heldBy, type Installation, NAMES } from "./installation.ts";

export interface Fault {
  readonly name: string;
  /** How long it goes on at least, in milliseconds. */
  readonly ms: number;
  /** Agents whose tunnels may be cut off. */
  readonly cut: readonly AgentName[];
  /** Agents of which new tunnels and requests may be refused, with a status that says so. */
  readonly refused: readonly AgentName[];
  /** The system finishes connections of a process that was killed in good order: so tunnels that were cut may look. */
  readonly killed?: true;
  act(installation: Installation): Promise<void>;
}

const BAD: readonly [string, Partial<Weather>][] = [
  ["loses 5 %", { loss: 0.05, delay: 2 }],
  ["takes 50 ms more", { delay: 50, jitter: 20 }],
  ["duplicates and reorders", { duplicate: 0.1, reorder: 0.1, delay: 2 }],
  ["corrupts and truncates 2 %", { corrupt: 0.02, truncate: 0.02, delay: 2 }],
  ["takes packets up to 1,300 bytes", { mtu: 1_300 }],
];

/** A random fault that takes at most `mostMs`. */
export function drawFault(random: () => number, mostMs: number): Fault {
  const among = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  for (;;) {
    const fault = among(FAULTS)(among(NAMES), among([0, 1]), random);
    if (fault.ms <= mostMs) return fault;
  }
}

type Draw = (agent: AgentName, proxy: number, random: () => number) => Fault;

const NOTHING = { cut: [], refused: [] } as const;

const weather: Draw = (agent, _proxy, random) => {
  const [what, bad] = BAD[Math.floor(random() * BAD.length)]!;
  return { name: `network ${what}`, ms: 4_000, ...NOTHING, act: (all) => during(all, agent, bad, 4_000) };
};

const rebinding: Draw = (agent) => ({
  name: "network changes ports, 10 times",
  ms: 3_000,
  ...NOTHING,
  async act({ relays }) {
    for (let i = 0; i < 10; i++) {
      for (const relay of relays[agent]) relay.rebind();
      await sleep(300);
    }
  },
});

const cutFor = (ms: number): Draw => (agent) => {
  const lost = ms < 10_000 ? [] : [agent];
  return { name: `network cut for ${ms / 1_000} s`, ms, cut: lost, refused: lost, act: (all) => during(all, agent, { blocked: true }, ms) };
};

const blocked = (side: "toServer" | "toClient", ms: number): Draw => (agent) => {
  const lost = ms < 10_000 ? [] : [agent];
  return {
    name: `network cut for ${ms / 1_000} s ${side === "toServer" ? "towards the proxy" : "towards the agent"}`,
    ms,
    cut: lost,
    refused: lost,
    async act({ relays }) {
      for (const relay of relays[agent]) relay[side].weather.blocked = true;
      await sleep(ms);
      for (const relay of relays[agent]) relay.clear();
    },
  };
};

async function during({ relays }: Installation, agent: AgentName, bad: Partial<Weather>, ms: number): Promise<void> {
  for (const relay of relays[agent]) relay.change(bad);
  await sleep(ms);
  for (const relay of relays[agent]) relay.clear();
}

const agentRestarted: Draw = (agent) => ({
  name: "agent restarted",
  ms: 3_000,
  cut: [agent],
  refused: [agent],
  async act({ agents }) {
    agents[agent].program.signal("SIGTERM");
    await agents[agent].restart();
  },
});

const agentKilled: Draw = (agent) => ({
  name: "agent killed",
  ms: 1_000,
  cut: [agent],
  refused: [agent],
  killed: true,
  act: ({ agents }) => agents[agent].replace(),
});

/** Agents that are connected to this proxy and to no other. */
function onlyHeldBy(proxy: number): AgentName[] {
  return heldBy(proxy).filter((name) => AGENTS[name].length === 1);
}

const proxyRestarted: Draw = (_agent, proxy) => ({
  name: "proxy restarted",
  ms: 3_000,
  cut: heldBy(proxy),
  refused: onlyHeldBy(proxy),
  async act({ proxies }) {
    proxies[proxy]!.program.signal("SIGTERM");
    await proxies[proxy]!.restart();
  },
});

const proxyKilled: Draw = (_agent, proxy) => ({
  name: "proxy killed",
  ms: 1_000,
  cut: heldBy(proxy),
  refused: onlyHeldBy(proxy),
  killed: true,
  act: ({ proxies }) => proxies[proxy]!.replace(),
});

const memcachedKilled: Draw = (_agent, cache) => ({
  name: "memcached killed, empty again after 1 s",
  ms: 1_000,
  ...NOTHING,
  async act({ caches }) {
    await caches[cache]!.kill();
    await sleep(1_000);
    await caches[cache]!.restart();
  },
});

type Frozen = { signal(name: "SIGSTOP" | "SIGCONT"): void };

async function freeze(frozen: Frozen, ms: number): Promise<void> {
  frozen.signal("SIGSTOP");
  await sleep(ms);
  frozen.signal("SIGCONT");
}

const frozen = (what: string, ms: number, pick: (all: Installation, agent: AgentName, proxy: number) => Frozen): Draw => (agent, proxy) => {
  const hit = what === "agent" ? [agent] : heldBy(proxy);
  const lost = ms < 10_000 ? [] : hit;
  return { name: `${what} frozen for ${ms / 1_000} s`, ms, cut: lost, refused: lost, act: (all) => freeze(pick(all, agent, proxy), ms) };
};

const FAULTS: readonly Draw[] = [
  weather,
  weather,
  rebinding,
  rebinding,
  cutFor(3_000),
  cutFor(20_000),
  blocked("toServer", 3_000),
  blocked("toServer", 20_000),
  blocked("toClient", 3_000),
  blocked("toClient", 20_000),
  agentRestarted,
  agentKilled,
  proxyRestarted,
  proxyKilled,
  memcachedKilled,
  frozen("agent", 2_000, ({ agents }, agent) => agents[agent].program),
  frozen("agent", 15_000, ({ agents }, agent) => agents[agent].program),
  frozen("proxy", 2_000, ({ proxies }, _agent, proxy) => proxies[proxy]!.program),
  frozen("proxy", 15_000, ({ proxies }, _agent, proxy) => proxies[proxy]!.program),
  frozen("lb", 2_000, ({ lb }) => lb.program),
  frozen("memcached", 2_000, ({ caches }, _agent, cache) => caches[cache]!),
];
