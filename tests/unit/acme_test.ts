// Certificates by ACME: orders, challenges, renewal, and what a failure costs.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { proxyOptions } from "../../proxy/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { covers, idOf, renewalTime } from "../../shared/tls/acme/certificate.ts";
import { type AcmeOptions, acmeOptions, checkAcmeOptions } from "../../shared/tls/acme/options.ts";
import { type Authority, Orderer, type OrdererOptions } from "../../shared/tls/acme/orderer.ts";
import { checkCommand, createCommandSolver, HttpSolver, type SharedStore } from "../../shared/tls/acme/solvers.ts";
import { AcmeClient, dnsValueOf, type ExternalAccount, type Solver } from "../../shared/tls/acme/client.ts";
import { openAcme } from "../../shared/service/acme.ts";
import { Lease } from "../../shared/tls/acme/lease.ts";
import { AcmeState } from "../../shared/tls/acme/state.ts";
import { type AcmeBehaviour, AcmeServer } from "../../testing/acme_server.ts";
import { ask, LogBook, withNet } from "../../testing/network.ts";
import { eventually, Folder } from "../../testing/programs.ts";

const DAY_MS = 86_400_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const FAILED = "certificate cannot be obtained";

const NONE: AcmeOptions = withDefaults(proxyOptions, { acme: { directory: "https://authority.example/directory" } }).acme;

interface StartOptions extends Partial<Pick<OrdererOptions, "names" | "email" | "sync" | "allowed">> {
  readonly profile?: string;
  readonly external?: ExternalAccount;
  /** Further authorities. */
  readonly others?: readonly Authority[];
}

/** An orderer, its authority, and a clock that the test sets. */
class Setting {
  readonly log = new LogBook();
  readonly folder = new Folder();
  readonly http: HttpSolver;
  readonly problems: (string | undefined)[] = [];
  readonly outcomes: string[] = [];
  now = Date.now();
  lifetimeMs = 90 * DAY_MS;
  server!: AcmeServer;
  state!: AcmeState;
  #orderer?: Orderer;
  #running?: Promise<void>;
  #stopping = new AbortController();

  constructor(readonly shared?: SharedStore) {
    this.http = new HttpSolver(this.log, shared);
  }

  static async open(behaviour: Partial<AcmeBehaviour> = {}, shared?: SharedStore): Promise<Setting> {
    const setting = new Setting(shared);
    setting.server = await AcmeServer.start({
      look: ({ token }) => setting.http.answer(`/.well-known/acme-challenge/${token}`),
      validity: () => ({ notBefore: new Date(setting.now), notAfter: new Date(setting.now + setting.lifetimeMs) }),
      ...behaviour,
    });
    setting.state = new AcmeState(setting.folder.path, setting.server.directory);
    await setting.state.open();
    return setting;
  }

  start(options: StartOptions = {}, solver: Solver = this.http): void {
    const { names = ["proxy.example"], email, profile, external, others = [], ...rest } = options;
    this.#stopping = new AbortController();
    const { directory, ca } = this.server;
    this.#orderer = new Orderer({
      names,
      email,
      authorities: [{ directory, ca, profile, external, state: this.state }, ...others],
      state: this.state,
      solver,
      lease: new Lease(this.state.authority, this.log, this.shared),
      log: this.log,
      ...rest,
      signal: this.#stopping.signal,
      onState: (problem) => void this.problems.push(problem),
      onOrder: (outcome) => void this.outcomes.push(outcome),
      onCertificate: () => Promise.resolve(),
      now: () => this.now,
    });
    this.#running = this.#orderer.run();
  }

  retry(): void {
    this.#orderer!.retry();
  }

  /** Starts again at the same time. */
  async restart(options?: StartOptions): Promise<void> {
    await this.stop();
    this.start(options);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  get certificate(): X509Certificate {
    return new X509Certificate(readFileSync(this.state.certificateFile));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.server.close();
    this.folder[Symbol.dispose]();
  }
}

const issued = (setting: Setting, count = 1) => setting.log.waitFor("certificate issued", {}, count);

