// A directory of certificates: which files are read, which name gets which, and what happens when files come, change and go.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { openLoadBalancerTls } from "../../lb/tls.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { checkProxyTls, openProxyTls } from "../../proxy/tls.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import type { HostTls } from "../../shared/net/tls.ts";
import { CertificateDirectory, openCertificateDirectory } from "../../shared/tls/certificate_directory.ts";
import { type Authority, type Issued, makeAuthority } from "../../testing/certificates.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const authority: Promise<Authority> = makeAuthority();
const NET = { checkServerTls() {}, checkClientTls() {} };

async function issue(names: string[], days = 1): Promise<Issued> {
  return await (await authority).issue({ names, commonName: "site", days });
}

const both = ({ cert, key }: Issued) => cert + key;
const served = (hosts: readonly HostTls[]) => hosts.map(({ names }) => names.join()).sort();

function open(folder: Folder, log = new LogBook(), now?: () => number): Promise<CertificateDirectory> {
  return CertificateDirectory.open(folder.path, { log, net: NET, now });
}

const reasonsIn = (log: LogBook) => log.entries.filter(({ level }) => level === "warn").map(({ fields }) => String(fields.reason));

describe("a directory of certificates", () => {
  it("has them with their keys in one file, in two, or in a directory below, and nothing else", async () => {
    using folder = new Folder();
    const [one, two, three, four] = await Promise.all([["A.example", "b.example"], ["*.two.example"], ["three.example"], ["four.example"]]
      .map((names) => issue(names)));
    folder.write("one.pem", both(one!));
    folder.write("two.crt", two!.cert);
    folder.write("two.key", two!.key);
    folder.write("two.issuer.crt", (await authority).cert);
    folder.write(".hidden.pem", both(four!));
    folder.write("README", "x");
    for (const [name, cert, key] of [["certbot", "fullchain.pem", "privkey.pem"], ["secret", "tls.crt", "tls.key"]] as const) {
      mkdirSync(join(folder.path, name));
      folder.write(`${name}/${cert}`, name === "certbot" ? three!.cert : four!.cert);
      folder.write(`${name}/${key}`, name === "certbot" ? three!.key : four!.key);
    }
    mkdirSync(join(folder.path, "empty"));
    const log = new LogBook();
    const directory = await open(folder, log);
    assert.deepEqual(served(directory.current), ["*.two.example", "a.example,b.example", "four.example", "three.example"]);
    assert.equal(directory.current.find(({ names }) => names[0] === "three.example")?.tls.cert, three!.cert);
    assert.deepEqual(log.entries.filter(({ level }) => level === "warn"), []);
  });

  it("serves the one of two for a name that is valid longer", async () => {
    using folder = new Folder();
    const [newer, older] = [await issue(["a.example"], 3), await issue(["a.example", "b.example"], 2)];
    folder.write("1.pem", both(newer));
    folder.write("2.pem", both(older));
    const { current } = await open(folder);
    assert.deepEqual(current.map(({ names, tls }) => [names, tls.cert]), [[["a.example"], newer.cert], [["b.example"], older.cert]]);
  });

  it("takes files that come, change and go, when they are the same at two polls", async () => {
    using folder = new Folder();
    const [before, renewed, other] = await Promise.all([issue(["a.example"]), issue(["a.example"]), issue(["b.example"])]);
    folder.write("a.pem", both(before));
    const directory = await open(folder);
    const used: string[][] = [];
    const poll = () => directory.poll((hosts) => void used.push(hosts.map(({ tls }) => tls.cert)));
    await poll();
    folder.write("a.pem", both(renewed));
    folder.write("b.pem", both(other));
    await poll();
    assert.equal(used.length, 0);
    await poll();
    assert.deepEqual(used, [[renewed.cert, other.cert]]);
    rmSync(join(folder.path, "a.pem"));
    await poll();
    folder.write("a.pem", both(renewed)); // as a program that replaces files does
    await poll();
    assert.equal(used.length, 1);
    rmSync(join(folder.path, "a.pem"));
    await poll();
    await poll();
    assert.deepEqual(used.slice(1), [[other.cert]]);
    assert.deepEqual(served(directory.current), ["b.example"]);
    rmSync(join(folder.path, "b.pem"));
    await directory.reload((hosts) => void used.push(hosts.map(({ tls }) => tls.cert)));
    assert.deepEqual(used[2], []);
  });

  it("keeps the others if a file cannot be used, and the previous content of that file, and says so once", async () => {
    using folder = new Folder();
    const [good, nameless] = [await issue(["a.example"]), await issue(["192.0.2.1"])];
    folder.write("a.pem", both(good));
    folder.write("b.pem", (await issue(["b.example"])).cert);
    folder.write("c.pem", both(nameless));
    const log = new LogBook();
    const directory = await open(folder, log);
    const reasons = () => reasonsIn(log);
    assert.deepEqual(served(directory.current), ["a.example"]);
    assert.match(reasons()[0]!, /^Cannot use --http-proxy\.tls\.cert-dir .*b\.pem: /);
    assert.match(reasons()[1]!, /c\.pem: the certificate has no DNS name$/);
    folder.write("a.pem", "junk");
    for (let i = 0; i < 3; i++) {
      await directory.poll();
      await directory.reload();
    }
    assert.equal(reasons().length, 3);
    assert.equal(directory.current[0]?.tls.cert, good.cert);
    folder.write("b.pem", both(await issue(["b.example"])));
    await directory.reload();
    assert.deepEqual(served(directory.current), ["a.example", "b.example"]);
    rmSync(folder.path, { recursive: true });
    for (let i = 0; i < 3; i++) await directory.poll();
    assert.deepEqual(served(directory.current), ["a.example", "b.example"]);
    assert.deepEqual(reasons().slice(3), ["the directory does not exist"]);
  });

  it("serves a certificate that is valid already rather than one that will be valid for longer, until that is", async () => {
    using folder = new Folder();
    const [current, next] = [await issue(["a.example"], 2), await (await authority).issue({ names: ["a.example"], days: 5, startsIn: 1 })];
    folder.write("1.pem", both(next));
    folder.write("2.pem", both(current));
    let now = Date.now();
    const directory = await open(folder, new LogBook(), () => now);
    const used = [directory.current.map(({ tls }) => tls.cert)];
    const poll = () => directory.poll((hosts) => void used.push(hosts.map(({ tls }) => tls.cert)));
    await poll();
    now += 1.5 * 86_400_000;
    await poll();
    await poll();
    assert.deepEqual(used, [[current.cert], [next.cert]]);
  });

  it("keeps a certificate if the one that replaces it has no DNS name, or can no longer be read", async () => {
    for (const replace of ["no DNS name", "link to itself"]) {
      using folder = new Folder();
      const good = await issue(["a.example"]);
      mkdirSync(join(folder.path, "site"));
      folder.write("site/tls.crt", good.cert);
      folder.write("site/tls.key", good.key);
      const log = new LogBook();
      const directory = await open(folder, log);
      if (replace === "no DNS name") {
        const nameless = await issue(["192.0.2.1"]);
        folder.write("site/tls.crt", nameless.cert);
        folder.write("site/tls.key", nameless.key);
      } else {
        rmSync(join(folder.path, "site"), { recursive: true });
        symlinkSync("site", join(folder.path, "site"));
      }
      for (let i = 0; i < 4; i++) await directory.poll();
      assert.deepEqual(directory.current.map(({ tls }) => tls.cert), [good.cert], replace);
      const expected = replace === "no DNS name" ? /site\/tls\.crt: the certificate has no DNS name$/ : /loop of symbolic links/;
      assert.ok(reasonsIn(log).some((reason) => expected.test(reason)), reasonsIn(log).join("\n"));
      assert.deepEqual(log.logged("certificate removed"), [], replace);
    }
  });

  it("follows the links of a volume of Kubernetes, which are replaced at once", async () => {
    using folder = new Folder();
    const versions = await Promise.all([issue(["a.example"]), issue(["a.example"])]);
    const site = join(folder.path, "site");
    versions.forEach(({ cert, key }, i) => {
      mkdirSync(join(site, `..${i}`), { recursive: true });
      folder.write(`site/..${i}/tls.crt`, cert);
      folder.write(`site/..${i}/tls.key`, key);
    });
    symlinkSync("..0", join(site, "..data"));
    for (const name of ["tls.crt", "tls.key"]) symlinkSync(join("..data", name), join(site, name));
    const log = new LogBook();
    const directory = await open(folder, log);
    assert.deepEqual(directory.current.map(({ tls }) => tls.cert), [versions[0]!.cert]);
    symlinkSync("..1", join(site, "..new"));
    renameSync(join(site, "..new"), join(site, "..data"));
    await directory.poll();
    await directory.poll();
    assert.deepEqual(directory.current.map(({ tls }) => tls.cert), [versions[1]!.cert]);
    assert.deepEqual(reasonsIn(log), []);
    assert.deepEqual(log.logged("certificates reloaded").map(({ options }) => options), [
      `--http-proxy.tls.cert-dir ${join(site, "tls.crt")}`,
    ]);
  });

  it("does not wait for a pipe", async () => {
    using folder = new Folder();
    folder.write("a.pem", both(await issue(["a.example"])));
    execFileSync("mkfifo", [join(folder.path, "b.pem")]);
    const log = new LogBook();
    assert.deepEqual(served((await open(folder, log)).current), ["a.example"]);
    assert.match(reasonsIn(log).join("\n"), /^Cannot read --http-proxy\.tls\.cert-dir .*b\.pem: it is not a regular file$/);
  });

  it("has a bounded number of certificates", async () => {
    using folder = new Folder();
    for (let i = 0; i <= 1_000; i++) folder.write(`${i}.pem`, "");
    await assert.rejects(open(folder), /Cannot use --http-proxy\.tls\.cert-dir .*: it has more than 1000 certificates, the limit$/);
  });

  it("needs no other certificate for the clients' port: other names get a self-signed one", async () => {
    for (const hasDirectory of [true, false]) {
      using folder = new Folder();
      const { cert, key } = await issue(["a.example"]);
      const file = { cert: folder.write("cert", cert), key: folder.write("key", key) };
      const given = {
        httpProxy: { tls: { enable: true, ...hasDirectory ? { certDir: folder.path } : {} } },
        stateDir: folder.path,
      };
      const deps = { log: silentLogger, net: NET };
      const open: Record<string, () => Promise<{ readonly clients?: { readonly current: { readonly cert: string } } }>> = {
        proxy: () => openProxyTls(withDefaults(proxyOptions, { ...given, agentServer: { tls: { file } } }), deps),
        lb: () => openLoadBalancerTls(withDefaults(lbOptions, given, { "store.type": "memcached" }), deps),
      };
      for (const [name, opening] of Object.entries(open)) {
        if (!hasDirectory) await assert.rejects(opening(), /--http-proxy\.tls\.file\.cert are required/, name);
        else assert.match((await opening()).clients!.current.cert, /BEGIN CERTIFICATE/, name);
      }
      const checking = checkProxyTls(withDefaults(proxyOptions, { ...given, agentServer: { tls: { file } } }), deps);
      if (hasDirectory) await checking;
      else await assert.rejects(checking, ConfigError);
    }
  });

  it("must exist, and needs a port with TLS", async () => {
    using folder = new Folder();
    const check = (certDir: string | undefined, enable: boolean, ...networks: string[]) =>
      openCertificateDirectory({ httpProxy: { tls: { enable, certDir } }, forward: networks.map((network) => ({ network })) }, {
        log: silentLogger,
        net: NET,
      });
    assert.equal(await check(undefined, false), undefined);
    assert.ok(await check(folder.path, true));
    assert.ok(await check(folder.path, false, "tcp", "https"));
    const refused = (message: RegExp) => (error: unknown) => error instanceof ConfigError && message.test(error.message);
    await assert.rejects(check(folder.path, false, "tcp", "http"), refused(/no port has TLS; set --http-proxy\.tls\.enable/));
    await assert.rejects(check(join(folder.path, "none"), true), refused(/cert-dir .*none: the directory does not exist$/));
    await assert.rejects(check(folder.write("file", ""), true), refused(/file: it is not a directory$/));
  });
});
