// Publishes the proxy's agents in the store, with the address at which lb reaches the proxy.
import { hostname } from "node:os";
import { messageOf } from "../shared/log/error_message.ts";
import type { Logger } from "../shared/log/logger.ts";
import { type PresencePublisher, startPresencePublisher } from "../shared/store/presence.ts";
import type { Store } from "../shared/store/store.ts";
import type { ProxyOptions } from "./options.ts";

/** The published entry, and the store. */
export interface PublishOptions {
  /** Missing if nothing is published. */
  readonly store?: Store;
  readonly options: ProxyOptions["store"];
  /** The address bound for clients. */
  readonly bound: string;
  /** Ids of the agents that are connected. */
  readonly agents: Iterable<string>;
}

/** Publishes agents until it is closed. */
export class ProxyPresence {
  readonly #log: Logger;
  #publisher?: PresencePublisher;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Publishes in a store, and no longer in that before. */
  publish({ store, options, bound, agents }: PublishOptions): void {
    this.close();
    this.#publisher = store && this.#start(store, options, bound);
    for (const id of agents) this.#publisher?.add(id);
  }

  #start(store: Store, { httpProxyAddress, ttl: ttlMs }: ProxyOptions["store"], bound: string): PresencePublisher {
    const log = this.#log;
    const address = httpProxyAddress ?? reachable(bound);
    log.info("publishing agents to the store", { address });
    if (httpProxyAddress === undefined) {
      log.warn("lb may not reach this proxy at this address: set --store.http-proxy-address", { address });
    }
    return startPresencePublisher({
      store,
      address,
      ttlMs,
      onFailure: ({ agentId: agent, error }) => log.debug("presence of the agent could not be stored", { agent, reason: messageOf(error) }),
    });
  }

  /** The publisher in use; `undefined` without a store. */
  get current(): PresencePublisher | undefined {
    return this.#publisher;
  }

  close(): void {
    this.#publisher?.close();
  }
}

/** A wildcard address means nothing on another host: the host name replaces it. */
function reachable(bound: string): string {
  return bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
}
