// The self-signed certificate: its content, its file and permissions, and what happens if it cannot be stored.
import assert from "node:assert/strict";
import { createHash, createPrivateKey, X509Certificate } from "node:crypto";
import { chmodSync, readdirSync, readFileSync, statSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { defaultStateDirectory } from "../../shared/files/state_directory.ts";
import { openSelfSigned } from "../../shared/tls/self_signed.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const FLEETING = "self-signed certificate cannot be stored, so its pin changes with every start; set --state-dir";

const required = (path: string) => ({ path, required: true });

describe("a self-signed certificate", () => {
  it("is valid for localhost and this machine for ten years, and its pin is its SHA-256", async () => {
    using folder = new Folder();
    const { cert, key, pin } = await openSelfSigned("agent-server", required(folder.path), new LogBook());
    const parsed = new X509Certificate(cert);
    assert.equal(pin, createHash("sha256").update(parsed.raw).digest("hex"));
    assert.ok(parsed.checkPrivateKey(createPrivateKey(key)));
    assert.equal(createPrivateKey(key).asymmetricKeyDetails?.namedCurve, "prime256v1");
    assert.equal(parsed.ca, false);
    const names = parsed.subjectAltName!.split(", ");
    for (const name of ["DNS:localhost", `DNS:${hostname()}`, "IP Address:127.0.0.1"]) {
      assert.ok(names.includes(name), String(names));
    }
    const years = (Date.parse(parsed.validTo) - Date.now()) / (365 * 86_400_000);
    assert.ok(years > 9.9 && years < 10.1, parsed.validTo);
  });

  it("is stored in a folder and a file that only this user can read", async () => {
    using folder = new Folder();
    const path = join(folder.path, "state", "reverse-http");
    const log = new LogBook();
    const first = await openSelfSigned("agent-server", required(path), log);
    const second = await openSelfSigned("agent-server", required(path), log);
    assert.deepEqual(second, first);
    assert.equal(first.file, join(path, "agent-server.pem"));
    assert.equal(statSync(path).mode & 0o777, 0o700);
    assert.equal(statSync(first.file!).mode & 0o777, 0o600);
    assert.deepEqual(readdirSync(path), ["agent-server.pem"]);
    assert.deepEqual(log.entries, []);
  });

  it("is created once even if several processes start at the same time", async () => {
    using folder = new Folder();
    const all = await Promise.all(Array.from({ length: 8 }, () => openSelfSigned("agent-server", required(folder.path), new LogBook())));
    assert.equal(new Set(all.map(({ pin }) => pin)).size, 1);
    assert.deepEqual(readdirSync(folder.path), ["agent-server.pem"]);
  });

  it("that other users can read is used with a warning", async () => {
    using folder = new Folder();
    const { file } = await openSelfSigned("agent-server", required(folder.path), new LogBook());
    chmodSync(file!, 0o644);
    const log = new LogBook();
    await openSelfSigned("agent-server", required(folder.path), log);
    const [warning] = log.logged("secret file is readable by other users");
    assert.deepEqual([warning?.file, warning?.mode], [file, "0644"]);
  });

  it("is kept in memory, with a warning, if there is no place for it", async () => {
    using folder = new Folder();
    const log = new LogBook();
    const file = folder.write("file", "");
    const places = [undefined, join(file, "below-a-file"), "/proc/nowhere"];
    const pins = await Promise.all(places.map(async (path) => (await openSelfSigned("agent-server", { path, required: false }, log)).pin));
    assert.equal(new Set(pins).size, places.length);
    assert.equal(log.logged(FLEETING).length, places.length);
  });

  it("is refused if the configured place cannot be used", async () => {
    using folder = new Folder();
    const path = join(folder.write("file", ""), "below-a-file");
    await assert.rejects(openSelfSigned("agent-server", required(path), new LogBook()), (error) => {
      assert.equal((error as Error).name, "ConfigError");
      assert.ok(
        (error as Error).message.startsWith(`Cannot use --state-dir ${path}: a part of its path is not a directory`),
        (error as Error).message,
      );
      return true;
    });
  });

  it("never replaces a file with other content", async () => {
    using folder = new Folder();
    for (
      const [text, why] of [["", /it has no CERTIFICATE in PEM/], [
        "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----",
        /but PRIVATE KEY/,
      ]] as const
    ) {
      const file = folder.write("agent-server.pem", text);
      for (const path of [required(folder.path), { path: folder.path, required: false }]) {
        await assert.rejects(openSelfSigned("agent-server", path, new LogBook()), why);
      }
      assert.equal(readFileSync(file, "utf8"), text);
    }
  });

  it("is refused with another certificate's key", async () => {
    using one = new Folder();
    using other = new Folder();
    const { cert } = await openSelfSigned("agent-server", required(one.path), new LogBook());
    const { key } = await openSelfSigned("agent-server", required(other.path), new LogBook());
    one.write("agent-server.pem", cert + key);
    await assert.rejects(openSelfSigned("agent-server", required(one.path), new LogBook()), /key and certificate do not belong together/);
  });
});

describe("the state directory", () => {
  it("is that of the service manager, of the user, or for root of the system", () => {
    const env = { STATE_DIRECTORY: "/var/lib/a:/var/lib/b", XDG_STATE_HOME: "/xdg", HOME: "/home/x" };
    assert.equal(defaultStateDirectory(env, 0), "/var/lib/a");
    assert.equal(defaultStateDirectory({ ...env, STATE_DIRECTORY: undefined }, 0), "/xdg/reverse-http");
    assert.equal(defaultStateDirectory({ ...env, STATE_DIRECTORY: "" }, 1000), "/xdg/reverse-http");
    assert.equal(defaultStateDirectory({ HOME: "/root" }, 0), "/var/lib/reverse-http");
    assert.equal(defaultStateDirectory({ HOME: "/home/x" }, 1000), "/home/x/.local/state/reverse-http");
    assert.equal(defaultStateDirectory({ HOME: "/home/x", XDG_STATE_HOME: "" }, undefined), "/home/x/.local/state/reverse-http");
    assert.equal(defaultStateDirectory({}, 1000), undefined);
  });
});
