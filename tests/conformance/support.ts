// Helpers of the conformance tests: waits with timeouts, bytes that show any loss, and pairs of streams of every kind. Independent of the
// implementation.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { it } from "node:test";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type {
  AgentSession,
  ConnectSessionOptions,
  ListenQuicOptions,
  ListenSessionsOptions,
  SessionKind,
  SessionListener,
} from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ListenTcpOptions, TcpListener } from "../../shared/net/tcp.ts";
import type { ServerTls } from "../../shared/net/tls.ts";
import { type Authority, type Issued, makeAuthority } from "../../testing/certificates.ts";
import { acceptUpgrade } from "../../shared/frontend/http/web_socket.ts";
import { parseRequestHead } from "../../shared/http/head.ts";

/** An implementation of the contract. */
export interface Adapter {
  name: string;
  create(): Net;
  /** What carries its sessions. */
  sessions: readonly SessionKind[];
  has: {
    /** It uses the system's sockets, and so can be met by others. */
    sockets: boolean;
    /** Its TLS is real. */
    tls: boolean;
  };
}

/** Certificates that all tests of a run share. */
export interface Pki {
  authority: Authority;
  server: Issued;
  client: Issued;
  tls: ServerTls;
}

export interface Suite {
  adapter: Adapter;
  pki: Promise<Pki>;
  /** A test with a network of its own, closed after it. */
  test(name: string, body: (net: Net) => Promise<void>): void;
}

async function makePki(): Promise<Pki> {
  const authority = await makeAuthority();
  const server = await authority.issue({ names: ["localhost", "127.0.0.1", "::1"] });
  const client = await authority.issue({ names: ["client"] });
  return { authority, server, client, tls: { cert: server.cert, key: server.key } };
}

const TEST_LIMIT_MS = 20_000;

export function makeSuite(adapter: Adapter): Suite {
  const test: Suite["test"] = (name, body) => {
    it(name, async () => {
      const net = adapter.create();
      try {
        await within(body(net), "the test did not end", TEST_LIMIT_MS);
      } finally {
        net.close();
      }
    });
  };
  return { adapter, pki: makePki(), test };
}

// ---- waiting

/** Fails instead of hanging. */
export async function within<T>(promise: Promise<T>, otherwise = "the call did not settle", ms = 5_000): Promise<T> {
  let timer;
  const late = new Promise<never>((_, reject) => timer = setTimeout(() => reject(new Error(`After ${ms} ms: ${otherwise}`)), ms));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Lets whatever is about to happen happen. Only for showing that something does not: too short a wait makes no test fail. */
export function pause(ms = 30): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(() => settled = true, () => settled = true);
  await pause();
  return !settled;
}

/** Waits until `condition` holds. */
export async function until(condition: () => boolean, otherwise: string, ms = 5_000): Promise<void> {
  for (const end = Date.now() + ms; !condition();) {
    if (Date.now() > end) throw new Error(`After ${ms} ms: ${otherwise}`);
    await pause(5);
  }
}

/** Both directions between the two ends of a stream are there still. */
export async function assertUsable(one: Duplex, other: Duplex): Promise<void> {
  await within(Promise.all([other.write(bytes("answer")), one.write(bytes("asked"))]));
  assert.equal(await readTextExactly(one, 6), "answer");
  assert.equal(await readTextExactly(other, 5), "asked");
}

/** The rejection of `promise`, which has to be a {@link NetError} with one of these codes. */
export async function netError(promise: Promise<unknown>, ...codes: NetErrorCode[]): Promise<NetError> {
  const error = await within(promise.then((value) => assert.fail(`resolved with ${show(value)} instead of ${codes}`), (error) => error));
  if (!(error instanceof NetError)) throw error;
  assert.ok(codes.includes(error.code), `${error.code} instead of ${codes}: ${error.message}`);
  assert.notEqual(error.message, "");
  return error;
}

function show(value: unknown): string {
  return value instanceof Uint8Array ? `${value.length} bytes` : JSON.stringify(value) ?? "undefined";
}

/** Marks a call as one whose end another call tells. */
export function ignore(...calls: Promise<unknown>[]): void {
  for (const call of calls) call.catch(() => {});
}

// ---- bytes

export function bytes(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "latin1"));
}

/** Bytes that betray it when a part is lost, doubled or moved. */
export function pattern(length: number, seed = 1): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0, x = seed; i < words.length; i++) words[i] = x = (Math.imul(x, 1_664_525) + 1_013_904_223) >>> 0;
  return new Uint8Array(words.buffer, 0, length);
}

export function assertSame(actual: Uint8Array, expected: Uint8Array): void {
  assert.equal(actual.length, expected.length);
  assert.ok(Buffer.compare(actual, expected) === 0, "the bytes differ");
}

