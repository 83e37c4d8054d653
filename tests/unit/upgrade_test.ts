// Parts of `reverse-http upgrade`: order of versions, bounds of downloads, owners of files, running services.
import assert from "node:assert/strict";
import { mkdir, readlink, symlink, writeFile } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import type { Executable } from "../../shared/cli/command.ts";
import { ownerOf } from "../../shared/cli/upgrade/package_manager.ts";
import { compareVersions, isVersion, ReleaseServer } from "../../shared/cli/upgrade/release.ts";
import { Candidate, previousOf, restore } from "../../shared/cli/upgrade/replacement.ts";
import { type Run, runCommand } from "../../shared/cli/upgrade/run_command.ts";
import { findServices } from "../../shared/cli/upgrade/services.ts";
import { readText } from "../../shared/files/read.ts";
import { Folder } from "../../testing/programs.ts";

describe("versions", () => {
  it("have the order of Semantic Versioning", () => {
    const ordered = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.1 1.2.0 1.10.0 2.0.0".split(
      " ",
    );
    for (const [i, a] of ordered.entries()) {
      for (const [j, b] of ordered.entries()) assert.equal(Math.sign(compareVersions(a, b)), Math.sign(i - j), `${a} ${b}`);
    }
    assert.equal(compareVersions("1.0.0+a", "1.0.0+b"), 0);
    for (const text of ["", "1", "1.2", "v1.2.3", "1.2.3 ", "1.2.3/..", "1.2.3-"]) assert.ok(!isVersion(text), text);
  });
});

describe("a server of releases", () => {
  const refuses = async (respond: RequestListener, reason: RegExp, idleMs?: number) => {
    const server = createServer(respond);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      await assert.rejects(new ReleaseServer({ base, idleMs }).find(), reason);
    } finally {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  };

  it("that is silent, endless, interrupted or another one is refused", async () => {
    await refuses(() => {}, /nothing has come for 0\.05 s/, 50);
    await refuses((_, response) => response.write("one part"), /nothing has come for 0\.05 s/, 50);
    await refuses((_, response) => response.end("x".repeat((1 << 20) + 1)), /it has more than 1048576 bytes/);
    await refuses(
      (_, response) => void response.writeHead(200, { "Content-Length": 100 }).write("part", () => response.destroy()),
      /Cannot/,
    );
    await refuses((_, response) => response.end("<html>a portal</html>"), /it names no release/);
    await refuses((_, response) => response.writeHead(302, { Location: "/again" }).end(), /Cannot download/);
    await refuses((_, response) => response.end(`${"0".repeat(64)}  reverse-http_../../x_linux_amd64.tar.gz\n`), /it names no release/);
  });
});

describe("an executable", () => {
  const wanted = { version: "1.3.0", url: "https://releases.test/download/v1.3.0", arch: "amd64", image: "registry.test/image" };
  const owner = (file: string, ofPackage?: string) =>
    ownerOf(file, wanted, ([command]) => Promise.resolve({ code: command === ofPackage ? 0 : 127, stdout: "", stderr: "" }));

  it("of a package manager is left to its command", async () => {
    assert.equal(await owner("/usr/local/bin/reverse-http"), undefined);
    assert.match(
      (await owner("/usr/lib/reverse-http/reverse-http", "dpkg-query"))!.command,
      /v1\.3\.0\/reverse-http_1\.3\.0_linux_amd64\.deb/,
    );
    assert.match((await owner("/usr/bin/reverse-http", "rpm"))!.command, /dnf install .*_1\.3\.0_linux_amd64\.rpm/);
    assert.match((await owner("/opt/homebrew/Cellar/reverse-http/1.2.0/bin/reverse-http"))!.command, /^brew upgrade/);
    assert.match((await owner("/nix/store/abc-reverse-http/bin/reverse-http"))!.command, /^nix/);
    assert.match((await owner("/reverse-http"))!.command, /^docker pull registry\.test\/image:1\.3\.0/);
  });

  it("is replaced whole, and can be put back", async () => {
    using folder = new Folder();
    const file = folder.write("program", "old");
    const content = () => readText(file, 100);
    {
      await using candidate = await Candidate.write(file, new TextEncoder().encode("new"));
      assert.equal(await content(), "old");
      await candidate.replace(file);
    }
    assert.deepEqual([await content(), await readText(previousOf(file), 100)], ["new", "old"]);
    {
      await using candidate = await Candidate.previous(file);
      await candidate.replace(file);
    }
    assert.deepEqual([await content(), await readText(previousOf(file), 100)], ["old", "new"]);
    await restore(file);
    assert.equal(await content(), "new");
  });
});

describe("running services", () => {
  const executable = { root: { name: "reverse-http", commands: [] }, family: { proxy: {}, lb: {} }, version: "1" } as unknown as Executable;

  /** Processes as in /proc: command lines by id. */
  const processes = async (folder: Folder, file: string, lines: Readonly<Record<string, string>>) => {
    for (const [pid, line] of Object.entries(lines)) {
      const own = join(folder.path, pid);
      await mkdir(own);
      await symlink(line.startsWith("other") ? "/usr/bin/other" : file, join(own, "exe"));
      await writeFile(join(own, "cmdline"), line.split(" ").map((word) => `${word}\0`).join(""));
      await writeFile(join(own, "environ"), "HOME=/h\0A=b=c\0");
      await writeFile(join(own, "status"), `Uid:\t${process.getuid!()}\t0\nGid:\t${process.getgid!()}\t0\n`);
    }
    return await readlink(join(folder.path, Object.keys(lines)[0]!, "exe"));
  };

  it("are those of the executable, each with the socket that it has of its options", async () => {
    using folder = new Folder();
    const file = await processes(folder, "/opt/reverse-http", {
      "1": "reverse-http proxy --a",
      "2": "reverse-http proxy --a", // an earlier process
      "3": "reverse-http lb --none",
      "4": "reverse-http lb --bad",
      "5": "reverse-http connect host:1",
      "6": "other proxy",
      "x": "reverse-http proxy",
    });
    const asked: string[] = [];
    const run: Run = (command, options) => {
      asked.push(command.join(" "));
      assert.deepEqual(options?.env, { HOME: "/h", A: "b=c" });
      if (command.includes("--bad")) return Promise.resolve({ code: 2, stdout: "", stderr: "Cannot read it\n" });
      const stdout = command.includes("--a")
        ? "--a=1  # x\n--handover.socket='/run/a b.sock'  # --a\n"
        : "# --handover.socket=  # default\n";
      return Promise.resolve({ code: 0, stdout, stderr: "" });
    };
    assert.deepEqual(await findServices(executable, file, run, folder.path), [
      { name: "proxy (process 1)", socket: "/run/a b.sock" },
      { name: "lb (process 3)", problem: "it has no --handover.socket" },
      { name: "lb (process 4)", problem: "its options cannot be read: Cannot read it" },
    ]);
    assert.equal(asked[0], "/opt/reverse-http proxy --print-config --a");
  });
});

describe("another program", () => {
  it("that does not exist or fails has an exit code, too", async () => {
    assert.equal((await runCommand(["/nonexistent/program"])).code, 127);
    assert.equal((await runCommand(["/bin/sh", "-c", "exit 7"])).code, 7);
  });
});
