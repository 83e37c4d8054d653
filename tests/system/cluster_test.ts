// Two proxies and a load balancer of one store, as operators see and steer them through any of the three, over HTTPS: with the commands and in
// Chromium.
/// <reference lib="dom" />
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { it } from "node:test";
import { createServer } from "node:tls";
import { chromium } from "playwright-core";
import { silentLogger } from "../../shared/log/logger.ts";
import { ClusterKey } from "../../shared/service/cluster/key.ts";
import { createMemcachedStore } from "../../shared/store/memcached.ts";
import { keyPinOf } from "../../testing/certificates.ts";
import { OPERATOR } from "../../testing/admin_api.ts";
import { CHROMIUM } from "../../testing/chromium.ts";
import { AGENT_ID, REVERSE_HTTP, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

it("operators see and steer two proxies and lb through any of them, and are told which one does not answer", async () => {
  await using memcached = await StoreServer.start("memcached");
  await using origin = await Origin.start();
  await using site = await Site.create();
  const file = (name: string, text: string) => {
    const path = join(site.folder.path, name);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  };
  const identity = await site.authority.issue({ names: ["127.0.0.1"] });
  const [cert, key] = [file("admin.pem", identity.cert), file("admin-key.pem", identity.key)];
  const keyFile = file("cluster-key", `${"k".repeat(64)}\n`);
  const admin = [
    "--admin.listen-address=127.0.0.1:0",
    `--admin.tls.file.cert=${cert}`,
    `--admin.tls.file.key=${key}`,
    `--admin.token-file=${file("admin-tokens", `operator anna ${OPERATOR}\n`)}`,
    `--admin.cluster.key-file=${keyFile}`,
  ];
  const store = storeArgs(memcached);
  const proxyArgs = [...admin, ...store, "--store.ttl=3s", "--http-proxy.trusted-proxies=127.0.0.1"];
  const [one, two] = [await site.startProxy(proxyArgs), await site.startProxy(proxyArgs)];
  const { lb, clients } = await site.startLb(memcached, admin);
  const addressOf = async (program: typeof lb) => String((await program.waitFor("listening")).admin);
  const members = [await addressOf(one.proxy), await addressOf(two.proxy), await addressOf(lb)] as const;
  await site.startAgent(one.addresses, ["--agent-client.labels=site=berlin"], "site1");
  await site.startAgent(two.addresses);
  const token = file("token", OPERATOR);
  const run = async (member: string, ...args: string[]) =>
    await runToEnd(REVERSE_HTTP, [
      ...args,
      "--cluster",
      `--admin=https://${member}`,
      `--admin-root-ca=${site.files.ca}`,
      `--admin-token=file:${token}`,
    ]);
  const untilSays = async (said: RegExp, ask: () => Promise<{ stderr: string }>) => {
    while (!said.test((await ask()).stderr));
  };
  const until = async (found: RegExp, ask: () => Promise<{ stdout: string }>) => {
    for (;;) {
      const { stdout } = await ask();
      if (found.test(stdout)) return;
    }
  };
  for (const member of members) await until(/^members +3; at/m, () => run(member, "status"));
  using client = await openTunnel(clients, origin.authority);
  await origin.accept();
  // which agents are where?
  for (const member of members) {
    const { stdout, stderr, exitCode } = await run(member, "agents");
    assert.deepEqual([exitCode, stderr], [0, ""]);
    const places = stdout.trim().split("\n").slice(1).map((line) => line.split(/ {2,}/).slice(0, 2));
    assert.deepEqual(places, [[AGENT_ID, members[1]], ["site1", members[0]]]);
  }
  // who uses the agent, and how much? Through lb, the client's own address is known.
  const { stdout: tunnels } = await run(members[0], "tunnels", `--agent=${AGENT_ID}`, "--json");
  const { items: [tunnel], total } = JSON.parse(tunnels);
  assert.deepEqual([total, tunnel.member, tunnel.client.split(":")[0]], [1, members[1], "127.0.0.1"]);
  // cut it, through a proxy that does not hold it
  const { stdout: closed } = await run(members[0], "tunnels", `--close=${tunnel.id}`);
  assert.equal(closed, "1 tunnel closed");
  assert.equal(await client.ending(), "ECONNRESET");
  await two.proxy.waitFor("operator action", { by: "anna", action: "close-tunnel", through: members[0] });
  // another service at the address of a member is none: it has another key
  const impostor = createServer({ cert: identity.cert, key: identity.key }, (socket) => socket.destroy()).listen(0, "127.0.0.1");
  await once(impostor, "listening");
  const address = `127.0.0.1:${(impostor.address() as AddressInfo).port}`;
  const pin = keyPinOf((await site.authority.issue({ names: ["127.0.0.1"] })).cert);
  const entry = await (await ClusterKey.open(keyFile, silentLogger)).signMember({ address, service: "proxy", host: "other", pin });
  const entries = createMemcachedStore({ addresses: [memcached.address], timeoutMs: 1_000, ttlMs: 60_000 });
  await entries.set("reverse-http member 60", entry);
  await untilSays(/did not answer: it does not speak TLS with the key of its entry/, () => run(members[0], "agents"));
  await entries.set("reverse-http member 60", "");
  entries.close();
  impostor.close();
  // a key is replaced: the others learn it from the store
  const renewed = await site.authority.issue({ names: ["127.0.0.1"] });
  file("admin-key.pem", renewed.key);
  file("admin.pem", renewed.cert);
  for (const program of [one.proxy, two.proxy, lb]) {
    program.signal("SIGHUP");
    await program.waitFor("certificates reloaded", { options: "--admin.tls" });
  }
  await untilSays(new RegExp(`^reverse-http: ${address} did not answer: no service listens there\n$`), () => run(members[0], "agents"));
  // one is killed: the others say so, in each list and in the page
  two.proxy.signal("SIGKILL");
  await two.proxy.ended;
  await untilSays(new RegExp(`${members[1]} did not answer: no service listens there\n`), () => run(members[2], "agents"));
  const { stdout } = await run(members[2], "agents");
  assert.match(stdout, /^AGENT +MEMBER .*\nsite1 /);
  const disconnected = await run(members[0], "agents", "--disconnect=site1");
  assert.deepEqual([disconnected.exitCode, disconnected.stdout], [1, "1 connection closed"]);
  assert.match(disconnected.stderr, /2 of 3 members have not done it: .*no service listens there/);
  if (CHROMIUM === undefined) return assert.ok(!process.env.CI || process.platform !== "linux", "chromium is not installed");
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(`https://${members[0]}/#/agents`);
    await page.getByLabel("Token").fill(OPERATOR);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText(`${members[1]} did not answer: no service listens there`).waitFor();
    await page.getByRole("cell", { name: members[0] }).waitFor();
    await page.getByRole("button", { name: "All members" }).click();
    await page.getByRole("columnheader", { name: "Member" }).waitFor({ state: "detached" });
    await page.getByRole("link", { name: "site1" }).waitFor();
  } finally {
    await browser.close();
  }
});
