// The commands service: the files that they write, what they leave alone, and that nothing of a token is where others can read it.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { SERVICES } from "../../services.ts";
import { CommandFailure, readCommandLine } from "../../shared/cli/command.ts";
import type { Ran } from "../../shared/cli/install/changes.ts";
import { serviceCommand } from "../../shared/cli/install/command.ts";
import { renderUnit } from "../../shared/cli/install/systemd.ts";
import { formatJoin } from "../../shared/config/join.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { Folder, ROOT } from "../../testing/programs.ts";
import { fakeTerminal } from "../../testing/terminal.ts";

const JOIN = formatJoin({
  role: "agent",
  servers: ["proxy.example:4242"],
  agentId: "site7",
  tls: true,
  pin: "1c".repeat(32),
  token: "abc.def.ghi",
});
const ID = "reverse-http-agent-site7.service";

interface Done {
  readonly out: string;
  readonly reports: string;
  readonly commands: string[];
}

/** Runs a command of a machine whose files are in `folder`. */
async function service(
  folder: Folder,
  args: string[],
  { manager = "systemd" as "systemd" | "launchd", input = "", fails = /^$/, env = {} as Record<string, string> } = {},
): Promise<Done> {
  const commands: string[] = [];
  const run = (command: readonly string[]): Promise<Ran> => {
    commands.push(command.join(" "));
    const isFailing = fails.test(command.join(" "));
    return Promise.resolve({ code: isFailing ? 1 : 0, output: isFailing ? "it failed" : "active\n" });
  };
  const root = { name: "reverse-http", description: "All.", commands: [serviceCommand({ family: SERVICES, run, manager })] };
  const task = readCommandLine({ root, version: "1", family: SERVICES }, {
    args: ["service", ...args, `--root=${folder.path}`],
    env: {},
    home: undefined,
  });
  const { subcommand, resolved, line } = task as Extract<typeof task, { do: "subcommand" }>;
  const terminal = fakeTerminal({ input, env: { HOME: "/home/alice", ...env }, executable: "/usr/local/bin/reverse-http" });
  await subcommand.run(resolved.values, terminal, line);
  return {
    out: terminal.out().replaceAll(folder.path, ""),
    reports: terminal.reports.join("\n"),
    commands: commands.map((text) => text.replaceAll(folder.path, "ROOT")),
  };
}

const install = (folder: Folder, args: string[] = [], options = {}) =>
  service(folder, ["install", "--join=-", ...args], { input: `${JOIN}\n`, ...options });
const read = (folder: Folder, file: string) => readFileSync(join(folder.path, file), "utf8");
const UNIT = `/etc/systemd/system/${ID}`;
const CONFIG = "/etc/reverse-http/services/agent-site7.yaml";