describe("a certificate by ACME", () => {
  it("is ordered with an account, stored for this user only, and used again after a restart", async () => {
    await using setting = await Setting.open();
    setting.start({ email: "ops@example.com", profile: "shortlived", names: ["proxy.example", "www.proxy.example"] });
    await issued(setting);
    const { certificate, server, state } = setting;
    assert.ok(covers(certificate, ["proxy.example", "www.proxy.example"]));
    assert.deepEqual(server.accounts.map(({ payload }) => payload), [{ termsOfServiceAgreed: true, contact: ["mailto:ops@example.com"] }]);
    assert.equal(server.orders[0]!.payload.profile, "shortlived");
    assert.equal(setting.log.logged("ordering a certificate")[0]!.agreedTerms, "https://authority.example/terms");
    assert.ok(server.badNonces > 0, "No nonce was refused");
    const folder = join(state.certificateFile, "..");
    for (const file of readdirSync(folder)) assert.equal(statSync(join(folder, file)).mode & 0o777, 0o600, file);
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    await setting.restart({ names: ["proxy.example", "www.proxy.example"] });
    await setting.stop();
    assert.equal(server.orders.length, 1);
    assert.deepEqual(setting.problems.at(-1), undefined);
    assert.equal(setting.problems[0], "the authority has not issued a certificate yet");
  });

  it("is renewed after two thirds of its lifetime with the same key, and a short-lived one after half", async () => {
    await using setting = await Setting.open();
    setting.start();
    await issued(setting);
    const first = setting.certificate;
    await setting.stop();
    const seen = setting.problems.length;
    setting.now += 59 * DAY_MS;
    setting.start();
    await eventually(() => setting.problems.length > seen, () => "It has taken no step");
    await setting.stop();
    assert.equal(setting.server.orders.length, 1);
    setting.now += 2 * DAY_MS;
    setting.lifetimeMs = 160 * 3_600_000;
    setting.start();
    await issued(setting, 2);
    const second = setting.certificate;
    assert.notEqual(second.serialNumber, first.serialNumber);
    assert.equal(second.publicKey.export({ type: "spki", format: "pem" }), first.publicKey.export({ type: "spki", format: "pem" }));
    assert.equal(Math.round((renewalTime(second) - Date.parse(second.validFrom)) / 3_600_000), 80);
    assert.equal(setting.server.accounts.length, 1);
  });

  it("is renewed when the authority says so, which is told what it replaces, at most once an hour", async () => {
    let window = { start: "2999-01-01T00:00:00Z", end: "2999-01-02T00:00:00Z" };
    const asked: string[] = [];
    await using setting = await Setting.open({ window: (id) => (asked.push(id), window) });
    setting.start();
    await issued(setting);
    const id = await idOf(setting.certificate);
    await eventually(() => asked.length > 0, () => "It has not asked");
    await setting.stop();
    assert.deepEqual(asked, [id]);
    window = { start: "2020-01-01T00:00:00Z", end: "2020-01-02T00:00:00Z" }; // a mass revocation, for example
    setting.now += 59 * MINUTE_MS;
    setting.start();
    await setting.log.waitFor("the next order of a certificate is delayed");
    assert.equal(setting.server.orders.length, 1);
    await setting.stop();
    setting.now += 2 * MINUTE_MS;
    setting.start();
    await issued(setting, 2);
    assert.equal(setting.server.orders[1]!.payload.replaces, id);
  });

  it("that cannot be renewed stays in use, and a program that starts again and again orders once in 15 minutes", async () => {
    await using setting = await Setting.open();
    setting.start();
    await issued(setting);
    const { serialNumber } = setting.certificate;
    await setting.stop();
    setting.now += 80 * DAY_MS;
    setting.server.behaviour.look = () => Promise.resolve(undefined);
    setting.start();
    const { reason, inUse } = await setting.log.waitFor(FAILED);
    assert.equal(reason, "the validation of proxy.example by http-01 is invalid: unauthorized: not?found");
    assert.match(String(inUse), /^the previous one, until /);
    for (let starts = 1; starts < 4; starts++) {
      await setting.restart();
      await setting.log.waitFor("the next order of a certificate is delayed", { failures: 1 }, starts);
    }
    await setting.stop();
    setting.now += 16 * MINUTE_MS;
    setting.start();
    await setting.log.waitFor(FAILED, {}, 2);
    await setting.stop();
    setting.now += 16 * MINUTE_MS; // the delay has doubled
    setting.start();
    await setting.log.waitFor("the next order of a certificate is delayed", { failures: 2 });
    assert.equal(setting.server.orders.length, 3);
    assert.equal(setting.certificate.serialNumber, serialNumber);
    setting.server.behaviour.look = ({ token }) => setting.http.answer(`/.well-known/acme-challenge/${token}`);
    setting.retry();
    await issued(setting, 2);
    assert.deepEqual(setting.outcomes, ["issued", "failed", "failed", "issued"]);
  });

  it("that is short-lived is renewed after half of its lifetime, and more often tried when little is left", async () => {
    await using setting = await Setting.open();
    setting.lifetimeMs = 160 * HOUR_MS;
    setting.start();
    await issued(setting);
    await setting.stop();
    const seen = setting.problems.length;
    setting.now += 79 * HOUR_MS;
    setting.start();
    await eventually(() => setting.problems.length > seen, () => "It has taken no step");
    await setting.stop();
    assert.equal(setting.server.orders.length, 1);
    setting.now += 2 * HOUR_MS;
    setting.start();
    await issued(setting, 2);
    await setting.stop();
    setting.server.behaviour.refuse = { status: 503, type: "serverInternal", retryAfter: 0 };
    setting.now += 150 * HOUR_MS;
    await setting.state.writeAttempts({ failures: 6, earliest: 0, retryAfter: 0, at: 0 });
    setting.start();
    const { nextOrder } = await setting.log.waitFor(FAILED);
    assert.equal(Math.round((Date.parse(String(nextOrder)) - setting.now) / MINUTE_MS), 150); // a quarter of 10 hours
    await setting.stop();
    setting.now += 11 * HOUR_MS;
    setting.start();
    const { nextOrder: afterItsEnd } = await setting.log.waitFor(FAILED, {}, 2);
    assert.equal(Math.round((Date.parse(String(afterItsEnd)) - setting.now) / MINUTE_MS), 60);
  });

  it("is not ordered before the time that the authority names, not even on request", async () => {
    await using setting = await Setting.open();
    setting.server.behaviour.refuse = { status: 429, type: "rateLimited", retryAfter: 7_200 };
    setting.start();
    const { reason, nextOrder } = await setting.log.waitFor(FAILED);
    assert.equal(reason, "the authority answers 429: rateLimited: too many");
    assert.equal(Date.parse(String(nextOrder)), setting.now + 7_200_000);
    setting.server.behaviour.refuse = undefined;
    setting.now += 7_100_000;
    setting.retry();
    await setting.log.waitFor("the next order of a certificate is delayed");
    assert.equal(setting.server.orders.length, 0);
    setting.now += 100_000;
    setting.retry();
    await issued(setting);
  });

  it("is not delayed by what was written while the clock was wrong, or by another program", async () => {
    await using setting = await Setting.open();
    const ahead = setting.now + 1_000 * DAY_MS;
    const [file, late] = [join(setting.state.certificateFile, "..", "attempts.json"), { failures: 1, earliest: ahead, retryAfter: ahead }];
    let orders = 0;
    for (const attempts of [late, { ...late, earliest: 9e99 }, { failures: 1, earliest: "never", retryAfter: null }]) {
      rmSync(setting.state.certificateFile, { force: true });
      writeFileSync(file, JSON.stringify(attempts));
      setting.start();
      await issued(setting, ++orders);
      await setting.stop();
    }
    assert.equal((await setting.state.attempts()).failures, 0);
  });

  it("needs a folder that can be written, and files that can be used, and names what is wrong", async () => {
    using folder = new Folder();
    const state = new AcmeState(folder.path, "https://authority.example/directory");
    await state.open();
    const own = join(state.certificateFile, "..");
    const opening = (message: RegExp) =>
      assert.rejects(state.open(), (error) => error instanceof ConfigError && message.test(error.message));
    writeFileSync(join(own, "account.pem"), "");
    await opening(/^Cannot use --acme\.domain: \S+account\.pem: it has no PRIVATE KEY in PEM; delete it/);
    rmSync(join(own, "account.pem"));
    mkdirSync(join(own, "account.pem"));
    await opening(/^Cannot use --acme\.domain: \S+account\.pem: it is a directory$/);
    mkdirSync(join(own, "attempts.json"));
    await assert.rejects(state.attempts(), /attempts\.json: it is a directory$/);
    chmodSync(own, 0o500);
    if (process.getuid?.() !== 0) await opening(/this user may not write there; set --state-dir$/);
  });

  it("is ordered at once for other names, and if its file is damaged", async () => {
    await using setting = await Setting.open();
    setting.start();
    await issued(setting);
    await setting.restart({ names: ["other.example"] });
    await issued(setting, 2);
    assert.ok(covers(setting.certificate, ["other.example"]));
    await setting.stop();
    writeFileSync(setting.state.certificateFile, "damaged");
    setting.start();
    await issued(setting, 3);
  });

  it("is ordered with an external account", async () => {
    const key = Buffer.from("0123456789abcdef0123456789abcdef").toString("base64url");
    await using setting = await Setting.open({ externalKey: key });
    setting.start({ external: { keyId: "kid-1", hmacKey: key } });
    await issued(setting);
    assert.ok(setting.server.accounts[0]!.payload.externalAccountBinding);
  });

  it("comes from the second authority if the first one fails again, and from the first one when that is back", async () => {
    await using setting = await Setting.open();
    const look = ({ token }: { token: string }) => setting.http.answer(`/.well-known/acme-challenge/${token}`);
    await using second = await AcmeServer.start({ look, validity: setting.server.behaviour.validity });
    const others = [{ directory: second.directory, ca: second.ca, state: setting.state }];
    setting.start({ others });
    await issued(setting);
    await setting.stop();
    setting.server.behaviour.refuse = { status: 503, type: "serverInternal", retryAfter: 60 };
    setting.now += 61 * DAY_MS;
    setting.start({ others });
    const { nextOrder } = await setting.log.waitFor(FAILED);
    assert.equal(Date.parse(String(nextOrder)), setting.now + 15 * MINUTE_MS); // it may be a short outage
    await setting.stop();
    assert.equal(second.orders.length, 0);
    setting.now += 16 * MINUTE_MS;
    setting.start({ others });
    await issued(setting, 2);
    assert.deepEqual([second.orders.length, second.orders[0]!.payload.replaces], [1, undefined]);
    await setting.stop();
    setting.server.behaviour.refuse = undefined;
    setting.now += 61 * DAY_MS;
    setting.start({ others });
    await issued(setting, 3);
    assert.deepEqual([setting.server.orders.length, setting.server.orders.at(-1)!.payload.replaces, second.orders.length], [
      2,
      undefined,
      1,
    ]);
  });

  it("comes from the second authority at once if there is none in use", async () => {
    await using setting = await Setting.open();
    const look = ({ token }: { token: string }) => setting.http.answer(`/.well-known/acme-challenge/${token}`);
    await using second = await AcmeServer.start({ look, validity: setting.server.behaviour.validity });
    setting.server.behaviour.refuse = { status: 503, type: "serverInternal", retryAfter: 60 };
    setting.start({ others: [{ directory: second.directory, ca: second.ca, state: setting.state }] });
    await issued(setting);
    assert.deepEqual(setting.outcomes, ["failed", "issued"]);
  });

  it("is not ordered while another process may order, and then without the delay of an order that this interrupts", async () => {
    await using setting = await Setting.open();
    const asked = Promise.withResolvers<void>();
    setting.server.behaviour.look = async () => {
      asked.resolve();
      await new Promise((resolve) => setTimeout(resolve, 50)); // the order is in progress when it is stopped
      return undefined;
    };
    setting.start();
    await asked.promise;
    await setting.stop(); // it hands over
    assert.equal((await setting.state.attempts()).failures, 0);
    setting.server.behaviour.look = ({ token }) => setting.http.answer(`/.well-known/acme-challenge/${token}`);
    const { promise: allowed, resolve: allow } = Promise.withResolvers<void>();
    const seen = setting.problems.length;
    setting.start({ allowed });
    await eventually(() => setting.problems.length > seen, () => "It has taken no step");
    assert.equal(setting.server.orders.length, 1);
    allow();
    await issued(setting);
    assert.equal(setting.server.orders.length, 2);
  });

  it("needs the authority of a private directory's own certificate, and the error names the option", async () => {
    await using setting = await Setting.open();
    const { directory } = setting.server;
    const client = new AcmeClient({ directory, accountKey: await setting.state.accountKey(), signal: new AbortController().signal });
    await assert.rejects(client.terms(), /cannot be reached: .*; set --acme\.file\.root-ca /);
  });

  it("is proved in DNS by a command, which cleans up", async () => {
    using folder = new Folder();
    const [command, calls] = [join(folder.path, "dns"), join(folder.path, "calls")];
    writeFileSync(command, `#!/bin/sh\necho "$@" >> ${calls}\n`, { mode: 0o755 });
    const expect = (keyAuthorization: string) => dnsValueOf({ name: "", token: "", keyAuthorization });
    await using setting = await Setting.open({
      expect,
      look: ({ type }) =>
        Promise.resolve(type === "dns-01" ? readFileSync(calls, "utf8").trim().split("\n").at(-1)!.split(" ")[2] : undefined),
    });
    setting.start({ names: ["*.proxy.example"] }, createCommandSolver(command, setting.log, new AbortController().signal));
    await issued(setting);
    const [present, cleanup] = readFileSync(calls, "utf8").trim().split("\n").map((line) => line.split(" "));
    assert.deepEqual(present!.slice(0, 2), ["present", "_acme-challenge.proxy.example."]);
    assert.deepEqual(cleanup, ["cleanup", ...present!.slice(1)]);
  });

  it("reports what a command says that fails", async () => {
    using folder = new Folder();
    const command = join(folder.path, "dns");
    writeFileSync(command, `#!/bin/sh\necho "no such zone" >&2\nexit 3\n`, { mode: 0o755 });
    await using setting = await Setting.open();
    setting.start({}, createCommandSolver(command, setting.log, new AbortController().signal));
    const { reason } = await setting.log.waitFor(FAILED);
    assert.equal(reason, `${command} present has failed: no such zone`);
    assert.equal(setting.log.logged("the record of a challenge cannot be removed").length, 1);
  });
});

