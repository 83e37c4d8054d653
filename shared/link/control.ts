// The control stream of a connection (version 2 of the agent link): sends and receives messages and enforces the protocol. The owner of the
// events handles the messages.
import type { AgentSession } from "../net/session.ts";
import type { Duplex } from "../net/stream.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { encodeFrame, FrameError, type FrameReader } from "./frame.ts";
import { CloseCode } from "./link.ts";
import { decodeMessage, encodeMessage, type Hello, type Message, MessageError } from "./message.ts";

/** Limit on frames per second; above it the peer's connection is closed. */
const MAX_FRAMES_A_SECOND = 100;

/** Time after a pong in which no further ping is sent by `pingIfDue`, in milliseconds. */
const PING_INTERVAL_MS = 250;

/** Time in which a lost connection is reported as closed after its streams fail, in milliseconds. */
const CLOSE_TIMEOUT_MS = 1_000;

/** Messages and violations of the peer. */
export interface ControlEvents {
  onGoaway?: (goaway: { reason: string; withinMs: number }) => void;
  onMoved?: (found: boolean) => void;
  onHello?: (hello: Hello) => void;
  onCredentials?: (credentials: Uint8Array) => void;
  onPins?: (pins: readonly string[]) => void;
  /** The peer has violated the protocol, and its connection was closed. */
  onViolation?: (reason: string) => void;
}

/** One end of the control stream. */
export class Control {
  readonly #connection: AgentSession;
  readonly #stream: Duplex;
  readonly #now: () => number;
  #ended = false;
  #pings = 0;
  /** Time of the latest pong. */
  #answeredAt = -Infinity;
  /** The unanswered ping. */
  #pending?: { readonly number: number; readonly sentAt: number; readonly answered: PromiseWithResolvers<void> };

  constructor(connection: AgentSession, stream: Duplex, now: () => number = () => performance.now()) {
    this.#connection = connection;
    this.#stream = stream;
    this.#now = now;
  }

  /** Serves the stream until the connection ends, starting with `frames`. Never rejects; closes the connection on a violation. */
  async run(frames: FrameReader, events: ControlEvents): Promise<void> {
    let [second, count] = [0, 0];
    try {
      for (let frame; (frame = await frames.next()) !== null;) {
        const now = Math.floor(this.#now() / 1_000);
        [second, count] = now === second ? [second, count + 1] : [now, 1];
        if (count > MAX_FRAMES_A_SECOND) {
          throw new MessageError(`More than ${MAX_FRAMES_A_SECOND} control frames were received in a second`);
        }
        const message = decodeMessage(frame);
        if (message) await this.#handle(message, events);
      }
      throw new MessageError("The control stream was ended");
    } catch (error) {
      if (error instanceof MessageError || error instanceof FrameError) {
        events.onViolation?.(error.message);
        this.#connection.close(CloseCode.malformed, error.message);
      } else await this.#checkAlive();
    } finally {
      this.#ended = true;
      this.#pending?.answered.resolve();
    }
  }

  /** Closes the connection if only the control stream has failed, which is a violation. */
  async #checkAlive(): Promise<void> {
    const closed = await withTimeout(CLOSE_TIMEOUT_MS, this.#connection.closed);
    if (!closed) this.#connection.close(CloseCode.malformed, "the control stream was reset");
  }

  async #handle(message: Message, events: ControlEvents): Promise<void> {
    switch (message.type) {
      case "goaway":
        return events.onGoaway?.(message);
      case "moved":
        return events.onMoved?.(message.found);
      case "ping":
        // backpressure: stop reading from a peer that does not read its pongs
        return await this.#send({ type: "pong", data: message.data });
      case "pong":
        return this.#handlePong(message.data);
      case "hello":
        return events.onHello?.(message.hello);
      case "credentials":
        return events.onCredentials?.(message.credentials);
      case "pins":
        return events.onPins?.(message.pins);
    }
  }

  #handlePong(data: Uint8Array): void {
    const pending = this.#pending;
    if (!pending || pending.number !== Number(new DataView(data.buffer, data.byteOffset).getBigUint64(0))) return;
    this.#answeredAt = this.#now();
    this.#pending = undefined;
    pending.answered.resolve();
  }

  /** Sends a ping unless one is unanswered. Resolves with the pong, or when the connection ends. */
  async ping(): Promise<void> {
    if (this.#ended) return;
    if (!this.#pending) {
      this.#pending = { number: ++this.#pings, sentAt: this.#now(), answered: Promise.withResolvers<void>() };
      const data = new Uint8Array(8);
      new DataView(data.buffer).setBigUint64(0, BigInt(this.#pings));
      void this.#send({ type: "ping", data }); // never rejects
    }
    await this.#pending.answered.promise;
  }

  /** Sends a ping for {@link silentMs}, at most one per 250 ms. */
  pingIfDue(): void {
    if (this.#now() - this.#answeredAt >= PING_INTERVAL_MS) void this.ping(); // never rejects
  }

  /** Age of the unanswered ping in milliseconds; 0 without one. */
  get silentMs(): number {
    return this.#pending ? this.#now() - this.#pending.sentAt : 0;
  }

  async hello(hello: Hello): Promise<void> {
    await this.#send({ type: "hello", hello });
  }

  async goaway(reason: string, withinMs: number): Promise<void> {
    await this.#send({ type: "goaway", reason, withinMs });
  }

  /** Shows the peer newer credentials of at most 16,383 bytes. */
  async credentials(credentials: Uint8Array): Promise<void> {
    await this.#send({ type: "credentials", credentials });
  }

  /** Announces the pins of public keys that the peer should accept, at most 8. */
  async pins(pins: readonly string[]): Promise<void> {
    await this.#send({ type: "pins", pins });
  }

  async moved(found: boolean): Promise<void> {
    await this.#send({ type: "moved", found });
  }

  /** Never rejects: the end of the connection is reported elsewhere. */
  async #send(message: Message): Promise<void> {
    await this.#stream.write(encodeFrame(encodeMessage(message))).catch(() => {});
  }
}
