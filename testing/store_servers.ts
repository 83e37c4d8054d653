// Real memcached and Redis servers on loopback, as processes.
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { type Ended, Program } from "./programs.ts";

/** Timeout of every wait, reached only by a failing test. */
const PATIENCE_MS = 10_000;

/** A port that is free over TCP and UDP, outside the range from which the kernel assigns ports. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    if (await isFree(createServer().listen(port, "127.0.0.1")) && await isFree(createSocket("udp4").bind(port, "127.0.0.1"))) return port;
  }
}

async function isFree(socket: Server | Socket): Promise<boolean> {
  try {
    await once(socket, "listening");
  } catch {
    return false;
  }
  socket.close();
  await once(socket, "close");
  return true;
}

async function answers(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  try {
    return await new Promise((resolve) => socket.once("connect", () => resolve(true)).once("error", () => resolve(false)));
  } finally {
    socket.destroy();
  }
}

/** The folders of Debian and Homebrew. */
const ENV = { PATH: "/usr/bin:/bin:/opt/homebrew/bin:/usr/local/bin", HOME: "/nonexistent" };

/** A server that can be killed and restarted, empty, on the same port; `await using` ends it. */
export class StoreServer implements AsyncDisposable {
  #program: Program;
  private constructor(readonly kind: "memcached" | "redis", readonly port: number, readonly args: readonly string[]) {
    this.#program = this.#launch();
  }

  static async start(kind: "memcached" | "redis", args: readonly string[] = []): Promise<StoreServer> {
    for (let attempt = 1;; attempt++) {
      const server = new StoreServer(kind, await freePort(), args);
      try {
        await server.#ready();
        return server;
      } catch (error) {
        await server[Symbol.asyncDispose]();
        if (attempt === 3) throw error; // another program has taken the port meanwhile
      }
    }
  }

  #launch(): Program {
    const port = String(this.port);
    return this.kind === "memcached"
      ? new Program("memcached", ["-u", "root", "-l", "127.0.0.1", "-p", port, "-U", "0", "-m", "64", ...this.args], { env: ENV })
      : new Program("redis-server", ["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", ...this.args], {
        env: ENV,
      });
  }

  async #ready(): Promise<void> {
    let ended: Ended | undefined;
    void this.#program.ended.then((end) => ended = end);
    const deadline = performance.now() + PATIENCE_MS;
    while (!await answers(this.port)) {
      if (ended) throw new Error(`${this.kind} has ended: ${ended.stdout}${ended.stderr}`);
      if (performance.now() > deadline) throw new Error(`${this.kind} does not answer`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  signal(name: "SIGSTOP" | "SIGCONT"): void {
    this.#program.signal(name);
  }

  /** Stops the server until SIGCONT. Returns when all its threads have stopped, a while after the signal. */
  async freeze(): Promise<void> {
    this.signal("SIGSTOP");
    const threads = `/proc/${this.#program.pid}/task`;
    const isStopped = (thread: string) => /\) T /.test(readFileSync(`${threads}/${thread}/stat`, "utf8"));
    while (!readdirSync(threads).every(isStopped)) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  async kill(): Promise<void> {
    await this.#program[Symbol.asyncDispose]();
  }

  /** Restarts it, empty. */
  async restart(): Promise<void> {
    await this.kill();
    this.#program = this.#launch();
    await this.#ready();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}
