// What operators' commands print, what `top` shows and does by key, and that names of peers move neither.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, it } from "node:test";
import { AdminClient } from "../../admin/client.ts";
import { agentsCommand, statusCommand, tunnelsCommand } from "../../admin/command.ts";
import { agentColumns, tunnelColumns } from "../../admin/columns.ts";
import { formatClusterConfiguration, formatStatus } from "../../admin/status.ts";
import { escapeText, fit, formatTable, pad, widthOf } from "../../admin/table.ts";
import { drawTop, initialState, pressKey, queryOf, type TopData, type TopState } from "../../admin/top.ts";
import { runTop } from "../../admin/top_screen.ts";
import { formatBytes, formatDuration, formatRate, formatUntil } from "../../admin/units.ts";
import { readCommandLine, type Subcommand } from "../../shared/cli/command.ts";
import { type FullScreen, parseKeys, STYLES } from "../../shared/cli/full_screen.ts";
import { ConfigError } from "../../shared/config/option.ts";
import type { AgentState, Sample, Status, TunnelState } from "../../shared/service/api/types.ts";
import { Queue } from "../../testing/network.ts";
import { fakeTerminal } from "../../testing/terminal.ts";
import { within } from "../conformance/support.ts";

const NOW = Date.parse("2026-11-30T12:00:00Z");
/** What a hostile peer may call itself. */
const HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07\u202egnp\u200b\u0301\r\n<img>";

const sample: Sample = {
  at: "2026-11-30T12:00:00Z",
  agents: 2,
  clients: 3,
  tunnels: 1,
  opened: 10,
  refused: 4,
  broken: 1,
  sent: 2_048,
  received: 5 << 20,
  sentRate: 10,
  receivedRate: 2_000_000,
  openRate: 7,
  setupMs: { p50: 1.25, p99: 120 },
  memory: 60 << 20,
};

const status: Status = {
  service: "proxy",
  version: "0.1.0",
  host: "gate",
  instance: "i",
  startedAt: "2026-11-30T10:55:00Z",
  at: "2026-11-30T12:00:00Z",
  ready: false,
  problems: { store: "no answer" },
  draining: false,
  logLevel: "info",
  role: "operator",
  now: sample,
  failures: [{ kind: "refused", error: "connection_refused", count: 4 }],
};

const agent = (id: string, more: Partial<AgentState> = {}): AgentState => ({
  id,
  connection: id,
  state: "connected",
  address: "192.0.2.1:5",
  ...more,
});
const tunnel = (id: string, more: Partial<TunnelState> = {}): TunnelState => ({
  id,
  requestId: id,
  state: "open",
  protocol: "http",
  network: "tcp",
  startedAt: "2026-11-30T11:59:00Z",
  ageMs: 60_000,
  sent: 1,
  received: 2,
  ...more,
});

const hasControls = (text: string) => /[\p{Cc}\p{Cf}\p{Mn}]/u.test(text.replaceAll("\n", ""));
/** Without the styles of the screen. */
const plain = (lines: readonly string[]) =>
  lines.map((line) => Object.values(STYLES).reduce((text, style) => text.replaceAll(style, ""), line));

