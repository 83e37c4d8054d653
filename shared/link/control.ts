// The control stream of one connection (version 2 of the agent link): who sends what when, and what a peer may not do. It knows neither
// agents nor proxies: what a message means is decided by those who listen.
import type { Duplex, QuicConnection } from "../net/types.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { encodeFrame, FrameError, type FrameReader } from "./frame.ts";
import { CloseCode } from "./link.ts";
import { decodeMessage, encodeMessage, type Message, MessageError } from "./message.ts";

/** Frames that a peer may send in one second; one more and its connection is closed. */
const MAX_FRAMES_A_SECOND = 100;

/** A peer that has answered a ping is believed to be there for so many milliseconds. */
const BELIEVED_MS = 250;

/** A connection whose streams fail is known to be closed within so many milliseconds. */
const CLOSED_WITHIN_MS = 1_000;

/** What the far side said. */
export interface ControlEvents {
  onGoaway?: (goaway: { reason: string; withinMs: number }) => void;
  onMoved?: (found: boolean) => void;
  /** The far side broke the rules, and its connection was closed. */
  onViolation?: (reason: string) => void;
}

/** One side's end of the control stream. */
export class Control {
  readonly #connection: QuicConnection;
  readonly #stream: Duplex;
  readonly #now: () => number;
  #over = false;
  #pings = 0;
  /** When the latest answer came. */
  #answeredAt = -Infinity;
  /** The ping that is not answered yet. */
  #pending?: { readonly number: number; readonly sentAt: number; readonly answered: PromiseWithResolvers<void> };

  constructor(connection: QuicConnection, stream: Duplex, now: () => number = () => performance.now()) {
    this.#connection = connection;
    this.#stream = stream;
    this.#now = now;
  }

  /** Serves the stream until its connection ends, from `frames` on. Never rejects: a peer that breaks the rules is closed. */
  async run(frames: FrameReader, events: ControlEvents): Promise<void> {
    let [second, count] = [0, 0];
    try {
      for (let frame; (frame = await frames.next()) !== null;) {
        const now = Math.floor(this.#now() / 1_000);
        [second, count] = now === second ? [second, count + 1] : [now, 1];
        if (count > MAX_FRAMES_A_SECOND) throw new MessageError(`More than ${MAX_FRAMES_A_SECOND} control frames came in a second`);
        const message = decodeMessage(frame);
        if (message) await this.#take(message, events);
      }
      throw new MessageError("The control stream was ended");
    } catch (error) {
      if (error instanceof MessageError || error instanceof FrameError) {
        events.onViolation?.(error.message);
        this.#connection.close(CloseCode.malformed, error.message);
      } else await this.#checkAlive();
    } finally {
      this.#over = true;
      this.#pending?.answered.resolve();
    }
  }

  /** A control stream that fails has its connection's end before it. One that was reset alone breaks the rules. */
  async #checkAlive(): Promise<void> {
    const closed = await withTimeout(CLOSED_WITHIN_MS, this.#connection.closed);
    if (!closed) this.#connection.close(CloseCode.malformed, "the control stream was reset");
  }

  async #take(message: Message, events: ControlEvents): Promise<void> {
    switch (message.type) {
      case "goaway":
        return events.onGoaway?.(message);
      case "moved":
        return events.onMoved?.(message.found);
      case "ping":
        // waited for: who does not read its answers is not read any more
        return await this.#send({ type: "pong", data: message.data });
      case "pong":
        return this.#takePong(message.data);
      case "hello":
        return; // of a proxy: nothing is made of it
    }
  }

  #takePong(data: Uint8Array): void {
    const pending = this.#pending;
    if (!pending || pending.number !== Number(new DataView(data.buffer, data.byteOffset).getBigUint64(0))) return;
    this.#answeredAt = this.#now();
    this.#pending = undefined;
    pending.answered.resolve();
  }

  /** Sends a ping, unless one is still unanswered; resolves with its answer, or when the connection ends. */
  async ping(): Promise<void> {
    if (this.#over) return;
    if (!this.#pending) {
      this.#pending = { number: ++this.#pings, sentAt: this.#now(), answered: Promise.withResolvers<void>() };
      const data = new Uint8Array(8);
      new DataView(data.buffer).setBigUint64(0, BigInt(this.#pings));
      void this.#send({ type: "ping", data }); // never rejects
    }
    await this.#pending.answered.promise;
  }

  /** Sends a ping for {@link silentMs}, unless one was answered just now: however often it is called, the peer is not flooded. */
  probe(): void {
    if (this.#now() - this.#answeredAt >= BELIEVED_MS) void this.ping(); // never rejects
  }

  /** Milliseconds that a ping has been unanswered for; 0 where none is. */
  get silentMs(): number {
    return this.#pending ? this.#now() - this.#pending.sentAt : 0;
  }

  async goaway(reason: string, withinMs: number): Promise<void> {
    await this.#send({ type: "goaway", reason, withinMs });
  }

  async moved(found: boolean): Promise<void> {
    await this.#send({ type: "moved", found });
  }

  /** Never rejects: a connection that is gone says so itself. */
  async #send(message: Message): Promise<void> {
    await this.#stream.write(encodeFrame(encodeMessage(message))).catch(() => {});
  }
}
