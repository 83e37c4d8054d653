// Helpers for tests on the in-memory network: clients, pairs of streams, and a log that is kept.
import { Buffer } from "node:buffer";
import { type Fields, parseResponseHead, values } from "../shared/http/head.ts";
import type { LogFields, Logger, LogLevel } from "../shared/log/logger.ts";
import { createMemoryNet } from "./net/memory.ts";
import { MemoryDuplex, Pipe } from "./net/stream.ts";
import type { Net } from "../shared/net/net.ts";
import type { AgentSession, SessionListener } from "../shared/net/session.ts";
import type { Duplex } from "../shared/net/stream.ts";
import { bytes, portOf, readText, within } from "../tests/conformance/support.ts";

/** Timeout of a test, reached only if it fails. */
const TEST_LIMIT_MS = 20_000;

/** Runs a test with its own network, which is closed afterwards. */
export async function withNet(body: (net: Net) => Promise<void>): Promise<void> {
  const net = createMemoryNet();
  try {
    await within(body(net), "the test did not end", TEST_LIMIT_MS);
  } finally {
    net.close();
  }
}

/** The network with some methods replaced. */
export function netWith(net: Net, replaced: Partial<Net>): Net {
  return {
    checkServerTls: (tls) => net.checkServerTls(tls),
    checkClientTls: (tls) => net.checkClientTls(tls),
    listenTcp: (options) => net.listenTcp(options),
    listenUdp: (options) => net.listenUdp(options),
    connectTcp: (options) => net.connectTcp(options),
    openHttp2Over: (stream) => net.openHttp2Over(stream),
    connectHttp2: (options) => net.connectHttp2(options),
    openStandardStreams: () => net.openStandardStreams(),
    resolve: (host, options) => net.resolve(host, options),
    listenQuic: (options) => net.listenQuic(options),
    connectQuic: (options) => net.connectQuic(options),
    listenTlsLink: (options) => net.listenTlsLink(options),
    connectTlsLink: (options) => net.connectTlsLink(options),
    probeUdp: (options) => net.probeUdp(options),
    splice: (a, b, options) => net.splice(a, b, options),
    connectAndSplice: (a, connect, options) => net.connectAndSplice(a, connect, options),
    connectUdp: (a, connect, options) => net.connectUdp(a, connect, options),
    createRate: (options) => net.createRate(options),
    limitBuffers: (bytes) => net.limitBuffers(bytes),
    bufferedBytes: () => net.bufferedBytes(),
    relayed: (streams) => net.relayed(streams),
    stalledMs: () => net.stalledMs(),
    close: () => net.close(),
    ...replaced,
  };
}

/** The network, and the streams of its sessions that were opened or accepted singly and are not closed. */
export function netThatCounts(net: Net): { counting: Net; open: Set<Duplex> } {
  const open = new Set<Duplex>();
  const stream = (inner: Duplex): Duplex => {
    const outer: Duplex = instead(inner, {
      close: () => {
        open.delete(outer);
        inner.close();
      },
    });
    open.add(outer);
    return outer;
  };
  const connection = (inner: AgentSession): AgentSession =>
    instead(inner, {
      openStream: async () => stream(await inner.openStream()),
      acceptStream: async () => {
        const accepted = await inner.acceptStream();
        return accepted && stream(accepted);
      },
    });
  const listener = (inner: SessionListener): SessionListener =>
    instead(inner, {
      accept: async () => {
        const accepted = await inner.accept();
        return accepted && connection(accepted);
      },
    });
  const counting = netWith(net, {
    connectQuic: async (options) => connection(await net.connectQuic(options)),
    connectTlsLink: async (options) => connection(await net.connectTlsLink(options)),
    listenQuic: async (options) => listener(await net.listenQuic(options)),
    listenTlsLink: async (options) => listener(await net.listenTlsLink(options)),
  });
  return { counting, open };
}

/** An object with some of its methods replaced. */
export function instead<T extends object>(object: T, replaced: Partial<T>): T {
  return new Proxy(object, {
    get(_, name) {
      if (name in replaced) return replaced[name as keyof T];
      const value = object[name as keyof T];
      return typeof value === "function" ? value.bind(object) : value;
    },
  });
}