describe("commands", () => {
  /** What a command prints when the service answers as `answers` says. */
  async function printed(args: string[], answers: Readonly<Record<string, unknown>>): Promise<string> {
    const server = createServer((request, response) => {
      const [path = ""] = request.url!.replace("/api/v1/", "").split("?");
      response.setHeader("Content-Type", "application/json").end(JSON.stringify(answers[path]));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const root = { name: "reverse-http", description: "All.", commands: [agentsCommand, tunnelsCommand, statusCommand] as Subcommand[] };
    const admin = `--admin=127.0.0.1:${(server.address() as AddressInfo).port}`;
    const task = readCommandLine({ root, version: "1", family: {} }, { args: [...args, admin], env: {}, home: undefined });
    const { subcommand, resolved, line } = task as Extract<typeof task, { do: "subcommand" }>;
    const terminal = fakeTerminal();
    await subcommand.run(resolved.values, terminal, line);
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    return terminal.out();
  }

  it("say that a list is empty, but not in JSON", async () => {
    const none = { items: [], total: 0, offset: 0, limit: 100 };
    const answers = { agents: none, tunnels: none, configuration: { hash: "h", isReloaded: true, changed: [] } };
    assert.equal(await printed(["agents"], answers), "no agents to list\n");
    assert.equal(await printed(["tunnels", "--agent=a"], answers), "no tunnels to list\n");
    assert.match(await printed(["status", "--configuration"], answers), /^all options have their defaults\n/);
    assert.deepEqual(JSON.parse(await printed(["agents", "--json"], answers)), none);
  });

  it("count in the singular and in the plural", async () => {
    for (const [affected, text] of [[0, "0 connections closed\n"], [1, "1 connection closed\n"], [2, "2 connections closed\n"]] as const) {
      assert.equal(await printed(["agents", "--disconnect=a"], { "agents/disconnect": { affected } }), text);
    }
    const header = (now: Partial<Sample>, service: Status["service"] = "proxy") =>
      plain(drawTop(initialState(), { status: { ...status, service, now: { ...sample, ...now } } }, { columns: 120, rows: 24 }))[0]!;
    assert.match(header({ agents: 1, tunnels: 1 }), /: 1 agent, 1 tunnel, /);
    assert.match(header({ agents: 2, tunnels: 0 }), /: 2 agents, 0 tunnels, /);
    assert.match(header({ agents: 1 }, "agent"), /: 1 proxy, /);
  });
});

describe("tables", () => {
  it("show what a terminal would obey, and what hides or reorders text, as escapes", () => {
    assert.equal(escapeText("\x1b[2J\x07\u202ea\u200bé\\x1b\u{e0001}"), "\\x1b[2J\\x07\\u{202e}a\\u{200b}é\\\\x1b\\u{e0001}");
    const text = formatTable([agent(HOSTILE, { host: HOSTILE, labels: { [HOSTILE]: HOSTILE } })], agentColumns(NOW));
    assert.ok(!hasControls(text), JSON.stringify(text));
    assert.equal(text.split("\n").length, 3);
  });

  it("align columns, also of wide characters, shorten long texts, and leave out columns without text", () => {
    const text = formatTable([agent("a", { rttMs: 1.25, tunnels: 3 }), agent("車載", { rttMs: 12.5, tunnels: 12 })], agentColumns(NOW));
    assert.equal(
      text,
      [
        "AGENT  STATE      ADDRESS      TUNNELS      RTT",
        "a      connected  192.0.2.1:5        3   1.3 ms",
        "車載   connected  192.0.2.1:5       12  12.5 ms",
        "",
      ].join("\n"),
    );
    assert.equal(fit("abcdef", 4), "abc…");
    assert.equal(fit("車載車載", 5), "車載…");
    assert.equal(widthOf("車載"), 4);
    assert.equal(pad("a", 3, "right"), "  a");
    assert.ok(formatTable([agent("x".repeat(300))], agentColumns(NOW)).split("\n").every((line) => line.length < 120));
  });

  it("show numbers as people read them", () => {
    assert.deepEqual([0, 1_023, 1_536, 150 << 20, 3 * 2 ** 40].map(formatBytes), ["0 B", "1023 B", "1.5 KiB", "150 MiB", "3.0 TiB"]);
    assert.deepEqual([formatRate(undefined), formatRate(2_048)], ["", "2.0 KiB/s"]);
    assert.deepEqual([0, 59_999, 3_600_000, 90_000_000].map(formatDuration), ["0s", "59s", "1h", "1d1h"]);
    assert.deepEqual([formatUntil("2026-11-30T12:05:00Z", NOW), formatUntil("2026-11-30T11:00:00Z", NOW)], ["5m", "expired"]);
  });

  it("say of a tunnel which direction has ended or waits", () => {
    const text = formatTable([tunnel("1", { sending: "ended", receiving: "blocked" })], tunnelColumns(NOW));
    assert.match(text, /open, sending ended, receiving blocked/);
  });

  it("print the state of a service with its failures by cause", () => {
    const text = formatStatus(status);
    assert.match(text, /^service +proxy 0\.1\.0 on gate, for 1h5m\nready +no: store: no answer\n/);
    assert.match(text, /\n {4}4 {2}refused {2}connection_refused\n$/);
    assert.ok(!hasControls(formatStatus({ ...status, host: HOSTILE, problems: { store: HOSTILE } })));
  });
});

describe("status --configuration --cluster", () => {
  it("prints one table for members with the same options, and who has none or did not answer", () => {
    const changed = [{ name: "log.level", value: "debug", default: "info", origin: "--log.level" }];
    const configuration = { hash: "0123456789ab", isReloaded: true, changed };
    const member = (i: number, more: object) => ({ member: `10.0.0.${i}:9090`, service: "proxy" as const, host: HOSTILE, ...more });
    const text = formatClusterConfiguration({
      members: [member(1, { configuration }), member(2, { configuration }), member(3, {}), member(4, { error: HOSTILE })],
    });
    assert.match(text, /^proxy 10\.0\.0\.1:9090, proxy 10\.0\.0\.2:9090\nOPTION[^]*log\.level[^]*\n\nproxy 10\.0\.0\.3:9090\n/);
    assert.equal(text.split("log.level ").length, 2);
    assert.ok(!hasControls(text));
  });
});

describe("top", () => {
  const press = (state: TopState, keys: string, ids: readonly string[] = ["a", "b"]) => [...keys].map((key) => pressKey(state, key, ids));

  it("sorts by key, the largest value first where that is of interest, and the same key again reverses", () => {
    const state = initialState();
    assert.equal(queryOf(state, 24).toString(), "sort=rate&order=desc&limit=19");
    assert.deepEqual(press(state, "c"), ["refresh"]);
    assert.equal(queryOf(state, 24).toString(), "sort=client&order=asc&limit=19");
    press(state, "c");
    assert.equal(queryOf(state, 24).toString(), "sort=client&order=desc&limit=19");
    press(state, "2");
    assert.equal(queryOf(state, 24).get("sort"), "rate");
    press(state, "t");
    assert.equal(queryOf(state, 24).toString(), "sort=rtt&order=desc&limit=19");
  });

  it("acts on the selected line only after y", () => {
    const state = initialState();
    assert.deepEqual([pressKey(state, "down", ["a", "b"]), ...press(state, "xn")], [undefined, undefined, undefined]);
    assert.deepEqual(press(state, "xy"), [undefined, { kind: "close", id: "b" }]);
    press(state, "2");
    assert.deepEqual(press(state, "xy"), [undefined, { kind: "disconnect", id: "a" }]);
    assert.deepEqual(press(state, "xy", []), [undefined, undefined]);
  });

  it("searches for what is written, in which no key has its meaning", () => {
    const state = initialState();
    assert.deepEqual(press(state, "/qx"), [undefined, "refresh", "refresh"]);
    assert.equal(queryOf(state, 24).get("q"), "qx");
    pressKey(state, "backspace", []);
    pressKey(state, "enter", []);
    assert.equal(queryOf(state, 24).get("q"), "q");
    assert.deepEqual(press(state, "q"), ["quit"]);
  });

  it("draws as many lines as the screen has, none wider, and no sequences of peers", () => {
    const state = initialState();
    const items = Array.from({ length: 50 }, (_, i) => tunnel(`${i}${HOSTILE}`, { agent: HOSTILE, destination: HOSTILE, reason: HOSTILE }));
    const data: TopData = { status: { ...status, host: HOSTILE }, tunnels: { items, total: 1_234, offset: 0, limit: 19 } };
    for (const [columns, rows] of [[80, 24], [40, 10], [200, 50]] as const) {
      for (const confirming of [undefined, { kind: "close", id: HOSTILE } as const]) {
        const lines = plain(drawTop({ ...state, confirming, message: HOSTILE }, data, { columns, rows }));
        assert.equal(lines.length, rows);
        for (const line of lines) assert.ok(widthOf(line) <= columns && !hasControls(line), `${columns}: ${JSON.stringify(line)}`);
      }
    }
    assert.match(plain(drawTop(state, data, { columns: 80, rows: 24 })).join("\n"), /19 of 1234 tunnels, by rate/);
  });

  it("reads keys one by one, and drops sequences that it does not know", () => {
    assert.deepEqual(parseKeys("a\x1b[A\x1b[B\x1bOA\x1b[5~\r\x7f\x03\x1b[1;5C\x1b車"), [
      "a",
      "up",
      "down",
      "up",
      "pageup",
      "enter",
      "backspace",
      "ctrl-c",
      "escape",
      "車",
    ]);
  });

  it("reads from the service, closes a tunnel, shows errors, and restores the screen", async () => {
    const [drawn, posted] = [new Queue<string>(), [] as unknown[]];
    let press: (key: string) => void = () => {};
    let isClosed = false;
    const screen: FullScreen = {
      columns: 80,
      rows: 24,
      draw: (lines) => drawn.push(plain(lines).join("\n")),
      onKey: (handle) => press = handle,
      onResize: () => {},
      close: () => isClosed = true,
    };
    let fails = false;
    const client = {
      get: <T>(path: string): Promise<T> => {
        if (fails) return Promise.reject(new Error("no service listens there"));
        const page = {
          items: path.startsWith("tunnels") ? [tunnel("t1", { agent: "4711" })] : [agent("4711")],
          total: 1,
          offset: 0,
          limit: 19,
        };
        return Promise.resolve((path === "status" ? status : page) as T);
      },
      post: <T>(path: string, body: object): Promise<T> => {
        posted.push([path, body]);
        return Promise.resolve({ affected: 1 } as T);
      },
    };
    const until = async (pattern: RegExp) => {
      for (let text = ""; !pattern.test(text);) text = await drawn.next();
    };
    const done = runTop(client, screen, 3_600_000);
    await until(/4711/);
    press("x");
    await until(/close the tunnel t1\? y confirms/);
    press("y");
    await until(/the tunnel was closed/);
    assert.deepEqual(posted, [["tunnels/close", { id: "t1" }]]);
    fails = true;
    press("r");
    await until(/no service listens there/);
    press("q");
    await within(done);
    assert.equal(isClosed, true);
  });
});

describe("the client of the admin API", () => {
  it("takes a socket's path, a URL, or host:port, and says what it cannot use", async () => {
    for (
      const admin of ["/run/a/admin.sock", "./admin.sock", "http://127.0.0.1:9090", "https://proxy.example.com/below/", "localhost:9090"]
    ) {
      assert.equal((await AdminClient.create({ admin, adminToken: undefined })).name, admin);
    }
    await assert.rejects(
      (await AdminClient.create({ admin: "none.sock", adminToken: undefined })).get("status"),
      /there is no such socket/,
    );
    for (const admin of ["ftp://a", "http://"]) {
      await assert.rejects(AdminClient.create({ admin, adminToken: undefined }), ConfigError, admin);
    }
    await assert.rejects(
      AdminClient.create({ admin: "a:1", adminToken: "file:/nonexistent/token" }),
      /Cannot use --admin-token "file:\/nonexistent\/token": the file does not exist/,
    );
  });

  it("says that no service listens", async () => {
    const client = await AdminClient.create({ admin: "/nonexistent/admin.sock", adminToken: undefined });
    await assert.rejects(client.get("status"), /Cannot ask the service at \/nonexistent\/admin\.sock: there is no such socket/);
  });
});
