// Starts the compiled executables as a user does, reads their logs, and ends them in any case. Independent of the code inside.
import { execa } from "execa";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { type Authority, makeAuthority } from "./certificates.ts";
import { secrets } from "./secrets.ts";

/** The repository's root. */
export const ROOT = join(import.meta.dirname!, "..");
export const PROXY = join(ROOT, "dist", "reverse-http-proxy");
export const AGENT = join(ROOT, "dist", "reverse-http-agent");
export const LB = join(ROOT, "dist", "reverse-http-lb");
/** The executable with all services. */
export const REVERSE_HTTP = join(ROOT, "dist", "reverse-http");
export const AGENT_ID = "4711";

/** Timeout of every wait, reached only by a failing test. */
const PATIENCE_MS = 30_000;

/** A line of a JSON log. */
export interface LogEntry {
  readonly level: string;
  readonly message: string;
  readonly [field: string]: string | number | boolean | undefined;
}

/** How a process ended. */
export interface Ended {
  readonly exitCode?: number;
  readonly signal?: string;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ProgramOptions {
  cwd?: string;
  /** The whole environment. Default: a PATH, and a home without configuration. */
  env?: Record<string, string>;
  /** Standard input. Default: none. */
  input?: string;
}

/** A process; `await using` ends it. */
export class Program implements AsyncDisposable {
  /** Its log so far, oldest first. */
  readonly entries: LogEntry[] = [];
  readonly pid: number;
  readonly ended: Promise<Ended>;
  readonly #name: string;
  #lines = "";
  #over = false;
  /** Whether its last line may be cut off. */
  #mayBeCutOff = false;
  /** Whether it is one of the project's executables; only these are searched for secrets. */
  readonly #isOurs: boolean;
  #shown: string[] = [];
  readonly #waiting = new Set<() => void>();

