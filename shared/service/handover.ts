// Hands a running service over to a new process: both ends of the conversation, which docs/adr/0017-hand-over.md describes. The new process
// gets the listening sockets, and they accept on one side at a time.
import { dirname } from "node:path";
import { mkdir } from "node:fs/promises";
import { messageOf } from "../log/error_message.ts";
import type { Logger } from "../log/logger.ts";
import { ConfigError } from "../config/option.ts";
import { describeWriteError } from "../files/read.ts";
import { prepareSocket } from "../files/unix_socket.ts";
import { NetError } from "../net/errors.ts";
import type { Channel, ChannelListener, SocketHandover } from "../net/handover.ts";
import { printable } from "../net/printable.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { VERSION } from "../version.ts";

/** Version of the conversation. Fields may be added without a new one. */
export const PROTOCOL = 1;
/** Time in milliseconds for a new process to start. */
const START_TIMEOUT_MS = 120_000;
/** Time in milliseconds for any other answer. */
const ANSWER_TIMEOUT_MS = 10_000;
/** Time in milliseconds for an answer to `replace`: a new process has started, and serves. */
export const REPLACE_TIMEOUT_MS = START_TIMEOUT_MS + 3 * ANSWER_TIMEOUT_MS;
const MAX_REASON = 500;

/**
 * What each end says, in this order; `refused` at any time before `released`. A command for operators says `replace`, and gets `replaced` or
 * `refused`.
 */
type Step =
  | "hello"
  | "accepted"
  | "ready"
  | "held"
  | "serving"
  | "released"
  | "settled"
  | "superseded"
  | "refused"
  | "replace"
  | "replaced";

/** A message, JSON after its length in four bytes, the least significant first. */
export interface Message {
  readonly step: Step;
  /** Version of the protocol, in `hello` and `replace`. */
  readonly protocol?: number;
  /** Of `hello`. */
  readonly service?: string;
  /** Of `hello` and `replaced`: that of the new process. */
  readonly version?: string;
  /** Of `replaced`: the new process. */
  readonly pid?: number;
  /** Of `accepted`: state of the service that is passed on with the sockets. */
  readonly state?: HandoverState;
  /** Of `refused`. */
  readonly reason?: string;
}

/** What a service passes on besides sockets. */
export type HandoverState = Readonly<Record<string, string>>;

/** What both ends need. */
export interface HandoverDeps {
  /** Path of the socket. */
  readonly path: string;
  readonly sockets: SocketHandover;
  /** Name of the service: only processes of the same one replace each other. */
  readonly service: string;
  readonly log: Logger;
}

/** The process that has served until now. */
export class Predecessor {
  readonly state: HandoverState;
  /** Its id, if the system says it. */
  readonly pid: number | undefined;
  /** Resolves when everything that can move here has done so, or the process has ended. */
  readonly settled: Promise<void>;
  readonly #deps: HandoverDeps;
  readonly #channel: Channel;
  #settle: () => void = () => {};

