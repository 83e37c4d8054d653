// The runtime of a service: what is opened is closed, in one order, also when the start fails.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import type { Health } from "../../shared/service/health.ts";
import { ResourceStack } from "../../shared/service/resource_stack.ts";
import { type ServiceRuntime, startService } from "../../shared/service/runtime.ts";
import { LogBook, netWith, withNet } from "../../testing/network.ts";
import { Folder, Program, ROOT } from "../../testing/programs.ts";
import { freePort } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const SCRIPT = join(ROOT, "tests", "support", "failing_start.ts");

describe("a resource stack", () => {
  it("closes in the reverse order, waits for each, and closes all where some fail", async () => {
    const [stack, closed] = [new ResourceStack(), [] as string[]];
    assert.equal(stack.adopt("first", (name) => void closed.push(name)), "first");
    stack.defer(() => {
      throw new Error("second");
    });
    stack.defer(() => Promise.reject(new Error("third")));
    stack.defer(async () => {
      await Promise.resolve();
      closed.push("fourth");
    });
    await assert.rejects(stack.disposeAsync(), /third/);
    assert.deepEqual(closed, ["fourth", "first"]);
    await stack.disposeAsync();
    assert.deepEqual(closed, ["fourth", "first"]);
  });
});

describe("a service", () => {
  const started = async (body: (runtime: ServiceRuntime, log: LogBook) => Promise<void>) =>
    await withNet(async (net) => {
      const log = new LogBook();
      await body(await startService("lb", { net, log }, (runtime) => Promise.resolve(runtime)), log);
    });

  it("drains once: it is not ready, finishes, closes, and says so in this order", () =>
    started(async (runtime, log) => {
      const steps: string[] = [];
      runtime.defer(() => void steps.push("closed"));
      const finish = () => {
        steps.push(`ready: ${runtime.health.problems.size === 0}`);
        return Promise.resolve();
      };
      const draining = runtime.drain({ fields: { clients: 0 }, delayMs: 0, finish });
      assert.equal(runtime.isDraining, true);
      assert.equal(runtime.drain({ fields: {}, delayMs: 0, finish }), draining);
      await draining;
      await runtime.close();
      assert.deepEqual(steps, ["ready: false", "closed"]);
      assert.deepEqual([log.logged("draining").length, log.logged("stopped").length], [1, 1]);
    }));

  it("says why it cannot write the audit log", async () => {
    using folder = new Folder();
    for (const [file, why] of [[folder.path, "it is a directory"], [`${folder.path}/none/log`, "the directory does not exist"]] as const) {
      const error = { name: "ConfigError", message: `Cannot use --audit.file ${file}: ${why}` };
      await started((runtime) => assert.rejects(runtime.audit.open({ file, strict: true }), error));
    }
  });

  it("ends a drain's delay when it is closed", () =>
    started(async (runtime) => {
      const draining = runtime.drain({ fields: {}, delayMs: 3_600_000, finish: () => Promise.resolve() });
      await runtime.close();
      await draining;
    }));

  it("closes what was opened when its start fails, and reports why it failed", () =>
    withNet(async (net) => {
      const [log, closed] = [new LogBook(), [] as string[]];
      const start = (runtime: ServiceRuntime): Promise<Health> => {
        runtime.defer(() => void closed.push("first"));
        runtime.defer(() => {
          throw new Error("close failed");
        });
        return Promise.reject(new Error("start failed"));
      };
      await assert.rejects(startService("lb", { net, log }, start), /start failed/);
      assert.deepEqual(closed, ["first"]);
      assert.deepEqual(log.logged("stopped"), []);
    }));

  it("closes its own network after everything else, and leaves the caller's open", () =>
    withNet(async (net) => {
      for (const ownsNet of [true, false]) {
        const [log, closed] = [new LogBook(), [] as string[]];
        const deps = { net: netWith(net, { close: () => void closed.push("net") }), ownsNet, log };
        const runtime = await startService("lb", deps, (runtime) => Promise.resolve(runtime));
        runtime.defer(() => void closed.push("resource"));
        await runtime.close();
        assert.deepEqual(closed, ownsNet ? ["resource", "net"] : ["resource"]);
      }
    }));
});

const STEPS: Readonly<Record<string, RegExp>> = {
  authenticator: /^ConfigError: Cannot use --auth\.jwt\.public-key /,
  store: /^ConfigError: Cannot read --store\.redis\.tls\.file\.root-ca \/nonexistent: /,
  admin: /Cannot listen on 127\.0\.0\.1:9090: /,
  agents: /Cannot listen on 127\.0\.0\.1:4242: /,
  clients: /Cannot listen on 127\.0\.0\.1:3128: /,
  frontend: /^Error: no rates$/,
  check: /^ConfigError: Cannot use --auth\.jwt\.public-key /,
  none: /^$/,
};
const AGENT_STEPS: Readonly<Record<string, RegExp>> = {
  authenticator: /^ConfigError: Cannot use --auth\.noauth\.agent-id /,
  admin: STEPS.admin!,
  check: /^ConfigError: Cannot use --auth\.noauth\.agent-id /,
  none: /^$/,
};
const { agents: _, ...LB_STEPS } = STEPS;

for (const [service, steps] of Object.entries({ proxy: STEPS, lb: LB_STEPS, agent: AGENT_STEPS })) {
  describe(`the start of ${service}`, () => {
    for (const [step, expected] of Object.entries(steps)) {
      const titles: Record<string, string> = {
        none: "that succeeds leaves nothing open after its close",
        check: "whose configuration check fails leaves nothing open",
      };
      it(titles[step] ?? `that fails at its ${step} leaves nothing open`, async () => {
        using folder = new Folder();
        const key = folder.write("key.pem", makeTokenKey().publicPem);
        const flags = process.versions.bun === undefined ? ["-A", "--no-check", "--config", join(ROOT, "deno.json")] : [];
        await using program = new Program(process.execPath, ["run", ...flags, SCRIPT, service, step, key, String(await freePort())]);
        const { exitCode, stdout, stderr } = await program.ended; // nothing keeps the process alive
        assert.equal(exitCode, 0, stderr);
        const { error = "", open } = JSON.parse(stdout) as { error?: string; open: string[] };
        assert.match(error, expected);
        assert.deepEqual(open, []);
      });
    }
  });
}
