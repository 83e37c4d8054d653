// Links between the workers of a proxy: one session for each pair, over TLS on loopback, on which either opens streams for tunnels. Each tells
// the other which agents it holds, one JSON object per line of a stream.
import { timingSafeEqual } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { splitHostPort } from "../../shared/address/host_port.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import { encodeHead, parseRequestHead, type RequestHead, values } from "../../shared/http/head.ts";
import { messageOf } from "../../shared/log/error_message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, SessionListener, SessionTransport } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { Worker, WorkerPeer } from "../../shared/service/worker.ts";
import { createTemporary } from "../../shared/tls/self_signed.ts";

const ALPN = "reverse-http-worker/1";
/** A process that is stopped for a while is still the same. */
const TRANSPORT: SessionTransport = { keepAliveMs: 10_000, idleTimeoutMs: 60_000, maxPeerStreams: 65_536 };
/** Time in milliseconds for a link to open, and for its first stream. */
const OPEN_TIMEOUT_MS = 5_000;
/** Time in milliseconds for all links at the start. */
const START_TIMEOUT_MS = 10_000;
/** Pause in milliseconds before another attempt. */
const RETRY_MS = 100;
/** Characters that wait to be sent, and the longest line. */
const MAX_QUEUED = 64 << 20;
const MAX_LINE = 1 << 20;

/** What a link is used for. */
export interface LinkUse<Message extends object> {
  /** What a worker is told first. */
  snapshot(): readonly Message[];
  /** Another worker has told something. */
  told(link: WorkerLink<Message>, message: Message): void;
  /** Another worker has sent a request. Must not throw. */
  requested(link: WorkerLink<Message>, incoming: Incoming): void;
  /** Nothing that the worker has told holds any more. */
  closed(link: WorkerLink<Message>): void;
}

/** The link to another worker. */
export class WorkerLink<Message extends object> {
  readonly #synced = Promise.withResolvers<void>();
  #queue: string[] = [];
  #queued = 0;
  #stream?: Duplex;
  #isWriting = false;

  constructor(readonly peer: Pick<WorkerPeer, "index" | "generation">, readonly session: AgentSession) {}

  /** Resolves when the other worker has told what it holds. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }

  /** The other worker has told everything. */
  sync(): void {
    this.#synced.resolve();
  }

  /** Sends on this stream from now on. */
  use(stream: Duplex): void {
    this.#stream = stream;
    void this.#flush(); // never rejects
  }

  /** Tells the other worker first what this one holds, however much that is. */
  begin(messages: readonly Message[]): void {
    this.#queue = [...messages, SYNCED].map(encode);
    void this.#flush(); // never rejects
  }

