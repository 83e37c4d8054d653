// Certificates by ACME for published names: which names get one, how many, and what a failure costs the others.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { HostOrders } from "../../shared/service/acme_hosts.ts";
import { Lease } from "../../shared/tls/acme/lease.ts";
import { HttpSolver } from "../../shared/tls/acme/solvers.ts";
import { AcmeState } from "../../shared/tls/acme/state.ts";
import type { HostTls } from "../../shared/net/tls.ts";
import { AcmeServer } from "../../testing/acme_server.ts";
import { LogBook } from "../../testing/network.ts";
import { eventually, Folder } from "../../testing/programs.ts";

const DAY_MS = 86_400_000;
const HOUR_MS = 3_600_000;

class Setting {
  readonly log = new LogBook();
  readonly folder = new Folder();
  readonly solver = new HttpSolver(this.log);
  now = Date.now();
  hosts: readonly HostTls[] = [];
  server!: AcmeServer;
  #stopping = new AbortController();
  #orders?: HostOrders;

  static async open(): Promise<Setting> {
    const setting = new Setting();
    setting.server = await AcmeServer.start({
      look: ({ name, token }) =>
        name.startsWith("bad") ? Promise.resolve(undefined) : setting.solver.answer(`/.well-known/acme-challenge/${token}`),
      validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
    });
    return setting;
  }

  start(publishedNames = 100): HostOrders {
    this.#stopping = new AbortController();
    const { log, folder: { path }, server: { directory, ca } } = this;
    const state = new AcmeState(path, directory);
    return this.#orders = new HostOrders({
      options: { domain: ["proxy.example", "*.proxy.example"], dnsCommand: undefined },
      publishedNames,
      path,
      directory,
      authorities: [{ directory, ca, state }],
      solver: this.solver,
      lease: new Lease(state.authority, log),
      log,
      signal: this.#stopping.signal,
      onOrder: () => {},
      net: { checkServerTls: () => {} },
      certificates: { watch: () => () => {} },
      share: () => undefined,
      use: (hosts) => void (this.hosts = hosts),
      now: () => this.now,
    });
  }

  get names(): string[] {
    return this.hosts.flatMap(({ names }) => names).toSorted();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#orders?.done;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.server.close();
    this.folder[Symbol.dispose]();
  }
}

describe("certificates of published names", () => {
  it("are one for each name that an authority could validate and that has none, and no name waits for one that fails", async () => {
    await using setting = await Setting.open();
    const orders = setting.start();
    orders.want(["bad.example", "a.example", "*.b.example", "proxy.example", "x.proxy.example", "localhost"], ["c.example", "192.0.2.1"]);
    await setting.log.waitFor("certificate issued", { names: "c.example" });
    assert.deepEqual(setting.names, ["a.example", "c.example"]);
    for (const { names, tls } of setting.hosts) assert.equal(new X509Certificate(tls.cert).subjectAltName, `DNS:${names[0]}`);
    assert.deepEqual(setting.server.orders.map(({ names }) => names), [["bad.example"], ["a.example"], ["c.example"]]);
    // what is not published any more is not used
    orders.want(["bad.example", "a.example"], []);
    await eventually(() => setting.names.length === 1, () => setting.names.join());
    // a restart orders nothing, and remembers the failure
    await setting.stop();
    setting.start().want(["bad.example", "a.example"], ["c.example"]);
    await setting.log.waitFor("the next order of a certificate is delayed", { failures: 1 });
    await eventually(() => setting.names.length === 2, () => setting.names.join());
    assert.equal(setting.server.orders.length, 3);
  });

  it("are bounded for names of agents: new ones in an hour, and all at once", async () => {
    await using setting = await Setting.open();
    const asked = Array.from({ length: 30 }, (_, i) => `n${i}.example`);
    const orders = setting.start(25);
    orders.want([], asked);
    await setting.log.waitFor("names of agents wait for certificates", { names: 10 });
    await setting.log.waitFor("certificate issued", {}, 20);
    setting.now += HOUR_MS;
    orders.want([], asked);
    await setting.log.waitFor("certificate issued", {}, 25);
    await setting.stop();
    assert.equal(setting.server.orders.length, 25);
  });
});
