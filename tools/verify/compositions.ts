// Runs the command lines of the Go project's compose files, unchanged: each service in its own network namespace, where it finds the others
// by name, as containers do. Needs Linux, root, iproute2, curl, nginx and memcached.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { makeAuthority } from "../../testing/certificates.ts";
import { NGINX, STREAM_MODULE } from "../../testing/nginx.ts";
import { Folder, Program, runToEnd } from "../../testing/programs.ts";
import { ROOT } from "../executables.ts";
import type { TargetName } from "../targets.ts";
import { inEmptyRoot, inPlace } from "./place.ts";

const CERTIFICATES = ["--agent-server.tls.file.key=/certs/proxy-key.pem", "--agent-server.tls.file.cert=/certs/proxy.pem"];
const CLIENTS_TLS = [
  "--http-proxy.tls.enable",
  "--http-proxy.tls.file.key=/certs/proxy-key.pem",
  "--http-proxy.tls.file.cert=/certs/proxy.pem",
];
const STORE = ["--store.type=memcached", "--store.memcached.address=memcached-server:11211"];

const agent = (id: string, proxy: string, ...auth: string[]) => [
  "agent",
  `--agent-client.server-address=${proxy}:4242`,
  "--agent-client.tls.file.root-ca=/certs/ca.pem",
  ...auth.length > 0 ? auth : [`--auth.noauth.agent-id=${id}`],
];

const proxyOfMany = (name: string, ...tls: string[]) => [
  ...["proxy", "--agent-server.listen-address=:4242", ...CERTIFICATES, "--agent-server.tls.refresh=1s"],
  ...["--http-proxy.listen-address=:3128", ...tls, "--auth.type=noauth"],
  ...[STORE[0]!, `--store.http-proxy-address=${name}:3128`, STORE[1]!],
];

const many = (proxyTls: string[], lbTls: string[]): Record<string, string[]> => {
  const lb = ["lb", "--http-proxy.listen-address=:3128", "--auth.type=noauth", ...STORE, ...lbTls];
  return {
    "memcached-server": ["memcached"],
    "proxy-1": proxyOfMany("proxy-1", ...proxyTls),
    "proxy-2": proxyOfMany("proxy-2", ...proxyTls),
    "lb-1": lb,
    "lb-2": lb,
    "proxy-lb": ["nginx", "agents.conf"],
    "http-proxy": ["nginx", "clients.conf"],
    "agent-4711": agent("4711", "proxy-lb"),
    "agent-4712": agent("4712", "proxy-lb"),
  };
};

/** The `command` of each service, by file, in an order in which each finds the services that it needs. */
export const COMPOSITIONS: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  noauth: {
    "proxy": [
      ...["proxy", "--agent-server.listen-address=:4242", ...CERTIFICATES, "--agent-server.tls.refresh=1s"],
      ...["--http-proxy.listen-address=:3128", "--auth.type=noauth"],
    ],
    "agent-4711": agent("4711", "proxy"),
    "agent-4712": agent("4712", "proxy"),
  },
  jwt: {
    "proxy": [
      ...["proxy", "--agent-server.listen-address=:4242", ...CERTIFICATES, "--http-proxy.listen-address=:3128"],
      ...["--auth.type=jwt", "--auth.jwt.public-key=/jwt/auth-key-public.pem"],
    ],
    "agent-4711": agent("4711", "proxy", "--auth.type=jwt", "--auth.jwt.token=file:/jwt/auth-agent-jwt-4711.b64"),
    "agent-4712": agent("4712", "proxy", "--auth.type=jwt", "--auth.jwt.token=file:/jwt/auth-agent-jwt-4712.b64"),
  },
  ha: many([], []),
  "ha-tls": many(CLIENTS_TLS, ["--http-connector.tls.enable", "--http-connector.tls.insecure-skip-verify"]),
};

/** Starts a composition with the executable of a target in an otherwise empty root, and fetches a page from each agent through it. */
export async function verifyComposition(target: TargetName, name: string): Promise<void> {
  const services = COMPOSITIONS[name]!;
  using root = new Folder();
  const place = inEmptyRoot(target, root);
  using network = new Network(Object.keys(services));
  const hosts = root.write("hosts", network.hosts);
  mkdirSync(join(root.path, "etc"));
  writeFileSync(join(root.path, "etc", "hosts"), network.hosts);
  await makeFiles(target, root);
  await using programs = new Programs();
  for (const [service, [kind = "", ...args]] of Object.entries(services)) {
    const start = (file: string[], words: readonly string[]) => programs.start(network.command(service, [...file, ...words]));
    if (kind === "memcached") start(["memcached"], ["-u", "root"]);
    else if (kind === "nginx") await start(nginx(root, hosts, args[0]!), []).waitForText("start worker process ");
    else {
      if (kind === "agent") start([process.execPath, "eval", page(service)], []);
      await start(place.command("reverse-http"), [kind, ...args]).waitFor(kind === "agent" ? "connected" : "listening");
    }
  }
  const entrance = network.addresses.get("http-proxy" in services ? "http-proxy" : "proxy")!;
  for (const id of ["4711", "4712"]) {
    const password = name === "jwt" ? readFileSync(join(root.path, "jwt", `auth-client-jwt-${id}.b64`), "utf8").trim() : "any";
    // --retry: the entry is in the store a moment after the agent has connected
    const curl = network.command(Network.OUTSIDE, [
      ...["curl", "-sS", "--retry", "60", "--retry-all-errors", "--retry-delay", "1", "--max-time", "20", "--proxytunnel"],
      ...["--proxy", `http://${id}:${password}@${entrance}:3128`, "http://127.0.0.1:8080/"],
    ]);
    const { stdout, stderr } = await runToEnd(curl[0]!, curl.slice(1), { env: { PATH: process.env.PATH! } });
    if (stdout !== `Behind agent-${id}`) throw new Error(`agent ${id}: ${stdout}${stderr}`);
  }
}

