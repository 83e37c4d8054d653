// The addon's functions, and the values that cross the boundary. Which file implements them is not known here.
import type { NetErrorCode } from "../errors.ts";
import type { Preamble } from "../listener.ts";
import type { QuicTransport, SessionTransport, WebSocketRequest } from "../session.ts";
import type { ClientTls } from "../tls.ts";

export interface Addon {
  readonly Engine: EngineConstructor;
  notifySupervisor(socket: string, message: string): string | null | undefined;
}

/** An error from the addon: code, message, application error code, whether the peer caused it. */
export type RawError = [code: NetErrorCode, message: string, appCode: number | undefined, remote: boolean];
export type PerAddress = { maxPendingPerAddress: number; exempt: readonly string[] };
export type Heads = { limit: number; timeoutMs: number; maxPending: number; proxyProtocol: readonly string[] } & PerAddress;
export type Handshakes = { timeoutMs: number; maxPending: number; retryThreshold: number } & PerAddress;
/** Result of a splice: bytes per direction, error, side of the error, and datagrams dropped. */
export type RawSpliceResult = [aToB: number, bToA: number, error: RawError | undefined, side: 0 | 1 | undefined, dropped: number];
/** Result of a flow: that of a splice, then the numbers of datagrams from a to b and from b to a. */
export type RawFlowResult = [...RawSpliceResult, number, number];
/** A stream, and the response head received on it. */
export type RawResponse = [stream: number, head: string];
export type RawResult = [code: NetErrorCode, message: string] | null | undefined;

/** TLS settings for the engine, in DER. */
export interface EngineServerTls {
  cert: Uint8Array[];
  key: Uint8Array;
  clientCa?: Uint8Array[];
  clientCrl?: Uint8Array[];
  isClientOptional?: boolean;
  hosts?: EngineHostTls[];
  challenges?: EngineHostTls[];
}

export interface EngineHostTls {
  names: readonly string[];
  tls: EngineServerTls;
}

export interface EngineClientTls extends Omit<ClientTls, "ca" | "cert" | "key"> {
  ca?: Uint8Array[];
  cert?: Uint8Array[];
  key?: Uint8Array;
}

