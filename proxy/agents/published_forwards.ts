// Forwards that agents ask for: opened while an agent is connected whose token allows them, and withdrawn when it leaves.
import { ConfigError, ValueError } from "../../shared/config/option.ts";
import type { ForwardListeners } from "../../shared/frontend/forwards/listeners.ts";
import type { Forward } from "../../shared/frontend/forwards/forwards.ts";
import { ClaimedError, type ForwardClaims } from "../../shared/frontend/forwards/claims.ts";
import { claimOf, publishedForward } from "../../shared/frontend/forwards/published.ts";
import { messageOf } from "../../shared/log/error_message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { PublishRequest } from "../../shared/link/message.ts";
import { NetError } from "../../shared/net/errors.ts";
import { printable } from "../../shared/net/printable.ts";
import { StoreError } from "../../shared/store/store.ts";
import type { ConnectedAgent } from "./registry.ts";

/** A forward, and the connections of its agent that ask for it. */
interface Published {
  readonly forward: Forward;
  readonly request: PublishRequest;
  readonly holders: Set<ConnectedAgent>;
}

/** A request that was refused because another forward takes the same clients. */
interface Waiting {
  readonly agent: ConnectedAgent;
  readonly request: PublishRequest;
}

/** The claims that the proxies of a store share. */
interface SharedClaims {
  readonly claims: ForwardClaims;
  /** Lifetime in milliseconds of a claim that is not renewed. */
  readonly ttlMs: number;
}

/** Maximum length of a reason in the log, in characters: it may quote the agent. */
const MAX_REASON = 300;

/** The forwards of connected agents. */
export class PublishedForwards {
  readonly #listeners: Pick<ForwardListeners, "add" | "remove">;
  readonly #log: Logger;
  readonly #published = new Set<Published>();
  /** Requested forwards that conflict with others. */
  readonly #waiting = new Set<Waiting>();
  /** Changes are made one after the other. */
  #work = Promise.resolve();

  #claims?: ForwardClaims;
  #timer?: ReturnType<typeof setInterval>;

  /** @param shared claims of all proxies of a store. Default: each proxy decides alone */
  constructor(listeners: Pick<ForwardListeners, "add" | "remove">, log: Logger, shared?: SharedClaims) {
    this.#listeners = listeners;
    this.#log = log;
    this.#use(shared);
  }

  /** Claims everything in another store. Each proxy decides alone without one. */
  share(shared: SharedClaims | undefined): void {
    this.#use(shared);
    this.#run(() => this.#renew());
  }

