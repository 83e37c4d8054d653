// Plays the scripts of hostile peers on streams of real QUIC connections. The callers check the effects.
import { within } from "../conformance/support.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { Program } from "../../testing/programs.ts";
import { residentMiB } from "../../testing/programs.ts";
import { parts } from "./mutations.ts";
import type { Writing } from "./scripts.ts";

/** Tolerated growth of a process in MiB: windows of some tunnels, and uncollected garbage. */
const MAX_GROWTH_MIB = 300;

/** Ignores errors of the network, which are all legitimate for a hostile peer. Any other error is a fault of the fuzzer. */
export async function tolerant<T>(promise: Promise<T>): Promise<T | undefined> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof NetError) return undefined;
    throw error;
  }
}

/** Writes the script's bytes, and ends the stream as the script says. */
export async function play(stream: Duplex, { bytes, cuts, end, code }: Writing): Promise<void> {
  for (const part of parts(bytes, cuts)) {
    if (await tolerant(stream.write(part).then(() => true)) === undefined) break;
  }
  switch (end) {
    case "finish":
      return stream.closeWrite();
    case "reset":
      return stream.reset(code);
    case "stop":
      return stream.stopRead(code);
    case "close":
      return stream.close();
    case "leave":
      return;
  }
}

/** Reads up to `most` bytes, until the peer finishes, resets the stream, or is silent for `ms` milliseconds. */
export async function drain(stream: Duplex, ms: number, most = 1 << 16): Promise<string> {
  const silence = Symbol();
  let text = "";
  while (text.length < most) {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const silent = new Promise<typeof silence>((resolve) => timer = setTimeout(() => resolve(silence), ms));
    const data = await Promise.race([tolerant(stream.read()), silent]);
    clearTimeout(timer);
    if (data === silence || !data) break;
    text += Array.from(data, (byte) => String.fromCharCode(byte)).join("");
  }
  return text;
}

/** Whether the peer has ended it within `ms` milliseconds. */
export async function endsWithin(connection: AgentSession, ms: number): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<false>((resolve) => timer = setTimeout(() => resolve(false), ms));
  const ended = await Promise.race([connection.closed.then(() => true), late]);
  clearTimeout(timer);
  return ended;
}

/** Checks an attacked process: it is alive, has grown little, and has logged no error. */
export class Watch {
  readonly #before: number | undefined;
  #ended = false;

  constructor(readonly program: Program, readonly name: string) {
    this.#before = memoryOf(program);
    void program.ended.then(() => this.#ended = true);
  }

  check(): void {
    if (this.#ended) throw new Error(`${this.name} has ended:\n${this.program.said.slice(-4_000)}`);
    const error = this.program.entries.find(({ level }) => level.toLowerCase() === "error");
    if (error) throw new Error(`${this.name} has met an error: ${JSON.stringify(error)}`);
    const now = memoryOf(this.program);
    if (now !== undefined && now - this.#before! > MAX_GROWTH_MIB) {
      throw new Error(`${this.name} has grown from ${this.#before} to ${now} MiB`);
    }
  }
}

function memoryOf({ pid }: Program): number | undefined {
  return process.platform === "linux" ? residentMiB(pid) : undefined;
}

export { within };
