// The agent's connections by the options they were opened with: when options change, earlier ones serve until the new ones are open.
import type { ClientTls } from "../shared/net/tls.ts";
import type { ServiceRuntime } from "../shared/service/runtime.ts";
import type { ReloadableTls } from "../shared/tls/reloadable_tls.ts";
import type { Connections } from "./connections.ts";
import type { OpenSessions } from "./open_sessions.ts";

export class Generations {
  readonly #runtime: Pick<ServiceRuntime, "log" | "certificates">;
  readonly #sessions: OpenSessions;
  /** Those that are kept, the newest last. */
  readonly #kept = new Set<Connections>();

  constructor(runtime: Pick<ServiceRuntime, "log" | "certificates">, sessions: OpenSessions) {
    this.#runtime = runtime;
    this.#sessions = sessions;
  }

  /** Adds connections, and retires the earlier ones once these are open. `refreshMs` returns the interval at which `tls` is read again. */
  add(connections: Connections, tls: ReloadableTls<ClientTls>, refreshMs: () => number): void {
    const stopRefresh = this.#runtime.certificates.refresh(tls, refreshMs);
    this.#kept.add(connections);
    void connections.connected.then(() => this.#retireBefore(connections)); // never rejects
    void connections.done.then(stopRefresh);
  }

  async #retireBefore(connections: Connections): Promise<void> {
    if (!this.#kept.has(connections)) return; // later ones were open first, and have retired these
    const kept = [...this.#kept];
    const earlier = kept.slice(0, kept.indexOf(connections));
    if (earlier.length === 0) return;
    this.#runtime.log.info("earlier connections end when their tunnels have ended", { connections: this.#sessions.all.size - 1 });
    await Promise.all(earlier.map((old) => old.retire()));
    for (const old of earlier) this.#kept.delete(old);
  }

  /** Opens no more connections. Those that are open stay. */
  stop(): void {
    for (const connections of this.#kept) connections.stop();
  }

  /** Resolves when no connection is being opened, after {@link stop}. */
  async done(): Promise<void> {
    await Promise.all([...this.#kept].map(({ done }) => done));
  }
}
