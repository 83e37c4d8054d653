// Agents that know their proxy by the pin of its public key: a renewed certificate, and another key that was announced before it was used.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { it } from "node:test";
import { keyPinOf } from "../../shared/tls/trust.ts";
import { AGENT, runToEnd, Site } from "../../testing/programs.ts";

it("an agent stores the announced key of its proxy, and knows it by that after the change, which others do not", async () => {
  await using site = await Site.create();
  const [first, next] = await Promise.all([site.authority.issue({ names: ["localhost"] }), site.authority.issue({ names: ["localhost"] })]);
  const file = (name: string, text: string) => site.folder.write(name, text);
  const [cert, key] = [file("own.pem", first.cert), file("own-key.pem", first.key)];
  const pin = keyPinOf(new X509Certificate(first.cert));
  const { proxy, addresses } = await site.startProxy([
    `--agent-server.tls.file.cert=${cert}`,
    `--agent-server.tls.file.key=${key}`,
    "--agent-server.tls.refresh=100ms",
  ]);
  const agentArgs = (directory: string) => {
    mkdirSync(join(site.folder.path, directory), { recursive: true });
    return [
      ...site.agentArgs(addresses, directory).filter((arg) => !arg.includes("root-ca")),
      `--agent-client.tls.pin-sha256=${pin}`,
      `--state-dir=${join(site.folder.path, directory)}`,
    ];
  };
  const connect = async (directory: string) => {
    const agent = site.start(AGENT, agentArgs(directory));
    await agent.waitFor("connected");
    return agent;
  };
  const told = await connect("told");
  // the operator has another key, and says so while the agent is connected
  await proxy.stop();
  const again = await site.startProxy([
    `--agent-server.tls.file.cert=${cert}`,
    `--agent-server.tls.file.key=${key}`,
    `--agent-server.tls.file.next-cert=${file("next.pem", first.cert)}`, // the same key is nothing new
    "--agent-server.tls.refresh=100ms",
  ], addresses);
  await told.waitFor("connected", {}, 2);
  file("next.pem", next.cert);
  const { pins } = await told.waitFor("the proxy has announced its next key");
  assert.equal(pins, keyPinOf(new X509Certificate(next.cert)));
  await told.stop();
  writeFileSync(key, next.key);
  writeFileSync(cert, next.cert);
  process.kill(again.proxy.pid, "SIGHUP");
  await again.proxy.waitFor("certificates reloaded", { options: "--agent-server.tls" });
  await connect("told");
  const check = await runToEnd(AGENT, [...agentArgs("told"), "--check-link"]);
  assert.equal(check.exitCode, 0, check.stdout);
  const other = site.start(AGENT, agentArgs("not-told"));
  const { reason } = await other.waitFor("not connected");
  assert.match(String(reason), /that is not the pinned one/);
});
