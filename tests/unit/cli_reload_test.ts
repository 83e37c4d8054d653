// Reloads of the configuration: what takes effect, what is reported, and that an invalid one changes nothing.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { describe, it } from "node:test";
import { agentOptions } from "../../agent/options.ts";
import { lbOptions } from "../../lb/options.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { Reloader, reportOfReload } from "../../shared/cli/reload.ts";
import { readConfig } from "../../shared/config/file.ts";
import { ConfigError, type Options } from "../../shared/config/option.ts";
import { changedOptions, hashOf, planReload } from "../../shared/config/plan.ts";
import { resolve, type Resolved, valueOf } from "../../shared/config/sources.ts";
import { watchFile } from "../../shared/files/version.ts";
import { Gate } from "../../shared/async/gate.ts";
import type { ConfigurationState } from "../../shared/service/configuration.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const RELOADED = "configuration reloaded";
const FAILED = "reload failed; the configuration in force stays";

function read(text: string): Resolved {
  return resolve(proxyOptions, { flags: new Map(), env: {}, file: readConfig(proxyOptions, { name: "config.yaml", text }) });
}

/** A service that runs with `text`. */
function setUp(text: string) {
  const log = new LogBook();
  const applied: Resolved["values"][] = [];
  const setting = { text, reads: 0, files: 0, refusal: undefined as Error | undefined };
  const state: ConfigurationState = { hash: "", changed: [], isReloaded: true, turns: new Gate(1, Infinity) };
  const passedOn: (number | undefined)[] = [];
  const reloader = new Reloader({
    options: proxyOptions,
    running: read(text),
    state,
    read() {
      setting.reads++;
      return read(setting.text);
    },
    check: () => setting.refusal ? Promise.reject(setting.refusal) : Promise.resolve(),
    apply(values) {
      applied.push(values);
      return Promise.resolve({ tunnelsCut: 0 });
    },
    reloadFiles: () => Promise.resolve(void setting.files++),
    passOn: (pid) => void passedOn.push(pid),
    log,
  });
  return { log, applied, setting, state, passedOn, reloader };
}

