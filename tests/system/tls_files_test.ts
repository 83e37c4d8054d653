// TLS settings in files: what is accepted, what is refused and with which message, and how changes are followed.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createPrivateKey, generateKeyPairSync, X509Certificate } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { ConfigError } from "../../shared/config/option.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import { openClientTls, openServerTls, refuseWithoutTls, startTlsRefresh } from "../../shared/tls/reloadable_tls.ts";
import type { Authority, Issued } from "../../testing/certificates.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const GROUP = "agent-server.tls";
/** The engine that uses the settings. */
const net = createNativeNet({ threads: 1 });
after(() => net.close());

/** A key with damaged content: its first bytes and its length are unchanged. */
function damage(pem: string): string {
  return pem.replace(/\n([^-\n]{10})[^-\n]{20}/, "\n$1AAAAAAAAAAAAAAAAAAAA");
}

/** The text without differences in the notation of PEM. */
function plain(pem: string): string {
  return pem.trim().replace(/\r/g, "");
}

interface Pki {
  authority: Authority;
  other: Authority;
  server: Issued;
}

const pki: Promise<Pki> = (async () => {
  const authority = await makeAuthority();
  return { authority, other: await makeAuthority("Other CA"), server: await authority.issue({ names: ["localhost"] }) };
})();

