// Listeners for TCP connections and for sessions.
import { NetError } from "../errors.ts";
import type { Incoming, Preamble } from "../listener.ts";
import type { AgentSession, HandshakeFailure, SessionListener, SessionSettings } from "../session.ts";
import type { Duplex } from "../stream.ts";
import type { TcpListener, TcpSettings } from "../tcp.ts";
import type { ServerTls } from "../tls.ts";
import type { UdpListener } from "../udp.ts";
import { type Calls, check, isolated, toError } from "./calls.ts";
import type { RawError } from "./engine.ts";
import { handshakes, heads, toEngineServerTls } from "./options.ts";
import { type ListenerEnd, NativeSession, type OpenedSession } from "./sessions.ts";
import { NativeDuplex, toIncoming } from "./streams.ts";

export class NativeTcpListener implements TcpListener {
  readonly #calls: Calls;
  readonly #id: number;

  constructor(calls: Calls, id: number, readonly address: string, private readonly preamble: Preamble) {
    this.#calls = calls;
    this.#id = id;
  }

  async accept(): Promise<Incoming[] | null> {
    return toIncoming(this.#calls, await this.#calls.call((op, engine) => engine.tcpAccept(op, this.#id)), this.preamble);
  }

  setTls(tls: ServerTls): void {
    check(this.#calls.engine.tcpSetTls(this.#id, toEngineServerTls(tls)));
  }

  configure(settings: TcpSettings): void {
    const { tls, links, pendingHeadsPerAddress, proxyProtocol } = settings;
    const limits = heads(settings, pendingHeadsPerAddress, proxyProtocol);
    const linksId = links && NativeSessionListener.idOf(links);
    check(this.#calls.engine.tcpConfigure(this.#id, tls && toEngineServerTls(tls), limits, linksId));
  }

  startDraining(): void {
    this.#calls.engine.tcpStartDraining(this.#id);
  }

  stopAccepting(): void {
    this.#calls.engine.tcpStopAccepting(this.#id);
  }

  close(): void {
    this.#calls.engine.tcpClose(this.#id);
  }
}

export class NativeUdpListener implements UdpListener {
  readonly #calls: Calls;
  readonly #id: number;
  /** Set when it is closed. */
  #dropped?: number;

  constructor(calls: Calls, id: number, readonly address: string) {
    this.#calls = calls;
    this.#id = id;
  }

  async accept(): Promise<Incoming[] | null> {
    return toIncoming(this.#calls, await this.#calls.call((op, engine) => engine.udpAccept(op, this.#id)));
  }

  get dropped(): number {
    return this.#dropped ?? this.#calls.engine.udpDropped(this.#id);
  }

  startDraining(): void {} // its peers send no requests

  stopAccepting(): void {
    this.#calls.engine.udpStopAccepting(this.#id);
  }

  close(): void {
    this.#dropped ??= this.#calls.engine.udpDropped(this.#id);
    this.#calls.engine.udpClose(this.#id);
  }
}

export class NativeSessionListener implements SessionListener {
  readonly #calls: Calls;
  readonly #id: number;
  readonly #onHandshakeError: (failure: HandshakeFailure) => void;
  readonly #end: ListenerEnd = {};

  constructor(
    calls: Calls,
    id: number,
    readonly address: string,
    onHandshakeError: (failure: HandshakeFailure) => void,
  ) {
    this.#calls = calls;
    this.#id = id;
    this.#onHandshakeError = isolated(onHandshakeError);
  }

  /** @throws {NetError} `invalid` */
  static idOf(listener: SessionListener): number {
    if (!(listener instanceof NativeSessionListener)) throw new NetError("invalid", "Cannot use a listener of another network");
    return listener.#id;
  }

  async accept(): Promise<AgentSession | null> {
    for (;;) {
      const accepted = await this.#calls.call<OpenedSession | [undefined, string, RawError, number] | null>((op, engine) =>
        engine.sessionAccept(op, this.#id)
      );
      if (accepted === null) return null;
      if (accepted[0] !== undefined) return new NativeSession(this.#calls, accepted, this.#end);
      this.#onHandshakeError({ remote: accepted[1], error: toError(accepted[2]), count: accepted[3] });
    }
  }

  setTls(tls: ServerTls): void {
    check(this.#calls.engine.sessionSetTls(this.#id, toEngineServerTls(tls)));
  }

  configure(settings: SessionSettings): void {
    const limits = handshakes(settings, settings.retryThreshold);
    check(this.#calls.engine.sessionConfigure(this.#id, settings.transport ?? {}, limits));
  }

  acceptWebSocket(stream: Duplex, remote: string): void {
    if (!(stream instanceof NativeDuplex)) throw new NetError("invalid", "Cannot use a stream of another network");
    check(this.#calls.engine.sessionAcceptWebSocket(this.#id, stream.give(), remote));
  }

  stopAccepting(): void {
    this.#calls.engine.sessionStopAccepting(this.#id);
  }

  async close(code: number, reason: string): Promise<void> {
    this.#end.closedWith ??= { code, reason };
    await this.#calls.call((op, engine) => engine.sessionListenerClose(op, this.#id, code, reason));
  }
}