  constructor(file: string, args: readonly string[], options: ProgramOptions = {}) {
    const { cwd, env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent" }, input } = options;
    this.#name = file.split("/").at(-1)!;
    this.#isOurs = this.#name.startsWith("reverse-http");
    if (this.#isOurs) secrets.addOf(args, env);
    const child = execa(file, args, {
      cwd,
      env,
      extendEnv: false,
      reject: false,
      ...input === undefined ? { stdin: "ignore" as const } : { input },
      buffer: { stdout: true, stderr: false },
    });
    // a process that could not be started has no id: `ended` has the reason
    this.pid = child.pid ?? -1;
    const lines = createInterface({ input: child.stderr });
    lines.on("line", (line) => this.#take(line));
    const read = new Promise<void>((resolve) => child.pid === undefined ? resolve() : lines.once("close", resolve));
    this.ended = this.#whenEnded(child, read);
  }

  async #whenEnded(
    child: PromiseLike<{ exitCode?: number; signal?: string; stdout?: unknown; failed: boolean; shortMessage?: string }>,
    read: Promise<void>,
  ): Promise<Ended> {
    const { exitCode, signal, stdout, shortMessage } = await child;
    await read;
    this.#over = true;
    if (this.#isOurs) this.#shown = secrets.in(`${String(stdout ?? "")}\n${this.#lines}`);
    this.#wake();
    return { exitCode, signal, stdout: String(stdout ?? ""), stderr: this.#lines || (shortMessage ?? "") };
  }

  #take(line: string): void {
    this.#lines += `${line}\n`;
    if (line.startsWith("{") && (line.endsWith("}") || !this.#mayBeCutOff)) this.entries.push(JSON.parse(line) as LogEntry);
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }

  /** Its standard error so far. */
  get said(): string {
    return this.#lines;
  }

  /** The entries so far with this message and these fields. */
  logged(message: string, fields: Partial<LogEntry> = {}): LogEntry[] {
    return this.entries.filter((entry) =>
      entry.message === message && Object.entries(fields).every(([name, value]) => entry[name] === value)
    );
  }

  /** Resolves with the `count`th such entry since the start, at once if it has been logged already. */
  async waitFor(message: string, fields: Partial<LogEntry> = {}, count = 1): Promise<LogEntry> {
    const found = () => this.logged(message, fields)[count - 1];
    await this.#until(() => found() !== undefined || this.#over, `${JSON.stringify(message)} ${JSON.stringify(fields)} (${count})`);
    const entry = found();
    if (entry === undefined) throw new Error(`${this.#name} has ended without ${JSON.stringify(message)}:\n${this.#lines}`);
    return entry;
  }

  /** Resolves when this text has been written to standard error. */
  async waitForText(text: string): Promise<void> {
    await this.#until(() => this.#lines.includes(text) || this.#over, JSON.stringify(text));
    if (!this.#lines.includes(text)) throw new Error(`${this.#name} has ended without ${JSON.stringify(text)}:\n${this.#lines}`);
  }

  async #until(reached: () => boolean, what: string): Promise<void> {
    if (reached()) return;
    let wake!: () => void;
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        wake = () => reached() && resolve();
        this.#waiting.add(wake);
        timer = setTimeout(() => reject(new Error(`${this.#name} has not logged ${what}, but:\n${this.#lines}`)), PATIENCE_MS);
      });
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(wake);
    }
  }

  /** Sends a signal to this process only. */
  signal(name: NodeJS.Signals): void {
    if (this.#over || this.pid <= 0) return;
    if (name === "SIGKILL") this.expectCutOff();
    try {
      process.kill(this.pid, name);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // it has just ended
    }
  }

  /** Its last line may be cut off: it is killed, or at its end logs more than is read within the second that it waits. */
  expectCutOff(): void {
    this.#mayBeCutOff = true;
  }

  /** Sends SIGTERM, and waits for its end. */
  async stop(signal: "SIGTERM" | "SIGINT" = "SIGTERM"): Promise<Ended> {
    this.signal(signal);
    const ended = await this.ended;
    this.#checkSecrets();
    return ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal("SIGKILL");
    await this.ended;
    this.#checkSecrets();
  }

  /** Fails if its output contains a secret. */
  #checkSecrets(): void {
    if (this.#shown.length > 0) throw new Error(`${this.#name} has shown ${this.#shown.join(" and ")}:\n${this.#lines}`);
  }
}

/** Runs a program until it ends by itself. */
export async function runToEnd(file: string, args: readonly string[], options?: ProgramOptions): Promise<Ended> {
  await using program = new Program(file, args, options);
  return await program.ended;
}

/** A temporary folder. */
export class Folder implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "reverse-http-test-"));