/** A self-signed certificate of OpenSSL, optionally of version 1. */
function openssl(algorithm: string, version: 1 | 3 = 3): Contents {
  using folder = new Folder();
  const [key, cert, request] = ["key", "cert", "request"].map((name) => join(folder.path, name)) as [string, string, string];
  const run = (...args: string[]) => execFileSync("openssl", args, { stdio: "pipe" });
  const [kind, curve] = algorithm.split(":");
  const newKey = kind === "ec" ? ["-newkey", "ec", "-pkeyopt", `ec_paramgen_curve:${curve}`] : ["-newkey", algorithm];
  const subject = [...newKey, "-nodes", "-keyout", key, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
  if (version === 3) {
    run("req", "-x509", ...subject, "-out", cert, "-days", "2");
  } else {
    run("req", "-new", ...subject, "-out", request);
    run("x509", "-req", "-in", request, "-signkey", key, "-out", cert, "-days", "2");
  }
  return { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
}

/** The contents of a server's files; others are missing. */
interface Contents {
  key?: string;
  cert?: string;
  clientCa?: string;
  clientCrl?: string;
}

class Server {
  readonly log = new LogBook();
  readonly file: Contents = {};

  constructor(readonly folder: Folder, contents: Contents) {
    for (const [name, text] of Object.entries(contents)) {
      this.file[name as keyof Contents] = folder.write(`${name}.pem`, Buffer.from(text, "latin1"));
    }
  }

  write(contents: Contents): void {
    for (const [name, text] of Object.entries(contents)) writeFileSync(this.file[name as keyof Contents]!, text);
  }

  open(keyPassword?: string) {
    return openServerTls(GROUP, { file: this.file, keyPassword }, { log: this.log, net });
  }

  /** The message of its refusal. */
  async refusal(keyPassword?: string): Promise<string> {
    const error = await this.open(keyPassword).then(() => assert.fail("it was not refused"), (error) => error);
    assert.ok(error instanceof ConfigError, String(error));
    assert.doesNotMatch(error.message, /\n/);
    return error.message;
  }

  warnings(): string[] {
    return this.log.logged("certificate may be unusable").map(({ reason }) => String(reason));
  }
}

describe("files of a server", () => {
  it("are read unchanged", async () => {
    using folder = new Folder();
    const { server, authority } = await pki;
    const list = await authority.revocationList([]);
    const files = await new Server(folder, { ...server, clientCa: authority.cert, clientCrl: list } as Contents).open();
    const { cert, key, clientCa, clientCrl } = files.current;
    assert.deepEqual([cert, clientCa, clientCrl].map((pem) => plain(pem!)), [server.cert, authority.cert, list].map(plain));
    assert.deepEqual(
      createPrivateKey(key).export({ type: "pkcs8", format: "der" }),
      createPrivateKey(server.key).export({ type: "pkcs8", format: "der" }),
    );
  });

  it("may be one file for certificate and key, with other text around", async () => {
    using folder = new Folder();
    const { server } = await pki;
    const both = `friendlyName: x\n${server.key}\nBag Attributes\n${server.cert}`;
    const { current } = await new Server(folder, { cert: both, key: both }).open();
    assert.match(current.key, /^-----BEGIN PRIVATE KEY-----/);
  });

  it("with an empty name are ignored", async () => {
    using folder = new Folder();
    const { server } = await pki;
    const { file } = new Server(folder, { cert: server.cert, key: server.key });
    const files = await openServerTls(GROUP, { file: { ...file, clientCa: "", clientCrl: "" }, keyPassword: "" }, {
      log: new LogBook(),
      net,
    });
    assert.equal(files.current.clientCa, undefined);
  });

  it("are not required with a self-signed certificate, but the others are used", async () => {
    using folder = new Folder();
    const { server, authority } = await pki;
    const { file } = new Server(folder, { clientCa: authority.cert });
    const { current } = await openServerTls(GROUP, { file }, { log: new LogBook(), net, selfSigned: server });
    assert.deepEqual([current.cert, plain(current.clientCa!)], [server.cert, plain(authority.cert)]);
  });

  /** What is wrong, what is in the files, and what the message names. */
  const wrong: [what: string, contents: (pki: Pki) => Contents | Promise<Contents>, message: RegExp][] = [
    ["that are missing", () => ({}), /^Cannot start: --agent-server\.tls\.file\.key and --agent-server\.tls\.file\.cert are required$/],
    [
      "with a key alone",
      ({ server: { key } }) => ({ key }),
      /^Cannot use --agent-server\.tls\.file\.key: --agent-server\.tls\.file\.cert is required too$/,
    ],
    [
      "with a certificate alone",
      ({ server: { cert } }) => ({ cert }),
      /^Cannot use --agent-server\.tls\.file\.cert: --agent-server\.tls\.file\.key is required too$/,
    ],
    [
      "with a revocation list alone",
      async ({ server: { cert, key }, authority }) => ({ cert, key, clientCrl: await authority.revocationList([]) }),
      /^Cannot use --agent-server\.tls\.file\.client-crl: --agent-server\.tls\.file\.client-ca is required too$/,
    ],
    [
      "with a certificate that is none",
      ({ server: { key } }) => ({ key, cert: "none" }),
      /file\.cert \S+cert\.pem: it has no CERTIFICATE in PEM$/,
    ],
    [
      "with a key for a certificate",
      ({ server: { key } }) => ({ key, cert: key }),
      /file\.cert \S+cert\.pem: it has no CERTIFICATE in PEM, but PRIVATE KEY$/,
    ],
    [
      "with a certificate for a key",
      ({ server: { cert } }) => ({ key: cert, cert }),
      /file\.key \S+key\.pem: it has no PRIVATE KEY in PEM, but CERTIFICATE$/,
    ],
    ["that are empty", () => ({ key: "", cert: "" }), /file\.cert \S+cert\.pem: it has no CERTIFICATE in PEM$/],
    [
      "with a certificate that is damaged",
      ({ server: { cert, key } }) => ({ key, cert: cert.replace(/\n[^-\n]{20}/, "\nAAAAAAAAAAAAAAAAAAAA") }),
      /file\.cert \S+cert\.pem: line 1: the block of CERTIFICATE is damaged: it does not begin with a SEQUENCE$/,
    ],
    [
      "with a certificate in the chain that is damaged",
      ({ server: { cert, key }, authority }) => ({ key, cert: cert + damage(authority.cert) }),
      /file\.cert \S+cert\.pem: line \d\d: the certificate cannot be read: /,
    ],
    [
      "with a key that is damaged",
      ({ server: { cert, key } }) => ({ cert, key: damage(key) }),
      /file\.key \S+key\.pem: the private key is damaged or of an unsupported type$/,
    ],
    [
      "with the key of another certificate",
      ({ server: { cert }, authority }) => ({ cert, key: authority.key }),
      /file\.key \S+key\.pem: the key does not belong to the certificate "CN=localhost" of --agent-server\.tls\.file\.cert \S+cert\.pem$/,
    ],
    [
      "with a chain in the wrong order",
      ({ server: { cert, key }, authority }) => ({ cert: authority.cert + cert, key }),
      /the key does not belong to the certificate "CN=Test CA" .*; the certificate of the key must come first in the file$/,
    ],
    [
      "with a certificate that has expired",
      async ({ authority }) => {
        const { cert, key } = await authority.issue({ names: ["old"], days: -1 });
        return { cert, key };
      },
      /file\.cert \S+cert\.pem: the certificate "CN=old" expired on 2\d{3}-\d\d-\d\dT[\d:.]+Z; if that is in the future, /,
    ],
    [
      "with an authority that is none",
      ({ server: { cert, key } }) => ({ cert, key, clientCa: key }),
      /file\.client-ca \S+clientCa\.pem: it has no CERTIFICATE in PEM, but PRIVATE KEY$/,
    ],
    [
      "with a revocation list that is none",
      ({ server: { cert, key }, authority }) => ({ cert, key, clientCa: authority.cert, clientCrl: authority.cert }),
      /file\.client-crl \S+clientCrl\.pem: it has no X509 CRL in PEM, but CERTIFICATE$/,
    ],
    [
      "with a revocation list that is damaged",
      ({ server: { cert, key }, authority }) => ({
        cert,
        key,
        clientCa: authority.cert,
        clientCrl: authority.cert.replaceAll("CERTIFICATE", "X509 CRL"),
      }),
      /file\.client-crl \S+clientCrl\.pem: line \d+: the revocation list cannot be read: /,
    ],
  ];
  const more: typeof wrong = [
    [
      "in UTF-16",
      ({ server: { cert, key } }) => ({ key, cert: `\xff\xfe${cert.replaceAll(/./gs, "$&\0")}` }),
      /cert\.pem: it is UTF-16/,
    ],
    [
      "in DER",
      ({ server: { cert, key } }) => ({ key, cert: new X509Certificate(cert).raw.toString("latin1") }),
      /cert\.pem: it is DER; PEM is required: openssl x509 -inform der -in FILE -out NEW converts it$/,
    ],
    [
      "whose END line is missing",
      ({ server: { cert, key } }) => ({ cert, key: key.replace(/-----END.*/, "") }),
      /key\.pem: line 1: the block of PRIVATE KEY has no END line$/,
    ],
    [
      "with two keys",
      ({ server: { cert, key }, other }) => ({ cert, key: key + other.key }),
      /key\.pem: line 6: it is a second PRIVATE KEY, after the one in line 1$/,
    ],
    [
      "with a key among the authorities",
      ({ server: { cert, key }, authority }) => ({ cert, key, clientCa: authority.cert + key }),
      /clientCa\.pem: line \d+: it is a block of PRIVATE KEY; only CERTIFICATE is allowed$/,
    ],
    [
      "with a revocation list that is signed by another of the same name",
      async ({ server: { cert, key }, authority }) => ({
        cert,
        key,
        clientCa: authority.cert,
        clientCrl: await (await makeAuthority()).revocationList([]),
      }),
      /clientCrl\.pem: line 1: the revocation list of "CN=Test CA" is not signed by the authority of that name/,
    ],
    [
      "with two revocation lists of one authority",
      async ({ server: { cert, key }, authority }) => ({
        cert,
        key,
        clientCa: authority.cert,
        clientCrl: await authority.revocationList([]) + await authority.revocationList([]),
      }),
      /clientCrl\.pem: line \d+: the revocation list of "CN=Test CA" duplicates that in line 1; only one list per authority is used/,
    ],
    [
      "with an RSA key of 1024 bits",
      () => openssl("rsa:1024"),
      /file\.key \S+key\.pem: its RSA key has 1024 bits; at least 2048 are required$/,
    ],
    [
      "with a certificate of X.509 version 1",
      () => openssl("rsa:2048", 1),
      /file\.cert \S+cert\.pem: it is not X\.509 version 3$/,
    ],
  ];
  for (const [what, contents, message] of [...wrong, ...more]) {
    it(`${what} are refused`, async () => {
      using folder = new Folder();
      const refusal = await new Server(folder, await contents(await pki)).refusal();
      assert.match(refusal, message);
      assert.doesNotMatch(refusal, /MIG|BEGIN/); // no key shows
    });
  }

  it("that are missing or directories are refused by name", async () => {
    using folder = new Folder();
    const server = new Server(folder, (await pki).server as Contents);
    rmSync(server.file.key!);
    assert.match(await server.refusal(), /^Cannot read --agent-server\.tls\.file\.key \S+key\.pem: the file does not exist$/);
    mkdirSync(server.file.key!);
    assert.match(await server.refusal(), /^Cannot read --agent-server\.tls\.file\.key \S+key\.pem: it is a directory$/);
  });

  it("that may be unusable are accepted with a warning", async () => {
    using folder = new Folder();
    const { server: { cert, key }, authority, other } = await pki;
    const early = await authority.issue({ names: ["early"], days: 3, startsIn: 2 });
    const old = await authority.issue({ names: ["old"], days: -1 });
    const doubtful: [contents: Contents, warning: RegExp][] = [
      [
        openssl("rsa:2048"),
        /file\.cert: the certificate "CN=localhost" of \S+ is a CA certificate \(CA:TRUE\): agents and lb accept it only if their root-ca contains this very certificate/,
      ],
      [await authority.issue({ names: [], commonName: "x" }), /has no subject alternative name: agents and lb accept it only by its pin/],
      [{ cert: early.cert, key: early.key }, /file\.cert: the certificate "CN=early" of \S+ is not valid before 2/],
      [{ cert: cert + old.cert, key }, /file\.cert: the certificate "CN=old" in the chain of \S+ expired on 2/],
      [
        { cert, key, clientCa: authority.cert, clientCrl: await other.revocationList([]) },
        /"CN=Other CA" in \S+ is not issued by an authority in client-ca/,
      ],
      [
        { cert, key, clientCa: authority.cert, clientCrl: await authority.revocationList([], -1) },
        /"CN=Test CA" in \S+ is outdated since 2/,
      ],
    ];
    for (const [contents, warning] of doubtful) {
      const server = new Server(folder, contents);
      await server.open();
      assert.equal(server.warnings().length, 1);
      assert.match(server.warnings()[0]!, warning);
    }
  });
});

describe("an encrypted key", () => {
  const PASSWORD = "corr:ect horse";
  const { privateKey: ec } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const { privateKey: rsa } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const forms = {
    "PKCS #8": ec.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: PASSWORD }),
    "PKCS #8 of RSA": rsa.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: PASSWORD }),
    "SEC 1": ec.export({ type: "sec1", format: "pem", cipher: "aes-256-cbc", passphrase: PASSWORD }),
    "PKCS #1": rsa.export({ type: "pkcs1", format: "pem", cipher: "aes-128-cbc", passphrase: PASSWORD }),
  };
  for (const [name, text] of Object.entries(forms)) {
    it(`in ${name} is read with its password, and with no other`, async () => {
      using folder = new Folder();
      const { server: { cert } } = await pki;
      const server = new Server(folder, { cert, key: String(text) });
      // read, and found to be another's
      assert.match(await server.refusal(PASSWORD), /the key does not belong to the certificate/);
      const wrong = await server.refusal("guess");
      assert.match(wrong, /file\.key \S+key\.pem: .*--agent-server\.tls\.key-password.* wrong/);
      assert.doesNotMatch(wrong, /guess/);
      assert.match(await server.refusal(), /file\.key \S+key\.pem: the key is encrypted: --agent-server\.tls\.key-password is required$/);
    });
  }

  it("is passed on decrypted", async () => {
    using folder = new Folder();
    const { server: { cert, key } } = await pki;
    const encrypted = createPrivateKey(key).export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: PASSWORD });
    const { current } = await new Server(folder, { cert, key: String(encrypted) }).open(PASSWORD);
    assert.match(current.key, /^-----BEGIN PRIVATE KEY-----/);
  });

  it("may be unencrypted although a password is given", async () => {
    using folder = new Folder();
    const { cert, key } = (await pki).server;
    await new Server(folder, { cert, key }).open(PASSWORD);
  });
});

