// The store of a service, which its options name.
import { openStore, type StoreOptions } from "../store/options.ts";
import type { StoreEvents } from "../store/circuit_breaker.ts";
import type { Store } from "../store/store.ts";
import type { Change } from "./change.ts";
import type { ServiceContext } from "./context.ts";
import type { ServiceAdmin } from "./service_admin.ts";
import { reportStore } from "./store_report.ts";

/** The store of a service. */
export class ServiceStore {
  readonly #service: ServiceContext;
  readonly #admin: ServiceAdmin;
  #store?: Store;
  #events?: StoreEvents;

  /** @param admin whose cluster may use the store */
  constructor(service: ServiceContext, admin: ServiceAdmin) {
    this.#service = service;
    this.#admin = admin;
  }

  /**
   * The store that the options name, `undefined` for none. `given` replaces it and is not closed.
   * @param ttlMs lifetime in milliseconds of an entry that is not renewed
   * @throws {ConfigError}
   */
  async open(options: StoreOptions, ttlMs: number, given?: Store): Promise<Store | undefined> {
    if (given) return given;
    const { log, health, metrics } = this.#service;
    this.#events = reportStore(log, health, metrics);
    this.#service.defer(() => this.#store?.close());
    return this.#store = await openStore(options, ttlMs, this.#events);
  }

  /**
   * Prepares another store; `use` is called with it, before the previous one is closed. A store of the embedding program stays.
   * @throws {ConfigError}
   */
  async prepare(change: Change, options: StoreOptions, ttlMs: number, use: (store: Store | undefined) => void): Promise<void> {
    if (this.#events === undefined) return;
    this.#admin.refuseInCluster("--store");
    const next = await openStore(options, ttlMs, this.#events);
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      const previous = this.#store;
      this.#store = next;
      use(next);
      previous?.close();
      this.#service.health.setReady("store"); // the next probe knows
    });
  }
}
