// What a service does at the moment, and what it has done recently: its tunnels, its failures, and samples for graphs. It costs a tunnel a few
// additions; everything that costs more is done when an operator asks, or every two seconds while the admin server runs.
import { residentBytes } from "../../limits/resources.ts";
import type { Net } from "../../net/net.ts";
import { printable } from "../../net/printable.ts";
import type { Duplex } from "../../net/stream.ts";
import type { Sample } from "../api/types.ts";
import { EventHub } from "./events.ts";
import { type AgentRefusal, describeFailure, type Failed, Failures } from "./failures.ts";
import { Ring } from "./ring.ts";
import { describeTunnel, isoTime, type LiveTunnel, measureTunnels } from "./tunnel.ts";

const SAMPLE_MS = 2_000;
/** Samples that are kept: ten minutes. */
const MAX_SAMPLES = 300;
/** Tunnels that are remembered after their end. */
const MAX_ENDED = 1_000;
/** Tunnels whose time to the connection is in a sample; more add little to a percentile. */
const MAX_SETUPS = 10_000;

/** Counts since the start. */
interface Counts {
  opened: number;
  refused: number;
  broken: number;
  /** Bytes of tunnels that have ended. */
  sent: number;
  received: number;
}

/** Numbers that only the service itself has. */
export interface Population {
  readonly agents: number;
}

export class Activity {
  readonly events = new EventHub();
  readonly failures = new Failures();
  /** What is being served, by the client's stream; at an agent, by that of the proxy. */
  readonly tunnels = new Map<Duplex, LiveTunnel>();
  readonly #net: Pick<Net, "relayed">;
  readonly #now: () => number;
  readonly #ended = new Ring<LiveTunnel>(MAX_ENDED);
  readonly #samples = new Ring<Sample>(MAX_SAMPLES);
  readonly #counts: Counts = { opened: 0, refused: 0, broken: 0, sent: 0, received: 0 };
  #refusedAgents = 0;
  #setups: number[] = [];
  #last?: { readonly sample: Sample; readonly now: number };
  #timer?: ReturnType<typeof setInterval>;

  /** @param now monotonic clock in milliseconds. Default `performance.now` */
  constructor(net: Pick<Net, "relayed">, now: () => number = () => performance.now()) {
    this.#net = net;
    this.#now = now;
  }

  /** The tunnel is connected to its destination. */
  opened(tunnel: LiveTunnel): void {
    const { startedAt, connectedAt = startedAt } = tunnel;
    this.#counts.opened++;
    if (this.#setups.length < MAX_SETUPS) this.#setups.push(connectedAt - startedAt);
    this.events.publish("tunnels", () => describeTunnel(tunnel, this.#now()));
  }

  /** The tunnel has ended, or was refused; `status`, `proxyError` and `reason` are set. */
  ended(tunnel: LiveTunnel): void {
    const counts = this.#counts;
    const now = tunnel.endedAt = this.#now();
    const { connectedAt, proxyError } = tunnel;
    counts.sent += tunnel.sent;
    counts.received += tunnel.received;
    if (connectedAt !== undefined) {
      this.#ended.push(tunnel);
      this.events.publish("tunnels", () => describeTunnel(tunnel, now));
    }
    if (proxyError === undefined) return;
    counts[connectedAt === undefined ? "refused" : "broken"]++;
    this.failures.record(tunnel, proxyError, now);
    this.events.publish("failures", () => describeFailure(tunnel));
  }

  /** An agent was refused. */
  agentRefused({ remote, transport, error, reason, code, agent, token }: AgentRefusal): void {
    const now = this.#now();
    const key = `agent-${++this.#refusedAgents}`;
    const peer = { client: remote, protocol: transport, agent: agent && printable(agent), token: token && printable(token) };
    const failed: Failed = {
      isAgent: true,
      key,
      id: key,
      startedAt: now,
      endedAt: now,
      ...peer,
      sent: 0,
      received: 0,
      status: code,
      proxyError: error,
      reason: printable(reason),
    };
    this.failures.record(failed, error, now);
    this.events.publish("failures", () => describeFailure(failed));
  }

  /** Those that are served, with what their relays have done so far, then those that have ended recently. */
  list(): LiveTunnel[] {
    measureTunnels(this.#net, this.tunnels, this.#now());
    return [...this.#open(), ...this.#ended.toArray().reverse()];
  }

  /** Refused clients that still read their response are no tunnels. */
  #open(): LiveTunnel[] {
    return [...this.tunnels.values()].filter(({ endedAt }) => endedAt === undefined);
  }

  /**
   * Resets a tunnel. Returns whether there is one with this key.
   * @param by the operator's name
   */
  closeTunnel(key: string, by: string): boolean {
    for (const [stream, tunnel] of this.tunnels) {
      if (tunnel.key !== key || tunnel.endedAt !== undefined) continue;
      tunnel.closedBy = by;
      stream.reset(1);
      return true;
    }
    return false;
  }

  /** Takes samples until {@link close}. */
  start(population: () => Population): void {
    this.#timer ??= setInterval(() => this.sample(population()), SAMPLE_MS);
    this.sample(population());
  }

  /** The samples, the oldest first. */
  history(): Sample[] {
    return this.#samples.toArray();
  }

  /** Takes a sample now, with rates since the one before. */
  sample(population: Population): Sample {
    const now = this.#now();
    const before = this.#last;
    const counters = this.#count(now);
    const rate = (of: "opened" | "sent" | "received") =>
      before === undefined || now <= before.now
        ? 0
        : Math.max(0, Math.round((counters[of] - before.sample[of]) / (now - before.now) * 1_000));
    const rates = { sentRate: rate("sent"), receivedRate: rate("received"), openRate: rate("opened"), setupMs: percentiles(this.#setups) };
    const sample: Sample = { at: isoTime(now), ...population, ...counters, ...rates, memory: residentBytes() ?? 0 };
    this.#setups = [];
    this.#last = { sample, now };
    this.#samples.push(sample);
    this.events.sendNow("sample", () => sample);
    return sample;
  }

  /** What is counted now, with the rates of the last sample. */
  current(population: Population): Sample {
    const last = this.#last?.sample ?? this.sample(population);
    const now = this.#now();
    return { ...last, at: isoTime(now), ...population, ...this.#count(now) };
  }

  #count(now: number): Counts & Pick<Sample, "clients" | "tunnels"> {
    measureTunnels(this.#net, this.tunnels, now);
    const open = this.#open().filter(({ connectedAt }) => connectedAt !== undefined);
    const sum = (of: "sent" | "received") => open.reduce((sum, tunnel) => sum + tunnel[of], this.#counts[of]);
    return { clients: this.tunnels.size, tunnels: open.length, ...this.#counts, sent: sum("sent"), received: sum("received") };
  }

  close(): void {
    clearInterval(this.#timer);
    this.events.close();
  }
}

function percentiles(ms: number[]): Sample["setupMs"] {
  if (ms.length === 0) return undefined;
  ms.sort((a, b) => a - b);
  const at = (percentile: number) => Math.round(ms[Math.ceil(percentile / 100 * ms.length) - 1]! * 100) / 100;
  return { p50: at(50), p99: at(99) };
}