  /** Writes a file that only this user can read, and returns its path. */
  write(name: string, content: string | Uint8Array): string {
    const file = join(this.path, name);
    writeFileSync(file, content, { mode: 0o600 });
    return file;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Writes certificates for a proxy on loopback, and on `addresses`, and its agents. */
export async function writeCertificates(
  folder: Folder,
  authority: Authority,
  ...addresses: string[]
): Promise<{ ca: string; cert: string; key: string }> {
  const server = await authority.issue({ names: ["localhost", "127.0.0.1", "::1", ...addresses] });
  return {
    ca: folder.write("ca.pem", authority.cert),
    cert: folder.write("cert.pem", server.cert),
    key: folder.write("key.pem", server.key),
  };
}

/** The addresses of a proxy. */
export interface Addresses {
  /** For agents, over UDP. */
  readonly agents: string;
  /** For clients, over TCP. */
  readonly clients: string;
}

const ANY_PORT: Addresses = { agents: "127.0.0.1:0", clients: "127.0.0.1:0" };

/** A server of the store. */
export interface StoreAddress {
  readonly kind: "memcached" | "redis";
  readonly address: string;
}

export function storeArgs({ kind, address }: StoreAddress): string[] {
  return [`--store.type=${kind}`, kind === "memcached" ? `--store.memcached.address=${address}` : `--store.redis.url=redis://${address}`];
}

/** The proxies, load balancers and agents of one test, with their certificates; `await using` ends them all. */
export class Site implements AsyncDisposable {
  readonly #programs: Program[] = [];
  private constructor(
    readonly folder: Folder,
    readonly files: { ca: string; cert: string; key: string },
    /** The authority that its agents trust. */
    readonly authority: Authority,
  ) {}

  /** @param addresses of the proxy, besides loopback */
  static async create(...addresses: string[]): Promise<Site> {
    const folder = new Folder();
    const authority = await makeAuthority();
    return new Site(folder, await writeCertificates(folder, authority, ...addresses), authority);
  }

  proxyArgs({ agents, clients }: Addresses = ANY_PORT): string[] {
    return [
      `--agent-server.listen-address=${agents}`,
      `--http-proxy.listen-address=${clients}`,
      `--agent-server.tls.file.cert=${this.files.cert}`,
      `--agent-server.tls.file.key=${this.files.key}`,
      "--log.format=json",
    ];
  }

  agentArgs(proxy: Addresses, id = AGENT_ID): string[] {
    return [
      `--agent-client.server-address=${proxy.agents}`,
      `--agent-client.tls.file.root-ca=${this.files.ca}`,
      `--auth.noauth.agent-id=${id}`,
      "--log.format=json",
    ];
  }

  /** Starts a program that ends with the site. */
  start(file: string, args: readonly string[], options?: ProgramOptions): Program {
    const program = new Program(file, args, options);
    this.#programs.push(program);
    return program;
  }

  /** Starts a proxy. If it must listen on `addresses` again, another program may have the port for a while. */
  async startProxy(args: readonly string[] = [], addresses?: Addresses): Promise<{ proxy: Program; addresses: Addresses }> {
    for (const deadline = performance.now() + PATIENCE_MS;;) {
      const proxy = this.start(PROXY, [...this.proxyArgs(addresses), ...args]);
      try {
        const { agents, clients } = await proxy.waitFor("listening");
        return { proxy, addresses: { agents: String(agents), clients: String(clients) } };
      } catch (error) {
        if (!addresses || performance.now() > deadline || !String(error).includes("Address already in use")) throw error;
      }
    }
  }

  /** Starts a load balancer. `store` as for {@link storeArgs}. */
  async startLb(store: StoreAddress, args: readonly string[] = []): Promise<{ lb: Program; clients: string }> {
    const lb = this.start(LB, ["--http-proxy.listen-address=127.0.0.1:0", ...storeArgs(store), "--log.format=json", ...args]);
    const { clients } = await lb.waitFor("listening");
    return { lb, clients: String(clients) };
  }

  /** Starts an agent, and waits until it is connected. */
  async startAgent(addresses: Addresses, args: readonly string[] = [], id = AGENT_ID): Promise<Program> {
    const agent = this.start(AGENT, [...this.agentArgs(addresses, id), ...args]);
    await agent.waitFor("connected");
    return agent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = await Promise.allSettled(this.#programs.reverse().map((program) => program[Symbol.asyncDispose]()));
    this.folder[Symbol.dispose]();
    for (const end of ended) if (end.status === "rejected") throw end.reason;
  }
}

/** A proxy and an agent that is connected to it. */
export class Pair implements AsyncDisposable {
  private constructor(readonly site: Site, readonly proxy: Program, readonly agent: Program, readonly addresses: Addresses) {}

  static async start(options: { proxy?: readonly string[]; agent?: readonly string[] } = {}): Promise<Pair> {
    const site = await Site.create();
    try {
      const { proxy, addresses } = await site.startProxy(options.proxy);
      return new Pair(site, proxy, await site.startAgent(addresses, options.agent), addresses);
    } catch (error) {
      await site[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
  }
}

/** Number of a process's open descriptors; Linux only. */
export function openDescriptors(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** Resident memory of a process in MiB, without pages of mapped files, which the kernel reads and drops on its own. Linux only. */
export function residentMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s*([0-9]+) kB$`, "m").exec(status)![1]);
  return (kib("RssAnon") + kib("RssShmem")) / 1024;
}

/** Polls until `check` holds; fails with the text of `describe`. Only for states that no log line or socket shows. */
export async function eventually(check: () => boolean, describe: () => string, patienceMs = PATIENCE_MS): Promise<void> {
  const deadline = performance.now() + patienceMs;
  while (!check()) {
    if (performance.now() > deadline) throw new Error(describe());
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
