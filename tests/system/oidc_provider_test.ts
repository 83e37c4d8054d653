// A real OpenID Connect provider: people who sign in, change groups and sign out, agents with tokens of it, keys that rotate under load, and
// a provider that is down. REVERSE_HTTP_TEST_LOAD=full makes it 10 rotations at 200 clients a second.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { it } from "node:test";
import { decodeJwt, decodeProtectedHeader, generateKeyPair, SignJWT } from "jose";
import { OidcProvider, PEOPLES_CLIENT } from "../../testing/oidc_provider.ts";
import { type Addresses, AGENT, type Program, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { connectHead, dial, openTunnel, Origin } from "../../testing/sockets.ts";

/** Time in milliseconds within which tunnels of a person end who is put out. */
const OFF_BOARDING_MS = 2_000;

/** What `login` shows. */
const CODE_URL = /http\S+user_code=\S+\n/;

interface Company extends AsyncDisposable {
  readonly site: Site;
  readonly provider: OidcProvider;
  readonly proxy: Program;
  readonly addresses: Addresses;
  readonly origin: Origin;
  /** The status for a client with this token. */
  status(token: string): Promise<number>;
}

/** A proxy that knows people from a provider, and `agents` too. */
async function startCompany(agents: "oidc" | "noauth", args: readonly string[] = []): Promise<Company> {
  const stack = new AsyncDisposableStack();
  const site = stack.use(await Site.create());
  const provider = stack.use(await OidcProvider.start({ site7: "secret-of-site-7" }));
  const origin = stack.use(await Origin.start());
  provider.accounts.set("u-1", { name: "alice", groups: ["ops"] });
  provider.accounts.set("u-2", { name: "bob", groups: ["ops"] });
  const { proxy, addresses } = await site.startProxy([
    `--auth.type=${agents}`,
    "--auth.clients=oidc",
    `--auth.oidc.issuer=${provider.url}`,
    ...agents === "oidc" ? ["--auth.oidc.agent-audience=agents"] : [],
    `--auth.oidc.audience=${PEOPLES_CLIENT}`,
    `--auth.oidc.logout-audience=${PEOPLES_CLIENT}`,
    `--auth.jwt.revocation-file=${site.folder.write("revoked", "")}`,
    `--auth.policy-file=${site.folder.write("policy.yaml", `rules:\n  - allow: ops\n    subjects: ["group:ops"]\n`)}`,
    "--auth.jwks.refresh=1s",
    "--auth.jwks.max-stale=1s",
    "--admin.listen-address=127.0.0.1:0",
    ...args,
  ]);
  provider.sendLogoutTo(`http://${(await proxy.waitFor("listening")).admin}/backchannel-logout`);
  const issued = [
    "--auth.type=oidc",
    `--auth.oidc.issuer=${provider.url}`,
    "--auth.oidc.client-id=site7",
    `--auth.oidc.client-secret=file:${site.folder.write("secret", "secret-of-site-7")}`,
  ];
  const common = [
    `--agent-client.server-address=${addresses.agents}`,
    `--agent-client.tls.file.root-ca=${site.files.ca}`,
    "--log.format=json",
  ];
  const agent = site.start(AGENT, [...common, ...agents === "oidc" ? issued : ["--auth.noauth.agent-id=site7"]]);
  await agent.waitFor("connected");
  const status = async (token: string) => {
    using wire = await dial(addresses.clients);
    await wire.write(connectHead(origin.authority, "site7", token));
    return Number((await wire.readUntil("\r\n\r\n")).split(" ")[1]);
  };
  return { site, provider, proxy, addresses, origin, status, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

it("people sign in, lose a group, and sign out at the provider, which ends their tunnels", async () => {
  await using company = await startCompany("oidc");
  const { site, provider, addresses, origin, proxy } = company;
  const client = ["--proxy", addresses.clients, "--issuer", provider.url, "--client-id", PEOPLES_CLIENT, "--agent-id", "site7"];
  const env = { PATH: "/usr/bin:/bin", HOME: site.folder.path };
  const login = spawn(REVERSE_HTTP, ["login", ...client], { env, stdio: ["ignore", "pipe", "inherit"] });
  const alice = provider.browserOf("u-1");
  let said = "";
  for await (const data of login.stdout) {
    const hadUrl = CODE_URL.test(said);
    said += data;
    const [url] = CODE_URL.exec(said) ?? [];
    if (url !== undefined && !hadUrl) await alice.approve(url.trim());
  }
  assert.match(said, /^signed in at http/m);
  const { token } = JSON.parse(readFileSync(join(site.folder.path, ".config/reverse-http/client.session.json"), "utf8"));
  const connect = runToEnd(REVERSE_HTTP, ["connect", origin.authority], { env });
  (await origin.accept()).finish();
  assert.equal((await connect).exitCode, 0);

  using tunnel = await openTunnel(addresses.clients, origin.authority, { id: "site7", password: token });
  await origin.accept();
  const bob = await provider.signIn("u-2");
  using other = await openTunnel(addresses.clients, origin.authority, { id: "site7", password: bob.idToken });
  await origin.accept();
  provider.accounts.set("u-2", { name: "bob", groups: ["sales"] });
  const renewed = await provider.renew(bob.refreshToken);
  assert.equal(await company.status(renewed.idToken), 403);

  const at = performance.now();
  await alice.signOut();
  await tunnel.ending();
  assert.ok(performance.now() - at < OFF_BOARDING_MS, `the tunnel ended after ${performance.now() - at} ms`);
  await proxy.waitFor("operator action", { action: "end-session", by: "issuer", target: "u-1" });
  assert.equal(await company.status(token), 407);
  const again = await provider.signIn("u-1", alice);
  assert.equal(await company.status(again.idToken), 200);
  await other.write("still open");
  assert.match(readFileSync(join(site.folder.path, "revoked"), "utf8"), /^before:\S+ sid:\S+ sub:u-1 # /);
});

/** Clients per second, and rotations. */
const { rate, rotations } = process.env["REVERSE_HTTP_TEST_LOAD"] === "full" ? { rate: 200, rotations: 10 } : { rate: 20, rotations: 1 };

/** Tokens that clients present all the time, half of them valid, until it is stopped. */
class TokenLoad {
  readonly valid: string[] = [];
  readonly invalid: string[] = [];
  /** Statuses that were wrong, and the number of all. */
  readonly wrong: string[] = [];
  readonly counts = { valid: 0, invalid: 0 };
  readonly #pending = new Set<Promise<void>>();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(private readonly status: Company["status"]) {
    let count = 0;
    this.#timer = setInterval(() => {
      const client = this.#present(++count % 2 === 0 ? "valid" : "invalid", count);
      this.#pending.add(client);
      void client.finally(() => this.#pending.delete(client));
    }, 1_000 / rate);
  }

  async #present(kind: "valid" | "invalid", count: number): Promise<void> {
    const tokens = this[kind];
    const token = tokens[count % tokens.length]!;
    const status = await this.status(token).catch((error: Error) => error.message); // a reset
    if (!tokens.includes(token)) return; // it may have ceased to be valid meanwhile
    this.counts[kind]++;
    // 503: its key may be one that is not known yet
    if (!(kind === "valid" ? [200] : [407, 503]).includes(Number(status))) this.wrong.push(`${kind} token: ${status}`);
  }

  /** The token may be one or the other from now on. */
  forget(token: string): void {
    this.valid.splice(this.valid.indexOf(token), 1);
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await Promise.all(this.#pending);
  }
}

it("keys rotate under load without refusing a valid token or accepting an invalid one, and serve for a time without the provider", async () => {
  await using company = await startCompany("noauth", ["--limits.auth-failures=0"]);
  const { provider, proxy, addresses, origin } = company;
  let session = await provider.signIn("u-1");
  const load = new TokenLoad(company.status);
  load.valid.push(session.idToken);
  const forge = async (header: object) => {
    const { privateKey } = await generateKeyPair("ES256");
    const claims = decodeJwt(session.idToken);
    return await new SignJWT(claims).setProtectedHeader({ alg: "ES256", ...header }).sign(privateKey);
  };
  const forged =
    async () => [await forge({ kid: decodeProtectedHeader(session.idToken).kid }), await forge({ kid: "unknown" }), await forge({})];
  load.invalid.push(...await forged());
  let fetched = 0;
  /** The number of the proxy's fetches that added and removed as many keys. */
  const seen = (added: number, removed: number) => {
    const count = proxy.logged("issuer's keys fetched", { added, removed }).length;
    return { next: () => proxy.waitFor("issuer's keys fetched", { added, removed }, count + 1) };
  };
  for (let rotation = 0; rotation < rotations; rotation++) {
    // announced: the key is published before it signs
    const old = session.idToken;
    using before = await openTunnel(addresses.clients, origin.authority, { id: "site7", password: old });
    const added = seen(1, 0);
    await provider.rotate({ isNext: true });
    await added.next();
    provider.useNext();
    session = { ...session, ...await provider.renew(session.refreshToken) };
    load.valid.push(session.idToken);
    load.invalid.push(...await forged());
    using after = await openTunnel(addresses.clients, origin.authority, { id: "site7", password: session.idToken });
    const removed = seen(0, 1);
    load.forget(old);
    provider.removeOld();
    await removed.next();
    load.invalid.push(old);
    await before.ending();
    await after.write("still open");
    fetched++;
  }
  // unannounced: the token is the first to tell
  const demanded = seen(1, 0);
  await provider.rotate();
  session = { ...session, ...await provider.renew(session.refreshToken) };
  let status;
  // strangers' tokens may have caused the last fetch
  while ((status = await company.status(session.idToken)) !== 200) assert.equal(status, 503);
  await demanded.next();
  load.valid.push(session.idToken);
  await load.stop();
  assert.deepEqual(load.wrong, []);
  assert.ok(fetched === rotations && load.counts.valid > 0 && load.counts.invalid > 0, JSON.stringify(load.counts));

  provider.isDown = true;
  const statuses = new Set<number>();
  const until = async (wanted: number) => {
    for (;;) {
      const status = await company.status(session.idToken);
      statuses.add(status);
      if (status === wanted) return;
    }
  };
  await until(200);
  await until(503);
  provider.isDown = false;
  await until(200);
  assert.deepEqual([...statuses].sort(), [200, 503]);
  if (rotations > 1) console.log(`clients with valid tokens: ${load.counts.valid}, with invalid ones: ${load.counts.invalid}`);
});
