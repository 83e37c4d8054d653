// How forwards are written, what they report, and Unix sockets.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readdirSync, renameSync, statSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { formatSshConfig } from "../../client/connect.ts";
import { serveForwards } from "../../client/forward.ts";
import { clientOptions } from "../../client/options.ts";
import { checkAccess } from "../../client/tunnel.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { bytes, readTextExactly, until } from "../conformance/support.ts";
import { type ForwardState, JsonMonitor, LineMonitor } from "../../client/forward_monitor.ts";
import { parseForward, readForwards } from "../../client/forwards.ts";
import { formatBytes, formatStates, LiveMonitor } from "../../client/live_monitor.ts";
import { listenUnix } from "../../client/unix_socket.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { Folder } from "../../testing/programs.ts";

describe("a forward", () => {
  const rows: [text: string, listen: string, host: string, port: number, network?: string][] = [
    ["5432:db:5433", "127.0.0.1:5432", "db", 5433],
    ["0:10.0.0.5:80", "127.0.0.1:0", "10.0.0.5", 80],
    ["0.0.0.0:8080:db:80", "0.0.0.0:8080", "db", 80],
    ["localhost:8080:db.site7.rhttp:80", "localhost:8080", "db.site7.rhttp", 80],
    ["[::1]:8080:[2001:db8::1]:80", "[::1]:8080", "2001:db8::1", 80],
    ["8080:[::1]:80", "127.0.0.1:8080", "::1", 80],
    ["8080:db:80/tcp", "127.0.0.1:8080", "db", 80],
    ["5353:dns:53/udp", "127.0.0.1:5353", "dns", 53, "udp"],
    ["[::1]:5353:[::1]:53/udp", "[::1]:5353", "::1", 53, "udp"],
    ["/run/a b/db.sock:db:5432", "/run/a b/db.sock", "db", 5432],
    ["./db.sock:[::1]:5432", "./db.sock", "::1", 5432],
    ["../db.sock:db:5432/tcp", "../db.sock", "db", 5432],
  ];
  for (const [text, listen, host, port, network = "tcp"] of rows) {
    it(`is ${listen} and ${host} for ${text}`, () => {
      assert.deepEqual(parseForward(text), { network, listen, destination: { host, port } });
    });
  }

  it("is refused in any other form, with what is meant", () => {
    const texts = [
      "",
      "80",
      "80:db",
      "db:80",
      ":80:db:80",
      "80:db:",
      "80:db:0",
      "70000:db:1",
      "80:a b:1",
      "80::1",
      "80:db:1/sctp",
      "/s:db",
    ];
    for (const text of [...texts, "/s:db:1/udp", "s:db:1"]) {
      assert.throws(
        () => parseForward(text),
        (error) => error instanceof ConfigError && error.message.includes(JSON.stringify(text)),
        text,
      );
    }
  });

  it("can be in a file, which names the line of an error", async () => {
    using folder = new Folder();
    const file = folder.write("forwards", "# databases\n1:db:5432 # the first\n\n  2:dns:53/udp\r\n");
    assert.deepEqual((await readForwards(file)).map(({ listen, network }) => `${listen} ${network}`), [
      "127.0.0.1:1 tcp",
      "127.0.0.1:2 udp",
    ]);
    folder.write("forwards", "\n1:db\n");
    await assert.rejects(readForwards(file), (error: Error) => error instanceof ConfigError && error.message.endsWith(`(${file}:2)`));
    await assert.rejects(readForwards(join(folder.path, "none")), /^ConfigError: Cannot read --file .*the file does not exist/);
  });
});

function stateOf(text: string, { sent = 0, received = 0, open = 0, errors = 0 } = {}): ForwardState {
  const forward = parseForward(text);
  return { forward, address: forward.listen, open, errors, bytes: () => ({ sent, received }) };
}

describe("what forwards report", () => {
  it("is a line for each address, and for ten errors", () => {
    const [written, said]: [string[], string[]] = [[], []];
    const monitor = new LineMonitor({ write: (text) => written.push(text), report: (line) => said.push(line) }, true);
    const state = stateOf("5353:dns:53/udp");
    monitor.listening([state]);
    for (let i = 1; i <= 12; i++) monitor.failed(state, `error ${i}`);
    monitor.closed(state, { sent: 1, received: 2 });
    monitor.close();
    assert.deepEqual(written, ["127.0.0.1:5353 leads to udp:dns:53\n"]);
    assert.deepEqual([said.length, said[0], said.at(-1)], [11, "error 1", "2 more errors in this minute"]);
  });

  it("is an object for each event with --json", () => {
    const lines: string[] = [];
    const monitor = new JsonMonitor((line) => lines.push(line));
    const state = stateOf("1:db:2");
    monitor.listening([state]);
    monitor.opened(state);
    monitor.closed(state, { sent: 1, received: 2, error: 'a "reset"\n' });
    monitor.failed(state, "no");
    monitor.report("a\nb");
    const about = { address: "127.0.0.1:1", network: "tcp", destination: "db:2" };
    assert.deepEqual(lines.map((line) => JSON.parse(line)), [
      { event: "listening", ...about },
      { event: "opened", ...about },
      { event: "closed", ...about, sent: 1, received: 2, error: 'a "reset"\n' },
      { event: "failed", ...about, error: "no" },
      { event: "warning", message: "a\nb" },
    ]);
    assert.ok(lines.every((line) => !line.includes("\n")));
  });

  it("is a table on a terminal, no wider than that, of at most twenty forwards", () => {
    const states = [stateOf("1:db:5432", { open: 2, sent: 1_500, received: 3 * 2 ** 30, errors: 1 }), stateOf("[::1]:22:a:1")];
    assert.deepEqual(formatStates(states, [2_048, 0], 200), [
      "127.0.0.1:1  db:5432   2 open  2.00 KiB/s  1 failed  3.00 GiB in  1.46 KiB out",
      "[::1]:22     a:1       0 open       0 B/s  0 failed       0 B in       0 B out",
    ]);
    assert.ok(formatStates(states, [0, 0], 30).every(({ length }) => length <= 30));
    assert.equal(formatStates(Array(22).fill(states[0]), Array(22).fill(0), 80).at(-1), "and 2 more");
    assert.deepEqual([0, 999, 1_000, 1023 * 1024, 5e15].map(formatBytes), ["0 B", "999 B", "0.977 KiB", "0.999 MiB", "4.55e+3 TiB"]);
  });

  it("replaces the table when it says something", () => {
    let screen = "";
    const write = (text: string) => void (screen += text);
    const monitor = new LiveMonitor({ write, report: (line) => write(`${line}\n`) }, { columns: () => 20, write });
    monitor.listening([stateOf("1:db:5432"), stateOf("2:db:5432")]);
    monitor.report("what is wrong");
    monitor.close();
    const table = "127.0.0.1:1  db:5432\n127.0.0.1:2  db:5432\n";
    assert.equal(
      screen,
      `127.0.0.1:1 leads to db:5432\n127.0.0.1:2 leads to db:5432\n${table}\x1b[2A\x1b[Jwhat is wrong\n${table}`,
    );
  });
});

