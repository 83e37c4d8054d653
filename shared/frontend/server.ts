// The server for clients: accepts connections on its listeners, has each served by the listener's protocol, and drains.
import { withTimeout } from "../async/with_timeout.ts";
import type { ClientListener } from "../net/listener.ts";
import type { UdpListener } from "../net/udp.ts";
import { ClientConnections, type ClientConnectionsOptions } from "./client_connections.ts";
import type { ClientProtocol } from "./client_protocol.ts";
import type { PipelineRules } from "./pipeline.ts";
import { isSocks5 } from "./socks5/socks5.ts";

/** A listener, and what its clients speak. */
export interface ProtocolListener {
  readonly listener: ClientListener | UdpListener;
  readonly protocol: ClientProtocol;
  /** The protocol for clients that begin with the first byte of SOCKS, if the preamble is `http-or-socks5`. */
  readonly socks?: ClientProtocol;
}

export interface FrontendOptions extends ClientConnectionsOptions {
  readonly listeners: readonly ProtocolListener[];
}

/** Time in milliseconds for the requests of clients that have connected before another process accepts; as the network gives them. */
const LAST_REQUESTS_MS = 10_000;
/** Time in milliseconds that clients get that were accepted just before a drain ends. */
const LAST_CLIENTS_GRACE_MS = 500;

/** Serves clients until it is closed. */
export class Frontend {
  /** Resolves when the last client has gone after {@link close}. */
  readonly done: Promise<void>;
  readonly #connections: ClientConnections;
  readonly #listeners = new Set<ProtocolListener>();
  readonly #accepting = new Set<Promise<void>>();
  readonly #udpListeners = new Set<UdpListener>();
  /** Datagrams that UDP listeners have dropped that are closed. */
  #droppedBefore = 0;

  constructor({ listeners, ...options }: FrontendOptions) {
    this.#connections = new ClientConnections(options, (listener, protocol) => this.#serveStreams(listener, protocol));
    for (const listener of listeners) this.add(listener);
    this.done = this.#run();
  }

  async #run(): Promise<void> {
    while (this.#accepting.size > 0) await Promise.all(this.#accepting);
    await this.#connections.whenEmpty();
    this.#connections.close();
  }

  /** Serves the clients of another listener, until that is closed. */
  add(listener: ProtocolListener): void {
    if (this.#connections.isStopping) return listener.listener.close();
    this.#listeners.add(listener);
    if (this.#connections.isDraining) listener.listener.startDraining();
    const running = this.#accept(listener).finally(() => {
      if (!this.#connections.isDraining) {
        this.#listeners.delete(listener); // it was closed, or accepts no more; otherwise the end of the drain does that
        listener.listener.close();
      }
      this.#accepting.delete(running);
    });
    this.#accepting.add(running);
  }

  async #accept({ listener, protocol, socks }: ProtocolListener): Promise<void> {
    using _watched = "dropped" in listener ? this.#watchDatagrams(listener) : undefined;
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) {
        void this.#connections.serve(incoming, socks !== undefined && isSocks5(incoming) ? socks : protocol); // never rejects
      }
    }
  }

  async #serveStreams(listener: UdpListener, protocol: ClientProtocol): Promise<void> {
    const serving = new Set<Promise<void>>();
    using _watched = this.#watchDatagrams(listener);
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) {
        const served: Promise<void> = this.#connections.serve(incoming, protocol).then(() => void serving.delete(served));
        serving.add(served);
      }
    }
    await Promise.all(serving);
  }

  #watchDatagrams(listener: UdpListener): Disposable {
    this.#udpListeners.add(listener);
    return {
      [Symbol.dispose]: () => {
        this.#udpListeners.delete(listener);
        this.#droppedBefore += listener.dropped;
      },
    };
  }

  /** Changes rules; new tunnels follow them. Rules that are `undefined` are removed, and others stay. */
  update(rules: Partial<PipelineRules>): void {
    this.#connections.update(rules);
  }

  /** See {@link ClientConnections.recheck}. */
  recheck(options: Parameters<ClientConnections["recheck"]>[0]): Promise<number> {
    return this.#connections.recheck(options);
  }

  /** Number of clients being served, with a tunnel or without. */
  get open(): number {
    return this.#connections.size;
  }

  /** Number of these that are connected to their destination. */
  get tunnels(): number {
    return this.#connections.tunnels;
  }

  /** Datagrams that its UDP listeners, and those of its clients, have dropped so far. */
  get datagramsDropped(): number {
    return [...this.#udpListeners].reduce((sum, { dropped }) => sum + dropped, this.#droppedBefore);
  }

  /**
   * Waits until the last client has gone, and resets the rest after `timeoutMs`. It accepts clients while it serves any, but no longer than
   * `timeoutMs`, or until `until` resolves.
   */
  async drain(timeoutMs: number, until?: Promise<void>): Promise<void> {
    const startedAt = performance.now();
    this.#connections.startDraining();
    for (const { listener } of this.#listeners) listener.startDraining();
    {
      using unused = this.#connections.whenUnused();
      await withTimeout(timeoutMs, until ? Promise.race([until, unused.reached]) : unused.reached);
    }
    for (const { listener } of this.#listeners) listener.stopAccepting();
    this.#connections.stopLingering();
    let timer = setTimeout(() => {
      if (timeoutMs === 0) return this.close();
      this.#connections.reset(LAST_CLIENTS_GRACE_MS);
      timer = setTimeout(() => this.close(), LAST_CLIENTS_GRACE_MS);
    }, Math.max(0, timeoutMs - (performance.now() - startedAt)));
    await this.done;
    clearTimeout(timer);
    for (const { listener } of this.#listeners) listener.close();
  }

  /**
   * Serves the clients that it has to their end, `timeoutMs` at most, while another process accepts new ones. {@link drain} and {@link close}
   * end it earlier.
   */
  async outlive(timeoutMs: number): Promise<void> {
    await withTimeout(Math.min(LAST_REQUESTS_MS, timeoutMs), this.done);
    await this.drain(timeoutMs, Promise.resolve());
  }

  /** Stops accepting and resets all clients. */
  close(): void {
    this.#connections.startDraining();
    this.#connections.stopLingering();
    for (const { listener } of this.#listeners) listener.close();
    this.#connections.reset();
  }
}