export async function readAll(stream: Duplex): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let data; (data = await within(stream.read())) !== null;) parts.push(data);
  return new Uint8Array(Buffer.concat(parts));
}

export async function readText(stream: Duplex): Promise<string> {
  return Buffer.from(await readAll(stream)).toString("latin1");
}

/** Reads `length` bytes and no more. */
export async function readExactly(stream: Duplex, length: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let left = length; left > 0;) {
    const data = await within(stream.read());
    if (data === null) assert.fail(`The stream ended ${left} bytes early`);
    parts.push(data);
    left -= data.length;
    assert.ok(left >= 0, `${-left} bytes too many`);
  }
  return new Uint8Array(Buffer.concat(parts));
}

export async function readTextExactly(stream: Duplex, length: number): Promise<string> {
  return Buffer.from(await readExactly(stream, length)).toString("latin1");
}

/** Reads up to the error that has to come; an end in good order fails. */
export async function readToError(stream: Duplex, ...codes: NetErrorCode[]): Promise<NetError> {
  for (;;) {
    const call = stream.read().then((data) => data);
    const data = await within(call).catch(() => undefined);
    if (data === undefined) return await netError(call, ...codes);
    if (data === null) assert.fail("a stream that was cut ended in good order");
  }
}

/** Writes up to the error that has to come. */
export async function writeToError(stream: Duplex, ...codes: NetErrorCode[]): Promise<NetError> {
  for (let i = 0; i < 10_000; i++) {
    const call = stream.write(new Uint8Array(16 * 1024));
    if (await within(call).then(() => true, () => false)) await pause(1);
    else return await netError(call, ...codes);
  }
  return assert.fail("the stream takes everything");
}

/** Writes what `data` repeats until no more is taken; how much was, and the write that still waits. */
export async function fill(stream: Duplex, data: Uint8Array, most: number): Promise<{ taken: number; waiting: Promise<void> }> {
  let taken = 0;
  for (;;) {
    const write = stream.write(data);
    ignore(write);
    const isTaken = await Promise.race([write.then(() => true), pause(150).then(() => false)]);
    if (!isTaken) return { taken, waiting: write };
    taken += data.length;
    if (taken >= most) assert.fail(`${taken} bytes were accepted without a reader`);
  }
}

// ---- streams

export const HEAD = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
export const ALPN = ["conformance"];

export function portOf(address: string): number {
  return Number(/:([0-9]+)$/.exec(address)?.[1]);
}

/** Brings what arrives one by one; `null` at the end. */
export function oneByOne(accept: () => Promise<Incoming[] | null>): () => Promise<Incoming | null> {
  const ready: Incoming[] = [];
  return async () => {
    if (ready.length === 0) {
      const batch = await within(accept(), "nothing was accepted");
      if (batch === null) return null;
      assert.ok(batch.length > 0, "an empty batch was accepted");
      ready.push(...batch);
    }
    return ready.shift()!;
  };
}

export interface TcpServer {
  listener: TcpListener;
  port: number;
  next: () => Promise<Incoming | null>;
  /** The next one's stream and head. */
  request: () => Promise<{ stream: Duplex; head: string }>;
}

export async function listenTcp(net: Net, options: Partial<ListenTcpOptions> = {}): Promise<TcpServer> {
  const listener = await net.listenTcp({ address: "127.0.0.1:0", ...options });
  const next = oneByOne(() => listener.accept());
  const request = async () => {
    const incoming = await next();
    if (incoming?.head === undefined) throw incoming?.error ?? new Error("the listener was closed");
    return { stream: incoming.stream, head: incoming.head };
  };
  return { listener, port: portOf(listener.address), next, request };
}

export function dialTcp(net: Net, port: number, more: Partial<Parameters<Net["connectTcp"]>[0]> = {}): Promise<Duplex> {
  return within(net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 5_000, ...more }));
}

export interface SessionPair {
  listener: SessionListener;
  port: number;
  client: AgentSession;
  server: AgentSession;
}

const SESSION_NAMES = { quic: "QUIC", tls: "TLS link", websocket: "WebSocket" } as const;
const WEB_SOCKETS = "/links";

/** Sessions over one transport, in the same words. */
export class Sessions {
  readonly name: (typeof SESSION_NAMES)[SessionKind];

  constructor(readonly kind: SessionKind) {
    this.name = SESSION_NAMES[kind];
  }

  async listen(net: Net, options: ListenQuicOptions): Promise<SessionListener> {
    if (this.kind === "quic") return await net.listenQuic(options);
    return this.kind === "tls" ? await net.listenTlsLink(options) : await listenWebSocket(net, options);
  }

  async connect(net: Net, options: ConnectSessionOptions): Promise<AgentSession> {
    if (this.kind === "quic") return await net.connectQuic(options);
    const webSocket = this.kind === "tls" ? undefined : { authority: "proxy.example", path: WEB_SOCKETS };
    return await net.connectTlsLink({ ...options, webSocket });
  }

