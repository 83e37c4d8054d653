// Sessions: streams opened and accepted, requests, the end. They are alike on every transport.
import type { HeadOptions, Incoming } from "../listener.ts";
import { printable } from "../printable.ts";
import type { Spliced, SpliceOptions } from "../relay.ts";
import type { AgentResponse, AgentSession, PeerCredit, RequestOptions, SessionClosed, SessionKind, SessionStats } from "../session.ts";
import type { Duplex } from "../stream.ts";
import { type Calls, checkSignal } from "./calls.ts";
import type { Engine, RawResponse } from "./engine.ts";
import { HEAD_LIMIT, heads } from "./options.ts";
import { beginSplice, type IncomingBatch, NativeDuplex, toIncoming, toSpliceResult } from "./streams.ts";

/** Code and reason with which a listener has closed its sessions. */
export interface ListenerEnd {
  closedWith?: { code: number; reason: string };
}

export type OpenedSession = [id: number, remote: string, alpn: string, certificate: Uint8Array | undefined, kind: SessionKind];

export class NativeSession implements AgentSession {
  readonly transport: SessionKind;
  readonly remote: string;
  readonly alpn: string;
  readonly peerCertificate?: Uint8Array;
  readonly closed: Promise<SessionClosed>;
  readonly #calls: Calls;
  readonly #id: number;
  #closedWith?: { code: number; reason: string };

  constructor(
    calls: Calls,
    [id, remote, alpn, certificate, kind]: OpenedSession,
    listener: ListenerEnd = {},
  ) {
    this.#calls = calls;
    this.#id = id;
    this.transport = kind;
    this.remote = remote;
    this.alpn = alpn;
    this.peerCertificate = certificate;
    this.closed = this.#whenClosed(listener);
  }

  async #whenClosed(listener: ListenerEnd): Promise<SessionClosed> {
    const call = this.#calls.call<[number, string, boolean, SessionClosed["cause"]]>((op, engine) => engine.connectionClosed(op, this.#id));
    const [code, reason, remote, cause] = await call;
    const local = cause === "application" && !remote ? this.#closedWith ?? listener.closedWith : undefined;
    return { code, reason: printable(reason), remote, cause, ...local };
  }

  async openStream(): Promise<Duplex> {
    const id = await this.#calls.call<number>((op, engine) => engine.openStream(op, this.#id));
    return new NativeDuplex(this.#calls, id, this.remote);
  }

  async acceptStream(): Promise<Duplex | null> {
    const id = await this.#calls.call<number | null>((op, engine) => engine.acceptStream(op, this.#id));
    return id === null ? null : new NativeDuplex(this.#calls, id, this.remote);
  }

  async request(head: Uint8Array, { timeoutMs, headLimit, datagrams, signal }: RequestOptions): Promise<AgentResponse> {
    checkSignal(signal);
    const start = (op: number, engine: Engine) =>
      engine.request(op, this.#id, head, timeoutMs, headLimit ?? HEAD_LIMIT, datagrams ?? false);
    return this.#toResponse(await this.#calls.cancellable<RawResponse>(signal, start));
  }

  #toResponse([stream, head]: RawResponse): AgentResponse {
    return { stream: new NativeDuplex(this.#calls, stream, this.remote), head };
  }

  async openTunnel(
    a: Duplex,
    head: Uint8Array,
    { timeoutMs, headLimit, datagrams, established }: RequestOptions & { established: Uint8Array },
    options: SpliceOptions = {},
  ): Promise<AgentResponse | Spliced> {
    const { initialDataToA, idleTimeoutMs, signal } = options;
    checkSignal(signal);
    const [response, ended, given] = await beginSplice<RawResponse | null>(
      this.#calls,
      a,
      options,
      (first, second, id, rates, engine) =>
        engine.openTunnel(
          first,
          second,
          this.#id,
          head,
          timeoutMs,
          headLimit ?? HEAD_LIMIT,
          established,
          datagrams ?? false,
          id,
          initialDataToA,
          idleTimeoutMs ?? 0,
          rates,
          signal !== undefined,
        ),
    );
    if (response === null) return { ended: ended.then(toSpliceResult) };
    given.takeBack();
    return this.#toResponse(response);
  }

  cancelRequests(): void {
    this.#calls.engine.cancelRequests(this.#id);
  }

  async acceptRequests(options: HeadOptions = {}): Promise<Incoming[] | null> {
    const { limit, timeoutMs, maxPending } = heads(options);
    const accepted = this.#calls.call<IncomingBatch | null>((op, engine) =>
      engine.acceptRequests(op, this.#id, limit, timeoutMs, maxPending)
    );
    return toIncoming(this.#calls, await accepted);
  }

  async probe(): Promise<boolean> {
    return await this.#calls.call((op, engine) => engine.probeConnection(op, this.#id));
  }

  ping(): void {
    this.#calls.engine.pingConnection(this.#id);
  }

  close(code: number, reason: string): void {
    this.#closedWith ??= { code, reason };
    this.#calls.engine.closeConnection(this.#id, code, reason);
  }

  setConnectionWindow(bytes: number): void {
    this.#calls.engine.setConnectionWindow(this.#id, bytes);
  }

  peerCredit(): PeerCredit | undefined {
    const [streams, streamBytes] = this.#calls.engine.peerCredit(this.#id);
    return streams === undefined || streamBytes === undefined ? undefined : { streams, streamBytes };
  }

  stats(): SessionStats {
    const values = this.#calls.engine.connectionStats(this.#id);
    if (this.transport !== "quic") {
      const [rttMs = 0, sentBytes = 0, receivedBytes = 0, sentPackets = 0, lostPackets = 0] = values;
      return { rttMs, sentBytes, receivedBytes, sentPackets, lostPackets };
    }
    const [
      rttMs = 0,
      sentPackets = 0,
      lostPackets = 0,
      sentBytes = 0,
      receivedBytes = 0,
      congestionWindow = 0,
      mtu = 0,
      pathChallenges = 0,
    ] = values;
    return { rttMs, sentPackets, lostPackets, sentBytes, receivedBytes, congestionWindow, mtu, pathChallenges };
  }
}