describe("the totals of a forward", () => {
  it("have the bytes of open connections and of those that have ended", async () => {
    const net = createMemoryNet();
    const remote = await net.listenTcp({ address: "proxy.test:3128" });
    const access = checkAccess(withDefaults(clientOptions, { proxy: "proxy.test:3128" }));
    const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
    const { promise: listening, resolve: onListening } = Promise.withResolvers<ForwardState>();
    const monitor = {
      listening: ([state]: readonly ForwardState[]) => onListening(state!),
      opened() {},
      closed() {},
      failed() {},
      report() {},
      close() {},
    };
    const forwards = [parseForward("127.0.0.1:5432:db:5432")];
    const ended = serveForwards(net, () => access, { forwards, waitMs: 0 }, monitor, { env: {}, stopped: () => stopped });
    const state = await listening;
    const open = async () => {
      const local = await net.connectTcp({ host: "127.0.0.1", port: 5432, timeoutMs: 1_000 });
      const [incoming] = (await remote.accept())!;
      await incoming!.stream.write(bytes("HTTP/1.1 200 OK\r\n\r\nhello"));
      await local.write(bytes("up"));
      assert.equal(await readTextExactly(local, 5), "hello");
      assert.equal(await readTextExactly(incoming!.stream, 2), "up");
      return [local, incoming!.stream];
    };
    const first = await open();
    await until(() => state.bytes().received === 5, "the bytes are not counted");
    assert.deepEqual([state.bytes(), state.open], [{ sent: 2, received: 5 }, 1]);
    for (const stream of first) stream.close();
    await until(() => state.open === 0, "the connection has not ended");
    const second = await open();
    await until(() => state.bytes().received === 10, "the bytes are not counted");
    assert.deepEqual([state.bytes(), state.open], [{ sent: 4, received: 10 }, 1]);
    for (const stream of second) stream.close();
    stop();
    assert.equal(await ended, 0);
    net.close();
  });
});

describe("a Unix socket", () => {
  it("has mode 0600 and nothing beside it, replaces one that nothing listens on, and goes with its listener", async () => {
    using folder = new Folder();
    const path = join(folder.path, "s");
    // what a process leaves that was killed
    const killed = createServer().listen(`${path}.other`);
    await once(killed, "listening");
    renameSync(`${path}.other`, path);
    await assert.rejects(listenUnix(path, () => {}), /Cannot listen on .*: it is in use/);
    killed.close();
    await once(killed, "close");
    const accepted = Promise.withResolvers<void>();
    const listener = await listenUnix(path, (socket) => {
      socket.end();
      accepted.resolve();
    });
    assert.deepEqual([statSync(path).mode & 0o777, readdirSync(folder.path)], [0o600, ["s"]]);
    const client = connect(path).resume();
    await accepted.promise;
    await once(client, "close");
    await listener.close();
    assert.deepEqual(readdirSync(folder.path), []);
  });

  it("replaces no file of another kind", async () => {
    using folder = new Folder();
    const path = folder.write("file", "content");
    await assert.rejects(listenUnix(path, () => {}), /it is in use, or no socket/);
    assert.equal(statSync(path).size, 7);
    await assert.rejects(
      listenUnix(`${folder.path}/none/s`, () => {}),
      /^Error: Cannot listen on \S+none\/s: the directory does not exist$/,
    );
  });
});

describe("lines for ssh", () => {
  it("quote words for the shell, and percent signs for ssh", () => {
    const lines = formatSshConfig(["reverse-http", "connect", "--profile=/a b/100%'s"], "site7", { host: "db", port: 2222 });
    assert.equal(
      lines,
      `# db:2222 as the agent site7 reaches it
Host db.site7
  HostName db
  Port 2222
  HostKeyAlias db.site7
  ProxyCommand reverse-http connect '--profile=/a b/100%%'\\''s' %h:%p
`,
    );
  });
});
