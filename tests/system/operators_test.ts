// What operators see and do with the compiled executables: over the unix socket, with the commands, and in a terminal.
import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { AdminClient } from "../../admin/client.ts";
import type { Page, TunnelState } from "../../shared/service/api/types.ts";
import { AGENT_ID, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";

/** Runs a program in a terminal of its own, and presses keys when texts appear. */
const IN_TERMINAL = `
import os, pty, sys, select
steps = [step.split("=", 1) for step in sys.argv[1].split(";")]
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[2], sys.argv[2:])
seen = ""
while True:
    try: data = os.read(fd, 65536)
    except OSError: break
    if not data: break
    sys.stdout.write(data.decode(errors="replace"))
    seen += data.decode(errors="replace")
    if steps and steps[0][0] in seen:
        os.write(fd, steps.pop(0)[1].encode())
        seen = ""
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;

describe("operators", () => {
  it("see tunnels live with the commands, close them, watch them in a terminal, and drain the proxy", async () => {
    await using origin = await Origin.start();
    await using site = await Site.create();
    const socket = join(site.folder.path, "admin.sock");
    const { proxy, addresses } = await site.startProxy([`--admin.socket=${socket}`]);
    const agent = await site.startAgent(addresses, ["--agent-client.labels=site=berlin"]);
    assert.equal(statSync(socket).mode & 0o777, 0o600);
    const run = async (...args: string[]) => {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, [...args, `--admin=${socket}`]);
      assert.equal(exitCode, 0, stderr);
      return stdout;
    };
    using client = await openTunnel(addresses.clients, origin.authority);
    const server = await origin.accept();
    await client.write("question");
    await server.read(8);
    assert.match(await run("agents"), /^AGENT +STATE .*\n4711 +connected .*site=berlin/);
    const page = JSON.parse(await run("tunnels", `--agent=${AGENT_ID}`, "--json")) as Page<TunnelState>;
    const [{ id, sent, received, sending, via } = {} as Partial<TunnelState>] = page.items;
    assert.deepEqual([page.total, sent, received, sending, via?.link], [1, 8, 0, "open", "quic"]);
    client.finish();
    await server.readAll();
    assert.match(await run("tunnels"), /open, sending ended .* 8 B +0 B/);
    const steps = "1 tunnels=2;connected=1;sending ended=x;y confirms=y;was closed=q";
    const { exitCode, stdout } = await runToEnd("/usr/bin/python3", ["-c", IN_TERMINAL, steps, REVERSE_HTTP, "top", `--admin=${socket}`]);
    assert.equal(exitCode, 0, stdout);
    assert.ok(stdout.endsWith("\x1b[?25h\x1b[?1049l"), "The terminal is not restored");
    assert.equal(await client.ending(), "ECONNRESET");
    const { reason } = await proxy.waitFor("request", { status: 200 });
    assert.equal(reason, "closed by the operator local");
    assert.match(await run("tunnels", "--ended"), new RegExp(`^ID .*\n${id} .*ended.*closed by the operator local`));
    assert.match(await run("status"), /broken +connection_terminated/);
    const { exitCode: none, stderr } = await runToEnd(REVERSE_HTTP, ["tunnels", `--close=${id}`, `--admin=${socket}`]);
    assert.deepEqual([none, /there is no such tunnel/.test(stderr)], [1, true]);
    await (await AdminClient.create({ admin: socket, adminToken: undefined })).post("drain", {});
    assert.equal((await proxy.ended).exitCode, 0);
    await agent.waitFor("not connected");
    assert.throws(() => statSync(socket), "The socket is still there");
  });
});