  /** Tells the other worker a message of {@link encode}. */
  send(line: string): void {
    this.#queue.push(line);
    this.#queued += line.length;
    // it will get everything on another link
    if (this.#queued > MAX_QUEUED) return this.session.close(1, "it does not read");
    void this.#flush(); // never rejects
  }

  async #flush(): Promise<void> {
    if (this.#isWriting || this.#stream === undefined) return;
    this.#isWriting = true;
    try {
      while (this.#queue.length > 0) {
        const text = this.#queue.join("");
        [this.#queue, this.#queued] = [[], 0];
        await this.#stream.write(new TextEncoder().encode(text));
      }
    } catch (error) {
      this.session.close(1, messageOf(error));
    } finally {
      this.#isWriting = false;
    }
  }
}

/** Ends what a worker is told first. */
const SYNCED = { synced: true } as const;

function encode(message: object): string {
  return `${JSON.stringify(message)}\n`;
}

/** The links of a worker, until it is closed. */
export class WorkerLinks<Message extends object> {
  readonly #worker: Worker;
  readonly #net: Net;
  readonly #log: Logger;
  readonly #listener: SessionListener;
  readonly #pin: string;
  readonly #links = new Set<WorkerLink<Message>>();
  readonly #closing = new AbortController();
  readonly #running: Promise<void>[] = [];
  #use!: LinkUse<Message>;

  private constructor(worker: Worker, net: Net, log: Logger, listener: SessionListener, pin: string) {
    this.#worker = worker;
    this.#net = net;
    this.#log = log;
    this.#listener = listener;
    this.#pin = pin;
  }

  /** Listens for other workers. @throws {NetError} */
  static async open<Message extends object>(worker: Worker, net: Net, log: Logger): Promise<WorkerLinks<Message>> {
    const { cert, key, pin } = await createTemporary();
    const listener = await net.listenTlsLink({
      address: "127.0.0.1:0",
      tls: { cert, key },
      alpn: [ALPN],
      transport: TRANSPORT,
      onHandshakeError: ({ remote, error }) => log.debug("link of a worker failed", { remote, reason: error.message }),
    });
    return new WorkerLinks<Message>(worker, net, log, listener, pin);
  }

  /** Joins the other workers. Resolves when they have told what they hold. */
  async start(use: LinkUse<Message>): Promise<void> {
    this.#use = use;
    this.#running.push(this.#accept());
    const peers = await this.#worker.join({ address: this.#listener.address, pin: this.#pin });
    const first = peers.map((peer) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#running.push(this.#connect(peer, resolve).finally(resolve));
      return promise;
    });
    if (await withTimeout(START_TIMEOUT_MS, Promise.all(first)) === undefined) this.#log.warn("workers are not linked yet", {});
  }

  [Symbol.iterator](): Iterator<WorkerLink<Message>> {
    return this.#links[Symbol.iterator]();
  }

  /** Tells all other workers. */
  broadcast(message: Message): void {
    const line = encode(message);
    for (const link of this.#links) link.send(line);
  }

  async #accept(): Promise<void> {
    for (let session; (session = await this.#listener.accept()) !== null;) void this.#serve(session).catch(() => {}); // no worker
  }

  /** Keeps a link to another worker until that has ended. Never rejects. */
  async #connect(peer: WorkerPeer, synced: () => void): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted && !this.#worker.hasLeft(peer.generation)) {
      try {
        const { host, port } = splitHostPort(peer.address);
        const tls = { pinSha256: [peer.pin] };
        const session = await this.#net.connectTlsLink({
          host,
          port,
          tls,
          alpn: [ALPN],
          transport: TRANSPORT,
          timeoutMs: OPEN_TIMEOUT_MS,
          signal,
        });
        await this.#serve(session, peer, synced);
      } catch (error) {
        this.#log.debug("link to another worker failed", { worker: peer.index, reason: messageOf(error) });
      }
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {}); // closing
    }
  }

  /**
   * Serves a link until it ends. Without `peer` the other worker has opened it, and says first which one it is.
   * @throws {Error} if it is no worker
   */
  async #serve(session: AgentSession, peer?: WorkerPeer, synced: () => void = () => {}): Promise<void> {
    let link: WorkerLink<Message> | undefined;
    if (peer) {
      link = this.#open(session, peer);
      void link.synced.then(synced);
    }
    const timer = setTimeout(() => {
      if (link === undefined) session.close(1, "it says nothing");
    }, OPEN_TIMEOUT_MS);
    try {
      for (let batch; (batch = await session.acceptRequests()) !== null;) {
        for (const incoming of batch) {
          const telling = incoming.error === undefined && incoming.head?.startsWith(LINK) ? parseRequestHead(incoming.head) : undefined;
          if (telling) {
            link ??= this.#open(session, this.#identify(telling));
            void this.#read(link, incoming.stream); // never rejects
          } else if (link) this.#use.requested(link, incoming);
          else throw new Error("it is no worker");
        }
      }
    } finally {
      clearTimeout(timer);
      session.close(1, "");
      if (link && this.#links.delete(link)) this.#use.closed(link);
    }
  }

  #open(session: AgentSession, peer: Pick<WorkerPeer, "index" | "generation">): WorkerLink<Message> {
    const link = new WorkerLink<Message>(peer, session);
    this.#links.add(link);
    link.begin(this.#use.snapshot());
    void this.#tell(link).catch((error) => session.close(1, messageOf(error)));
    return link;
  }

  async #tell(link: WorkerLink<Message>): Promise<void> {
    const { index, generation, secret } = this.#worker;
    const stream = await link.session.openStream();
    await stream.write(
      encodeHead(`${LINK} HTTP/1.1`, [["Host", "worker"], ["Worker", `${index} ${generation}`], ["Worker-Secret", secret]]),
    );
    link.use(stream);
  }

  /** @throws {Error} */
  #identify({ fields }: RequestHead): Pick<WorkerPeer, "index" | "generation"> {
    const [secret = ""] = values(fields, "worker-secret");
    const [given, known] = [secret, this.#worker.secret].map((text) => new TextEncoder().encode(text));
    if (given!.length !== known!.length || !timingSafeEqual(given!, known!)) throw new Error("it does not know the secret");
    const [index = 0, generation = 0] = (values(fields, "worker")[0] ?? "").split(" ").map(Number);
    return { index, generation };
  }

  /** Reads what the other worker tells. Never rejects. */
  async #read(link: WorkerLink<Message>, stream: Duplex): Promise<void> {
    try {
      const decoder = new TextDecoder();
      let text = "";
      for (let data; (data = await stream.read()) !== null;) {
        text += decoder.decode(data, { stream: true });
        const lines = text.split("\n");
        text = lines.pop()!;
        if (text.length > MAX_LINE) throw new Error("a line is too long");
        for (const line of lines) {
          const message = JSON.parse(line) as Message | typeof SYNCED;
          if ("synced" in message) link.sync();
          else if (this.#links.has(link)) this.#use.told(link, message);
        }
      }
    } catch (error) {
      this.#log.debug("link of a worker ended", { worker: link.peer.index, reason: messageOf(error) });
    }
    link.session.close(1, ""); // it tells nothing more
  }

  async close(): Promise<void> {
    this.#closing.abort();
    for (const { session } of this.#links) session.close(0, "");
    await this.#listener.close(0, "");
    await Promise.all(this.#running);
  }
}

/** The request whose stream tells. */
const LINK = "POST /link";