  dial(net: Net, pki: Pki, port: number, options: Partial<ConnectSessionOptions> = {}): Promise<AgentSession> {
    const all = { host: "127.0.0.1", port, tls: { ca: pki.authority.cert }, alpn: ALPN, timeoutMs: 5_000, ...options };
    return within(this.connect(net, all));
  }

  async pair(
    net: Net,
    pki: Pki,
    serverOptions: Partial<ListenSessionsOptions> = {},
    clientOptions: Partial<ConnectSessionOptions> = {},
  ): Promise<SessionPair> {
    const listener = await this.listen(net, { address: "127.0.0.1:0", tls: pki.tls, alpn: ALPN, ...serverOptions });
    const port = portOf(listener.address);
    const [server, client] = await Promise.all([within(listener.accept()), this.dial(net, pki, port, clientOptions)]);
    assert.ok(server);
    return { listener, port, client, server };
  }
}

/** A TCP listener that passes on every WebSocket, as a proxy does. */
async function listenWebSocket(net: Net, { address, ...options }: ListenQuicOptions): Promise<SessionListener> {
  const links = await net.listenTlsLink(options);
  const listener = await net.listenTcp({ address });
  const serve = async () => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, head } of batch) {
        if (head === undefined) {
          stream.close();
          continue;
        }
        ignore(stream.write(acceptUpgrade(parseRequestHead(head))));
        links.acceptWebSocket(stream, stream.remote);
      }
    }
  };
  ignore(serve());
  return {
    address: listener.address,
    accept: () => links.accept(),
    setTls: (tls) => links.setTls(tls),
    configure: (settings) => links.configure(settings),
    acceptWebSocket: (stream, remote) => links.acceptWebSocket(stream, remote),
    stopAccepting() {
      listener.close();
      links.stopAccepting();
    },
    async close(code, reason) {
      listener.close();
      await links.close(code, reason);
    },
  };
}

/** Every kind of session that the adapter has. */
export function sessionsOf({ adapter }: Suite): Sessions[] {
  return adapter.sessions.map((kind) => new Sessions(kind));
}

/** Two ends of one stream. */
export interface Pair {
  /** The end that dialled or opened it. */
  a: Duplex;
  b: Duplex;
  /** Closes the connection below, at the end that dialled: a stream is lost without a word of its own. */
  lose?: () => void;
}

/** A stream from one connection to the other. Its first byte is gone: a peer hears of a stream by its first bytes. */
export async function openPair(from: AgentSession, to: AgentSession): Promise<Pair> {
  const a = await within(from.openStream());
  await within(a.write(bytes("!")));
  const b = await within(to.acceptStream());
  assert.ok(b);
  await readExactly(b, 1);
  return { a, b };
}

/** A way to get a stream. */
export interface Kind {
  name: "TCP" | "TLS" | Sessions["name"];
  /** It has codes, and directions that are aborted on their own. */
  isSession: boolean;
  open(net: Net): Promise<Pair>;
}

/** Every kind of stream that the adapter has. */
export function kindsOf(suite: Suite): Kind[] {
  const { adapter, pki } = suite;
  const overTcp = async (net: Net, tls: Pki | undefined): Promise<Pair> => {
    const { port, request } = await listenTcp(net, tls && { tls: tls.tls });
    const a = await dialTcp(net, port, tls && { tls: { ca: tls.authority.cert } });
    await within(a.write(bytes(HEAD)));
    return { a, b: (await request()).stream };
  };
  const kinds: Kind[] = [{ name: "TCP", isSession: false, open: (net) => overTcp(net, undefined) }];
  for (const sessions of sessionsOf(suite)) {
    const open = async (net: Net): Promise<Pair> => {
      const { client, server } = await sessions.pair(net, await pki, SMALL_WINDOW, SMALL_WINDOW);
      return { ...await openPair(client, server), lose: () => client.close(7, "gone") };
    };
    kinds.push({ name: sessions.name, isSession: true, open });
  }
  if (adapter.has.tls) kinds.push({ name: "TLS", isSession: false, open: async (net) => overTcp(net, await pki) });
  return kinds;
}

export const STREAM_WINDOW = 256 * 1024;
const SMALL_WINDOW = { transport: { streamWindow: STREAM_WINDOW } };

/** Never rejects. */
export async function echo(stream: Duplex): Promise<void> {
  try {
    for (let data; (data = await stream.read()) !== null;) await stream.write(data);
  } catch {
    // the other end tells
  }
}

export async function checkEcho(stream: Duplex): Promise<void> {
  await within(stream.write(bytes("echo?")));
  assert.equal(await readTextExactly(stream, 5), "echo?");
}