  #use(shared: SharedClaims | undefined): void {
    clearInterval(this.#timer);
    this.#claims = shared?.claims;
    this.#timer = shared && setInterval(() => this.#run(() => this.#renew()), shared.ttlMs / 3);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  /** Publishes the forwards that a new connection requests. */
  connected(agent: ConnectedAgent): void {
    const requests = agent.hello?.publish ?? [];
    for (const request of requests) this.#run(() => this.#publish(agent, request));
  }

  /** Withdraws forwards that no other connection of the agent requests. */
  disconnected(agent: ConnectedAgent): void {
    if (agent.hello?.publish === undefined) return;
    this.#run(async () => {
      for (const waiting of this.#waiting) if (waiting.agent === agent) this.#waiting.delete(waiting);
      const left = [...this.#published].filter(({ holders }) => holders.delete(agent) && holders.size === 0);
      for (const published of left) this.#withdraw(published);
      if (left.length > 0) await this.#retry();
    });
  }

  #run(change: () => Promise<void> | void): void {
    this.#work = this.#work.then(change).catch((error) =>
      this.#log.error("forwards of an agent could not be changed", { error: messageOf(error) })
    );
  }

  async #publish(agent: ConnectedAgent, request: PublishRequest, isRetry = false): Promise<void> {
    try {
      const forward = permittedForward(agent, request);
      const same = [...this.#published].find((published) => isSame(published.forward, forward));
      if (same) return void same.holders.add(agent);
      await this.#claim((claims) => claims.checkAll(forward));
      await this.#add(agent, forward); // the operator's forwards may have it
      const published = { forward, request, holders: new Set([agent]) };
      this.#published.add(published);
      await this.#claim((claims) => claims.hold(forward, request, true)).catch((error) => {
        this.#withdraw(published);
        throw error;
      });
    } catch (error) {
      if (!(isRefusal(error) || error instanceof NetError)) throw error;
      if (error instanceof RangeError) this.#waiting.add({ agent, request });
      this.#log[isRetry ? "debug" : "warn"]("forward of an agent refused", {
        agent: agent.identity.agentId,
        reason: printable(error.message, MAX_REASON),
      });
    }
  }

  /** Replaces forwards of the agent's other connections that would take the same clients: the newest connection counts. */
  async #add(agent: ConnectedAgent, forward: Forward): Promise<void> {
    try {
      await this.#listeners.add(forward);
    } catch (error) {
      const before = [...this.#published].filter(({ forward: other, holders }) =>
        other.agent === forward.agent && other.listen === forward.listen && !holders.has(agent) && haveCommonNames(other, forward)
      );
      if (!(error instanceof RangeError) || before.length === 0) throw error;
      for (const published of before) this.#withdraw(published);
      await this.#listeners.add(forward);
    }
  }

  /** Without the store, each proxy decides alone. */
  async #claim(work: (claims: ForwardClaims) => Promise<void>): Promise<void> {
    if (this.#claims === undefined) return;
    try {
      await work(this.#claims);
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      this.#log.debug("forward of an agent could not be stored", { reason: error.message });
    }
  }

  /** Renews the claims, and gives up those that an agent of another proxy has got while the store was unavailable. */
  async #renew(): Promise<void> {
    for (const published of this.#published) {
      const { forward, request, holders } = published;
      try {
        await this.#claim((claims) => claims.hold(forward, request, false));
      } catch (error) {
        if (!(error instanceof ClaimedError)) throw error;
        this.#withdraw(published);
        for (const agent of holders) this.#waiting.add({ agent, request });
        this.#log.warn("forward of an agent refused", { agent: forward.agent, reason: printable(error.message, MAX_REASON) });
      }
    }
    if (this.#waiting.size > 0) await this.#retry();
  }

  /** Tries the waiting requests again, whose ports and names may be free now. */
  async #retry(): Promise<void> {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const { agent, request } of waiting) await this.#publish(agent, request, true);
  }

  #withdraw(published: Published): void {
    this.#published.delete(published);
    this.#listeners.remove(published.forward);
    const { agent, listen, to } = published.forward;
    this.#log.info("forward withdrawn", { agent, clients: listen, destination: to });
  }
}

/** The requests of an agent that its credentials permit. */
export function permittedRequests(agent: ConnectedAgent): PublishRequest[] {
  return (agent.hello?.publish ?? []).filter((request) => {
    try {
      permittedForward(agent, request);
      return true;
    } catch (error) {
      if (!isRefusal(error)) throw error;
      return false;
    }
  });
}

/**
 * The forward of a request.
 * @throws {ValueError | RangeError | ConfigError} if it is invalid, or the agent's credentials do not permit it
 */
function permittedForward({ identity: { agentId, publish } }: ConnectedAgent, request: PublishRequest): Forward {
  const forward = publishedForward(request, agentId);
  if (!publish?.allows(...claimOf(forward))) throw new ValueError(`the agent's token does not allow ${describe(forward)}`);
  return forward;
}

function isRefusal(error: unknown): error is ValueError | RangeError | ConfigError {
  return error instanceof ValueError || error instanceof RangeError || error instanceof ConfigError;
}

function isSame(a: Forward, b: Forward): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function haveCommonNames(a: Forward, b: Forward): boolean {
  const [, , names] = claimOf(a);
  const [, , others] = claimOf(b);
  return names.length === 0 ? others.length === 0 : names.some((name) => others.includes(name));
}

function describe({ listen, sni, host }: Forward): string {
  const names = [...sni, ...host];
  return names.length === 0 ? listen : `${names.join(", ")} at ${listen}`;
}
