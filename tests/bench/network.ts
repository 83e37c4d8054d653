// The network between proxy and agent: loopback, or a veth of MTU 1,500 between two network namespaces. Client, proxy and lb are on the near
// side, agent and origin on the far side. It knows nothing of the programs that run there.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";

const MTU = 1_500;
/** Of the addresses that RFC 2544 reserves for benchmarks. */
const NEAR = "198.18.0.1";
const FAR = "198.18.0.2";
const PREFIX_LENGTH = 30;
/** Packets that netem holds: 50 ms at 10 Gbit/s. */
const NETEM_LIMIT = 50_000;
const SYSCTL = "/proc/sys/net/ipv4";
/** Tells the bench that it runs in the near namespace already. */
const INSIDE = "BENCH_NETWORK_NAMESPACE";

export interface Side {
  readonly host: string;
  /** Words that, before a command, make it run there. */
  readonly prefix: readonly string[];
}

export interface Network {
  readonly near: Side;
  readonly far: Side;
  /** For people. */
  readonly description: string;
  /** One-way delay in milliseconds that the network itself does not have: a relay of UDP must add it. */
  readonly relayDelayMs: number;
  readonly close: () => void;
}

export interface NetworkOptions {
  readonly veth: boolean;
  /** Of TCP in both namespaces. */
  readonly tcpCongestion: string;
  /** Between proxy and agent, in milliseconds. */
  readonly roundTripMs: number;
}

/** The options as the bench's process in the near namespace, or without namespaces, uses them. */
export async function openNetwork(options: NetworkOptions): Promise<Network> {
  return options.veth ? await openVeth(options) : openLoopback(options);
}

function openLoopback({ roundTripMs }: NetworkOptions): Network {
  const side: Side = { host: "127.0.0.1", prefix: [] };
  const description = `loopback, TCP ${readSetting("tcp_congestion_control")}${describeDelay(roundTripMs, true)}`;
  return { near: side, far: side, description, relayDelayMs: roundTripMs / 2, close: () => {} };
}

/** The process itself is in the near namespace. The kernel removes namespaces and veth when the last process in them ends. */
async function openVeth({ tcpCongestion, roundTripMs }: NetworkOptions): Promise<Network> {
  // keeps the far namespace until its input ends, at the latest when this process does
  const keeper = spawn("unshare", ["--net", "sh", "-c", "echo && exec cat"], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(keeper, "exit").then(() => Promise.reject(new Error("Cannot make a network namespace")));
  await Promise.race([once(keeper.stdout, "data"), ended]);
  ended.catch(() => {}); // by close
  const near: Side = { host: NEAR, prefix: [] };
  const far: Side = { host: FAR, prefix: ["nsenter", `--net=/proc/${keeper.pid}/ns/net`] };
  run([], `ip link add near mtu ${MTU} type veth peer name far mtu ${MTU} netns ${keeper.pid}`);
  for (const [name, { host, prefix }] of Object.entries({ near, far })) {
    run(prefix, "ip link set lo up");
    run(prefix, `ip address add ${host}/${PREFIX_LENGTH} dev ${name}`);
    run(prefix, `ip link set ${name} up`);
    run([...prefix, "sh", "-c"], `echo ${tcpCongestion} > ${SYSCTL}/tcp_congestion_control`, false);
  }
  const hasNetem = roundTripMs > 0 && addNetem(near, "near", roundTripMs / 2) && addNetem(far, "far", roundTripMs / 2);
  const isRelayed = roundTripMs > 0 && !hasNetem;
  return {
    near,
    far,
    description: `veth of MTU ${MTU.toLocaleString("en-US")}, TCP ${tcpCongestion}${describeDelay(roundTripMs, isRelayed)}`,
    relayDelayMs: isRelayed ? roundTripMs / 2 : 0,
    close: () => void keeper.stdin.end(),
  };
}

/** Whether the kernel has netem. */
function addNetem({ prefix }: Side, device: string, delayMs: number): boolean {
  const words = ["tc", "qdisc", "add", "dev", device, "root", "netem", "delay", `${delayMs}ms`, "limit", String(NETEM_LIMIT)];
  const [file, ...rest] = [...prefix, ...words];
  return spawnSync(file!, rest).status === 0;
}

function describeDelay(roundTripMs: number, isRelayed: boolean): string {
  return roundTripMs === 0 ? "" : `, ${roundTripMs} ms round trip by ${isRelayed ? "a relay of UDP" : "netem"}`;
}

function run(prefix: readonly string[], command: string, isSplit = true): void {
  const [file, ...rest] = [...prefix, ...(isSplit ? command.split(" ") : [command])];
  const { status, stderr, error } = spawnSync(file!, rest, { encoding: "utf8" });
  if (status !== 0) throw new Error(`Cannot set up the network: ${command}: ${error?.message ?? stderr.trim()}`);
}

function readSetting(name: string): string {
  return readFileSync(`${SYSCTL}/${name}`, "utf8").trim();
}

/** Why the options cannot be used here. */
export function problemOf({ veth, tcpCongestion }: NetworkOptions): string | undefined {
  if (!veth) return undefined;
  if (process.getuid?.() !== 0) return "Cannot use --veth: only root may make network namespaces; run the bench as root";
  const available = readSetting("tcp_available_congestion_control").split(" ");
  if (available.includes(tcpCongestion)) return undefined;
  return `Cannot use --tcp-congestion: this kernel has ${available.join(", ")}; current value is ${JSON.stringify(tcpCongestion)}`;
}

export function isInside(): boolean {
  return process.env[INSIDE] !== undefined;
}

/** Runs the bench again, with the same arguments, in a new namespace. Returns its exit code. */
export async function runInside(script: string, args: readonly string[], { tcpCongestion }: NetworkOptions): Promise<number> {
  using _ = allowCongestionControl(tcpCongestion);
  const words = ["--net", process.execPath, "run", "-A", script, ...args];
  const child = spawn("unshare", words, { stdio: "inherit", env: { ...process.env, [INSIDE]: "1" } });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
  const [code] = await once(child, "exit") as [number | null];
  return code ?? 1;
}

/** A namespace takes only algorithms that the system allows to everyone, even from root. The setting is restored at the end. */
function allowCongestionControl(name: string): Disposable {
  const file = `${SYSCTL}/tcp_allowed_congestion_control`;
  const allowed = readFileSync(file, "utf8").trim();
  if (allowed.split(" ").includes(name)) return { [Symbol.dispose]: () => {} };
  writeFileSync(file, `${allowed} ${name}`);
  return { [Symbol.dispose]: () => writeFileSync(file, allowed) };
}
