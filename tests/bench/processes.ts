// Starts and ends the programs that the bench needs, and reads what they cost from /proc. It knows nothing of what is measured with them.
import { Buffer } from "node:buffer";
import { type ChildProcess, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { makeAuthority } from "../support/certificates.ts";

const AGENT_ID = "bench";
const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 5_000;
/** Linux counts CPU time for user space in hundredths of a second, on every architecture. */
const TICKS_PER_SECOND = 100;

/** What a process costs at one moment. */
export interface Usage {
  /** User and system time of all its threads, those that have ended included. */
  cpuSeconds: number;
  /** Resident memory. */
  rssMiB: number;
  /** The same, with shared pages divided among those who share them. */
  pssMiB: number;
  /** The most that was ever resident. */
  peakMiB: number;
  /** Open file descriptors. */
  files: number;
}

/** A running process. */
export interface Program {
  readonly name: string;
  readonly usage: () => Usage;
  /** Ends it in good order; what it said where it did not end well. */
  readonly stop: () => Promise<string | undefined>;
}

/** The commands of a proxy and an agent, without options. */
export interface Subject {
  readonly name: string;
  readonly proxy: string;
  readonly agent: string;
}

/** A proxy and an agent that is connected to it. */
export interface Pair {
  readonly proxy: Program;
  readonly agent: Program;
  /** Options that lead the load generator through it. */
  readonly via: readonly string[];
  /** From the start of the process until it takes connections. */
  readonly listeningMs: number;
  /** From the start of the agent's process until a tunnel can be opened. */
  readonly connectedMs: number;
  readonly stop: () => Promise<string[]>;
}

/** One answer of the load generator: a line of JSON. */
export type LoadResult = Record<string, unknown>;

/** Tunnels that stay open until `close`. */
export interface Held {
  readonly opened: LoadResult;
  /** Sees which still go through, then closes them. */
  readonly close: () => Promise<LoadResult>;
}

/** Everything that was started with it ends with it. */
export class Launcher {
  readonly #folder: string;
  readonly #load: string;
  readonly #children = new Set<ChildProcess>();
  #origin: ChildProcess | undefined;
  #count = 0;

  /** `folder` takes certificates and logs; `load` is the load generator's executable. */
  constructor(folder: string, load: string) {
    this.#folder = folder;
    this.#load = load;
  }

  async makeCertificates(): Promise<void> {
    const authority = await makeAuthority("Bench CA");
    const { cert, key } = await authority.issue({ names: ["localhost", "127.0.0.1"] });
    for (const [name, text] of Object.entries({ ca: authority.cert, cert, key })) {
      writeFileSync(join(this.#folder, `${name}.pem`), text, { mode: 0o600 });
    }
  }

  /** The server behind the agent; its address. */
  async startOrigin(): Promise<string> {
    this.#origin = this.#spawn(this.#load, ["origin"], ["ignore", "pipe", "inherit"]);
    const { next } = answers(this.#origin);
    return String((await next()).listening);
  }

  async startPair(subject: Subject, origin: string): Promise<Pair> {
    const agents = `127.0.0.1:${await freeUdpPort()}`;
    const clients = `127.0.0.1:${await freeTcpPort()}`;
    const file = (name: string) => join(this.#folder, `${name}.pem`);
    const proxyStarted = performance.now();
    const proxy = this.#startProgram("proxy", subject.proxy, [
      `--agent-server.listen-address=${agents}`,
      `--http-proxy.listen-address=${clients}`,
      `--agent-server.tls.file.cert=${file("cert")}`,
      `--agent-server.tls.file.key=${file("key")}`,
    ]);
    await proxy.until(2, () => takesConnections(clients));
    const listeningMs = performance.now() - proxyStarted;
    const agentStarted = performance.now();
    const agent = this.#startProgram("agent", subject.agent, [
      `--agent-client.server-address=${agents}`,
      `--agent-client.tls.file.root-ca=${file("ca")}`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
    ]);
    await agent.until(5, () => opensTunnels(clients, origin));
    const connectedMs = performance.now() - agentStarted;
    const stop = async () => [await agent.stop(), await proxy.stop()].filter((problem) => problem !== undefined);
    return { proxy, agent, via: ["--proxy", clients, "--user", `${AGENT_ID}:x`], listeningMs, connectedMs, stop };
  }

  /** Runs the load generator to its end. */
  async load(args: readonly string[]): Promise<LoadResult> {
    const { next, ended } = answers(this.#spawn(this.#load, args, ["ignore", "pipe", "inherit"]));
    const result = await next();
    await ended;
    return result;
  }

  /** Opens tunnels that say nothing. */
  async hold(args: readonly string[]): Promise<Held> {
    const child = this.#spawn(this.#load, ["idle", ...args], ["pipe", "pipe", "inherit"]);
    const { next, ended } = answers(child);
    const opened = await next();
    return {
      opened,
      close: async () => {
        child.stdin!.end();
        const closed = await next();
        await ended;
        return closed;
      },
    };
  }

  /** Ends everything but the origin. */
  async stopPrograms(): Promise<void> {
    await Promise.all([...this.#children].filter((child) => child !== this.#origin).map(end));
  }

  async stopAll(): Promise<void> {
    await Promise.all([...this.#children].map(end));
  }

  /** Does not wait for them. */
  killAll(): void {
    for (const child of this.#children) child.kill("SIGKILL");
  }

  #spawn(file: string, args: readonly string[], stdio: ("ignore" | "pipe" | "inherit" | number)[]): ChildProcess {
    const child = spawn(file, args, { stdio });
    this.#children.add(child);
    child.once("exit", () => this.#children.delete(child));
    return child;
  }

  /** `command` is for the shell, which it replaces: the process is the program's own. */
  #startProgram(name: string, command: string, args: readonly string[]) {
    const logFile = join(this.#folder, `${name}-${++this.#count}.log`);
    const log = openSync(logFile, "w");
    const child = this.#spawn("sh", ["-c", `exec ${command} "$@"`, "sh", ...args], ["ignore", log, log]);
    closeSync(log);
    const describe = () => `${name} (${command}) ended with ${child.signalCode ?? child.exitCode}: ${lastLines(logFile)}`;
    return {
      name,
      usage: () => readUsage(child.pid!),
      stop: async () => {
        const early = hasEnded(child);
        await end(child);
        return !early && (child.exitCode === 0 || child.signalCode === "SIGTERM") ? undefined : describe();
      },
      /** Asks every `pauseMs` until `isReady`. */
      until: async (pauseMs: number, isReady: () => Promise<boolean>) => {
        const deadline = performance.now() + READY_TIMEOUT_MS;
        while (!await isReady()) {
          if (hasEnded(child)) throw new Error(describe());
          if (performance.now() > deadline) throw new Error(`${name} (${command}) is not ready in time: ${lastLines(logFile)}`);
          await sleep(pauseMs);
        }
      },
    };
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

async function end(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
  await exited;
  clearTimeout(timer);
}

function lastLines(file: string): string {
  return readFileSync(file, "utf8").trimEnd().split("\n").slice(-5).join("\n");
}

/** What the load generator says, a line of JSON at a time. */
function answers(child: ChildProcess): { next: () => Promise<LoadResult>; ended: Promise<void> } {
  const ended = new Promise<void>((resolve, reject) => {
    child.once("exit", () => resolve());
    child.once("error", reject);
  });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("The load generator has ended without an answer");
    return JSON.parse(value) as LoadResult;
  };
  return { next, ended };
}

function readUsage(pid: number): Usage {
  const read = (name: string) => readFileSync(`/proc/${pid}/${name}`, "utf8");
  // the second field, the program's name, may hold anything but ends with the last bracket
  const fields = read("stat").split(") ").at(-1)!.split(" ");
  const mib = (text: string, name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)![1]) / 1024;
  const status = read("status");
  return {
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
    rssMiB: mib(status, "VmRSS"),
    pssMiB: mib(read("smaps_rollup"), "Pss"),
    peakMiB: mib(status, "VmHWM"),
    files: readdirSync(`/proc/${pid}/fd`).length,
  };
}

/** Nobody has it at the moment; the system does not give it out again soon. */
async function freeTcpPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function freeUdpPort(): Promise<number> {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve, reject) => socket.once("error", reject).bind(0, "127.0.0.1", resolve));
  const { port } = socket.address();
  await new Promise<void>((resolve) => socket.close(resolve));
  return port;
}

function takesConnections(address: string): Promise<boolean> {
  return converse(address, undefined);
}

/** Whether the proxy answers a CONNECT with 200: then the agent is there. */
function opensTunnels(proxy: string, target: string): Promise<boolean> {
  const credentials = Buffer.from(`${AGENT_ID}:x`).toString("base64");
  return converse(proxy, `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
}

/** Whether `address` takes a connection, and answers `request` with 200 where there is one. */
function converse(address: string, request: string | undefined): Promise<boolean> {
  const [host, port] = address.split(":");
  return new Promise((resolve) => {
    const socket = connect(Number(port), host, () => {
      if (request === undefined) settle(true);
      else socket.write(request);
    });
    const settle = (result: boolean) => {
      socket.end();
      resolve(result);
    };
    socket.once("data", (data) => settle(data.toString("latin1").startsWith("HTTP/1.1 200")));
    socket.once("end", () => settle(false));
    socket.once("error", () => settle(false));
  });
}
