// The certificates of the agents' port: gives renewed ones to its listeners, and reports pins that have changed.
import type { ServerTls } from "../../shared/net/tls.ts";
import type { ServiceCertificates } from "../../shared/service/service_certificates.ts";
import { pinsOf, type ProxyTls } from "../tls.ts";
import type { AgentListeners } from "./listener.ts";

/** The certificates of the agents' port, and their pins. */
export class AgentCertificates {
  readonly #tls: Pick<ProxyTls, "agents" | "nextPin">;
  readonly #listeners: AgentListeners;
  #pins: readonly string[];
  #onPins: () => void = () => {};

  constructor(tls: Pick<ProxyTls, "agents" | "nextPin">, listeners: AgentListeners) {
    this.#tls = tls;
    this.#listeners = listeners;
    this.#pins = pinsOf(tls);
  }

  /** That of the key in use first. */
  get pins(): readonly string[] {
    return this.#pins;
  }

  /** Reads the files again until the service closes; `onPins` is called when {@link pins} have changed. */
  refresh(certificates: ServiceCertificates, intervalMs: () => number, onPins: () => void): void {
    const { agents, nextPin } = this.#tls;
    this.#onPins = onPins;
    certificates.watch("agents", () => agents.current.cert);
    certificates.refresh(nextPin, intervalMs, () => this.#comparePins());
    certificates.refresh(agents, intervalMs, (renewed) => this.#use(renewed));
  }

  /** Takes the files of `next`, which must not be used any more. */
  replaceBy({ agents, nextPin }: ProxyTls): void {
    // neither rejects
    void this.#tls.agents.replaceBy(agents, (renewed) => this.#use(renewed));
    void this.#tls.nextPin.replaceBy(nextPin, () => this.#comparePins());
  }

  #use(renewed: ServerTls): void {
    for (const listener of this.#listeners.all) listener.setTls(renewed);
    this.#comparePins();
  }

  /** Resolves soon, when the new files are in force. */
  #comparePins(): void {
    queueMicrotask(() => {
      const before = this.#pins.join();
      this.#pins = pinsOf(this.#tls);
      if (this.#pins.join() !== before) this.#onPins();
    });
  }
}
