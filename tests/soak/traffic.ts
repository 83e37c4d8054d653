// A constant mix of conversations through an installation. Their bytes follow from a seed, and the end of each is recorded, without a
// judgement.
import { setTimeout as sleep } from "node:timers/promises";
import { credentials, dial, openTunnel, type Wire } from "../../testing/sockets.ts";
import { Checker, content, type Plan, speakAsClient, SpeakingOrigin, Violation, write } from "../../testing/streams.ts";
import { generate } from "../../testing/udp_relay.ts";
import { type AgentName, type Installation, NAMES } from "./installation.ts";

const KIB = 1 << 10;
const MIB = 1 << 20;

/** How a conversation failed. */
export interface Failure {
  /** The answer's; `undefined` where there was none, or one that says yes. */
  readonly status?: number;
  /** It was under way. */
  readonly begun: boolean;
  readonly message: string;
  readonly violation: boolean;
}

/** One tunnel or request. Times in milliseconds of `performance.now`. */
export interface Conversation {
  /** Even, and different for each. */
  readonly seed: number;
  readonly kind: string;
  readonly agent: AgentName;
  readonly startedAt: number;
  readonly endedAt: number;
  /** Bytes there and back, if all went well. */
  readonly bytes: number;
  readonly failure?: Failure;
}

/** A planned conversation. */
interface Script extends Omit<Plan, "seed"> {
  readonly kind: string;
  /** Weights among the others. */
  readonly often: number;
  /** Initial silence in milliseconds. */
  readonly idleMs?: number;
  /** A plain HTTP request, whose answer comes in chunks or has a length. */
  readonly http?: "chunked" | "length";
}

/** The kinds, with maximum sizes: each conversation chooses a random part of them. */
const SCRIPTS: readonly Script[] = [
  { kind: "small", often: 30, up: 4 * KIB, down: 4 * KIB },
  { kind: "medium", often: 12, up: 512 * KIB, down: 512 * KIB },
  { kind: "big up", often: 2, up: 16 * MIB, down: KIB },
  { kind: "big down", often: 2, up: KIB, down: 16 * MIB },
  { kind: "half-closed by the client", often: 6, up: 0, down: MIB, slowClient: 5 },
  { kind: "half-closed by the origin", often: 6, up: MIB, down: 0, slowOrigin: 5 },
  { kind: "slow client", often: 4, up: KIB, down: 4 * MIB, slowClient: 50 },
  { kind: "slow origin", often: 4, up: 4 * MIB, down: KIB, slowOrigin: 50 },
  { kind: "reset by the client", often: 5, up: 64 * KIB, down: 4 * MIB, reset: "client" },
  { kind: "reset by the origin", often: 5, up: 4 * MIB, down: 64 * KIB, reset: "origin" },
  { kind: "idle", often: 6, up: KIB, down: KIB, idleMs: 15_000 },
  { kind: "HTTP", often: 10, up: 0, down: 256 * KIB, http: "length" },
  { kind: "HTTP in chunks", often: 5, up: 256 * KIB, down: 256 * KIB, http: "chunked" },
];
const OFTEN = SCRIPTS.reduce((sum, { often }) => sum + often, 0);
/** Concurrent conversations with each agent. */
const WORKERS = 8;
/** Maximum pause before the next conversation, in milliseconds. */
const PAUSE_MS = 500;
/** Timeout of a conversation in milliseconds: it hangs if it takes longer. */
const HANGS_AFTER_MS = 120_000;

export interface TrafficOptions {
  seed: number;
  /** The part of the full load, up to 1. */
  share: number;
}

/** The traffic; it runs until it is stopped. */
export class Traffic implements AsyncDisposable {
  readonly ended: Conversation[] = [];
  #next = 2;
  readonly #stopping = new AbortController();
  readonly #running: Promise<void>[];

  private constructor(
    private readonly installation: Installation,
    private readonly random: () => number,
    private readonly share: number,
    private readonly speaking: SpeakingOrigin,
    private readonly web: SpeakingOrigin,
  ) {
    this.#running = NAMES.flatMap((name) => Array.from({ length: Math.ceil(WORKERS * share) }, () => this.#work(name)));
  }

  static async start(installation: Installation, { seed, share }: TrafficOptions): Promise<Traffic> {
    return new Traffic(installation, generate(seed), share, await SpeakingOrigin.start(), await SpeakingOrigin.start(answerRequest));
  }

  /** What origins found to be wrong; each names a seed. */
  get violations(): string[] {
    return [...this.speaking.violations, ...this.web.violations];
  }

