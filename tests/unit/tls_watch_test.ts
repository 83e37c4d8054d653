// How changes of certificate files are noticed, and the file that a program writes itself.
import assert from "node:assert/strict";
import { mkdirSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { openServerTls } from "../../shared/tls/reloadable_tls.ts";
import { type Issued, makeAuthority } from "../../testing/certificates.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const RELOADED = "certificates reloaded";

const issued = makeAuthority().then(async (authority) =>
  [
    await authority.issue({ names: ["a"] }),
    await authority.issue({ names: ["b"] }),
    await authority.issue({ names: ["c"], days: -1 }),
  ] as const
);

function write(folder: string, { cert, key }: Issued): void {
  writeFileSync(join(folder, "cert.pem"), cert);
  writeFileSync(join(folder, "key.pem"), key, { mode: 0o600 });
}

async function open(folder: string) {
  const log = new LogBook();
  const file = { cert: join(folder, "cert.pem"), key: join(folder, "key.pem") };
  return { log, files: await openServerTls("agent-server.tls", { file }, { log, net: createMemoryNet() }) };
}

describe("changes of certificate files", () => {
  it("are applied when the program that writes them has finished", async () => {
    using folder = new Folder();
    const [old, renewed] = await issued;
    write(folder.path, old);
    const { log, files } = await open(folder.path);
    await files.poll();
    writeFileSync(join(folder.path, "key.pem"), renewed.key);
    await files.poll();
    writeFileSync(join(folder.path, "cert.pem"), renewed.cert);
    await files.poll();
    assert.equal(files.current.cert.trim(), old.cert.trim());
    await files.poll();
    assert.equal(files.current.cert.trim(), renewed.cert.trim());
    for (let i = 0; i < 3; i++) await files.poll();
    assert.deepEqual(log.entries.map(({ message }) => message), [RELOADED]);
  });

  it("are noticed where a volume of Kubernetes replaces its link, and where an editor replaces the file", async () => {
    using folder = new Folder();
    const [first, second] = await issued;
    const volume = (name: string, content: Issued) => {
      mkdirSync(join(folder.path, name));
      write(join(folder.path, name), content);
      symlinkSync(name, join(folder.path, "..data_tmp"));
      renameSync(join(folder.path, "..data_tmp"), join(folder.path, "..data"));
    };
    volume("..2026_1", first);
    for (const name of ["cert.pem", "key.pem"]) symlinkSync(join("..data", name), join(folder.path, name));
    const { log, files } = await open(folder.path);
    volume("..2026_2", second);
    for (let i = 0; i < 2; i++) await files.poll();
    assert.equal(files.current.cert.trim(), second.cert.trim());
    for (const [name, text] of [["cert.pem", first.cert], ["key.pem", first.key]] as const) {
      writeFileSync(join(folder.path, `${name}~`), text, { mode: 0o600 });
      renameSync(join(folder.path, `${name}~`), join(folder.path, name));
    }
    for (let i = 0; i < 2; i++) await files.poll();
    assert.equal(files.current.cert.trim(), first.cert.trim());
    assert.equal(log.logged(RELOADED).length, 2);
  });
});

describe("a certificate that the program obtains itself", () => {
  const start = async (folder: Folder) => {
    const [selfSigned] = await issued;
    const managedFile = join(folder.path, "certificate.pem");
    const log = new LogBook();
    const files = await openServerTls("agent-server.tls", { file: {} }, { log, net: createMemoryNet(), selfSigned, managedFile });
    return { log, files, managedFile, selfSigned };
  };

  it("replaces the self-signed one when it exists", async () => {
    using folder = new Folder();
    const { log, files, managedFile, selfSigned } = await start(folder);
    assert.equal(files.current.cert, selfSigned.cert);
    const [, { cert, key }] = await issued;
    writeFileSync(managedFile, `${cert}${key}`, { mode: 0o600 });
    await files.reload();
    assert.equal(files.current.cert.trim(), cert.trim());
    assert.deepEqual(log.entries.map(({ message }) => message), [RELOADED]);
  });

  it("does not keep the program from starting if it has expired, or is damaged", async () => {
    using folder = new Folder();
    const [, , { cert, key }] = await issued;
    for (const text of [`${cert}${key}`, "damaged"]) {
      writeFileSync(join(folder.path, "certificate.pem"), text, { mode: 0o600 });
      const { log, files, selfSigned } = await start(folder);
      assert.equal(files.current.cert, selfSigned.cert);
      assert.match(String(log.logged("certificate may be unusable")[0]!.reason), /^Cannot use --state-dir .*certificate\.pem: /);
    }
  });
});
