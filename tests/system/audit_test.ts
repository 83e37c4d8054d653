// The audit log of the executables: tunnels, refusals, and what a killed process leaves open.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { Site } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";

interface Line {
  readonly event: string;
  readonly id: string;
  readonly outcome?: string;
  readonly destination?: string;
  readonly error?: string;
  readonly sent?: number;
}

function read(file: string): Line[] {
  return existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1).map((line) => JSON.parse(line)) : [];
}

/** Waits until the log has `count` lines. */
async function lines(file: string, count: number): Promise<Line[]> {
  for (;;) {
    const found = read(file);
    if (found.length >= count) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

describe("the audit log of a proxy", () => {
  it("has an end for each start, also of tunnels that a kill has cut, and the refusals", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(async (wire) => {
      for (let data; (data = await wire.next()) !== null;) await wire.write(data);
      wire.finish();
    });
    const file = join(site.folder.path, "audit.jsonl");
    const args = [`--audit.file=${file}`, "--audit.strict", "--http-proxy.host-whitelist=127.0.0.1"];
    const { proxy, addresses } = await site.startProxy(args);
    await site.startAgent(addresses);
    {
      using tunnel = await openTunnel(addresses.clients, origin.authority);
      await tunnel.write("hello");
      assert.equal((await tunnel.read(5)).toString(), "hello");
      tunnel.finish();
      await tunnel.readAll();
    }
    await lines(file, 2);
    assert.equal((await ask(addresses.clients, connectHead("10.0.0.1:80"))).status, 403);
    await lines(file, 3);
    using _open = await openTunnel(addresses.clients, origin.authority);
    const before = await lines(file, 4);
    assert.deepEqual(before.map(({ event, outcome, error }) => [event, outcome ?? error]), [
      ["start", undefined],
      ["end", "completed"],
      ["refused", "http_request_denied"],
      ["start", undefined],
    ]);
    assert.deepEqual([before[0]!.id, before[0]!.destination, before[1]!.sent], [before[1]!.id, origin.authority, 5]);
    proxy.signal("SIGKILL");
    await proxy.ended;
    await site.startProxy(args);
    const after = (await lines(file, 5)).slice(4);
    assert.deepEqual(after.map(({ event, id, outcome }) => [event, id, outcome]), [["end", before[3]!.id, "lost"]]);
  });

  it(
    "refuses tunnels that it cannot record, if it is strict",
    { skip: process.platform === "linux" ? false : "no /dev/full" },
    async () => {
      await using site = await Site.create();
      await using origin = await Origin.start(() => Promise.resolve());
      const { proxy, addresses } = await site.startProxy(["--audit.file=/dev/full", "--audit.strict"]);
      await site.startAgent(addresses);
      const { status } = await ask(addresses.clients, connectHead(origin.authority));
      assert.equal(status, 500);
      await proxy.waitFor("audit log cannot be written");
    },
  );
});