  async #work(agent: AgentName): Promise<void> {
    while (!this.#stopping.signal.aborted) {
      await this.#converse(agent);
      await this.#pause(this.random() * PAUSE_MS);
    }
  }

  async #pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#stopping.signal }).catch(() => {}); // that it is over
  }

  #draw(): Script {
    let left = this.random() * OFTEN;
    const script = SCRIPTS.find(({ often }) => (left -= often) < 0)!;
    const part = () => this.share * Math.floor(this.random() ** 2 * 1_000) / 1_000;
    return { ...script, up: Math.ceil(script.up * part()), down: Math.ceil(script.down * part()), idleMs: (script.idleMs ?? 0) * part() };
  }

  async #converse(agent: AgentName): Promise<void> {
    const script = this.#draw();
    const seed = this.#next;
    this.#next += 2;
    const entrances = this.installation.entrances(agent);
    const entrance = entrances[Math.floor(this.random() * entrances.length)]!;
    const startedAt = performance.now();
    const state = { begun: false };
    let failure: Failure | undefined;
    try {
      await inTime(script.http ? this.#request(entrance, agent, seed, script, state) : this.#tunnel(entrance, agent, seed, script, state));
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      const status = /HTTP\/1\.1 ([0-9]{3})/.exec(message)?.[1];
      failure = {
        status: status === undefined ? undefined : Number(status),
        begun: state.begun,
        message,
        violation: error instanceof Violation,
      };
    }
    const { kind, up, down } = script;
    this.ended.push({ seed, kind, agent, startedAt, endedAt: performance.now(), bytes: up + down, failure });
  }

  async #tunnel(entrance: string, agent: AgentName, seed: number, script: Script, state: { begun: boolean }): Promise<void> {
    const highWater = script.slowClient ? 16 * KIB : undefined; // the rest waits on the way
    using wire = await openTunnel(entrance, this.speaking.authority, { id: agent, highWater });
    state.begun = true;
    if (script.idleMs) await this.#pause(script.idleMs);
    const { up, down, reset, slowClient, slowOrigin } = script;
    await speakAsClient(wire, { seed, up, down, reset, slowClient, slowOrigin });
  }

  async #request(entrance: string, agent: AgentName, seed: number, { up, down, http }: Script, state: { begun: boolean }): Promise<void> {
    using wire = await dial(entrance);
    const { authority } = this.web;
    const length = up > 0 ? `Content-Length: ${up}\r\n` : "";
    const line = `${up > 0 ? "POST" : "GET"} http://${authority}/${seed}/${up}/${down}/${http} HTTP/1.1\r\n`;
    await wire.write(`${line}Host: ${authority}\r\n${credentials(agent)}${length}\r\n`);
    const writing = write(wire, seed, up);
    writing.catch(() => {}); // what is wrong, the answer says, or that there is none
    const head = await wire.readUntil("\r\n\r\n");
    if (!head.startsWith("HTTP/1.1 200 ")) throw new Error(`No answer: ${JSON.stringify(head)}`);
    state.begun = true;
    const checker = new Checker(seed + 1, down);
    if (http === "chunked") await readChunks(wire, checker);
    else {
      if (!head.includes(`Content-Length: ${down}\r\n`)) {
        throw new Violation(`stream ${seed + 1} has another length: ${JSON.stringify(head)}`);
      }
      for (let data; (data = await wire.next()) !== null;) checker.take(data);
    }
    checker.finish();
    await writing;
  }

  /** Lets those that are under way come to their end, and begins no others. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await Promise.all(this.#running);
    await inTime(Promise.all([this.speaking.idle(), this.web.idle()]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.speaking[Symbol.asyncDispose]();
    await this.web[Symbol.asyncDispose]();
  }
}

async function inTime(promise: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Violation(`not over after ${HANGS_AFTER_MS} ms`)), HANGS_AFTER_MS);
  });
  try {
    await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function readChunks(wire: Wire, checker: Checker): Promise<void> {
  for (;;) {
    const size = parseInt(await wire.readUntil("\r\n"), 16);
    checker.take(await wire.read(size));
    if (await wire.readUntil("\r\n") !== "\r\n") throw new Violation("a chunk does not end with its line");
    if (size === 0) break;
  }
  if (await wire.next() !== null) throw new Violation("bytes follow the last chunk");
}

/** Checks the body of a request for `/seed/up/down/framing`, and responds with the bytes for the seed. */
async function answerRequest(wire: Wire): Promise<void> {
  const head = await wire.readUntil("\r\n\r\n");
  const match = /^(?:GET|POST) \/([0-9]+)\/([0-9]+)\/([0-9]+)\/(chunked|length) /.exec(head);
  if (!match) throw new Violation(`a request head was changed: ${JSON.stringify(head)}`);
  const [seed, up, down] = match.slice(1, 4).map(Number) as [number, number, number];
  const chunked = match[4] === "chunked";
  const body = new Checker(seed, up);
  while (body.received < up) {
    const data = await wire.next();
    if (data === null) break;
    body.take(data);
  }
  body.finish();
  await wire.write(
    `HTTP/1.1 200 OK\r\n${chunked ? "Transfer-Encoding: chunked" : `Content-Length: ${down}`}\r\nConnection: close\r\n\r\n`,
  );
  for (let sent = 0; sent < down;) {
    const chunk = content(seed + 1, sent, down - sent);
    if (chunked) await wire.write(`${chunk.length.toString(16)}\r\n`);
    await wire.write(chunk);
    if (chunked) await wire.write("\r\n");
    sent += chunk.length;
  }
  wire.finish(chunked ? "0\r\n\r\n" : undefined);
}
