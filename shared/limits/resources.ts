// What the machine lets the process have: memory and descriptors. On Linux only, where the system tells it in files; elsewhere there is no
// limit here.
import { readFileSync } from "node:fs";
import { totalmem } from "node:os";
import type { LogFields, Logger } from "../log/logger.ts";
import type { Net } from "../net/types.ts";
import { unlimitedIfZero } from "./limit.ts";

/** With so few tunnels it is not them that take the memory, and a way in is left. */
const MIN_TUNNELS = 16;

/** Tells when the process has taken too much memory for new tunnels. */
export class MemoryWatermark {
  readonly #limit: number;
  readonly #resident: () => number | undefined;
  #above = false;

  /**
   * @param watermark as the option `limits.memory-watermark` has it
   * @param resident memory of the process that the kernel cannot reclaim, in bytes
   */
  constructor(watermark: string, resident: () => number | undefined = residentBytes) {
    this.#limit = watermarkBytes(watermark);
    this.#resident = resident;
    this.refresh();
  }

  /** In bytes; `Infinity` for none. */
  get limit(): number {
    return this.#limit;
  }

  /** Looks again. */
  refresh(): void {
    this.#above = this.#limit !== Infinity && (this.#resident() ?? 0) > this.#limit;
  }

  /** @param open tunnels there are */
  refuses(open: number): boolean {
    return this.#above && open >= MIN_TUNNELS;
  }
}

/** From this part of the budget for buffers on there are no new tunnels. */
const REFUSAL_FRACTION = 0.75;

/** One budget for what all tunnels of the process buffer. Who copies keeps to it; this tells when there is no room for more tunnels. */
export class BufferBudget {
  readonly #limit: number;
  readonly #net: Buffers;

  /** @param budget as the option `limits.buffer-memory` has it */
  constructor(budget: string, net: Buffers) {
    this.#limit = watermarkBytes(budget);
    this.#net = net;
    net.limitBuffers(this.#limit === Infinity ? 0 : this.#limit);
  }

  /** In bytes; `Infinity` for none. */
  get limit(): number {
    return this.#limit;
  }

  get usedBytes(): number {
    return this.#net.bufferedBytes();
  }

  refuses(): boolean {
    return this.usedBytes > this.#limit * REFUSAL_FRACTION;
  }
}

/** Who copies. */
export type Buffers = Pick<Net, "limitBuffers" | "bufferedBytes">;

const WATERMARK = /^([0-9]{1,6})(%|MiB|GiB)$/;

/** Why the option's value cannot be used. */
export function checkWatermark(text: string): string | undefined {
  const match = WATERMARK.exec(text);
  if (text !== "0" && !match) return `${JSON.stringify(text)} is not like 85%, 512MiB or 2GiB, or 0`;
  return match?.[2] === "%" && Number(match[1]) > 100 ? `${JSON.stringify(text)} is more than there is` : undefined;
}

function watermarkBytes(text: string): number {
  const [, number, unit] = WATERMARK.exec(text) ?? [];
  const count = unlimitedIfZero(Number(number ?? 0));
  if (count === Infinity) return Infinity;
  return unit === "%" ? Math.round(availableBytes() * count / 100) : count * (unit === "MiB" ? 1 << 20 : 1 << 30);
}

/** What the control groups of the process, those above them, and the machine leave it. */
function availableBytes(): number {
  return Math.min(totalmem(), ...groupFiles().map((file) => Number(read(file) ?? NaN)).filter((bytes) => bytes > 0));
}

/** Where control groups, version 2 or 1, have their limits; not all of them are there. */
function groupFiles(): string[] {
  const groups = (read("/proc/self/cgroup") ?? "").split("\n").map((line) => /^[0-9]+:([^:]*):(.*)$/.exec(line));
  return groups.flatMap((match) => {
    const [, controllers, path] = match ?? [];
    if (path === undefined || (controllers !== "" && controllers !== "memory")) return [];
    const [root, names] = controllers === ""
      ? ["/sys/fs/cgroup", ["memory.max", "memory.high"]]
      : ["/sys/fs/cgroup/memory", ["memory.limit_in_bytes"]];
    const parts = path.split("/").filter((part) => part !== "");
    const folders = parts.map((_, i) => `${root}/${parts.slice(0, i + 1).join("/")}`);
    return [root, ...folders].flatMap((folder) => names.map((name) => `${folder}/${name}`));
  });
}

function residentBytes(): number | undefined {
  return unreclaimableBytes(read("/proc/self/status") ?? "");
}

/**
 * Resident memory that the kernel cannot drop when it needs memory. Pages that only map a file, such as those of the executable, can be
 * dropped at any time and are not counted.
 * @param status `/proc/<pid>/status` (proc_pid_status(5))
 */
export function unreclaimableBytes(status: string): number | undefined {
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s*([0-9]+) kB$`, "m").exec(status)?.[1] ?? NaN) * 1_024;
  const [resident, mapped] = [bytes("VmRSS"), bytes("RssFile")];
  return Number.isNaN(resident) ? undefined : resident - (Number.isNaN(mapped) ? 0 : mapped);
}

/** Descriptors that the process may have open; `Infinity` where nobody says. */
export function descriptorLimit(): number {
  const soft = /^Max open files\s+([0-9]+|unlimited)\s/m.exec(read("/proc/self/limits") ?? "")?.[1];
  return soft === undefined || soft === "unlimited" ? Infinity : Number(soft);
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8").trim();
  } catch {
    return undefined;
  }
}

/** What the process needs besides connections: files, the runtime's own, the store, those who operate it. At most half of what there is. */
const RESERVED_DESCRIPTORS = 64;
/** With fewer connections than these the operator is warned. */
const FEW_CONNECTIONS = 256;

/**
 * Connections that descriptors are enough for, and heads that may be read besides: a flood of either leaves the other some.
 * @param wanted by the options; `Infinity` for no limit
 * @param each descriptors that a connection takes once it is a tunnel
 */
export function withinDescriptors(
  wanted: { connections: number; pendingRequests: number },
  each: number,
  most: number = descriptorLimit(),
): { connections: number; pendingRequests: number } {
  if (most === Infinity) return wanted;
  const pendingRequests = Math.max(1, Math.min(wanted.pendingRequests, Math.floor(most / 4)));
  const left = most - Math.min(RESERVED_DESCRIPTORS, Math.floor(most / 2)) - pendingRequests;
  return { pendingRequests, connections: Math.max(1, Math.min(wanted.connections, Math.floor(left / each))) };
}

/**
 * A limit of one peer, where descriptors are too few for `wanted` of all peers: at most this share of what they are enough for, so that
 * others find room. 0 stays no limit.
 */
export function shareOf(limit: number, share: number, wanted: number, enough: number): number {
  return limit === 0 || enough >= wanted ? limit : Math.min(limit, Math.max(1, Math.floor(enough * share)));
}

/** Tells the operator that descriptors are fewer than the limits would take, and how many `what` they are enough for. */
export function reportDescriptors(log: Logger, what: "connections" | "tunnels", enough: number, others: LogFields = {}): void {
  const fields = { [what]: enough, ...others, descriptors: descriptorLimit(), remedy: "raise LimitNOFILE (systemd) or ulimit -n" };
  log[enough < FEW_CONNECTIONS ? "warn" : "info"](`descriptors limit ${what}`, fields);
}
