// A connection to a proxy: authenticates, serves requests, drains. Knows neither other connections nor how and when to connect.
import { Control } from "../shared/link/control.ts";
import { authenticate, CloseCode, controlFrames } from "../shared/link/link.ts";
import { type Hello, MAX_MESSAGE } from "../shared/link/message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { AgentSession, SessionClosed, SessionKind, SessionStats } from "../shared/net/session.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { TunnelVia } from "../shared/tunnel/request.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import { closeFailed } from "./connection_errors.ts";
import type { AdaptiveKeepAlive } from "./transport/keep_alive.ts";
import { refuseTunnel, serveTunnel, type TunnelOptions } from "./tunnel.ts";

export interface SessionOptions {
  log: Logger;
  credentials: Uint8Array;
  hello: Hello;
  tunnels: TunnelOptions;
  /** The proxy has announced pins. Default: they are ignored. */
  onPins?: (pins: readonly string[]) => void;
}

/** The proxy's request to connect elsewhere. */
export interface Goaway {
  readonly reason: string;
  /** Time to connect elsewhere, in milliseconds. */
  readonly withinMs: number;
}

/** Timeout in milliseconds for the proxy to acknowledge a goaway. */
const GOAWAY_TIMEOUT_MS = 1_000;
/** Time in milliseconds for requests to arrive that the proxy sent before it read a goaway. */
const LAST_REQUESTS_MS = 1_000;

/** An authenticated connection to a proxy. */
export class Session {
  /** Identifies the connection, for operators. */
  readonly id: string = crypto.randomUUID();
  readonly remote: string;
  readonly since = new Date();
  /** Resolves when the connection has ended. */
  readonly closed: Promise<SessionClosed>;
  /** Resolves when the proxy sends a goaway; otherwise it stays pending. */
  readonly goaway: Promise<Goaway>;
  /** Resolves with the proxy's description of itself; it stays pending without one. */
  readonly proxy: Promise<Hello>;
  /** Whether it is being replaced. */
  isLeaving = false;
  /** Whether that is because the agent has other options. */
  isRetired = false;
  /** Why its transport was chosen, if that was not the first choice. */
  linkReason?: string;
  /** Address of the outbound proxy that carries it, if any. */
  via?: string;
  /** Pings the proxy; until the session has ended. Default: the engine does. */
  keepAlive?: AdaptiveKeepAlive;
  readonly #connection: AgentSession;
  /** What its tunnels pass through. */
  readonly #tunnelVia: TunnelVia;
  readonly #control?: Control;
  readonly #options: SessionOptions;
  /** Those that the proxy has last seen. */
  #credentials: Uint8Array;
  readonly #open = new Set<Promise<void>>();
  #isOpen = true;
  #draining = false;
  /** The last migration result that was reported to the proxy. */
  #reportedMigration?: boolean;

  /**
   * Authenticates on a new connection, which is closed if that fails.
   * @throws {NetError} `closed` with the proxy's code as `appCode` if it refuses, `timed-out`, `reset`, `tls`
   */
  static async open(connection: AgentSession, options: SessionOptions): Promise<Session> {
    try {
      return new Session(connection, await authenticate(connection, options.credentials, options.hello), options);
    } catch (error) {
      throw await closeFailed(connection, error);
    }
  }

  private constructor(connection: AgentSession, control: Duplex | undefined, options: SessionOptions) {
    this.#connection = connection;
    this.#options = options;
    this.#credentials = options.credentials;
    this.remote = connection.remote;
    this.#tunnelVia = { address: connection.remote, connection: this.id, link: connection.transport };
    const goaway = Promise.withResolvers<Goaway>();
    this.goaway = goaway.promise;
    const proxy = Promise.withResolvers<Hello>();
    this.proxy = proxy.promise;
    if (control) {
      this.#control = new Control(connection, control);
      const onViolation = (reason: string) => options.log.warn("proxy violated the protocol", { proxy: this.remote, reason });
      void this.#control.run(controlFrames(control), {
        onGoaway: goaway.resolve,
        onHello: proxy.resolve,
        onPins: options.onPins,
        onViolation,
      }); // never rejects
    }
    this.closed = this.#serve();
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Number of open tunnels. */
  get tunnels(): number {
    return this.#open.size;
  }

  get transport(): SessionKind {
    return this.#connection.transport;
  }

  /** Age of the unanswered ping in milliseconds; 0 without one, and with version 1 of the link. */
  get silentMs(): number {
    return this.#control?.silentMs ?? 0;
  }

  /** Sends a ping unless one is unanswered. */
  pingIfDue(): void {
    this.#control?.pingIfDue();
  }

  /** Sends a ping of the transport. */
  ping(): void {
    this.#connection.ping();
  }

  /** Resolves with whether the proxy's process is gone. */
  probe(): Promise<boolean> {
    return this.#connection.probe();
  }

  stats(): SessionStats {
    return this.#connection.stats();
  }

  async #serve(): Promise<SessionClosed> {
    for (let batch; (batch = await this.#connection.acceptRequests()) !== null;) {
      for (const incoming of batch) {
        // without a control stream the agent cannot ask the proxy to prefer other agents
        const serve = this.#draining && !this.#control ? refuseTunnel : serveTunnel;
        const served: Promise<void> = serve(this.#options.tunnels, incoming, this.#tunnelVia).then(() => void this.#open.delete(served)); // never rejects
        this.#open.add(served);
      }
    }
    const closed = await this.#connection.closed;
    this.#isOpen = false;
    return closed;
  }

  /**
   * Tells the proxy that it need not wait for this agent, and whether the agent has found another proxy; it may still find one later. Never
   * rejects.
   */
  async reportMigration(found: boolean): Promise<void> {
    if (this.#reportedMigration === true || this.#reportedMigration === found) return;
    this.#reportedMigration = found;
    await this.#control?.moved(found);
  }

  /**
   * Tells the proxy to prefer other agents, serves what still arrives (with version 1 of the link, refuses it), and resolves when the open
   * tunnels have ended.
   */
  async drain(): Promise<void> {
    this.#draining = true;
    if (this.#control) {
      await this.#control.goaway("shutting down", 0);
      // the pong proves that the proxy has read the goaway before it
      await withTimeout(GOAWAY_TIMEOUT_MS, this.#control.ping());
    }
    while (this.#open.size > 0) await Promise.all(this.#open);
  }

  /** Ends the session, which another one has replaced, when its open tunnels have ended. Never rejects. */
  async retire(): Promise<void> {
    void this.goaway.then(() => this.reportMigration(true)); // the proxy need not wait for this session
    await this.drain();
    await withTimeout(LAST_REQUESTS_MS, this.closed);
    while (this.#open.size > 0) await Promise.all(this.#open);
    this.close();
  }

  /** Shows the proxy newer credentials, unless it has these. Proxies that do not know the message ignore it. Never rejects. */
  async renewCredentials(credentials: Uint8Array): Promise<void> {
    if (!this.#isOpen || credentials.length >= MAX_MESSAGE || equal(credentials, this.#credentials)) return;
    this.#credentials = credentials;
    await this.#control?.credentials(credentials);
  }

  close(reason = "shutting down"): void {
    this.#connection.close(CloseCode.shutdown, reason);
  }
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}
