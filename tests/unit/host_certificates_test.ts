// Certificates of web sites by host: which files a server name has, what is refused, and settings that are renewed for one name alone.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { withDefaults } from "../../shared/config/defaults.ts";
import { openForwardTls } from "../../shared/frontend/forwards/listeners.ts";
import { forwardOptions } from "../../shared/frontend/forwards/forwards.ts";
import { HostCertificates } from "../../shared/frontend/forwards/host_certificates.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import type { ServerTls } from "../../shared/net/tls.ts";
import { NamedTls } from "../../shared/tls/named_tls.ts";
import { openServerTls } from "../../shared/tls/reloadable_tls.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { Folder } from "../../testing/programs.ts";

interface Given {
  readonly host?: string[];
  readonly path?: string[];
  /** Also names the key. */
  readonly certFile?: string;
  readonly clientCaFile?: string;
}

function certificatesOf(...records: Given[]): HostCertificates {
  const forward = records.map((record) => ({
    listen: ":443",
    network: "https" as const,
    agent: "a",
    to: "a:80",
    keyFile: record.certFile && `${record.certFile}-key`,
    ...record,
  }));
  return new HostCertificates(":443", withDefaults(forwardOptions, { forward }).forward);
}

describe("certificates of hosts", () => {
  const mixed = certificatesOf(
    { host: ["a.example"], certFile: "a" },
    { host: ["a.example"], path: ["/x"] },
    { host: ["*.zone.example", "b.example"], certFile: "zone", clientCaFile: "ca" },
    { host: ["c.zone.example"] },
    { host: ["d.zone.example"], certFile: "a" },
    { host: ["e.example"] },
  );

  it("are those of the name, of its longest zone, or of the first record that names files", () => {
    const rows = [
      ["A.example.", "a"],
      ["b.example", "zone"],
      ["c.zone.example", "zone"],
      ["x.y.zone.example", "zone"],
      ["d.zone.example", "a"],
      ["zone.example", "a"],
      ["e.example", "a"],
      ["127.0.0.1", "a"],
      [undefined, "a"],
    ] as const;
    for (const [name, cert] of rows) assert.equal(mixed.of(name).cert, cert, `${name}`);
    assert.equal(mixed.of("d.zone.example"), mixed.fallback); // the same object
    assert.deepEqual(mixed.hosts, [
      { names: ["a.example", "d.zone.example"], files: { cert: "a", key: "a-key", clientCa: undefined } },
      { names: ["*.zone.example", "b.example"], files: { cert: "zone", key: "zone-key", clientCa: "ca" } },
    ]);
  });

  it("of other names are those of the record without host, wherever it stands", () => {
    const own = certificatesOf({ host: ["a.example"], certFile: "a" }, { certFile: "rest" }, { path: ["/x"], certFile: "rest" });
    assert.deepEqual([own.of("a.example").cert, own.of("b.example").cert, own.of(undefined).cert], ["a", "rest", "rest"]);
    assert.deepEqual(own.hosts.map(({ names }) => names), [["a.example"]]);
  });

  it("are one for all names if records name one, and none if no record names any", () => {
    const one = certificatesOf({ host: ["a.example"], certFile: "a" }, { host: ["b.example"] }, { host: ["c.example"], certFile: "a" });
    assert.deepEqual([one.hosts, one.of("b.example").cert, one.of("other").cert], [[], "a", "a"]);
    const none = certificatesOf({ host: ["a.example"] }, {});
    assert.deepEqual([none.hosts, none.fallback], [[], {}]);
  });
});

describe("forwards that know visitors by certificates", () => {
  it("need authorities for each of their hosts, in the records or at the clients' port", async () => {
    using folder = new Folder();
    const authority = await makeAuthority();
    const { cert, key } = await authority.issue({ names: ["a.example"] });
    const own = { certFile: folder.write("a.pem", cert), keyFile: folder.write("a-key.pem", key) };
    const clientCaFile = folder.write("ca.pem", authority.cert);
    const deps = { log: silentLogger, net: { checkServerTls() {}, checkClientTls() {} } };
    const open = async (records: object[], clients?: ServerTls) => {
      const common = { listen: ":443", network: "https" as const, agent: "a", to: "a:80" };
      const { forward } = withDefaults(forwardOptions, { forward: records.map((record) => ({ ...common, ...record })) });
      const tls = clients && { current: clients, reload: () => Promise.resolve(), poll: () => Promise.resolve() };
      await openForwardTls(forward, tls, deps);
    };
    const refused = {
      message: /^Cannot use --forward listen=:443: auth=mtls needs client-ca-file, or --http-proxy\.tls\.file\.client-ca$/,
    };
    await open([{ auth: "mtls", host: ["a.example"], ...own, clientCaFile }]);
    await open([{ auth: "mtls" }], { cert, key, clientCa: authority.cert });
    await open([{ auth: "mtls", host: ["x.a.example"] }, { host: ["*.a.example"], ...own, clientCaFile }, own]);
    await assert.rejects(open([{ auth: "mtls" }], { cert, key }), refused);
    await assert.rejects(open([{ auth: "mtls", host: ["a.example"], ...own }]), refused);
    await assert.rejects(
      open([{ auth: "mtls", host: ["a.example", "b.example"], ...own, clientCaFile }, { ...own, auth: "mtls" }]),
      refused,
    );
    await assert.rejects(open([{ auth: "mtls", host: ["a.example"] }, { host: ["b.example"], ...own, clientCaFile }, own]), refused);
  });
});

describe("TLS settings for several names", () => {
  it("are renewed for each by itself, and stay if one of them is invalid", async () => {
    using folder = new Folder();
    const authority = await makeAuthority();
    const issue = async (name: string) => {
      const { cert, key } = await authority.issue({ names: [name] });
      folder.write(`${name}.pem`, cert);
      folder.write(`${name}-key.pem`, key);
      return cert;
    };
    const deps = { log: silentLogger, net: { checkServerTls() {}, checkClientTls() {} } };
    const open = async (name: string) => {
      await issue(name);
      const file = { cert: `${folder.path}/${name}.pem`, key: `${folder.path}/${name}-key.pem` };
      return await openServerTls("forward", { file }, deps);
    };
    const [rest, site] = [await open("rest"), await open("site")];
    const tls = new NamedTls(rest, [{ names: ["rest.example"], tls: rest }, { names: ["site.example"], tls: site }]);
    const used: ServerTls[] = [];
    const certs = ({ cert, hosts = [] }: ServerTls) => [cert, ...hosts.map(({ tls }) => tls.cert)];
    const before = certs(tls.current);
    const renewed = await issue("site");
    await tls.reload((settings) => void used.push(settings));
    assert.deepEqual(used.map(certs), [[before[0], before[1], renewed]]);
    assert.deepEqual(certs(tls.current), certs(used[0]!));
    const rests = await issue("rest");
    folder.write("site.pem", "junk");
    await tls.reload((settings) => void used.push(settings));
    assert.deepEqual(certs(tls.current), [rests, rests, renewed]);
    assert.equal(used.length, 2);
    await issue("site");
    await tls.reload(() => {
      throw new Error("it is not taken");
    });
    assert.deepEqual(certs(tls.current), [rests, rests, renewed]);
  });
});
