// The compiled commands of clients that listen: forward and socks.
import { type ChildProcess, spawn } from "node:child_process";
import { REVERSE_HTTP } from "./programs.ts";

/** A running command; `await using` ends it. */
export class ClientCommand implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;
  #written = "";
  #said = "";
  #wake: () => void = () => {};

  private constructor(args: readonly string[]) {
    this.#child = spawn(REVERSE_HTTP, args, { stdio: ["ignore", "pipe", "pipe"], env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent" } });
    this.#child.stdout!.on("data", (data) => {
      this.#written += data;
      this.#wake();
    });
    this.#child.stderr!.on("data", (data) => {
      this.#said += data;
      this.#wake();
    });
    this.#ended = new Promise((resolve) => this.#child.once("close", resolve));
    void this.#ended.then(() => this.#wake());
  }

  /** Starts it, and waits until it listens on `count` addresses. */
  static async start(args: readonly string[], count = 1): Promise<ClientCommand> {
    const command = new ClientCommand(args);
    await command.until(() => command.addresses.length === count);
    return command;
  }

  /** Waits until its output and errors so far fulfil a condition. */
  async until(reached: () => boolean): Promise<void> {
    while (!reached()) {
      if (this.#child.exitCode !== null) throw new Error(`${this.#child.spawnargs[1]} has ended: ${this.#said}`);
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  /** Its standard output so far. */
  get written(): string {
    return this.#written;
  }

  get addresses(): string[] {
    return [...this.#written.matchAll(/^(\S+) (?:leads to|is a) .+\n/gm)].map(([, address]) => address!);
  }

  /** Waits for a text on standard error. */
  async says(text: string): Promise<void> {
    await this.until(() => this.#said.includes(text));
  }

  /** Its exit code after SIGTERM. */
  async stop(): Promise<number | null> {
    this.#child.kill();
    return await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }
}