describe("files of a client", () => {
  const PIN = "aa".repeat(32);
  const open = (
    folder: Folder,
    contents: { rootCa?: string; cert?: string; key?: string },
    { insecureSkipVerify = false, log = new LogBook() } = {},
  ) => {
    const file = Object.fromEntries(Object.entries(contents).map(([name, text]) => [name, folder.write(`${name}.pem`, text)]));
    return openClientTls("agent-client.tls", { insecureSkipVerify, useSystemPool: true, pinSha256: [PIN], file }, { log, net });
  };

  it("are read unchanged, in addition to the options", async () => {
    using folder = new Folder();
    const { server: { cert, key }, authority } = await pki;
    const { current } = await open(folder, { rootCa: authority.cert, cert, key });
    assert.deepEqual({ ...current, key: undefined }, {
      ca: current.ca,
      cert: current.cert,
      key: undefined,
      systemRoots: true,
      insecureSkipVerify: false,
      pinSha256: [PIN],
    });
    assert.deepEqual([current.ca, current.cert].map((pem) => plain(pem!)), [authority.cert, cert].map(plain));
    assert.equal((await open(folder, {})).current.ca, undefined);
  });

  it("that have no effect without verification cause a warning", async () => {
    using folder = new Folder();
    const rootCa = (await pki).authority.cert;
    for (const [contents, insecureSkipVerify, count] of [[{ rootCa }, true, 1], [{ rootCa }, false, 0], [{}, true, 0]] as const) {
      const log = new LogBook();
      await open(folder, contents, { insecureSkipVerify, log });
      const warnings = log.logged("authorities have no effect, because certificates are not verified");
      assert.equal(warnings.length, count);
      if (count > 0) assert.equal(warnings[0]!.ignored, "--agent-client.tls.file.root-ca");
    }
  });

  it("that are invalid are refused", async () => {
    using folder = new Folder();
    const { server: { cert, key }, other } = await pki;
    await assert.rejects(
      open(folder, { rootCa: key }),
      /--agent-client\.tls\.file\.root-ca \S+: it has no CERTIFICATE in PEM, but PRIVATE KEY/,
    );
    await assert.rejects(open(folder, { cert }), /--agent-client\.tls\.file\.cert: --agent-client\.tls\.file\.key is required too/);
    await assert.rejects(open(folder, { cert, key: other.key }), /--agent-client\.tls\.file\.key .* does not belong to the certificate/);
  });
});