/** Both ends of a stream of which no header section is read. */
export function streamPair(kind: "tcp" | "session" = "tcp"): { near: Duplex; far: Duplex } {
  const [up, down] = [new Pipe(64 * 1024), new Pipe(64 * 1024)];
  return { near: new MemoryDuplex(kind, "127.0.0.1:1", down, up), far: new MemoryDuplex(kind, "127.0.0.1:2", up, down) };
}

/** A queue whose `next` waits for an item. */
export class Queue<T> {
  readonly #ready: T[] = [];
  readonly #waiting: ((item: T) => void)[] = [];

  push(item: T): void {
    const taker = this.#waiting.shift();
    if (taker) taker(item);
    else this.#ready.push(item);
  }

  async next(): Promise<T> {
    return this.#ready.shift() ?? await within(new Promise<T>((resolve) => this.#waiting.push(resolve)), "nothing came");
  }
}

/** Connects a client to `address`, `host:port`. */
export function connectTo(net: Net, address: string): Promise<Duplex> {
  return within(net.connectTcp({ host: "127.0.0.1", port: portOf(address), timeoutMs: 5_000 }));
}

/** A complete response. */
export interface Answer {
  readonly status: number;
  readonly fields: Fields;
  readonly body: string;
  /** All values of a field, joined; `undefined` without one. */
  field(name: string): string | undefined;
}

/** Sends `request` unchanged, and reads until the peer has finished. */
export async function ask(net: Net, address: string, request: string): Promise<Answer> {
  const client = await connectTo(net, address);
  // a response may arrive before everything was sent
  client.write(bytes(request)).catch(() => {});
  try {
    return parseAnswer(await readText(client));
  } finally {
    client.close();
  }
}

export function parseAnswer(text: string): Answer {
  const end = text.indexOf("\r\n\r\n") + 4;
  const { status, fields } = parseResponseHead(text.slice(0, end));
  const field = (name: string) => {
    const found = values(fields, name.toLowerCase());
    return found.length === 0 ? undefined : found.join(", ");
  };
  return { status, fields, body: text.slice(end), field };
}

/** Reads up to and including `mark`; later bytes stay unread only if they were written later. */
export async function readUntil(stream: Duplex, mark: string): Promise<string> {
  let text = "";
  while (!text.includes(mark)) {
    const data = await within(stream.read(), `${JSON.stringify(mark)} did not come after ${JSON.stringify(text)}`);
    if (data === null) throw new Error(`The stream ended after ${JSON.stringify(text)}`);
    text += Buffer.from(data).toString("latin1");
  }
  return text;
}

export interface LogEntry {
  readonly level: LogLevel;
  readonly message: string;
  readonly fields: LogFields;
}

/** Limit on entries: a program that logs more is in a loop. */
const MAX_ENTRIES = 100_000;

/** A logger that keeps its entries. */
export class LogBook implements Logger {
  readonly entries: LogEntry[] = [];
  #waiting: (() => void)[] = [];

  readonly trace = this.#method("trace");
  readonly debug = this.#method("debug");
  readonly info = this.#method("info");
  readonly warn = this.#method("warn");
  readonly error = this.#method("error");

  #method(level: LogLevel): (message: string, fields?: LogFields) => void {
    return (message, fields = {}) => {
      if (this.entries.length >= MAX_ENTRIES) throw new Error(`${MAX_ENTRIES} entries were logged, the last of them: ${message}`);
      this.entries.push({ level, message, fields });
      this.#waiting.splice(0).forEach((wake) => wake());
    };
  }

  /** The fields of the entries with this message and these fields. */
  logged(message: string, wanted: LogFields = {}): LogFields[] {
    const fits = (fields: LogFields) => Object.entries(wanted).every(([name, value]) => fields[name] === value);
    return this.entries.filter((entry) => entry.message === message && fits(entry.fields)).map(({ fields }) => fields);
  }

  /** Resolves with the fields of the `count`th such entry since the start. */
  async waitFor(message: string, wanted: LogFields = {}, count = 1): Promise<LogFields> {
    for (;;) {
      const found = this.logged(message, wanted)[count - 1];
      if (found) return found;
      const more = new Promise<void>((resolve) => this.#waiting.push(resolve));
      await within(more, `${JSON.stringify(message)} was not logged, but ${JSON.stringify(this.entries)}`);
    }
  }
}
