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

it("clients with certificates are known by them beside those with passwords, at the proxy and at a web site", async () => {
  await using site = await Site.create();
  const certificates: (string | undefined)[] = []; // as the origin gets them
  const origin = createServer(({ headers }, response) => {
    certificates.push(headers["client-cert"] as string | undefined);
    response.end("ok");
  });
  await new Promise<void>((resolve) => origin.listen(0, "127.0.0.1", resolve));
  const to = `127.0.0.1:${(origin.address() as AddressInfo).port}`;
  const hash = await bcrypt({ password: PASSWORD, salt: new Uint8Array(16), costFactor: 6, outputType: "encoded" });
  const { proxy, addresses } = await site.startProxy([
    "--http-proxy.tls.enable",
    `--http-proxy.tls.file.cert=${site.files.cert}`,
    `--http-proxy.tls.file.key=${site.files.key}`,
    `--http-proxy.tls.file.client-ca=${site.files.ca}`,
    "--http-proxy.tls.client-auth=optional",
    "--auth.clients=htpasswd,mtls",
    `--auth.htpasswd.file=${site.folder.write("users", `bob:${hash}\n`)}`,
    `--auth.policy-file=${site.folder.write("policy.yaml", `rules:\n  - allow: dba\n    subjects: ["group:dba", "name:bob"]\n`)}`,
    `--forward=listen=127.0.0.1:0,network=https,agent=4711,to=${to},auth=mtls`,
  ]);
  await site.startAgent(addresses);
  const webSite = String((await proxy.waitFor("forwarding")).clients).split(":").at(-1);
  const issue = async (name: string, unit: string) => {
    const { cert, key } = await site.authority.issue({ names: [], commonName: name, units: [unit] });
    return [site.folder.write(`${name}.pem`, cert), site.folder.write(`${name}-key.pem`, key)] as const;
  };
  const [alice, mallory] = [await issue("alice", "dba"), await issue("mallory", "sales")];
  const statuses = async (...args: string[]) => {
    const common = ["-sS", "-o", "/dev/null", "-w", "%{http_connect} %{http_code}", "--cacert", site.files.ca];
    return (await runToEnd("/usr/bin/curl", [...common, ...args])).stdout;
  };
  const connect = (user: string, [cert, key]: readonly [string?, string?] = []) => {
    const proxyArgs = ["--proxytunnel", "--proxy", `https://${addresses.clients}`, "--proxy-cacert", site.files.ca, "--proxy-user", user];
    return statuses(...proxyArgs, ...cert ? ["--proxy-cert", cert, "--proxy-key", key!] : [], `http://${to}/`);
  };
  assert.equal(await connect("4711:", alice), "200 200");
  const known = await proxy.waitFor("request", { sub: "alice" });
  assert.deepEqual([known.groups, String(known.jti).length], ["dba", "sha256:".length + 64]);
  assert.match(await connect("4711:", mallory), /^403/);
  assert.equal(await connect(`bob#4711:${PASSWORD}`), "200 200");
  assert.match(await connect("4711:"), /^407/);

  const visit = (...args: string[]) => statuses("-H", "Client-Cert: :Zm9yZ2Vk:", ...args, `https://localhost:${webSite}/`);
  assert.equal(await visit("--cert", alice[0], "--key", alice[1]), "000 200");
  const der = readFileSync(alice[0], "latin1").replace(/-----.*-----|\s/g, "");
  assert.deepEqual(certificates, [undefined, undefined, `:${der}:`]);
  await proxy.waitFor("request", { method: "GET", sub: "alice", groups: "dba", status: 200, agent: "4711" });
  assert.equal(await visit("--cert", mallory[0], "--key", mallory[1]), "000 403");
  assert.equal(await visit(), "000 403");
  origin.closeAllConnections();
  origin.close();
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
  const said = await run("jwt", "renew", "--token=a.jwt", "--out=b.jwt", "--duration=720h");
  assert.match(said, /^jti [\w-]{36}, expires \S+Z\nthe old one stays valid until \S+Z, unless its jti [\w-]{36} is revoked$/);
  const [old, renewed] = ["a.jwt", "b.jwt"].map((name) => decodeJwt(readFileSync(join(site.folder.path, name), "utf8")));
  assert.notEqual(old!.jti, renewed!.jti);
  assert.equal(renewed!.exp! - renewed!.iat!, 720 * 3600);
  assert.deepEqual([renewed!.name, renewed!.agents, renewed!.allow], [old!.name, old!.agents, old!.allow]);
  await run("jwt", "operator", "--name=anna", "--role=operator");
  assert.match(
    await run("jwt", "show", "operator.jwt"),
    /^verified: yes\nrole: {5}operator\nsubject: {2}anna\njti: .*\nfrom: .*\nuntil: .*$/,
  );
  assert.match(await run("jwt", "renew", "--token=operator.jwt", "--out=operator2.jwt"), /\nthe old one stays valid until \S+Z$/);
  await run("ticket", "--agent-id=hq");
  assert.match(await run("jwt", "show", "ticket.txt"), /^verified: no: a ticket has no agent id; .*\njti: {6}[\w-]{36}\nuntil: {4}\S+Z$/);
  const other = await runToEnd(REVERSE_HTTP, ["auth", "key", "private", "--out=other.pem"], { cwd: site.folder.path });
  assert.equal(other.exitCode, 0);
  const foreign = await runToEnd(REVERSE_HTTP, ["auth", "jwt", "renew", "--token=a.jwt", "--in=other.pem", "--out=c.jwt"], {
    cwd: site.folder.path,
  });
  assert.equal(foreign.exitCode, 2);
  assert.match(foreign.stderr, /another key has signed it/);
});