  private constructor(deps: HandoverDeps, channel: Channel, state: HandoverState) {
    this.#deps = deps;
    this.#channel = channel;
    this.state = state;
    this.pid = channel.pid;
    this.settled = new Promise((resolve) => this.#settle = resolve);
  }

  /**
   * Asks the process at the path for its sockets. From then on, until {@link takeOver}, the network's listeners do not accept.
   * `undefined` if there is no process.
   * @throws {ConfigError} if it is another service's
   * @throws {Error} if it refuses
   */
  static async find(deps: HandoverDeps): Promise<Predecessor | undefined> {
    const { path, sockets, service, log } = deps;
    const channel = await sockets.connect(path).catch((error) => {
      if (error instanceof NetError && error.code === "refused") return undefined;
      throw new ConfigError(`Cannot use --handover.socket ${path}: ${messageOf(error)}`, { cause: error });
    });
    if (channel === undefined) return undefined;
    try {
      await send(channel, { step: "hello", protocol: PROTOCOL, service, version: VERSION });
      const { step, state = {}, reason, service: other = service } = await expect(channel, ["accepted", "refused"], ANSWER_TIMEOUT_MS);
      if (other !== service) throw new ConfigError(`Cannot use --handover.socket ${path}: it is the socket of a running ${other}`);
      if (step === "refused") throw new Error(`Cannot take over from process ${channel.pid}: ${reason}`);
      const count = await sockets.receive(channel);
      log.info("taking over", { pid: channel.pid, sockets: count });
      return new Predecessor(deps, channel, state);
    } catch (error) {
      channel.close();
      throw error;
    }
  }

  /**
   * Accepts in its place. If it has ended meanwhile, the sockets are this process's anyway.
   * @throws {Error} if it has changed its mind
   */
  async takeOver(): Promise<void> {
    const { sockets, log } = this.#deps;
    const channel = this.#channel;
    const isHeld = await this.#ask("ready", "held", ANSWER_TIMEOUT_MS);
    sockets.setAccepting(true);
    if (isHeld) await this.#ask("serving", "released", ANSWER_TIMEOUT_MS);
    log.info("taken over", { pid: channel.pid });
    void expect(channel, ["settled"]).catch(() => {}).then(() => { // it has ended
      sockets.dropUnused();
      this.#settle();
    });
  }

  /** Tells it that yet another process has taken over: the end of this one is none of the service then. */
  async supersede(): Promise<void> {
    await send(this.#channel, { step: "superseded" }).catch(() => {}); // it has ended
  }

  /** Returns false if the process has ended. */
  async #ask(step: Step, answer: Step, timeoutMs: number): Promise<boolean> {
    try {
      await send(this.#channel, { step });
      const { step: answered, reason } = await expect(this.#channel, [answer, "refused"], timeoutMs);
      if (answered === "refused") throw new Refused(`Cannot take over from process ${this.#channel.pid}: ${reason}`);
      return true;
    } catch (error) {
      if (error instanceof Refused) throw error;
      this.#deps.log.warn("the process to take over from has ended", { pid: this.#channel.pid, reason: messageOf(error) });
      return false;
    }
  }
}

/** The actions of the process that is replaced. */
export interface Replaceable {
  /** What is passed on when a hand-over starts. */
  readonly state: () => HandoverState;
  /** Why it cannot be replaced now. */
  readonly refusal: () => string | undefined;
  /** Starts a new process that takes over. Resolves with the reason if it has ended without that. Default: there is no program to start. */
  readonly start?: () => Promise<string>;
  /** Runs what must not happen during a reload. Default: at once. */
  readonly exclusively?: (task: () => Promise<void>) => Promise<void>;
  /** Another process serves. Called at most once, and the last call. Must not throw. */
  readonly released: (pid: number | undefined) => void;
  /** Waits for open tunnels to end. `settle` is called when everything that can move to the other process has moved. */
  readonly finish: (settle: () => void) => Promise<void>;
}

/** Waits for processes that take over, until it is closed. */
export class Successors {
  readonly #deps: HandoverDeps;
  readonly #service: Replaceable;
  readonly #listener: ChannelListener;
  readonly #remove: () => Promise<void>;
  readonly #running: Promise<void>;
  /** The process that has taken over. */
  readonly #successor: Promise<Pick<Message, "pid" | "version">>;
  #resolveSuccessor: (successor: Pick<Message, "pid" | "version">) => void = () => {};
  #isBusy = false;
  /** Everything has been finished. */
  #isOver = false;

  private constructor(deps: HandoverDeps, service: Replaceable, listener: ChannelListener, remove: () => Promise<void>) {
    this.#deps = deps;
    this.#service = service;
    this.#listener = listener;
    this.#remove = remove;
    this.#successor = new Promise((resolve) => this.#resolveSuccessor = resolve);
    this.#running = this.#run();
  }

  /** @throws {ConfigError} if the path cannot be used */
  static async listen(deps: HandoverDeps, service: Replaceable): Promise<Successors> {
    const { path, sockets } = deps;
    let listener: ChannelListener | undefined;
    try {
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      const prepared = await prepareSocket(path, async (hidden) => listener = await sockets.listen(hidden));
      return new Successors(deps, service, listener!, await prepared.publish());
    } catch (error) {
      listener?.close();
      throw new ConfigError(`Cannot use --handover.socket ${path}: ${describeWriteError(error)}`, { cause: error });
    }
  }

  async #run(): Promise<void> {
    for (;;) {
      try {
        const channel = await this.#listener.accept();
        if (channel === null) return;
        void this.#serve(channel); // never rejects
      } catch (error) {
        this.#deps.log.error("no process can take over any more", { reason: messageOf(error) });
        return;
      }
    }
  }

  async #serve(channel: Channel): Promise<void> {
    const { log } = this.#deps;
    const { pid } = channel;
    try {
      const version = await this.#accept(channel);
      if (version === undefined) return;
      const { exclusively = (task) => task() } = this.#service;
      try {
        await exclusively(async () => {
          await this.#passOn(channel, version);
          this.#deps.sockets.release();
          log.info("handed over", { pid, version });
          this.#service.released(pid);
        });
      } catch (error) {
        this.#isBusy = false;
        await send(channel, { step: "refused", reason: messageOf(error) }).catch(() => {}); // it may have ended
        return log.warn("hand-over failed, and this process goes on", { pid, reason: messageOf(error) });
      }
      this.#resolveSuccessor({ pid, version });
      await send(channel, { step: "released" }).catch(() => {}); // it serves, or another one will
      void this.#watch(channel);
      await this.#service.finish(() => void send(channel, { step: "settled" }).catch(() => {}));
      this.#isOver = true;
    } catch (error) {
      log.error("hand-over failed", { pid, reason: messageOf(error) });
    } finally {
      channel.close();
    }
  }

  /**
   * If the other process ends, and no other one has taken over from it, no process reads the sockets: open connections would get nothing
   * more of them.
   */
  async #watch(channel: Channel): Promise<void> {
    if (await expect(channel, ["superseded"]).then(() => true, () => this.#isOver)) return;
    this.#deps.log.warn("the process that has taken over has ended", { pid: channel.pid });
    this.#deps.sockets.setAccepting(true);
  }

  /** Returns the version of the other process, which may take over then, unless it is refused. */
  async #accept(channel: Channel): Promise<string | undefined> {
    const { service, log } = this.#deps;
    const hello = await expect(channel, ["hello", "replace"], ANSWER_TIMEOUT_MS).catch(() => undefined);
    if (hello === undefined) return undefined; // it only checked whether a process listens
    if (hello.step === "replace") {
      await this.#replace(channel);
      return undefined;
    }
    const reason = hello.protocol !== PROTOCOL || hello.service !== service
      ? `it is no ${service} of a version that can take over`
      : this.#isBusy
      ? "another process takes over"
      : this.#service.refusal();
    if (reason === undefined) {
      this.#isBusy = true; // before anything is awaited: another process may ask at the same time
      return typeof hello.version === "string" ? printable(hello.version, 100) : "";
    }
    log.warn("hand-over refused", { pid: channel.pid, reason });
    await send(channel, { step: "refused", service, reason });
    return undefined;
  }

  /** Starts a process, as a command has asked, and answers when that one serves or has ended. */
  async #replace(channel: Channel): Promise<void> {
    const { start, refusal } = this.#service;
    const reason = this.#isBusy ? "another process takes over" : refusal() ?? (start ? undefined : "it does not know how it was started");
    if (reason !== undefined) return await send(channel, { step: "refused", reason });
    const outcome = await Promise.race([this.#successor, start!()]);
    await send(channel, typeof outcome === "string" ? { step: "refused", reason: outcome } : { step: "replaced", ...outcome });
  }

  /** @throws {Error} if the other process does not serve; then this one does */
  async #passOn(channel: Channel, version: string): Promise<void> {
    const { sockets, log } = this.#deps;
    log.info("handing over", { pid: channel.pid, version });
    await send(channel, { step: "accepted", state: this.#service.state() });
    await sockets.send(channel);
    await expect(channel, ["ready"], START_TIMEOUT_MS);
    sockets.setAccepting(false);
    try {
      await send(channel, { step: "held" });
      await expect(channel, ["serving"], ANSWER_TIMEOUT_MS);
    } catch (error) {
      sockets.setAccepting(true);
      throw error;
    }
  }

  /** Accepts no more processes, and removes the socket unless it is another process's. */
  async close(): Promise<void> {
    this.#listener.close();
    await this.#running;
    await this.#remove();
  }
}

class Refused extends Error {
  override readonly name = "Refused";
}

async function send(channel: Channel, message: Message): Promise<void> {
  await channel.send(JSON.stringify(message));
}

/**
 * Receives one of `steps`.
 * @throws {Error} if something else comes, or nothing in `timeoutMs` milliseconds
 */
async function expect(channel: Channel, steps: readonly Step[], timeoutMs = Infinity): Promise<Message> {
  const wanted = steps[0]!;
  const text = await withTimeout(timeoutMs, channel.receive());
  if (text === undefined) throw new Error(`the other process has not been ${wanted} within ${timeoutMs} ms`);
  if (text === null) throw new Error(`the other process has ended before it was ${wanted}`);
  const message = parse(text);
  if (message === undefined || !steps.includes(message.step)) {
    const why = message?.step === "refused" ? message.reason : `it says ${text}`;
    throw new Error(`the other process is not ${wanted}: ${printable(why ?? "", MAX_REASON)}`);
  }
  return message;
}

function parse(text: string): Message | undefined {
  try {
    const message = JSON.parse(text) as Message | null;
    return typeof message === "object" ? message ?? undefined : undefined;
  } catch {
    return undefined;
  }
}
