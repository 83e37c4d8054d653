// The compose files and nginx configurations of deploy/, unchanged: their script creates the files, and the services run as processes.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, readFileSync, statSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { COMPOSE_FILES, COMPOSE_FOLDER, Composition, nginxArgs } from "../../testing/compose.ts";
import { NGINX } from "../../testing/nginx.ts";
import { Folder, ROOT, runToEnd } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const missing = ["/usr/sbin/nginx", "/usr/bin/memcached", "/usr/bin/openssl"].find((file) => spawnSync(file, ["-h"]).error !== undefined);
// on other systems loopback is one address, or has other names
const skip = process.platform !== "linux" || !networkInterfaces().lo
  ? "loopback is one address here"
  : missing && `there is no ${missing} here`;

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

async function check(tunnel: Wire): Promise<void> {
  const word = crypto.randomUUID();
  await tunnel.write(word);
  assert.equal((await tunnel.read(word.length)).toString(), word);
}

/** A folder with the files that the script creates; certificates also for `names`. */
async function makeFiles(names: readonly string[]): Promise<Folder> {
  const folder = new Folder();
  const script = join(folder.path, "make-files.sh");
  cpSync(join(COMPOSE_FOLDER, "make-files.sh"), script);
  const { exitCode, stderr } = await runToEnd(script, names, { env: { PATH: `${join(ROOT, "dist")}:/usr/bin:/bin`, HOME: folder.path } });
  assert.equal(exitCode, 0, stderr);
  return folder;
}