describe("a reload", () => {
  it("waits for the end of a hand-over, and goes to the process that has taken over", async () => {
    for (const pid of [undefined, 7]) {
      const { log, setting, state, passedOn, reloader } = setUp("log: { level: info }");
      const handover = Promise.withResolvers<void>();
      const over = state.turns!.run(() => handover.promise);
      setting.text = "log: { level: debug }";
      const reloads = Promise.all([reloader.reload(), reloader.reload()]);
      await new Promise((resolve) => setImmediate(resolve));
      assert.equal(setting.reads, 0);
      if (pid !== undefined) state.successor = { pid };
      handover.resolve();
      await Promise.all([over, reloads]);
      assert.deepEqual([setting.reads, passedOn, log.logged(RELOADED).length], pid === undefined ? [1, [], 1] : [0, [7], 0]);
    }
  });

  it("applies what needs no restart, and names what has changed by when it takes effect", async () => {
    const { log, applied, setting, state, reloader } = setUp("log: { level: info }");
    const before = state.hash;
    setting.text = "log: { level: debug }\nlimits: { tunnels: 5, agents: 6 }\nstate-dir: /tmp/x\n";
    await reloader.reload();
    const { atOnce, newConnections, newTunnels, needRestart, tunnelsCut, hash } = log.logged(RELOADED)[0]!;
    const names = ["log.level", "limits.agents", "limits.tunnels", "state-dir"];
    assert.deepEqual([atOnce, newConnections, newTunnels, needRestart], names);
    assert.equal(tunnelsCut, 0);
    assert.deepEqual(names.map((name) => valueOf(applied[0]!, name)), ["debug", 6, 5, undefined]);
    assert.notEqual(hash, before);
    assert.equal(state.hash, hash);
    assert.deepEqual(state.changed.map(({ name, value, origin }) => [name, value, origin]), [
      ["limits.tunnels", "5", "config.yaml:2"],
      ["limits.agents", "6", "config.yaml:2"],
      ["log.level", "debug", "config.yaml:1"],
    ]);
    await reloader.reload();
    assert.deepEqual(JSON.parse(JSON.stringify(log.logged(RELOADED)[1])), { needRestart: "state-dir", tunnelsCut: 0, hash });
  });

  it("shows no secret among the options that differ from the defaults", () => {
    const changed = changedOptions(proxyOptions, read("http-proxy: { tls: { key-password: abc, enable: true } }\ndrain: { timeout: 30s }"));
    assert.deepEqual(changed.map(({ name, value }) => [name, value]), [["http-proxy.tls.enable", "true"], [
      "http-proxy.tls.key-password",
      "******",
    ]]);
  });

  it("without a change logs one line, and reads the files that options name", async () => {
    const { log, applied, setting, reloader } = setUp("drain: { timeout: 60s }");
    setting.text = "drain: { timeout: 1m } # the same";
    await reloader.reload();
    assert.deepEqual(log.entries.map(({ message }) => message), ["configuration unchanged"]);
    assert.deepEqual([applied.length, setting.files], [0, 1]);
  });

  it("changes nothing if the file is invalid or what it names cannot be used, and says where", async () => {
    const { log, applied, setting, state, reloader } = setUp("");
    const before = state.hash;
    setting.text = "log:\n  level: loud\n";
    await reloader.reload();
    assert.match(String(log.logged(FAILED)[0]!.reason), /^Cannot use --log\.level \(config\.yaml:2\): "loud"/);
    setting.text = "log: { level: debug }";
    setting.refusal = new ConfigError("Cannot read --x");
    await reloader.reload();
    assert.equal(log.logged(FAILED)[1]!.reason, "Cannot read --x");
    assert.deepEqual([applied, state.hash, state.isReloaded], [[], before, false]);
    setting.refusal = undefined;
    await reloader.reload();
    assert.deepEqual([log.logged(RELOADED).length, state.isReloaded], [1, true]);
  });

  it("follows another one, and many at once end in the last state of the file", async () => {
    const { applied, setting, reloader } = setUp("");
    const all: Promise<void>[] = [];
    for (let i = 1; i <= 100; i++) {
      setting.text = `limits: { tunnels: ${i} }`;
      all.push(reloader.reload());
    }
    await Promise.all(all);
    assert.ok(setting.reads <= 2, `${setting.reads} reads`);
    assert.equal(valueOf(applied.at(-1)!, "limits.tunnels"), 100);
  });

  it("can be planned: every changed option with when it takes effect, and what that closes, opens and cuts", () => {
    const running =
      "admin: { listen-address: ':9' }\nforward: [{ listen: ':1', agent: a, to: 'b:2' }, { listen: ':2', agent: a, to: 'b:2' }]";
    const plan = (next: string) => reportOfReload(proxyOptions, read(running), read(next)).split("\n");
    const forwards = "forward: [{ listen: ':1', agent: a, to: 'b:2' }, { listen: ':3', agent: a, to: 'b:2' }]";
    assert.deepEqual(plan(`admin: { listen-address: ':8' }\nstate-dir: /tmp/x\n${forwards}`), [
      "admin.listen-address: at once",
      "forward: new tunnels",
      "state-dir: restart, because its files are in use while the service runs",
      "closes: forward=:2,admin.listen-address=:9",
      "opens: forward=:3,admin.listen-address=:8",
      "cuts: open tunnels and connections of agents that it forbids",
      "",
    ]);
    assert.deepEqual(plan(`admin: { listen-address: ':9' }\n${forwards}\nreload: { forbidden: keep }`).slice(-3), [
      "closes: forward=:2",
      "opens: forward=:3",
      "",
    ]);
    assert.deepEqual(plan(running), ["Nothing changes", ""]);
  });

  it("says of every option of a service when a new value takes effect, or why it needs a restart", () => {
    for (const [name, { reload, restart }] of Object.entries({ ...proxyOptions, ...lbOptions, ...agentOptions } as Options)) {
      assert.notEqual(reload === undefined, restart === undefined, name);
    }
  });

  it("compares records and lists by their values", () => {
    const text = "forward: [{ listen: ':1', agent: a, to: 'b:2' }]\nhttp-proxy: { host-whitelist: [a, b] }";
    const { changed } = planReload(proxyOptions, read(text), read(`${text}\n`));
    assert.deepEqual(Object.values(changed).flat(), []);
    const { changed: other } = planReload(proxyOptions, read(text), read(text.replace("b:2", "b:3").replace("[a, b]", "[a]")));
    assert.deepEqual(other["new tunnels"].toSorted(), ["forward", "http-proxy.host-whitelist"]);
  });
});

describe("the hash of a configuration", () => {
  it("depends on values, not on their notation or on secrets", () => {
    const hash = (text: string) => hashOf(proxyOptions, read(text));
    assert.equal(hash("drain: { timeout: 60s }"), hash("drain: { timeout: 1m }"));
    assert.notEqual(hash("drain: { timeout: 60s }"), hash("drain: { timeout: 61s }"));
    assert.equal(hash("store: { redis: { url: 'redis://:one@h' } }"), hash("store: { redis: { url: 'redis://:two@h' } }"));
    assert.match(hash(""), /^[0-9a-f]{12}$/);
  });
});

describe("a watched file", () => {
  it("is reported when its writer has finished", async () => {
    using folder = new Folder();
    const file = folder.write("config.yaml", "old");
    const changed = Promise.withResolvers<string>();
    const watching = await watchFile(file, 5, () => Promise.resolve(changed.resolve(readFileSync(file, "utf8"))));
    writeFileSync(file, "new content");
    assert.equal(await changed.promise, "new content");
    await watching.close();
  });
});