describe("a command for DNS", () => {
  it("is checked at the start: it is a program that this user may execute", async () => {
    using folder = new Folder();
    const program = join(folder.path, "program");
    writeFileSync(program, "#!/bin/sh\n", { mode: 0o755 });
    for (const command of [program, "sh"]) await checkCommand(command);
    const refused = [
      [join(folder.path, "none"), /^the file does not exist$/],
      [folder.path, /^it is a directory$/],
      [folder.write("text", "#!/bin/sh\n"), /^this user may not execute it$/],
    ] as const;
    for (const [command, message] of refused) await assert.rejects(checkCommand(command), { message });
    const open = (dnsCommand: string) =>
      openAcme({ ...NONE, domain: ["a.example"], dnsCommand }, {
        directory: { path: folder.path, required: true },
        hosts: [],
        hasStore: false,
      });
    await open(program);
    const host = (name: string) => openAcme(NONE, { directory: { path: folder.path, required: true }, hosts: [name], hasStore: false });
    await host("www.example");
    await assert.rejects(host("*.example.com"), /^ConfigError: Cannot use acme of the --forward for host=\*\.example\.com: .* by DNS only/);
    await assert.rejects(host("localhost"), /^ConfigError: Cannot use acme of the --forward for host=localhost: .* public names only$/);
    await assert.rejects(open(folder.path), /^ConfigError: Cannot use --acme\.dns-command \S+: it is a directory$/);
  });
});

