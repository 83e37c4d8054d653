// Looks at what `deno task build --target …` has made before it ships. What can run here is started, and a page fetched through it: as it
// stands, and in an empty root with a read-only file system; arm64 under qemu-user where the machine is another. The rest is inspected.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, realpathSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { makeAuthority } from "../tests/support/certificates.ts";
import { AGENT_ID, Folder, Program, runToEnd, writeCertificates } from "../tests/support/processes.ts";
import { EXECUTABLES, ROOT } from "./executables.ts";
import { readMachO } from "./macho.ts";
import { hostTarget, parseTargets, type TargetName, TARGETS } from "./targets.ts";

const PAGE = "Hello from a server that only the agent can reach!";
/** What glibc programs load, and the image has. */
const LIBRARIES = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
const LINUX = {
  "linux-x64": {
    loader: "/lib64/ld-linux-x86-64.so.2",
    from: "/lib/x86_64-linux-gnu",
    to: "/lib/x86_64-linux-gnu",
    qemu: "qemu-x86_64-static",
  },
  "linux-arm64": { loader: "/lib/ld-linux-aarch64.so.1", from: "/lib/aarch64-linux-gnu", to: "/lib", qemu: "qemu-aarch64-static" },
} as const;
const FOREIGN_ROOT: Record<keyof typeof LINUX, string> = { "linux-x64": "/usr/x86_64-linux-gnu", "linux-arm64": "/usr/aarch64-linux-gnu" };

/** A way to start an executable of a target: the words before its arguments. `folder` is where it sees the certificates. */
interface Place {
  command(name: string): string[];
  readonly folder: string;
}

let failed = 0;
let passed = 0;

