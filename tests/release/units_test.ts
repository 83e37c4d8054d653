// The systemd units and the scripts of the packages, as far as they can be checked without installing them.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, globSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, it } from "node:test";
import { SERVICES } from "../../services.ts";
import { Folder, ROOT } from "../../testing/programs.ts";

const UNITS = globSync("deploy/systemd/*.service", { cwd: ROOT }).map((file) => join(ROOT, file)).sort();

/** Why a test that needs an optional program is skipped; `false` if the program is installed. */
const without = (command: string) =>
  spawnSync(command, ["--version"], { stdio: "ignore" }).error === undefined ? false : `there is no ${command}`;

describe("units", () => {
  it("exist for every service, and start it", () => {
    const expected = [...Object.keys(SERVICES), "agent@"].map((part) => `reverse-http-${part}.service`).sort();
    assert.deepEqual(UNITS.map((file) => basename(file)), expected);
    for (const part of Object.keys(SERVICES)) {
      const text = readFileSync(join(ROOT, "deploy", "systemd", `reverse-http-${part}.service`), "utf8");
      assert.match(text, new RegExp(`^ExecStart=/usr/bin/reverse-http ${part}$`, "m"));
      assert.match(text, new RegExp(`^EnvironmentFile=-/etc/default/reverse-http-${part}$`, "m"));
    }
  });

  it("expect notifications that the service is ready and still runs", () => {
    for (const unit of UNITS) assert.match(readFileSync(unit, "utf8"), /^Type=notify$[^]*^WatchdogSec=30$/m, unit);
  });

  it("give a service the time of its drain before it is killed", () => {
    for (const unit of UNITS) {
      const [, seconds] = /^TimeoutStopSec=(\d+)$/m.exec(readFileSync(unit, "utf8"))!;
      assert.ok(Number(seconds) > Number.parseInt(SERVICES.proxy["drain.timeout"].default), unit);
    }
  });

  it("are accepted by systemd", { skip: without("systemd-analyze") }, () => {
    using folder = new Folder();
    // it looks for the executable
    mkdirSync(join(folder.path, "usr", "bin"), { recursive: true });
    mkdirSync(join(folder.path, "etc", "systemd", "system"), { recursive: true });
    writeFileSync(join(folder.path, "usr", "bin", "reverse-http"), "#!/bin/sh\n");
    chmodSync(join(folder.path, "usr", "bin", "reverse-http"), 0o755);
    for (const unit of UNITS) {
      const text = readFileSync(unit, "utf8").replace("/usr/bin/reverse-http", join(folder.path, "usr", "bin", "reverse-http"));
      writeFileSync(join(folder.path, basename(unit)), text);
    }
    const files = UNITS.map((unit) => join(folder.path, basename(unit)));
    const { status, stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", ...files], { encoding: "utf8" });
    const own = stderr.split("\n").filter((line) => /reverse-http/.test(line));
    assert.deepEqual([status, own], [0, []]);
  });
});

describe("shell scripts", () => {
  const scripts = ["install.sh", ...globSync("deploy/packages/*.sh", { cwd: ROOT })].map((file) => join(ROOT, file));

  it("are valid for sh", () => {
    assert.ok(scripts.length > 3 && scripts.every((file) => existsSync(file)));
    for (const script of scripts) assert.equal(spawnSync("sh", ["-n", script]).status, 0, script);
  });

  it("pass shellcheck", { skip: without("shellcheck") }, () => {
    const { status, stdout } = spawnSync("shellcheck", ["-s", "sh", ...scripts], { encoding: "utf8" });
    assert.equal(status, 0, stdout);
  });
});