/** Opens a tunnel right after the start, when the agent may not be in the store yet. */
async function openSoon(...[clients, authority, options]: Parameters<typeof openTunnel>): Promise<Wire> {
  const deadline = performance.now() + 15_000;
  for (;;) {
    try {
      return await openTunnel(clients, authority, options);
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

const addressesOf = (network: string) => Array.from({ length: 12 }, (_, i) => `${network}${i + 1}`);

describe("the script that creates files for compose", () => {
  it("creates them readable by their owner only, and keeps existing ones", { skip }, async () => {
    using folder = await makeFiles(["proxy.example", "192.0.2.1", "2001:db8::1"]);
    const read = (name: string) => readFileSync(join(folder.path, name), "utf8");
    for (const file of ["certs/proxy-key.pem", "private/ca-key.pem", "private/auth-key-private.pem", "jwt/auth-client-jwt-4712.b64"]) {
      assert.equal(statSync(join(folder.path, file)).mode & 0o077, 0, file);
    }
    const { stdout } = await runToEnd("/usr/bin/openssl", ["x509", "-in", join(folder.path, "certs/proxy.pem"), "-noout", "-text"]);
    for (const name of ["DNS:proxy-lb", "DNS:proxy.example", "IP Address:192.0.2.1", "IP Address:2001:DB8:0:0:0:0:0:1"]) {
      assert.ok(stdout.includes(name), stdout);
    }
    const before = read("certs/proxy.pem") + read("jwt/auth-agent-jwt-4711.b64");
    const env = { PATH: `${join(ROOT, "dist")}:/usr/bin:/bin`, HOME: folder.path };
    assert.equal((await runToEnd(join(folder.path, "make-files.sh"), [], { env })).exitCode, 0);
    assert.equal(read("certs/proxy.pem") + read("jwt/auth-agent-jwt-4711.b64"), before);
  });
});

describe("the compose files", () => {
  for (const name of COMPOSE_FILES) {
    it(`connect clients through ${name} to both agents, and keep half-closed tunnels`, { skip }, async () => {
      const network = Composition.newNetwork();
      using files = await makeFiles(addressesOf(network));
      await using origin = await Origin.start(echo);
      await using composition = await Composition.start(name, { files: files.path, network });
      for (const id of ["4711", "4712"]) {
        const token = name === "jwt" ? readFileSync(join(files.path, `jwt/auth-client-jwt-${id}.b64`), "utf8") : "any";
        using tunnel = await openSoon(composition.published("3128"), origin.authority, { id, password: token });
        await check(tunnel);
        tunnel.finish("the last");
        assert.equal((await tunnel.readAll()).toString(), "the last");
      }
      const { status } = await ask(composition.published("3128"), connectHead(origin.authority, "4713"));
      assert.equal(status, name === "jwt" ? 407 : 502);
    });
  }
});

interface Balanced {
  readonly composition: Composition;
  readonly origin: Origin;
  /** The address of clients. */
  readonly clients: string;
  /** Of the agents. */
  readonly ids: string[];
}

/** Starts proxies and load balancers behind nginx, and so many agents that not all of them reach the same proxy by chance. */
async function withBalancers(body: (balanced: Balanced) => Promise<void>): Promise<void> {
  const network = Composition.newNetwork();
  using files = await makeFiles(addressesOf(network));
  await using origin = await Origin.start(echo);
  await using composition = await Composition.start("ha", { files: files.path, network });
  const others = ["a", "b", "c", "d", "e", "f"];
  for (const id of others) await composition.startAgent(id);
  await body({ composition, origin, clients: composition.published("3128"), ids: ["4711", "4712", ...others] });
}

describe("nginx in front of proxies and load balancers", () => {
  it("can be reloaded without losing an agent or a tunnel", { skip }, () =>
    withBalancers(async ({ composition, origin, clients, ids }) => {
      const tunnels = await Promise.all(ids.map((id) => openSoon(clients, origin.authority, { id })));
      for (const balancer of ["proxy-lb", "http-proxy"]) {
        const nginx = composition.program(balancer);
        nginx.signal("SIGHUP");
        await nginx.waitForText("reconfiguring");
        await nginx.waitForText("gracefully shutting down");
        await Promise.all(tunnels.map(check));
      }
      // the agents' connections are those of the beginning
      for (const id of ids) assert.equal(composition.program(`agent-${id}`).logged("connected").length, 1, id);
      for (const tunnel of tunnels) tunnel[Symbol.dispose]();
    }));

  it(
    "allows a restart of both proxies, one after the other, without cutting a tunnel or failing a request",
    { skip },
    () =>
      withBalancers(async ({ composition, origin, clients, ids }) => {
        for (const service of ["proxy-1", "proxy-2"]) {
          const proxy = composition.program(service);
          // nginx chooses the proxy of each agent: this one must have an agent, and so a tunnel
          const held = () => proxy.logged("agent connected").length - proxy.logged("agent disconnected").length;
          for (let more = 0; held() === 0; more++) {
            assert.ok(more < 50, "nginx brings no agent to this proxy");
            ids.push(`${service}-${more}`);
            await composition.startAgent(ids.at(-1)!);
          }
          const tunnels = await Promise.all(ids.map((id) => openSoon(clients, origin.authority, { id })));
          proxy.signal("SIGTERM");
          await proxy.waitFor("draining");
          let over = false;
          void proxy.ended.then(() => over = true);
          const agents = ids.map((id) => composition.program(`agent-${id}`));
          const settled = () =>
            agents.every(({ entries }) =>
              entries.findLast(({ message }) => /^(re)?connect(ed|ing)$/.test(message))?.message === "connected"
            );
          // until all agents are where they go, and beyond
          for (let round = 0; round < 10 || !settled(); round++) {
            for (const id of ids) {
              using tunnel = await openTunnel(clients, origin.authority, { id });
              await check(tunnel);
              tunnel.finish();
              await tunnel.readAll();
            }
            await Promise.all(tunnels.map(check));
          }
          assert.equal(over, false, "it has not waited for its tunnels");
          for (const tunnel of tunnels) {
            tunnel.finish();
            assert.equal((await tunnel.readAll()).length, 0);
            tunnel[Symbol.dispose]();
          }
          assert.equal((await proxy.ended).exitCode, 0);
          await composition.restart(service);
        }
        assert.ok(ids.some((id) => composition.program(`agent-${id}`).logged("reconnecting").length > 0), "no agent had to move");
      }),
  );

  it("has configurations that nginx accepts unchanged", { skip }, async () => {
    using folder = new Folder();
    // names of services cannot be resolved here
    for (const name of ["agents", "clients"]) {
      const text = readFileSync(join(ROOT, "deploy", "nginx", `${name}.conf`), "utf8").replace(/^(\s*server )[\w-]+:/gm, "$1127.0.0.1:");
      const file = folder.write(`${name}.conf`, text.replace(/^(\s*listen )\d+/gm, "$1127.0.0.1:1"));
      const { exitCode, stderr } = await runToEnd(NGINX, ["-t", ...nginxArgs(folder.path, file, `${folder.path}/pid`)]);
      assert.equal(exitCode, 0, stderr);
      assert.doesNotMatch(stderr, /\[(warn|emerg|crit)\]/);
    }
  });
});
