// System calls of the compiled executables fail for lack of resources; strace injects the errors.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { describe, it } from "node:test";
import { eventually, Pair, Program, Site, storeArgs } from "../../testing/programs.ts";
import { ask, assertRefused, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

/** Minimum number of failures of a call before it works again. */
const FAILURES = 5;

/** Whether strace may attach to a process that it has not started. */
async function canTrace(): Promise<boolean> {
  await using other = new Program("sleep", ["60"]);
  await using strace = new Program("strace", [`-p${other.pid}`]);
  return await strace.waitForText("attached").then(() => true, () => false);
}

const hasStrace = process.platform === "linux" && spawnSync("strace", ["-V"]).status === 0;
const withStrace = {
  skip: hasStrace && await canTrace() ? false : "there is no strace, or it may not attach (kernel.yama.ptrace_scope)",
};

describe("a kernel without resources", () => {
  for (
    const [part, call, error, said] of [
      ["proxy", "accept4", "ENOBUFS", "No buffer space available"],
      ["proxy", "accept4", "ENOMEM", "Cannot allocate memory"],
      ["proxy", "accept4", "ECONNABORTED"],
      ["proxy", "sendmsg", "ENOBUFS"],
      ["agent", "sendmsg", "ENOBUFS"],
      ["proxy", "recvmmsg", "ENOMEM"],
      ["agent", "recvmmsg", "ENOMEM"],
    ] as const
  ) {
    const telling = said === undefined ? "" : ", which is told once";
    it(`fails ${call} of the ${part} with ${error}${telling}: clients wait, and tunnels continue`, withStrace, async () => {
      await using pair = await Pair.start();
      await using origin = await Origin.start();
      const { clients } = pair.addresses;
      using open = await openTunnel(clients, origin.authority);
      using server = await origin.accept();
      const strace = pair.site.start("strace", ["-f", `-p${pair[part].pid}`, `--trace=${call}`, `--inject=${call}:error=${error}`]);
      await strace.waitForText("attached");
      const waiting = openTunnel(clients, origin.authority);
      await open.write("still");
      await eventually(() => strace.said.split("(INJECTED)").length > FAILURES, () => strace.said);
      await strace.stop("SIGINT");
      using _next = await waiting;
      assert.equal((await server.read(5)).toString(), "still");
      await server.write("there");
      assert.equal((await open.read(5)).toString(), "there");
      const told = [...pair[part].said.matchAll(/they cannot be accepted: (.+) \(os error/g)].map(([, why]) => why);
      // a call in which strace is detached was never made
      assert.deepEqual(told.filter((why) => why !== "Function not implemented"), said === undefined ? [] : [said]);
    });
  }

  for (const part of ["lb", "agent"] as const) {
    it(`has no local port for ${part}: 503 until it has one, and no agent counts as disconnected`, withStrace, async () => {
      await using cache = await StoreServer.start("memcached");
      await using site = await Site.create();
      await using origin = await Origin.start();
      const { addresses } = await site.startProxy(storeArgs(cache));
      const agent = await site.startAgent(addresses);
      const { lb, clients } = await site.startLb(cache);
      let tunnel;
      while (!tunnel) tunnel = await openTunnel(clients, origin.authority).catch(() => undefined);
      tunnel.reset();
      const program = part === "lb" ? lb : agent;
      const strace = site.start("strace", ["-f", `-p${program.pid}`, "--trace=connect", "--inject=connect:error=EADDRNOTAVAIL"]);
      await strace.waitForText("attached");
      for (let i = 0; i < 3; i++) {
        const answer = await ask(clients, connectHead(origin.authority));
        assertRefused(answer, 503, "connection_limit_reached");
        assert.equal(answer.fields["retry-after"], "1");
      }
      await strace.stop("SIGINT");
      await program.waitFor("limit reached", { limit: "ports" });
      using _next = await openTunnel(clients, origin.authority);
    });
  }
});
