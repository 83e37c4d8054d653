// TLS settings of a listener with certificates for several names, each of which is reloaded from its files by itself.
import type { ServerTls } from "../net/tls.ts";
import type { Reloadable } from "./reloadable_tls.ts";

/** Settings for names, or for all others. */
export interface NamedPart {
  /** As of the network's `HostTls`. */
  readonly names: readonly string[];
  readonly tls: Reloadable<ServerTls>;
}

export class NamedTls implements Reloadable<ServerTls> {
  readonly #fallback: Reloadable<ServerTls>;
  readonly #hosts: readonly NamedPart[];

  /** @param fallback for clients that ask for another name, or for none */
  constructor(fallback: Reloadable<ServerTls>, hosts: readonly NamedPart[]) {
    this.#fallback = fallback;
    this.#hosts = hosts;
  }

  get current(): ServerTls {
    return this.#with();
  }

  /** The settings in which `changed` has the settings `to`. */
  #with(changed?: Reloadable<ServerTls>, to?: ServerTls): ServerTls {
    const of = (tls: Reloadable<ServerTls>) => tls === changed && to !== undefined ? to : tls.current;
    return { ...of(this.#fallback), hosts: this.#hosts.map(({ names, tls }) => ({ names, tls: of(tls) })) };
  }

  async reload(use?: (tls: ServerTls) => void): Promise<void> {
    for (const part of this.#parts) await part.reload((tls) => use?.(this.#with(part, tls)));
  }

  async poll(use?: (tls: ServerTls) => void): Promise<void> {
    for (const part of this.#parts) await part.poll((tls) => use?.(this.#with(part, tls)));
  }

  get #parts(): Iterable<Reloadable<ServerTls>> {
    return new Set([this.#fallback, ...this.#hosts.map(({ tls }) => tls)]);
  }
}
