// People with the compiled executables: identity providers and a policy of the proxy, and the commands that show what is permitted.
import assert from "node:assert/strict";
import { readFileSync, renameSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { it } from "node:test";
import { bcrypt } from "hash-wasm";
import { decodeJwt } from "jose";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";

const PASSWORD = "correct horse";

function policyFor(subjects: readonly string[]): string {
  return `rules:\n  - allow: people\n    subjects: ${JSON.stringify(subjects)}\n    agents: ["47*"]\n    labels: [site=hq]\n`;
}

it("people of an issuer, a file of users and a webhook reach what the policy allows, until it changes", async () => {
  await using site = await Site.create();
  await using issuer = await OidcIssuer.start();
  await using origin = await Origin.start();
  const hash = await bcrypt({ password: PASSWORD, salt: new Uint8Array(16), costFactor: 6, outputType: "encoded" });
  const users = site.folder.write("users", `bob:${hash}\n`);
  const policy = site.folder.write("policy.yaml", policyFor(["group:ops", "name:bob", "name:carol"]));
  const hook = createServer((_, response) => void response.end(JSON.stringify({ name: "carol", maxAge: 60 })));
  await new Promise<void>((resolve) => hook.listen(0, "127.0.0.1", resolve));
  const { proxy, addresses } = await site.startProxy([
    "--auth.clients=oidc,htpasswd,webhook",
    `--auth.oidc.issuer=${issuer.url}`,
    "--auth.oidc.audience=proxy",
    `--auth.htpasswd.file=${users}`,
    `--auth.webhook.url=http://127.0.0.1:${(hook.address() as AddressInfo).port}/`,
    `--auth.policy-file=${policy}`,
  ]);
  await site.startAgent(addresses, ["--agent-client.labels=site=hq"]);
  const status = async (id: string, password: string) => (await ask(addresses.clients, connectHead(origin.authority, id, password))).status;

  const token = await issuer.sign();
  using alice = await openTunnel(addresses.clients, origin.authority, { password: token });
  await origin.accept();
  using bob = await openTunnel(addresses.clients, origin.authority, { id: "bob#4711", password: PASSWORD });
  await origin.accept();
  using carol = await openTunnel(addresses.clients, origin.authority, { id: "carol#4711", password: "any" });
  await origin.accept();
  assert.equal(await status("4711", await issuer.sign({ groups: ["sales"] })), 403);
  const refused = await proxy.waitFor("request", { status: 403 });
  assert.deepEqual([refused.sub, refused.name, refused.groups], ["u-1", "alice", "sales"]);
  assert.match(String(refused.reason), /no rule of .*policy.yaml allows it/);

  const change = (text: string, name: string) => renameSync(site.folder.write(`${name}.new`, text), join(site.folder.path, name));
  change(policyFor(["name:bob", "name:carol"]), "policy.yaml");
  await alice.ending();
  const ended = await proxy.waitFor("request", { name: "alice", status: 200 });
  assert.match(String(ended.reason), /^The policy no longer allows it/);
  change("", "users");
  await bob.ending();
  carol.finish();
  hook.closeAllConnections();
  hook.close();
});

it("policy test and explain say what a policy decides, by which rule", async () => {
  await using site = await Site.create();
  await using issuer = await OidcIssuer.start();
  const file = site.folder.write("policy.yaml", `${policyFor(["group:ops"])}  - deny: ssh\n    destinations: ["0.0.0.0/0:22"]\n`);
  const run = async (...args: string[]) => {
    const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["policy", ...args, `--auth.policy-file=${file}`]);
    return { exitCode, text: `${stdout}${stderr}`.replaceAll(file, "policy.yaml").trim() };
  };
  const token = site.folder.write("token", await issuer.sign());
  const where = ["--agent=4711", "--labels=site=hq"];
  assert.deepEqual(await run("test"), { exitCode: 0, text: "policy.yaml: 2 rules, all tests pass" });
  assert.deepEqual(await run("test", `--as=file:${token}`, ...where, "--to=db:5432"), {
    exitCode: 0,
    text: 'allowed: rule "people" (policy.yaml:2)',
  });
  const { exitCode, text } = await run("test", "--as=group:ops", ...where, "--to=10.0.0.1:22");
  assert.equal(exitCode, 1);
  assert.match(text, /denied: rule "ssh" \(policy.yaml:6\)/);
  const explained = await run("explain", "--as=group:ops", "--agent=4711", "--to=db:5432");
  assert.equal(explained.exitCode, 0);
  assert.deepEqual(explained.text.split("\n"), [
    "policy.yaml:2: allow people: not for these labels",
    "policy.yaml:6: deny ssh: not for these destinations",
    "denied: no rule of policy.yaml allows it",
  ]);
});

it("auth jwt show and renew say and extend what a token permits", async () => {
  await using site = await Site.create();
  const run = async (...args: string[]) => {
    const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: site.folder.path });
    assert.equal(exitCode, 0, stderr);
    return stdout;
  };
  await run("key", "private");
  await run("jwt", "token", "--agents=site-*,hq", "--name=Alice Smith", "--allow=db:5432", "--out=a.jwt");
  assert.match(await run("jwt", "show", "a.jwt"), /^verified: no, there is no public key; --key names one\n/);
  await run("key", "public");
  const shown = await run("jwt", "show", "a.jwt");
  assert.match(
    shown,
    /^verified: yes\nrole: {5}client\nname: {5}Alice Smith\nagents: {3}site-\*, hq\nallow: {4}db:5432\njti: {6}[\w-]{36}\n/,
  );
  await run("jwt", "renew", "--token=a.jwt", "--out=b.jwt", "--duration=720h");
  const [old, renewed] = ["a.jwt", "b.jwt"].map((name) => decodeJwt(readFileSync(join(site.folder.path, name), "utf8")));
  assert.notEqual(old!.jti, renewed!.jti);
  assert.equal(renewed!.exp! - renewed!.iat!, 720 * 3600);
  assert.deepEqual([renewed!.name, renewed!.agents, renewed!.allow], [old!.name, old!.agents, old!.allow]);
  const other = await runToEnd(REVERSE_HTTP, ["auth", "key", "private", "--out=other.pem"], { cwd: site.folder.path });
  assert.equal(other.exitCode, 0);
  const foreign = await runToEnd(REVERSE_HTTP, ["auth", "jwt", "renew", "--token=a.jwt", "--in=other.pem", "--out=c.jwt"], {
    cwd: site.folder.path,
  });
  assert.equal(foreign.exitCode, 2);
  assert.match(foreign.stderr, /another key has signed it/);
});