async function check(what: string, run: () => void | Promise<void>): Promise<void> {
  const started = performance.now();
  try {
    await run();
    passed++;
    console.log(`ok   ${what} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed++;
    console.log(`FAIL ${what}: ${error instanceof Error ? error.message : error}`);
  }
}

/** CONNECT and GET at a proxy: all that comes back. */
function fetchThrough(proxy: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(proxy.split(":").at(-1)), "127.0.0.1");
    const credentials = Buffer.from(`${AGENT_ID}:x`).toString("base64");
    socket.write(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
    socket.write(`GET / HTTP/1.0\r\n\r\n`);
    let text = "";
    socket.on("data", (data) => text += data).on("end", () => resolve(text)).on("error", reject);
  });
}

/** Proxy and agent, each a process in `place`, and a page through them. */
async function fetchPage(place: Place, [proxyName, agentName]: [string[], string[]]): Promise<void> {
  const origin = createServer((_, response) => void response.end(PAGE));
  await new Promise<void>((resolve) => origin.listen(0, "127.0.0.1", resolve));
  try {
    const start = ([name, ...command]: string[], args: string[]) => {
      const [file, ...words] = [...place.command(name!), ...command, ...args, "--log.format=json"];
      return new Program(file!, words, { env: { PATH: process.env.PATH!, HOME: "/nonexistent" } });
    };
    await using proxy = start(proxyName, [
      "--agent-server.listen-address=127.0.0.1:0",
      "--http-proxy.listen-address=127.0.0.1:0",
      `--agent-server.tls.file.cert=${place.folder}/cert.pem`,
      `--agent-server.tls.file.key=${place.folder}/key.pem`,
    ]);
    const { agents, clients } = await proxy.waitFor("listening");
    await using agent = start(agentName, [
      `--agent-client.server-address=${agents}`,
      `--agent-client.tls.file.root-ca=${place.folder}/ca.pem`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
    ]);
    await agent.waitFor("connected");
    const { port } = origin.address() as { port: number };
    const text = await fetchThrough(String(clients), port);
    assert.match(text, /^HTTP\/1\.1 200 /);
    assert.ok(text.endsWith(PAGE), text);
    for (const program of [agent, proxy]) {
      const { exitCode, signal, stderr } = await program.stop();
      assert.equal(exitCode, 0, `stopped with ${exitCode ?? signal}: ${stderr}`);
    }
  } finally {
    origin.close();
  }
}

/** As it stands; where the machine is another, under qemu with that machine's libraries. */
function inPlace(target: TargetName, folder: string): Place {
  const linux = target as keyof typeof LINUX;
  const emulator = target === hostTarget() ? [] : [LINUX[linux].qemu, "-L", FOREIGN_ROOT[linux]];
  return { folder, command: (name) => [...emulator, join(ROOT, "dist", target, name)] };
}

/** In a root that has nothing but glibc and the executable, on a file system that cannot be written to. */
async function inEmptyRoot(target: keyof typeof LINUX, root: Folder): Promise<Place> {
  const { loader, from, to, qemu } = LINUX[target];
  const native = target === hostTarget();
  const libraries = native ? from : join(FOREIGN_ROOT[target], "lib");
  for (const folder of ["proc", "dev", to, loader.slice(0, loader.lastIndexOf("/"))]) {
    mkdirSync(join(root.path, folder), { recursive: true });
  }
  for (const library of LIBRARIES) {
    if (existsSync(join(libraries, library))) copyFileSync(join(libraries, library), join(root.path, to, library));
  }
  copyFileSync(realpathSync(native ? loader : join(libraries, loader.split("/").at(-1)!)), join(root.path, loader));
  cpSync(join(ROOT, "dist", target), root.path, { recursive: true });
  if (!native) copyFileSync(spawnSync("which", [qemu], { encoding: "utf8" }).stdout.trim(), join(root.path, "qemu"));
  await writeCertificates(root, await makeAuthority());
  const script = 'mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && ' +
    'mount -o remount,ro,bind "$0" && ! (: >"$0/writable") 2>/dev/null && exec chroot "$0" "$@"';
  const emulator = native ? [] : ["/qemu"];
  return { folder: "", command: (name) => ["unshare", "--mount", "sh", "-c", script, root.path, ...emulator, `/${name}`] };
}

/** The newest symbols of glibc that a file needs. */
function newestGlibc(file: string): string {
  const { stdout, error } = spawnSync("readelf", ["--version-info", "--wide", file], { encoding: "utf8", maxBuffer: 1 << 28 });
  if (error) throw new Error("there is no readelf: install binutils");
  const versions = [...stdout.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, major, minor]) => [Number(major), Number(minor)] as const);
  return versions.sort((a, b) => a[0] - b[0] || a[1] - b[1]).at(-1)!.join(".");
}

async function verifyLinux(target: keyof typeof LINUX): Promise<void> {
  const built = join(ROOT, "dist", target);
  using folder = new Folder();
  await writeCertificates(folder, await makeAuthority());
  const place = inPlace(target, folder.path);
  for (const name of [...Object.keys(EXECUTABLES), "reverse-http.node"]) {
    await check(`${target} ${name} runs on glibc ${TARGETS[target].oldest}`, () => {
      const newest = newestGlibc(join(built, name));
      const [, minor = "99"] = newest.split(".");
      assert.ok(Number(minor) <= Number(TARGETS[target].oldest.split(".")[1]), `it needs ${newest}`);
    });
  }
  await check(`${target} executables say their version and commit`, async () => {
    for (const name of Object.keys(EXECUTABLES)) {
      const [file, ...args] = place.command(name);
      const { exitCode, stdout, stderr } = await runToEnd(file!, [...args, "version", "-V"], { env: { PATH: process.env.PATH! } });
      assert.equal(exitCode, 0, stderr);
      assert.match(stdout, /"commit":"[0-9a-f]{40}/, `${name}: ${stdout}`);
    }
  });
  const pairs: [string, [string[], string[]]][] = [
    ["reverse-http-proxy and -agent", [["reverse-http-proxy"], ["reverse-http-agent"]]],
    ["reverse-http proxy and agent", [["reverse-http", "proxy"], ["reverse-http", "agent"]]],
  ];
  for (const [what, pair] of pairs) {
    await check(`${target} ${what} bring a page`, () => fetchPage(place, pair));
    await check(`${target} ${what} bring a page from an empty root that is read-only`, async () => {
      if (process.getuid?.() !== 0) throw new Error("only root can make one: run this with sudo");
      using root = new Folder();
      await fetchPage(await inEmptyRoot(target, root), pair);
    });
  }
}

async function verifyDarwin(target: TargetName): Promise<void> {
  const built = join(ROOT, "dist", target);
  const addon = readFileSync(join(built, "reverse-http.node"));
  const { arch, oldest } = TARGETS[target];
  for (const name of [...Object.keys(EXECUTABLES), "reverse-http.node"]) {
    await check(`${target} ${name} is for ${arch}, macOS ${oldest} and later, needs the system's libraries alone, and is signed`, () => {
      const file = readFileSync(join(built, name));
      const found = readMachO(file);
      assert.equal(found.arch, arch);
      assert.ok(Number.parseFloat(found.oldest) <= Number.parseFloat(oldest), `it needs macOS ${found.oldest}`);
      assert.deepEqual(found.libraries.filter((library) => !/^\/(usr\/lib|System\/Library)\//.test(library)), []);
      if (name !== "reverse-http.node") assert.ok(file.includes(addon), "the native engine is not inside");
      if (name !== "reverse-http.node" || arch === "arm64") assert.equal(found.signatureProblem, undefined);
    });
  }
  if (target !== hostTarget()) return console.log(`     ${target} cannot be started on this machine: it was inspected only`);
  using folder = new Folder();
  await writeCertificates(folder, await makeAuthority());
  await check(`${target} codesign accepts all`, () => {
    for (const name of Object.keys(EXECUTABLES)) {
      const { status, stderr } = spawnSync("codesign", ["--verify", "--strict", join(built, name)], { encoding: "utf8" });
      assert.equal(status, 0, stderr);
    }
  });
  const place = inPlace(target, folder.path);
  await check(`${target} brings a page`, () => fetchPage(place, [["reverse-http-proxy"], ["reverse-http-agent"]]));
}

const { values } = parseArgs({ options: { target: { type: "string", multiple: true, default: ["all"] } } });
for (const target of parseTargets(values.target)) {
  if (!existsSync(join(ROOT, "dist", target))) {
    await check(`${target} is built`, () => assert.fail("it is not: run deno task build --target"));
  } else if (target === "linux-x64" || target === "linux-arm64") await verifyLinux(target);
  else await verifyDarwin(target);
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