describe("a proxy with a domain", () => {
  it("answers challenges and nothing else, and uses the certificate for agents and clients as soon as it has it", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const answered = Promise.withResolvers<void>();
      const get = async (target: string) => await ask(net, "127.0.0.1:8080", `GET ${target} HTTP/1.1\r\nHost: proxy.example\r\n\r\n`);
      await using server = await AcmeServer.start({
        look: async ({ token }) => {
          await answered.promise;
          return (await get(`/.well-known/acme-challenge/${token}`)).body;
        },
        validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
      });
      const log = new LogBook();
      const proxy = await startProxy(
        withDefaults(proxyOptions, {
          stateDir: folder.path,
          agentServer: { listenAddress: "127.0.0.1:0" },
          httpProxy: { listenAddress: "127.0.0.1:0", tls: { enable: true } },
          admin: { listenAddress: "127.0.0.1:9090" },
          acme: {
            domain: ["proxy.example"],
            directory: server.directory,
            httpListenAddress: "127.0.0.1:8080",
            file: { rootCa: folder.write("ca.pem", server.ca) },
          },
        }),
        { net, log },
      );
      const ready = async () => (await ask(net, "127.0.0.1:9090", "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")).status;
      assert.deepEqual([(await get("/")).status, await ready()], [404, 503]);
      answered.resolve();
      await log.waitFor("certificates reloaded", { options: "--agent-server.tls" });
      await log.waitFor("certificates reloaded", { options: "--http-proxy.tls" });
      await log.waitFor("certificate issued");
      assert.equal(await ready(), 200);
      await proxy.close();
    }));
});