export interface Engine {
  setRef(on: boolean): void;
  close(): void;
  stalledMs(): number;
  limitBuffers(bytes: number): void;
  bufferedBytes(): number;
  /** Four numbers for each stream, all -1 if no relay has it: bytes from a to b, from b to a, and the state of either direction. */
  relayed(streams: number[]): Float64Array;
  cancel(op: number): void;
  checkServerTls(tls: EngineServerTls): RawResult;
  checkClientTls(tls: EngineClientTls): RawResult;
  listenTcp(
    op: number,
    address: string,
    tls: EngineServerTls | undefined,
    heads: Heads,
    preamble: Preamble,
    links: number | undefined,
  ): void;
  listenUdp(op: number, address: string, maxPeers: number, client: string | undefined, clientPort: number | undefined): void;
  udpAccept(op: number, listener: number): void;
  udpDropped(listener: number): number;
  udpStopAccepting(listener: number): void;
  udpClose(listener: number): void;
  tcpAccept(op: number, listener: number): void;
  tcpSetTls(listener: number, tls: EngineServerTls): RawResult;
  tcpConfigure(listener: number, tls: EngineServerTls | undefined, heads: Heads, links: number | undefined): RawResult;
  tcpStartDraining(listener: number): void;
  tcpStopAccepting(listener: number): void;
  tcpClose(listener: number): void;
  connectTcp(
    op: number,
    host: string,
    port: number,
    addresses: readonly string[] | undefined,
    timeoutMs: number,
    tls: EngineClientTls | undefined,
  ): void;
  resolve(op: number, host: string, timeoutMs: number, isConfigured: boolean): void;
  listenQuic(op: number, address: string, tls: EngineServerTls, alpn: string[], transport: QuicTransport, handshakes: Handshakes): void;
  listenTlsLink(
    op: number,
    address: string | undefined,
    tls: EngineServerTls,
    alpn: string[],
    transport: SessionTransport,
    handshakes: Handshakes,
  ): void;
  listenChannel(op: number, path: string): void;
  acceptChannel(op: number, listener: number): void;
  closeChannelListener(listener: number): void;
  connectChannel(op: number, path: string): void;
  sendToChannel(op: number, channel: number, text: string): void;
  receiveFromChannel(op: number, channel: number): void;
  closeChannel(channel: number): void;
  sendSockets(op: number, channel: number): void;
  receiveSockets(op: number, channel: number): void;
  shareAddresses(directory: string, generation: number, isFirst: boolean): void;
  setAccepting(accepting: boolean): void;
  releaseSockets(): void;
  dropUnusedSockets(): void;
  // the listeners and sessions below are of either kind
  sessionAccept(op: number, listener: number): void;
  sessionSetTls(listener: number, tls: EngineServerTls): RawResult;
  sessionConfigure(listener: number, transport: QuicTransport, handshakes: Handshakes): RawResult;
  sessionAcceptWebSocket(listener: number, stream: number, remote: string): RawResult;
  sessionStopAccepting(listener: number): void;
  sessionListenerClose(op: number, listener: number, code: number, reason: string): void;
  connectQuic(op: number, options: object): void;
  connectTlsLink(op: number, options: object, webSocket: WebSocketRequest | undefined): void;
  probeUdp(op: number, host: string, port: number, timeoutMs: number): void;
  openStream(op: number, connection: number): void;
  acceptStream(op: number, connection: number): void;
  acceptRequests(op: number, connection: number, headLimit: number, timeoutMs: number, maxPending: number): void;
  request(op: number, connection: number, head: Uint8Array, timeoutMs: number, headLimit: number, datagrams: boolean): void;
  cancelRequests(connection: number): void;
  openTunnel(
    responseOp: number,
    op: number,
    connection: number,
    head: Uint8Array,
    timeoutMs: number,
    headLimit: number,
    established: Uint8Array,
    datagrams: boolean,
    a: number,
    initialDataToA: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
    cancellable: boolean,
  ): void;
  probeConnection(op: number, connection: number): void;
  pingConnection(connection: number): void;
  closeConnection(connection: number, code: number, reason: string): void;
  setConnectionWindow(connection: number, bytes: number): void;
  peerCredit(connection: number): number[];
  connectionClosed(op: number, connection: number): void;
  connectionStats(connection: number): number[];
  openHttp2Over(op: number, stream: number): void;
  connectHttp2(op: number, host: string, port: number, timeoutMs: number, tls: EngineClientTls | undefined): void;
  openHttp2Stream(op: number, connection: number): void;
  releaseHttp2(connection: number): void;
  openStandardStreams(op: number): void;
  read(op: number, stream: number): void;
  unread(stream: number, data: Uint8Array): void;
  write(op: number, stream: number, data: Uint8Array): void;
  whenReset(op: number, stream: number): void;
  closeWrite(stream: number): void;
  reset(stream: number, code: number): void;
  stopRead(stream: number, code: number): void;
  closeStream(stream: number): void;
  createRate(bytesPerSecond: number, burst: number): number;
  takeFromRate(op: number, rate: number, bytes: number): void;
  closeRate(rate: number): void;
  splice(
    op: number,
    a: number,
    b: number,
    initialDataToA: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
    cancellable: boolean,
  ): void;
  connectAndSplice(
    connectedOp: number,
    op: number,
    a: number,
    host: string,
    port: number,
    addresses: readonly string[] | undefined,
    timeoutMs: number,
    tls: EngineClientTls | undefined,
    initialDataToA: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
  ): void;
  connectAndRelayDatagrams(
    connectedOp: number,
    op: number,
    a: number,
    host: string,
    port: number,
    addresses: readonly string[] | undefined,
    timeoutMs: number,
    datagrams: boolean,
    initialDataToA: Uint8Array | undefined,
    idleTimeoutMs: number,
    rates: number[] | undefined,
  ): void;
}
export type EngineConstructor = new (callback: (batch: unknown[]) => void, threads: number, ownsProcess: boolean) => Engine;
