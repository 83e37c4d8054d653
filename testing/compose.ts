// Runs a compose file of deploy/ as processes: each service has its own loopback address, keeps its ports, and finds the others by address
// instead of by name. The executables are this project's, and this machine's nginx and memcached.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parse } from "yaml";
import { NGINX, STREAM_MODULE } from "./nginx.ts";
import { Folder, Program, REVERSE_HTTP, ROOT } from "./programs.ts";

/** A compose file, with the keys that those of this project use. */
export interface Compose {
  readonly services: Readonly<Record<string, Service>>;
}

export interface Service {
  readonly image: string;
  readonly hostname?: string;
  readonly command?: readonly string[];
  readonly volumes?: readonly string[];
  readonly ports?: readonly string[];
  readonly stop_grace_period?: string;
}

export const COMPOSE_FOLDER = join(ROOT, "deploy", "compose");
export const COMPOSE_FILES = ["noauth", "jwt", "ha", "ha-tls"] as const;

export function readCompose(name: string): Compose {
  return parse(readFileSync(join(COMPOSE_FOLDER, `${name}.yaml`), "utf8"), { merge: true }) as Compose;
}

/** The loopback networks that this process has used. */
let used = 0;

/** All services of a compose file; `await using` ends them. */
export class Composition implements AsyncDisposable {
  readonly #programs = new Map<string, Program>();
  readonly #addresses = new Map<string, string>();
  readonly #folder = new Folder();

  private constructor(readonly compose: Compose, /** Holds `certs` and `jwt`. */ readonly files: string, readonly network: string) {}

  /** Prefix of loopback addresses that other programs are unlikely to use: `127.x.y.`. */
  static newNetwork(): string {
    const number = (process.pid * 16 + used++) % 60_000;
    return `127.${1 + (number >> 8)}.${number & 255}.`;
  }

  /** Starts the services one after another, each after those that it names. */
  static async start(name: string, { files, network }: { files: string; network: string }): Promise<Composition> {
    const composition = new Composition(readCompose(name), files, network);
    try {
      const names = Object.keys(composition.compose.services);
      names.forEach((service, i) => composition.#addresses.set(service, `${network}${i + 1}`));
      const order = ["memcached", "proxy-1", "proxy-2", "proxy", "lb-1", "lb-2", "proxy-lb", "http-proxy"];
      const rank = (service: string) => order.findIndex((prefix) => service.startsWith(prefix)) >>> 0;
      for (const service of names.sort((a, b) => rank(a) - rank(b))) await composition.#start(service);
      return composition;
    } catch (error) {
      await composition[Symbol.asyncDispose]();
      throw error;
    }
  }

  program(service: string): Program {
    return this.#programs.get(service)!;
  }

  /** The address of a published port: `3128`. */
  published(port: string): string {
    const found = Object.entries(this.compose.services).find(([, { ports = [] }]) => ports.some((text) => text.startsWith(`${port}:`)));
    if (!found) throw new Error(`No service publishes ${port}`);
    return `${this.#addresses.get(found[0])}:${port}`;
  }

  async #start(name: string): Promise<void> {
    const service = this.compose.services[name]!;
    const address = this.#addresses.get(name)!;
    if (service.image.startsWith("nginx:")) return await this.#startNginx(name, service, address);
    if (service.image.startsWith("memcached:")) {
      this.#programs.set(name, new Program("/usr/bin/memcached", ["-u", "root", "-l", address, "-p", "11211", "-U", "0"]));
      return;
    }
    const args = service.command!.map((text) => this.#localize(text, address, service));
    const program = new Program(REVERSE_HTTP, [...args, "--log.format=json"]);
    this.#programs.set(name, program);
    await program.waitFor(service.command![0] === "agent" ? "connected" : "listening");
  }

  /** Restarts a service that has ended. */
  async restart(service: string): Promise<void> {
    await this.program(service).ended;
    await this.#start(service);
  }

  /** Starts another agent like 4711, with another id. */
  async startAgent(id: string): Promise<void> {
    const { command, ...rest } = this.compose.services["agent-4711"]!;
    const args = command!.map((text) => this.#localize(text.replace("4711", id), "", rest));
    const program = new Program(REVERSE_HTTP, [...args, "--log.format=json"]);
    this.#programs.set(`agent-${id}`, program);
    await program.waitFor("connected");
  }

  /** Starts nginx with the configuration that the service mounts. */
  async #startNginx(name: string, { volumes = [] }: Service, address: string): Promise<void> {
    const source = volumes.find((volume) => volume.includes(":/etc/nginx/nginx.conf"))!.split(":")[0]!;
    const text = readFileSync(join(COMPOSE_FOLDER, source), "utf8")
      .replace(/^(\s*listen )/gm, `$1${address}:`)
      .replace(/^(\s*server )([\w-]+):/gm, (_, before: string, host: string) => `${before}${this.#addresses.get(host)}:`);
    const file = this.#folder.write(`${name}.conf`, text);
    const program = new Program(NGINX, nginxArgs(this.#folder.path, file, `${this.#folder.path}/${name}.pid`));
    this.#programs.set(name, program);
    await program.waitForText("start worker process ");
  }

  /** Adapts a text to loopback: names of services, listen addresses, files. */
  #localize(text: string, address: string, { volumes = [] }: Service): string {
    const mounts = volumes.map((volume) => volume.split(":")).map(([from, to]) => [to!, join(this.files, from!)] as const);
    return text
      .replace(/=:(\d+)$/, `=${address}:$1`)
      .replace(/=([a-z][\w-]*):(\d+)$/, (_, host: string, port: string) => `=${this.#addresses.get(host)}:${port}`)
      .replace(/(=|file:)(\/[^=]*)$/, (_, before: string, file: string) => {
        const [to, from] = mounts.find(([to]) => file.startsWith(`${to}/`)) ?? [];
        if (to === undefined) throw new Error(`${file} is not mounted`);
        return `${before}${from}${file.slice(to.length)}`;
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const [name, program] of [...this.#programs].reverse()) {
      // not killed: nginx would leave its workers behind
      if (this.compose.services[name]?.image.startsWith("nginx:")) await program.stop("SIGTERM");
      else await program[Symbol.asyncDispose]();
    }
    this.#folder[Symbol.dispose]();
  }
}

/** Arguments for a configuration of the nginx image: in the foreground, with Debian's stream module if there is one. */
export function nginxArgs(prefix: string, file: string, pid: string): string[] {
  const module = existsSync(STREAM_MODULE) ? `load_module ${STREAM_MODULE};` : "";
  return ["-e", "stderr", "-p", prefix, "-c", file, "-g", `${module} daemon off; pid ${pid};`];
}