describe("service install", () => {
  it("writes a unit, and the string where only root can read it", async () => {
    using folder = new Folder();
    const { out, commands } = await install(folder);
    assert.equal(out, `write ${CONFIG}, mode 0600\nwrite ${UNIT}, mode 0644\nrun systemctl --root= enable ${ID}\nis installed as ${ID}\n`);
    assert.deepEqual(commands, [`systemctl --root=ROOT enable ${ID}`]);
    assert.equal(read(folder, CONFIG), `join: ${JOIN}\n`);
    assert.deepEqual(
      [CONFIG, "/etc/reverse-http/services", "/etc/reverse-http"].map((file) => statSync(join(folder.path, file)).mode & 0o777),
      [0o600, 0o700, 0o755],
    );
    const unit = read(folder, UNIT);
    assert.match(unit, /^LoadCredential=config\.yaml:\/etc\/reverse-http\/services\/agent-site7\.yaml$/m);
    assert.match(unit, /^ExecStart=\/usr\/local\/bin\/reverse-http agent --config=\$\{CREDENTIALS_DIRECTORY\}\/config\.yaml$/m);
    assert.match(unit, /^DynamicUser=yes$/m);
    assert.ok(!unit.includes("abc.def.ghi") && !unit.includes("rhttp1") && !out.includes("rhttp1"));
  });

  it("again changes nothing, and with another string says so", async () => {
    using folder = new Folder();
    await install(folder);
    assert.match((await install(folder)).out, new RegExp(`^unchanged ${CONFIG}\nunchanged ${UNIT}\n`));
    const other = formatJoin({ role: "agent", servers: ["other.example:4242"], agentId: "site7", tls: true });
    assert.match((await install(folder, [], { input: other })).out, new RegExp(`^replace ${CONFIG}, mode 0600\nunchanged ${UNIT}\n`));
  });

  it("only says what it would do with --dry-run", async () => {
    using folder = new Folder();
    const { out, commands } = await install(folder, ["--dry-run"]);
    assert.match(
      out,
      new RegExp(`^would write ${CONFIG}, mode 0600\nwould write ${UNIT}, mode 0644\nwould run systemctl .*\nwould be installed as`),
    );
    assert.deepEqual([commands, readdirSync(folder.path)], [[], []]);
  });

  it("leaves nothing behind if a step fails", async () => {
    using folder = new Folder();
    await assert.rejects(install(folder, [], { fails: /enable/ }), /systemctl .* enable .* failed with 1: it failed/);
    assert.deepEqual([existsSync(join(folder.path, CONFIG)), existsSync(join(folder.path, UNIT))], [false, false]);
    mkdirSync(join(folder.path, "etc", "systemd"), { recursive: true });
    folder.write("etc/systemd/system", "no folder");
    await assert.rejects(install(folder), /^Error: Cannot write .*reverse-http-agent-site7\.service: /);
    assert.equal(existsSync(join(folder.path, CONFIG)), false);
  });

  it("restores what it has replaced if a step fails", async () => {
    using folder = new Folder();
    await install(folder);
    const other = formatJoin({ role: "agent", servers: ["other.example:4242"], agentId: "site7", tls: true });
    await assert.rejects(install(folder, [], { input: other, fails: /enable/ }));
    assert.equal(read(folder, CONFIG), `join: ${JOIN}\n`);
  });

  it("takes a configuration file, and hands over the secret files that it names", async () => {
    using folder = new Folder();
    const [secret, open] = [folder.write("agent.jwt", "abc.def.ghi"), folder.write("ca.pem", "a certificate")];
    chmodSync(secret, 0o600);
    chmodSync(open, 0o644);
    const text = `auth: {type: jwt, jwt: {token: "file:${secret}"}}\nagent-client: {tls: {file: {root-ca: ${open}}}}\n`;
    const config = folder.write("agent.yaml", text);
    const { reports } = await service(folder, ["install", "--name=x", `--config=${config}`]);
    const unit = read(folder, "/etc/systemd/system/reverse-http-agent-x.service");
    assert.match(unit, new RegExp(`^LoadCredential=auth\\.jwt\\.token:${secret}$`, "m"));
    assert.match(unit, /^ExecStart=.* --auth\.jwt\.token=file:\$\{CREDENTIALS_DIRECTORY\}\/auth\.jwt\.token$/m);
    assert.doesNotMatch(unit, /root-ca/);
    assert.match(reports, /agent\.jwt is handed over for --auth\.jwt\.token at each start/);
    assert.equal(read(folder, "/etc/reverse-http/services/agent-x.yaml"), text);
    const relative = folder.write("bad.yaml", "agent-client: {tls: {file: {root-ca: ca.pem}}}\n");
    await assert.rejects(
      service(folder, ["install", "--name=x", `--config=${relative}`]),
      /--agent-client\.tls\.file\.root-ca ca\.pem .*write the whole path/,
    );
    const unknown = folder.write("unknown.yaml", "agent-clients: 1\n");
    await assert.rejects(service(folder, ["install", "--name=x", `--config=${unknown}`]), /Unknown key agent-clients/);
  });

  it("lets the executable check the configuration first", async () => {
    using folder = new Folder();
    const config = folder.write("proxy.yaml", "{}\n");
    const args = ["install", "--role=proxy", "--name=p", `--config=${config}`, "--executable=/bin/true"];
    const { commands } = await service(folder, args);
    assert.equal(commands[0], "/bin/true proxy --config=ROOT/proxy.yaml --check-config");
    await service(folder, ["uninstall", "--role=proxy", "--name=p"]);
    await assert.rejects(service(folder, args, { fails: /check-config/ }), /^ConfigError: Cannot install .*proxy\.yaml: it failed$/);
    assert.equal(existsSync(join(folder.path, "etc/reverse-http/services/proxy-p.yaml")), false);
  });

  it("installs into a user's service manager", async () => {
    using folder = new Folder();
    const { out, commands, reports } = await install(folder, ["--user"]);
    assert.match(
      out,
      /write \/home\/alice\/\.config\/reverse-http\/services\/agent-site7\.yaml, mode 0600\nwrite \/home\/alice\/\.config\/systemd\/user\/reverse-/,
    );
    assert.deepEqual(commands, [`systemctl --user --root=ROOT enable ${ID}`]);
    assert.match(reports, /loginctl enable-linger/);
    const unit = read(folder, `/home/alice/.config/systemd/user/${ID}`);
    assert.match(unit, /^ExecStart=.* --config=\/home\/alice\/\.config\/reverse-http\/services\/agent-site7\.yaml$/m);
    assert.match(unit, /^WantedBy=default\.target$/m);
    assert.doesNotMatch(unit, /LoadCredential|DynamicUser|CapabilityBoundingSet/);
  });

  it("writes a property list for launchd", async () => {
    using folder = new Folder();
    const { out } = await install(folder, ["--name=a.b"], { manager: "launchd", env: { SUDO_USER: "alice" } });
    const file = "/Library/LaunchDaemons/reverse-http.agent.a.b.plist";
    assert.match(
      out,
      new RegExp(`^write /Library/Application Support/reverse-http/agent-a\\.b\\.yaml, mode 0600\nwrite ${file}, mode 0644\n`),
    );
    const list = read(folder, file);
    for (
      const text of [
        "<string>reverse-http.agent.a.b</string>",
        "<key>UserName</key>\n  <string>alice</string>",
        "<key>ThrottleInterval</key>",
      ]
    ) {
      assert.ok(list.includes(text), text);
    }
    assert.match(
      list,
      /<string>\/usr\/local\/bin\/reverse-http<\/string>\n\s+<string>agent<\/string>\n\s+<string>--config<\/string>\n\s+<string>\/Library\/Application Support/,
    );
    assert.ok(!list.includes("rhttp1"));
  });

  it("refuses what cannot be a service", async () => {
    using folder = new Folder();
    const refused = async (args: string[], said: RegExp, options = {}) =>
      await assert.rejects(
        service(folder, ["install", ...args], options),
        (error) => error instanceof ConfigError && said.test(error.message),
      );
    await refused([], /one of --join and --config is required/);
    await refused(["--join=-", "--role=proxy"], /the role is proxy; write --config/, { input: JOIN });
    await refused(["--join=-"], /it has been cut/, { input: JOIN.slice(0, 90) });
    await refused(["--join=-", "--executable=/home/alice/reverse-http"], /sees no home .*; move it to \/usr\/local\/bin/, { input: JOIN });
    mkdirSync(join(folder.path, "etc", "systemd", "system"), { recursive: true });
    folder.write(UNIT.slice(1), "[Unit]\n# of the administrator\n");
    await refused(["--join=-"], /another program wrote it; choose another --name/, { input: JOIN });
    assert.equal(existsSync(join(folder.path, CONFIG)), false);
  });
});

