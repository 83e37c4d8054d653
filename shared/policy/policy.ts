// The policy of a proxy: a file that is reloaded when it changes, and the live tunnels that it may end.
import { clientOf, type Identity } from "../auth/authenticator.ts";
import { everySecond } from "../auth/live_credentials.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { PolledFile } from "../files/polled_file.ts";
import type { Logger } from "../log/logger.ts";
import { formatDestination } from "../address/authority.ts";
import { TunnelError } from "../tunnel/errors.ts";
import type { Decision, PolicyQuery, Rule, RuleSet } from "./rules.ts";

/** A limit that tunnels with the same key share. */
export interface Quota {
  readonly key: string;
  /** The rule's. */
  readonly name: string;
  /** Bytes per second, both directions together. 0: no limit. */
  readonly bytesPerSecond: number;
  /** Tunnels at once. 0: no limit. */
  readonly tunnels: number;
}

/** A decision to allow, until it is disposed of. */
export interface Grant extends Disposable {
  /** The limits that apply. */
  readonly quotas: readonly Quota[];
  /** Aborted with a {@link TunnelError} when the policy no longer allows it. */
  readonly signal: AbortSignal;
}

/** Decides which clients may reach which destinations through which agents. */
export interface Policy {
  /**
   * @param labels those of each connection of the agent; the policy must allow it with all of them
   * @throws {TunnelError} if it is denied
   */
  authorize(identity: Identity, request: PolicyRequest): Grant;
  /** Reads the file again. Never rejects. */
  reload(): Promise<void>;
  close(): void;
}

/** A request, without the client. */
export interface PolicyRequest extends Pick<PolicyQuery, "agentId" | "destination" | "network"> {
  /** The labels, `name=value`, of each of the agent's connections. */
  readonly labels: readonly (readonly string[])[];
}

export interface PolicyDeps {
  readonly log: Logger;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
}

/** Largest policy in bytes. */
export const MAX_POLICY = 32 * 1024 * 1024;
/** Live tunnels that are checked before other tasks have their turn. */
const CHUNK = 500;

interface LiveTunnel {
  readonly queries: readonly PolicyQuery[];
  readonly controller: AbortController;
}

/**
 * Opens the policy of a file. Reads it now, and polls it every second until it is closed. If it becomes invalid, fails its tests or is missing
 * later, that is logged and the previous policy stays in force. Tunnels that a new policy, or the time, no longer allows are ended.
 * @throws {ConfigError} naming file and line
 */
export async function openPolicy(name: string, { log, now = Date.now }: PolicyDeps): Promise<Policy> {
  const file = new PolledFile<RuleSet>(name, async (file) => {
    const { readPolicy } = await import("./read.ts"); // the library does not load YAML without need
    return await readPolicy(await readText(file, MAX_POLICY), now());
  });
  try {
    await file.poll();
  } catch (cause) {
    throw new ConfigError(`Cannot use --auth.policy-file ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
  }
  return new FilePolicy(file, log, now);
}

class FilePolicy implements Policy {
  readonly #file: PolledFile<RuleSet>;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #live = new Set<LiveTunnel>();
  readonly #stop: () => void;
  /** Of the last check by the time. */
  #checkedMinute: number;
  #reloading?: Promise<void>;

  constructor(file: PolledFile<RuleSet>, log: Logger, now: () => number) {
    this.#file = file;
    this.#log = log;
    this.#now = now;
    this.#checkedMinute = minuteOf(now());
    this.#stop = everySecond(now, () => void this.reload()); // never rejects
  }

  authorize(identity: Identity, { labels, ...request }: PolicyRequest): Grant {
    const { value: rules } = this.#file;
    const subjects = subjectsOf(identity);
    // without a connection the labels are not known, and another proxy may have it
    if (labels.length === 0 && rules.mightAllow({ ...request, subjects }, this.#now())) throw notConnected();
    const queries = (labels.length === 0 ? [[]] : labels).map((each) => ({ ...request, subjects, labels: each }));
    const decision = this.#decide(queries);
    if (!decision.allowed) {
      const { agentId, destination, network } = request;
      const what = `${formatDestination(destination, network)} through the agent ${JSON.stringify(agentId)}`;
      throw new TunnelError("http_request_denied", `The policy does not allow ${what}`, { cause: new Error(this.#describe(decision)) });
    }
    const tunnel: LiveTunnel = { queries, controller: new AbortController() };
    this.#live.add(tunnel);
    const limits = new Set(queries.flatMap((query) => rules.limits(query, this.#now())));
    return {
      signal: tunnel.controller.signal,
      quotas: [...limits].map((rule) => quotaOf(rule, identity)),
      [Symbol.dispose]: () => void this.#live.delete(tunnel),
    };
  }

  #decide(queries: readonly PolicyQuery[]): Decision {
    let decision: Decision = { allowed: false };
    for (const query of queries) {
      decision = this.#file.value.decide(query, this.#now());
      if (!decision.allowed) break;
    }
    return decision;
  }

  #describe({ rule }: Decision): string {
    const { name } = this.#file;
    return rule === undefined ? `no rule of ${name} allows it` : `rule ${JSON.stringify(rule.name)} (${name}:${rule.line})`;
  }

  reload(): Promise<void> {
    return this.#reloading ??= this.#reloadFile().finally(() => this.#reloading = undefined);
  }

  async #reloadFile(): Promise<void> {
    const file = this.#file;
    const minute = minuteOf(this.#now());
    let isDue = minute !== this.#checkedMinute && file.value.usesTime;
    this.#checkedMinute = minute;
    try {
      if (await file.poll()) {
        isDue = true;
        this.#log.info("policy reloaded", { file: file.name, rules: file.value.rules.length });
      }
    } catch (error) {
      this.#log.error("policy is missing or invalid; the previous one stays in force", {
        file: file.name,
        reason: describeFileError(error),
      });
    }
    if (isDue) await this.#checkLive();
  }

  /** Ends the live tunnels that are not allowed now. */
  async #checkLive(): Promise<void> {
    let checked = 0;
    for (const tunnel of this.#live) { // others may come and go meanwhile
      const decision = this.#decide(tunnel.queries);
      if (!decision.allowed) {
        this.#live.delete(tunnel);
        const reason = `The policy no longer allows it: ${this.#describe(decision)}`;
        tunnel.controller.abort(new TunnelError("http_request_denied", reason));
      }
      if (++checked % CHUNK === 0) await new Promise((resolve) => setTimeout(resolve));
    }
  }

  close(): void {
    this.#stop();
  }
}

function minuteOf(ms: number): number {
  return Math.floor(ms / 60_000);
}

/** A limit that is changed has another key, so that it applies to new tunnels. */
function quotaOf({ name, limit }: Rule, identity: Identity): Quota {
  const { bytesPerSecond, tunnels, isShared } = limit!;
  const key = JSON.stringify([name, bytesPerSecond, tunnels, isShared ? null : clientOf(identity)]);
  return { key, name, bytesPerSecond, tunnels };
}

function notConnected(): TunnelError {
  return new TunnelError("destination_unavailable", "The agent is not connected to this proxy");
}

/** How a policy's rules name a client. */
export function subjectsOf({ subject, name, groups = [], tokenId }: Pick<Identity, "subject" | "name" | "groups" | "tokenId">): string[] {
  const known = [["sub", subject], ["name", name], ["token", tokenId], ...groups.map((group) => ["group", group])] as const;
  return known.flatMap(([kind, value]) => value === undefined ? [] : [`${kind}:${value}`]);
}
