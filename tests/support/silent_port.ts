// A port whose connections are never answered. Linux only.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { ROOT } from "../../testing/programs.ts";

/** A port on loopback that answers no connection. */
export class SilentPort implements AsyncDisposable {
  /** Connections to it that waited when it began. */
  readonly #own: number;

  private constructor(readonly port: number, private readonly end: () => Promise<unknown>) {
    this.#own = this.#waiting;
  }

  static async start(): Promise<SilentPort> {
    const child = execa("python3", [join(ROOT, "tests", "clients", "silent_port.py")], { stdin: "pipe" });
    const [line] = await once(child.stdout, "data") as [Uint8Array];
    return new SilentPort(Number(String(line)), async () => {
      child.stdin.end();
      await child;
    });
  }

  get authority(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Connections to it that wait, but for its own. */
  get attempts(): number {
    return this.#waiting - this.#own;
  }

  /** In the state SYN_SENT (proc(5)). */
  get #waiting(): number {
    const remote = `:${this.port.toString(16).toUpperCase().padStart(4, "0")} 02 `;
    return readFileSync("/proc/net/tcp", "utf8").split("\n").filter((line) => line.includes(remote)).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }
}