describe("service uninstall and status", () => {
  it("removes only what install wrote, and may be repeated", async () => {
    using folder = new Folder();
    await install(folder);
    await install(folder, ["--name=other"]);
    const { out, commands } = await service(folder, ["uninstall", "--name=site7"]);
    assert.equal(out, `run systemctl --root= disable ${ID}\nremove ${UNIT}\nremove ${CONFIG}\n`);
    assert.equal(commands.length, 1);
    assert.deepEqual(readdirSync(join(folder.path, "etc/systemd/system")), ["reverse-http-agent-other.service"]);
    assert.deepEqual(readdirSync(join(folder.path, "etc/reverse-http/services")), ["agent-other.yaml"]);
    assert.match((await service(folder, ["uninstall", "--name=site7"])).out, /^nothing to remove/);
  });

  it("leaves a unit of others alone", async () => {
    using folder = new Folder();
    mkdirSync(join(folder.path, "etc", "systemd", "system"), { recursive: true });
    folder.write(UNIT.slice(1), "[Unit]\n");
    await assert.rejects(service(folder, ["uninstall", "--name=site7"]), /another program wrote it/);
    assert.equal(read(folder, UNIT), "[Unit]\n");
  });

  it("says whether it runs", async () => {
    using folder = new Folder();
    const status = (fails?: RegExp) => service(folder, ["status", "--name=site7"], { fails });
    const fails = (error: unknown) => error instanceof CommandFailure && error.exitCode === 1;
    await assert.rejects(status(), fails);
    await install(folder);
    assert.match((await status()).out, /is-enabled .*: active\n$/);
    await assert.rejects(status(/is-enabled/), fails);
  });
});

describe("the unit of several agents in the packages", () => {
  const text = readFileSync(join(ROOT, "deploy", "systemd", "reverse-http-agent@.service"), "utf8");

  it("is the one that service install writes, for the packages' paths and user", () => {
    const rendered = renderUnit({
      role: "agent",
      name: "%i",
      executable: "/usr/bin/reverse-http",
      config: "/etc/reverse-http/agents/%i.yaml",
      user: "reverse-http",
      state: "reverse-http-agent-%i",
      origin: "An agent for each file in /etc/reverse-http/agents, which only root need read",
    });
    assert.equal(text, rendered);
  });
});

describe("units that service install writes", () => {
  const without = spawnSync("systemd-analyze", ["--version"]).error ? "there is no systemd-analyze here" : false;

  it("are valid for systemd", { skip: without }, async () => {
    using folder = new Folder();
    await install(folder, ["--executable=/bin/true"]);
    await install(folder, ["--executable=/bin/true", "--user", "--name=own"]);
    await service(folder, [
      "install",
      "--role=proxy",
      "--name=p",
      "--executable=/bin/true",
      `--config=${folder.write("proxy.yaml", "{}\n")}`,
    ]);
    const system = join(folder.path, "etc", "systemd", "system");
    for (const name of [ID, "reverse-http-proxy-p.service"]) {
      const { stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", join(system, name)], { encoding: "utf8" });
      assert.deepEqual(stderr.split("\n").filter((line) => /reverse-http/.test(line)), []);
    }
    const own = join(folder.path, "home/alice/.config/systemd/user/reverse-http-agent-own.service");
    const { stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", "--user", own], { encoding: "utf8" });
    assert.deepEqual(stderr.split("\n").filter((line) => /reverse-http/.test(line)), []);
  });
});
