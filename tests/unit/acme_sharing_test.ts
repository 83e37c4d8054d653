// Certificates by ACME that several processes share by their store, and what a hand-over and a second authority mean to orders.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { startLoadBalancer } from "../../lb/lb.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { SealedStore, StoreSecrets } from "../../shared/tls/acme/sealed_store.ts";
import { AcmeServer } from "../../testing/acme_server.ts";
import { ask, LogBook, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const DAY_MS = 86_400_000;
const SECRET = "0123456789abcdef0123456789abcdef";

/** The only file of this name below the folder of an authority. */
function find(folder: Folder, name: string): string {
  const [authority] = readdirSync(join(folder.path, "acme"));
  return readFileSync(join(folder.path, "acme", authority!, name), "utf8");
}

describe("two proxies and an lb with a store and a secret", () => {
  it("have one account and one certificate of one order, whose challenge any of them answers", () =>
    withNet(async (net) => {
      using one = new Folder();
      using two = new Folder();
      using three = new Folder();
      const store = createMemoryStore();
      const started = Promise.withResolvers<void>();
      const asked: string[] = [];
      await using server = await AcmeServer.start({
        look: async ({ token }) => {
          await started.promise;
          const bodies = await Promise.all(["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"].map(async (address) => {
            const request = `GET /.well-known/acme-challenge/${token} HTTP/1.1\r\nHost: proxy.example\r\n\r\n`;
            return (await ask(net, address, request)).body;
          }));
          asked.push(...bodies);
          return bodies[0];
        },
        validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
      });
      const optionsOf = (folder: Folder, port: number) => ({
        stateDir: folder.path,
        httpProxy: { listenAddress: "127.0.0.1:0", tls: { enable: true } },
        acme: {
          domain: ["proxy.example"],
          directory: server.directory,
          httpListenAddress: `127.0.0.1:${port}`,
          file: { rootCa: folder.write("ca.pem", server.ca) },
          storeKeyFile: folder.write("key", `${SECRET}\n`),
        },
      });
      const [a, b, c] = [new LogBook(), new LogBook(), new LogBook()];
      const proxy = (folder: Folder, port: number, log: LogBook) =>
        startProxy(withDefaults(proxyOptions, { ...optionsOf(folder, port), agentServer: { listenAddress: "127.0.0.1:0" } }), {
          net,
          log,
          store,
        });
      const services = [
        await proxy(one, 8081, a),
        await proxy(two, 8082, b),
        await startLoadBalancer(withDefaults(lbOptions, optionsOf(three, 8083)), { net, log: c, store }),
      ];
      started.resolve();
      await Promise.all([a, b, c].map((log) => log.waitFor("certificates reloaded", { options: "--http-proxy.tls" })));
      assert.equal(server.orders.length, 1);
      // an answer that others write to the store is not given
      await store.set("acme challenge forged", "forged.thumbprint");
      const forged = "GET /.well-known/acme-challenge/forged HTTP/1.1\r\nHost: proxy.example\r\n\r\n";
      assert.equal((await ask(net, "127.0.0.1:8083", forged)).status, 404);
      assert.equal(server.accounts.length, 1);
      assert.equal(new Set(asked).size, 1);
      assert.match(asked[0]!, /^token-/);
      for (const file of ["certificate.pem", "account.pem"]) {
        assert.equal(new Set([one, two, three].map((folder) => find(folder, file))).size, 1, file);
      }
      assert.equal(new X509Certificate(find(three, "certificate.pem")).subjectAltName, "DNS:proxy.example");
      for (const service of services) await service.close();
    }));
});

describe("entries in the store", () => {
  it("can be read by those who share the secret, in their place alone, also while another secret replaces it", async () => {
    using folder = new Folder();
    const shared = { store: createMemoryStore(), ttlMs: 30_000 };
    const file = (name: string, ...lines: string[]) => folder.write(name, lines.join("\n"));
    const open = async (name: string) => new SealedStore(shared, await StoreSecrets.open(name, new LogBook()));
    const [old, next] = [SECRET, SECRET.toUpperCase()];
    const writer = await open(file("old", old));
    await writer.write("a", { key: "secret" });
    assert.ok(!(await shared.store.lookup("a"))!.includes("secret"));
    assert.deepEqual(await (await open(file("both", next, old))).read("a"), { key: "secret" });
    assert.equal(await (await open(file("next", next))).read("a"), undefined);
    await shared.store.set("b", (await shared.store.lookup("a"))!);
    assert.equal(await writer.read("b"), undefined);
    // the file is read again
    writeFileSync(join(folder.path, "old"), `${next}\n# ${old}\n${old}\n`);
    await writer.write("a", { key: "other" });
    assert.deepEqual(await (await open(file("next", next))).read("a"), { key: "other" });
    await assert.rejects(
      open(file("short", "short")),
      /^ConfigError: Cannot use --acme\.store-key-file .*line 1: the key has less than 32/,
    );
  });
});