/** A web server on an agent's loopback, as a program. */
const page = (service: string) =>
  `import { createServer } from "node:http"; createServer((_, r) => r.end("Behind ${service}")).listen(8080, "127.0.0.1");`;

/** nginx with a configuration of deploy/, which finds the other services by name. */
function nginx(root: Folder, hosts: string, name: string): string[] {
  const text = readFileSync(join(ROOT, "deploy", "nginx", name), "utf8");
  const file = root.write(name, `${existsSync(STREAM_MODULE) ? `load_module ${STREAM_MODULE};\n` : ""}${text}`);
  const args = ["-e", "stderr", "-p", root.path, "-c", file, "-g", `daemon off; pid ${root.path}/${name}.pid;`];
  return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, NGINX, ...args];
}

/** The folders `certs` and `jwt` of the compose files. */
async function makeFiles(target: TargetName, root: Folder): Promise<void> {
  const authority = await makeAuthority();
  const server = await authority.issue({ names: ["proxy", "proxy-lb"] });
  mkdirSync(join(root.path, "certs"));
  root.write("certs/ca.pem", authority.cert);
  root.write("certs/proxy.pem", server.cert);
  chmodSync(root.write("certs/proxy-key.pem", server.key), 0o600);
  const cwd = join(root.path, "jwt");
  mkdirSync(cwd);
  const [file = "", ...words] = inPlace(target, cwd).command("reverse-http");
  const auth = async (...args: string[]) => {
    const { exitCode, stderr } = await runToEnd(file, [...words, "auth", ...args], { cwd });
    if (exitCode !== 0) throw new Error(`Cannot make keys and tokens: ${stderr}`);
  };
  await auth("key", "private");
  await auth("key", "public");
  for (const role of ["agent", "client"]) {
    for (const id of ["4711", "4712"]) {
      await auth("jwt", "token", "--agent-id", id, "--role", role, "--duration", "1h", "--out", `auth-${role}-jwt-${id}.b64`);
    }
  }
}

/** Network namespaces on one bridge: one for each service, and one for clients. */
class Network implements Disposable {
  static readonly OUTSIDE = "outside";
  readonly addresses: ReadonlyMap<string, string>;
  readonly #namespaces: string[] = [];

  constructor(services: readonly string[]) {
    this.addresses = new Map(services.map((service, i) => [service, `10.0.0.${i + 2}`]));
    const outside = this.#namespace(Network.OUTSIDE);
    try {
      this.#add(outside);
      ip("-n", outside, "link", "add", "bridge", "type", "bridge");
      ip("-n", outside, "address", "add", "10.0.0.1/24", "dev", "bridge");
      ip("-n", outside, "link", "set", "bridge", "up");
      for (const [service, address] of this.addresses) {
        const own = this.#namespace(service);
        const port = `port${this.#namespaces.length}`; // of the bridge: names of interfaces are short
        this.#add(own);
        ip("link", "add", "name", "eth0", "netns", own, "type", "veth", "peer", "name", port, "netns", outside);
        ip("-n", outside, "link", "set", port, "master", "bridge", "up");
        ip("-n", own, "address", "add", `${address}/24`, "dev", "eth0");
        ip("-n", own, "link", "set", "eth0", "up");
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  #namespace(service: string): string {
    return `reverse-http-${process.pid}-${service}`;
  }

  #add(name: string): void {
    ip("netns", "add", name);
    this.#namespaces.push(name);
    ip("-n", name, "link", "set", "lo", "up");
  }

  get hosts(): string {
    return ["127.0.0.1 localhost", ...[...this.addresses].map(([service, address]) => `${address} ${service}`), ""].join("\n");
  }

  /** The command `words` in the namespace of a service. */
  command(service: string, words: readonly string[]): string[] {
    return ["ip", "netns", "exec", this.#namespace(service), ...words];
  }

  [Symbol.dispose](): void {
    for (const name of this.#namespaces) spawnSync("ip", ["netns", "delete", name]);
  }
}

function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync("ip", args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`Cannot make a network: ip ${args.join(" ")}: ${error?.message ?? stderr.trim()}`);
}

class Programs implements AsyncDisposable {
  readonly #programs: Program[] = [];

  start([file = "", ...args]: readonly string[]): Program {
    const program = new Program(file, args, { env: { PATH: `${process.env.PATH}:/usr/sbin`, HOME: "/nonexistent", LOG_FORMAT: "json" } });
    this.#programs.push(program);
    return program;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // stopped, not killed: nginx would leave its workers behind
    for (const program of this.#programs.reverse()) await program.stop();
  }
}