describe("proxies that share a store", () => {
  it("answer each other's challenges, and order one after the other", async () => {
    const store = createMemoryStore();
    const shared = { store, ttlMs: 30_000 };
    await using setting = await Setting.open({}, shared);
    const other = new HttpSolver(new LogBook(), shared);
    setting.server.behaviour.look = ({ token }) => other.answer(`/.well-known/acme-challenge/${token}`);
    await store.set(`acme lease ${setting.state.authority}`, "another proxy");
    setting.start();
    await setting.stop();
    assert.equal(setting.server.orders.length, 0);
    await using free = await Setting.open({}, { store: createMemoryStore(), ttlMs: 30_000 });
    free.server.behaviour.look = ({ token }) => new HttpSolver(new LogBook(), free.shared).answer(`/.well-known/acme-challenge/${token}`);
    free.start();
    await issued(free);
  });

  it("answer nothing else", async () => {
    const store = createMemoryStore();
    const solver = new HttpSolver(new LogBook(), { store, ttlMs: 30_000 });
    await store.set("4711", "127.0.0.1:3128");
    for (const path of ["/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/4711", "/.well-known/acme-challenge/../x"]) {
      assert.equal(await solver.answer(path), undefined, path);
    }
  });
});

describe("options of ACME", () => {
  const refused: [Partial<AcmeOptions>, RegExp][] = [
    [{ dnsCommand: "x" }, /--acme\.dns-command: --acme\.domain is not set/],
    [{ domain: ["*.a.example"] }, /wildcards by DNS only; set --acme\.dns-command/],
    [{ domain: ["192.0.2.1"], dnsCommand: "x" }, /has 192\.0\.2\.1, and addresses are validated by HTTP only/],
    [{ challenge: "tls-alpn-01" }, /--acme\.challenge: --acme\.domain is not set/],
    [{ domain: ["a.example"], challenge: "tls-alpn-01", dnsCommand: "x" }, /--acme\.dns-command: --acme\.challenge is tls-alpn-01/],
    [{ domain: ["192.0.2.1"], challenge: "tls-alpn-01" }, /192\.0\.2\.1: addresses are validated by HTTP only/],
    [{ domain: ["a.example"], eab: { keyId: "1", hmacKey: undefined } }, /--acme\.eab\.key-id: --acme\.eab\.hmac-key is required/],
  ];
  it("take a key of an account in base64url alone, and never quote it", () => {
    const problem = (key: string) => acmeOptions["acme.eab.hmac-key"].check?.(key);
    assert.deepEqual(
      ["zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W", "AA==", "s3cret!", "s3 cret", "+/"].map(problem),
      [
        undefined,
        undefined,
        ...Array(3).fill("it is not base64url"),
      ],
    );
  });

  for (const [options, message] of refused) {
    it(`are refused: ${JSON.stringify(options)}`, () => {
      assert.throws(
        () => checkAcmeOptions({ ...NONE, ...options }),
        (error) => error instanceof ConfigError && message.test(error.message),
      );
    });
  }
});