describe("options of TLS that is off", () => {
  it("are refused if they name a file or a password, with the first of them", () => {
    refuseWithoutTls("http-proxy.tls", { file: { key: undefined, clientCa: "" }, keyPassword: "" });
    const refused = (options: Parameters<typeof refuseWithoutTls>[1], name: string) =>
      assert.throws(() => refuseWithoutTls("http-proxy.tls", options), {
        name: "ConfigError",
        message: `Cannot use --http-proxy.tls.${name}: --http-proxy.tls.enable is not set`,
      });
    refused({ file: { key: "key.pem" } }, "file.key");
    refused({ file: { key: undefined, clientCa: "ca.pem" } }, "file.client-ca");
    refused({ file: {}, keyPassword: "x" }, "key-password");
  });
});

describe("files that change", () => {
  const RENEWED = "certificates reloaded";
  const KEPT = "certificate reload failed; keeping the previous certificates";

  const start = async (folder: Folder) => {
    const { server: { cert, key }, authority } = await pki;
    const server = new Server(folder, { cert, key });
    const renewed = await authority.issue({ names: ["renewed"] });
    return { server, files: await server.open(), renewed: { cert: renewed.cert, key: renewed.key }, old: { cert, key } };
  };

  it("are followed", async () => {
    using folder = new Folder();
    const { server, files, renewed } = await start(folder);
    const used: string[] = [];
    await files.reload(({ cert }) => used.push(cert));
    assert.equal(used.length, 0);
    server.write(renewed);
    await files.reload(({ cert }) => used.push(cert));
    await files.reload(({ cert }) => used.push(cert));
    assert.deepEqual(used.map(plain), [plain(renewed.cert)]);
    assert.equal(plain(files.current.cert), plain(renewed.cert));
    assert.equal(server.log.logged(RENEWED, { options: "--agent-server.tls" }).length, 1);
  });

  it("leave the previous settings in force if they are invalid, which is logged once for each change", async () => {
    using folder = new Folder();
    const { server, files, renewed, old } = await start(folder);
    const reload = () => files.reload(() => assert.fail("it was used"));
    server.write({ cert: renewed.cert }); // not yet its key
    for (let i = 0; i < 3; i++) await reload();
    assert.equal(server.log.logged(KEPT).length, 1);
    assert.match(String(server.log.logged(KEPT)[0]!.reason), /does not belong to the certificate/);
    server.write({ cert: "junk" });
    for (let i = 0; i < 3; i++) await reload();
    rmSync(server.file.cert!);
    for (let i = 0; i < 3; i++) await reload();
    assert.deepEqual(server.log.logged(KEPT).length, 3);
    assert.match(String(server.log.logged(KEPT)[2]!.reason), /the file does not exist/);
    assert.equal(plain(files.current.cert), plain(old.cert));
    server.write(renewed);
    await files.reload();
    assert.equal(plain(files.current.cert), plain(renewed.cert));
  });

  it("are one change, however many reloads run at once", async () => {
    using folder = new Folder();
    const { server, files, renewed } = await start(folder);
    server.write({ cert: renewed.cert });
    await Promise.all([files.reload(), files.reload(), files.reload()]);
    assert.equal(server.log.logged(KEPT).length, 1);
    server.write(renewed);
    await Promise.all([files.reload(), files.reload(), files.reload()]);
    assert.equal(server.log.logged(RENEWED).length, 1);
  });

  it("leave the previous settings in force if the new ones cannot be used", async () => {
    using folder = new Folder();
    const { server, files, renewed, old } = await start(folder);
    server.write(renewed);
    for (let i = 0; i < 3; i++) {
      await files.reload(() => {
        throw new Error("of a kind that the network does not know");
      });
    }
    assert.equal(server.log.logged(KEPT, { reason: "of a kind that the network does not know" }).length, 1);
    assert.equal(plain(files.current.cert), plain(old.cert));
  });

  it("are read again at the interval, until the refresh is closed", async () => {
    using folder = new Folder();
    const { server, files, renewed } = await start(folder);
    const used = Promise.withResolvers<string>();
    const refreshing = startTlsRefresh(files, () => 5, ({ cert }) => used.resolve(cert));
    server.write(renewed);
    assert.equal(plain(await used.promise), plain(renewed.cert));
    await refreshing.close();
  });
});
