// The notification socket of a service manager, which records the messages of programs. Python opens it, because no JavaScript runtime can.
import { createInterface } from "node:readline";
import { execa } from "execa";
import { Folder } from "./programs.ts";

/** Timeout of every wait, reached only by a failing test. */
const PATIENCE_MS = 20_000;

const LISTEN = `
import json, socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = sys.argv[1]
manager.bind("\\0" + name[1:] if name.startswith("@") else name)
print("[]", flush=True)
while True: print(json.dumps(manager.recv(4096).decode().split("\\n")), flush=True)
`;

/** The socket; `await using` closes it. */
export class ServiceManager implements AsyncDisposable {
  /** The lines of each message so far, oldest first. */
  readonly messages: string[][] = [];
  readonly #folder = new Folder();
  readonly #process;
  readonly #waiting = new Set<() => void>();
  /** The value of `NOTIFY_SOCKET` for the program. */
  readonly socket: string;

  private constructor(namespace: "path" | "abstract") {
    const path = `${this.#folder.path}/notify`;
    this.socket = namespace === "path" ? path : `@${path}`;
    this.#process = execa("python3", ["-c", LISTEN, this.socket], { reject: false, stdin: "ignore", buffer: false });
    createInterface({ input: this.#process.stdout }).on("line", (line) => {
      this.messages.push(JSON.parse(line) as string[]);
      for (const wake of this.#waiting) wake();
    });
  }

  /** Listens on a path or in the abstract namespace. */
  static async start(namespace: "path" | "abstract" = "path"): Promise<ServiceManager> {
    const manager = new ServiceManager(namespace);
    await manager.#until(() => manager.messages.length > 0, "its socket");
    manager.messages.length = 0;
    return manager;
  }

  /** The number of received lines that equal a text or match a pattern. */
  count(line: string | RegExp): number {
    return this.messages.flat().filter((said) => typeof line === "string" ? said === line : line.test(said)).length;
  }

  /** Resolves when that number is reached. */
  async waitFor(line: string | RegExp, count = 1): Promise<void> {
    await this.#until(() => this.count(line) >= count, `${line} (${count})`);
  }

  async #until(reached: () => boolean, what: string): Promise<void> {
    let wake = () => {};
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        wake = () => reached() && resolve();
        this.#waiting.add(wake);
        timer = setTimeout(() => reject(new Error(`There was no ${what}, but ${JSON.stringify(this.messages)}`)), PATIENCE_MS);
        wake();
      });
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(wake);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process;
    this.#folder[Symbol.dispose]();
  }
}
