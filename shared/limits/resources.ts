// Memory and file descriptors available to the process, read from files on Linux, and the watermarks from which `tunnels.ts` refuses more.
// Elsewhere they are not limited here.
import { readFileSync } from "node:fs";
import { totalmem } from "node:os";
import type { LogFields, Logger } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import { unlimitedIfZero } from "./limit.ts";

/** Tunnels that are always permitted: so few do not exhaust memory. */
const MIN_TUNNELS = 16;

/** Decides whether the process uses too much memory for new tunnels. */
export class MemoryWatermark {
  readonly #limit: number;
  readonly #resident: () => number | undefined;
  #above = false;

  /**
   * @param watermark value of the option `limits.memory-watermark`
   * @param resident returns the memory of the process that the kernel cannot reclaim, in bytes
   */
  constructor(watermark: string, resident: () => number | undefined = residentBytes) {
    this.#limit = watermarkBytes(watermark);
    this.#resident = resident;
    this.refresh();
  }

  /** In bytes; `Infinity`: no limit. */
  get limit(): number {
    return this.#limit;
  }

  /** Measures the memory again. */
  refresh(): void {
    this.#above = this.#limit !== Infinity && (this.#resident() ?? 0) > this.#limit;
  }

  /** @param open number of open tunnels */
  refuses(open: number): boolean {
    return this.#above && open >= MIN_TUNNELS;
  }
}

/** Fraction of the buffer budget above which new tunnels are refused. */
const REFUSAL_FRACTION = 2 / 3;
/** Time in milliseconds for which a measurement counts: the network measures no more often. */
const MEASURED_MS = 20;

/** The memory budget for the buffers of all tunnels. The network enforces it; this decides whether new tunnels are refused. */
export class BufferBudget {
  readonly #limit: number;
  readonly #net: Buffers;
  #usedBytes = 0;
  #measuredAt = -Infinity;

  /** @param budget value of the option `limits.buffer-memory` */
  constructor(budget: string, net: Buffers) {
    this.#limit = watermarkBytes(budget);
    this.#net = net;
    net.limitBuffers(this.#limit === Infinity ? 0 : this.#limit);
  }

  /** In bytes; `Infinity`: no limit. */
  get limit(): number {
    return this.#limit;
  }

  /** As last measured. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** @param now milliseconds of a monotonic clock */
  refuses(now: number): boolean {
    if (now - this.#measuredAt >= MEASURED_MS) {
      this.#usedBytes = this.#net.bufferedBytes();
      this.#measuredAt = now;
    }
    return this.#usedBytes > this.#limit * REFUSAL_FRACTION;
  }
}

/** The network's buffer accounting. */
export type Buffers = Pick<Net, "limitBuffers" | "bufferedBytes">;

const WATERMARK = /^([0-9]{1,6})(%|MiB|GiB)$/;

/** Returns why an option value is invalid, or `undefined`. */
export function checkWatermark(text: string): string | undefined {
  const match = WATERMARK.exec(text);
  if (text !== "0" && !match) return `${JSON.stringify(text)} is not 0 or a size like 85%, 512MiB or 2GiB`;
  return match?.[2] === "%" && Number(match[1]) > 100 ? `${JSON.stringify(text)} is more than 100%` : undefined;
}

function watermarkBytes(text: string): number {
  const [, number, unit] = WATERMARK.exec(text) ?? [];
  const count = unlimitedIfZero(Number(number ?? 0));
  if (count === Infinity) return Infinity;
  return unit === "%" ? Math.round(availableBytes() * count / 100) : count * (unit === "MiB" ? 1 << 20 : 1 << 30);
}

/** Memory available to the process: the least of the machine's and its control groups' limits. */
function availableBytes(): number {
  return Math.min(totalmem(), ...groupFiles().map((file) => Number(read(file) ?? NaN)).filter((bytes) => bytes > 0));
}

/** Files with the limits of the process's control groups and their ancestors, version 2 or 1. Some may not exist. */
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

/** Memory of this process as {@link unreclaimableBytes}; `undefined` where the system does not tell. */
export function residentBytes(): number | undefined {
  return unreclaimableBytes(read("/proc/self/status") ?? "");
}

/**
 * Resident memory that the kernel cannot reclaim, in bytes. Pages that map a file, such as the executable, can be reclaimed at any time and
 * do not count.
 * @param status content of `/proc/<pid>/status` (proc_pid_status(5))
 */
export function unreclaimableBytes(status: string): number | undefined {
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s*([0-9]+) kB$`, "m").exec(status)?.[1] ?? NaN) * 1_024;
  const [resident, mapped] = [bytes("VmRSS"), bytes("RssFile")];
  return Number.isNaN(resident) ? undefined : resident - (Number.isNaN(mapped) ? 0 : mapped);
}

/** The file descriptor limit of the process; `Infinity` if it is unknown. */
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

/** Descriptors for everything but connections: files, the runtime, the store, the admin server. At most half of the limit. */
const RESERVED_DESCRIPTORS = 64;
/** Share of the descriptors that the pipes of relaying between two sockets may take (`native/src/relay/kernel_splice.rs`). */
const PIPE_SHARE = 1 / 8;
/** Fewer permitted connections than this are logged as a warning. */
const FEW_CONNECTIONS = 256;

/**
 * Lowers limits to the available descriptors. Connections and pending requests have separate shares, so that neither starves the other.
 * @param configured limits of the options; `Infinity`: none
 * @param each descriptors per tunnel; with two, bulk data between two sockets takes pipes besides
 */
export function withinDescriptors(
  configured: { connections: number; pendingRequests: number },
  each: number,
  descriptors: number = descriptorLimit(),
): { connections: number; pendingRequests: number } {
  if (descriptors === Infinity) return configured;
  const pendingRequests = Math.max(1, Math.min(configured.pendingRequests, Math.floor(descriptors / 4)));
  const pipes = each > 1 ? Math.floor(descriptors * PIPE_SHARE) : 0;
  const available = descriptors - Math.min(RESERVED_DESCRIPTORS, Math.floor(descriptors / 2)) - pendingRequests - pipes;
  return { pendingRequests, connections: Math.max(1, Math.min(configured.connections, Math.floor(available / each))) };
}

/**
 * Lowers the limit of one peer to a share of `permitted` if descriptors do not suffice for `configured`, so that other peers find room.
 * A limit of 0 (none) is returned unchanged.
 */
export function shareOf(limit: number, share: number, configured: number, permitted: number): number {
  return limit === 0 || permitted >= configured ? limit : Math.min(limit, Math.max(1, Math.floor(permitted * share)));
}

/** Logs that the file descriptor limit permits only `permitted` connections or tunnels. */
export function reportDescriptors(log: Logger, what: "connections" | "tunnels", permitted: number, others: LogFields = {}): void {
  const fields = { [what]: permitted, ...others, descriptors: descriptorLimit(), remedy: "raise LimitNOFILE (systemd) or ulimit -n" };
  log[permitted < FEW_CONNECTIONS ? "warn" : "info"](`${what} limited by file descriptors`, fields);
}
