// Conversations over TCP whose bytes follow from a seed, so that both ends detect a wrong, missing or additional byte, and a premature end.
// Independent of what is between the ends.
import { Buffer } from "node:buffer";
import { setTimeout as sleep } from "node:timers/promises";
import { Origin, type Wire } from "./sockets.ts";
import { generate } from "./udp_relay.ts";

/** The period, a prime: the loss of a power of two of bytes is detected. */
const PERIOD = 1_048_583;
const CHUNK = 64 * 1024;

/** Twice the same bytes, so that every chunk is a contiguous part. */
const BYTES = makeBytes();

function makeBytes(): Uint8Array {
  const random = generate(1);
  const bytes = new Uint8Array(PERIOD + CHUNK);
  for (let i = 0; i < PERIOD; i++) bytes[i] = random() * 256;
  bytes.copyWithin(PERIOD, 0, CHUNK);
  return bytes;
}

/** The bytes for `seed` from `offset` on: `length`, but at most a chunk. */
export function content(seed: number, offset: number, length: number): Uint8Array {
  const start = (seed * 7_919 + offset) % PERIOD;
  return BYTES.subarray(start, start + Math.min(length, CHUNK));
}

/** A byte arrived that was never sent, or a clean end came too early. No fault of the network may cause this. */
export class Violation extends Error {}

/** Compares received bytes with those for a seed. */
export class Checker {
  received = 0;

  constructor(private readonly seed: number, private readonly length: number) {}

  take(data: Uint8Array): void {
    if (this.received + data.length > this.length) {
      throw new Violation(`there are more than the ${this.length} bytes of stream ${this.seed}`);
    }
    for (let at = 0; at < data.length;) {
      const wanted = content(this.seed, this.received, data.length - at);
      if (Buffer.compare(data.subarray(at, at + wanted.length), wanted) !== 0) {
        throw new Violation(`stream ${this.seed} differs within ${wanted.length} bytes after ${this.received} of ${this.length}`);
      }
      this.received += wanted.length;
      at += wanted.length;
    }
  }

  finish(): void {
    if (this.received < this.length) throw new Violation(`stream ${this.seed} finished after ${this.received} of ${this.length} bytes`);
  }
}

/** What a client and an origin send each other. The client sends it to the origin as a line of JSON. */
export interface Plan {
  readonly seed: number;
  /** Bytes from the client to the origin, and back. */
  readonly up: number;
  readonly down: number;
  /** The end that resets the connection after sending everything, instead of finishing. */
  readonly reset?: "client" | "origin";
  /** Milliseconds that a slow reader waits after each chunk. */
  readonly slowClient?: number;
  readonly slowOrigin?: number;
}

/** Resolves when everything was sent and received, or one end has reset the connection as planned. Rejects with a violation or an error. */
export async function speakAsClient(wire: Wire, plan: Plan): Promise<void> {
  await wire.write(`${JSON.stringify(plan)}\n`);
  const { seed, up, down, slowClient = 0 } = plan;
  await speak(wire, { plan, send: [seed, up], receive: [seed + 1, down], pauseMs: slowClient, self: "client" });
}

async function speakAsOrigin(wire: Wire): Promise<void> {
  const plan = JSON.parse(await wire.readUntil("\n")) as Plan;
  const { seed, up, down, slowOrigin = 0 } = plan;
  await speak(wire, { plan, send: [seed + 1, down], receive: [seed, up], pauseMs: slowOrigin, self: "origin" });
}

interface Part {
  readonly plan: Plan;
  readonly send: readonly [seed: number, length: number];
  readonly receive: readonly [seed: number, length: number];
  readonly pauseMs: number;
  readonly self: "client" | "origin";
}

async function speak(wire: Wire, { plan, send, receive, pauseMs, self }: Part): Promise<void> {
  let over = false;
  const reading = read(wire, new Checker(...receive), pauseMs, () => over);
  reading.catch(() => {}); // handled below, once everything is written
  let failure: unknown;
  try {
    await write(wire, ...send);
    over = plan.reset === self; // further bytes do not matter then
    if (over) wire.reset();
    else wire.finish();
  } catch (error) {
    failure = error;
  }
  try {
    await reading;
  } catch (error) {
    if (error instanceof Violation) throw error;
    if (plan.reset !== self) failure = error; // also the better reason for a failed write
  }
  if (plan.reset === undefined || plan.reset === self) {
    if (failure !== undefined) throw failure;
  } else if (failure === undefined) throw new Violation(`stream ${receive[0]} finished, and was to be reset`);
}

/** Sends the bytes for a seed. */
export async function write(wire: Wire, seed: number, length: number): Promise<void> {
  for (let sent = 0; sent < length;) {
    const chunk = content(seed, sent, length - sent);
    await wire.write(chunk);
    sent += chunk.length;
  }
}

async function read(wire: Wire, checker: Checker, pauseMs: number, isOver: () => boolean): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) {
    checker.take(data);
    if (pauseMs > 0) await sleep(pauseMs);
  }
  if (!isOver()) checker.finish();
}

/** An origin that serves clients, by default as each requests. Records errors, and resets the connections that have them. */
export class SpeakingOrigin implements AsyncDisposable {
  readonly violations: string[] = [];
  readonly #serving = new Set<Promise<void>>();
  #origin!: Origin;

  static async start(serve: (wire: Wire) => Promise<void> = speakAsOrigin): Promise<SpeakingOrigin> {
    const speaking = new SpeakingOrigin();
    speaking.#origin = await Origin.start((wire) => {
      const served = serve(wire);
      const over = served.catch((error) => {
        if (error instanceof Violation) speaking.violations.push(error.message);
      }).finally(() => speaking.#serving.delete(over));
      speaking.#serving.add(over);
      return served;
    });
    return speaking;
  }

  /** Resolves when no client is served: a client's bytes may arrive after it has disconnected. */
  async idle(): Promise<void> {
    await Promise.all(this.#serving);
  }

  get authority(): string {
    return this.#origin.authority;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#origin[Symbol.asyncDispose]();
  }
}
