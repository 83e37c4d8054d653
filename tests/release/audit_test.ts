// The audit: licences as SPDX expressions, origins in lock files, and the report if a registry cannot be reached.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { isAllowed, strangeCrates, strangePackages } from "../../tools/audit.ts";
import { Folder, ROOT, runToEnd } from "../../testing/programs.ts";

describe("licences", () => {
  it("are allowed if one side of each OR and both sides of each AND are", () => {
    for (
      const expression of [
        "MIT",
        "MIT OR GPL-3.0-only",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "ISC AND (GPL-2.0-only OR ISC)",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
      ]
    ) {
      assert.ok(isAllowed(expression), expression);
    }
  });

  it("are refused if they are missing, not on the list, or malformed", () => {
    for (
      const expression of [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "UNLICENSED",
        "(AGPL-3.0-only OR SSPL-1.0) AND MIT",
        "MIT MIT",
        "GPL-2.0-only WITH Classpath-exception-2.0",
      ]
    ) {
      assert.ok(!isAllowed(expression), expression);
    }
  });
});

describe("origins", () => {
  it("of crates are crates.io with a checksum, or this repository", () => {
    const entry = (...lines: string[]) => `[[package]]\nname = "a"\nversion = "1.0.0"\n${lines.join("\n")}\n`;
    const registry = 'source = "registry+https://github.com/rust-lang/crates.io-index"';
    assert.deepEqual(strangeCrates(entry(registry, `checksum = "${"0".repeat(64)}"`)), []);
    assert.deepEqual(strangeCrates(entry().replace('"a"', '"reverse_http_native"')), []);
    for (const lines of [[registry], ['source = "git+https://example.com/a#1"'], []]) {
      assert.equal(strangeCrates(entry(...lines)).length, 1, lines.join());
    }
  });

  it("of packages are npm with a checksum", () => {
    const lock = (values: object, specifiers = { "npm:a@1": "1.0.0" }, others = {}) =>
      JSON.stringify({ version: "5", specifiers, npm: { "a@1.0.0": values }, workspace: {}, ...others });
    const integrity = "sha512-AA==";
    assert.deepEqual(strangePackages(lock({ integrity })), []);
    for (
      const bad of [
        lock({}),
        lock({ integrity, tarball: "https://example.com/a.tgz" }),
        lock({ integrity }, { "jsr:@a/a@1": "1.0.0" } as never),
        lock({ integrity }, undefined, { remote: { "https://example.com/a.ts": "00" } }),
      ]
    ) {
      assert.equal(strangePackages(bad).length, 1, bad);
    }
  });
});

/** A registry that answers with these advisories. */
async function serveAdvisories(advisories: object): Promise<AsyncDisposable & { url: string }> {
  const server = createServer((request, response) => {
    request.resume().on("end", () => response.setHeader("content-type", "application/json").end(JSON.stringify(advisories)));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    [Symbol.asyncDispose]: () => new Promise((resolve) => (server.closeAllConnections(), server.close(() => resolve()))),
  };
}

describe("deno task audit", { skip: process.versions.bun !== undefined && "it is for Deno to ask npm" }, () => {
  /** With a registry of npm there, and a cargo-deny that says this and exits so. */
  async function audit(registry: string, denied: string) {
    using folder = new Folder();
    const cargo = spawnSync("which", ["cargo"], { encoding: "utf8" }).stdout.trim();
    chmodSync(folder.write("cargo", `#!/bin/sh\n[ "$1" != deny ] && exec ${cargo} "$@"\n${denied}\n`), 0o755);
    return await runToEnd(process.execPath, ["run", "-A", join(ROOT, "tools", "audit.ts")], {
      cwd: ROOT,
      env: { ...process.env as Record<string, string>, PATH: `${folder.path}:${process.env.PATH}`, NPM_CONFIG_REGISTRY: registry },
    });
  }

  it("exits with 0 if nothing was found", async () => {
    await using registry = await serveAdvisories({});
    const { exitCode, stdout, stderr } = await audit(registry.url, "exit 0");
    assert.equal(exitCode, 0, stdout + stderr);
    assert.match(
      stdout,
      /^good +licences: all \d+ are allowed\ngood +origins: .*\n(good .*: none\n){2}4 good, 0 bad, 0 could not be asked$/,
    );
  });

  it("exits with 1 for a finding, also if a registry could not be reached", async () => {
    const advisory = { id: 1, url: "https://example.com/GHSA", title: "it is bad", severity: "high", vulnerable_versions: "<99" };
    await using registry = await serveAdvisories({ ws: [advisory] });
    const { exitCode, stdout } = await audit(registry.url, "echo 'error: no such command: `deny`' >&2; exit 101");
    assert.equal(exitCode, 1, stdout);
    assert.match(stdout, /^bad +advisories of npm packages: [^]*it is bad/m);
    assert.match(stdout, /^unknown advisories of crates: there is no cargo-deny: run cargo install/m);
  });

  it("exits with 2 without a finding if a registry could not be reached, and reports the local checks", async () => {
    await using gone = await serveAdvisories({});
    const { url } = gone;
    await gone[Symbol.asyncDispose]();
    const { exitCode, stdout } = await audit(url, "echo 'failed to fetch advisory database' >&2; exit 1");
    assert.equal(exitCode, 2, stdout);
    assert.match(stdout, /^good +licences: /);
    assert.match(
      stdout,
      /^unknown advisories of npm packages: cannot be asked, this machine does not reach them: .*\nunknown advisories of crates: /m,
    );
    assert.match(stdout, /\n2 good, 0 bad, 2 could not be asked$/);
  });
});
