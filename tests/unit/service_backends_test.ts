// What a proxy decides by is opened as a whole or not at all.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { Folder, Program, ROOT } from "../../testing/programs.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const BACKENDS = join(import.meta.dirname!, "..", "..", "shared", "service", "backends.ts");

describe("the backends of a proxy", () => {
  it("leaves nothing open that keeps a program alive when its store cannot be opened", async () => {
    using folder = new Folder();
    const options = {
      auth: { type: "jwt", jwt: { publicKey: [folder.write("key.pem", makeTokenKey().publicPem)] } },
      store: {
        type: "redis",
        keyPrefix: "",
        redis: { url: "rediss://localhost", timeout: 1_000, tls: { file: { rootCa: "/nonexistent" } } },
      },
      ttlMs: 30_000,
    };
    const script = folder.write(
      "script.ts",
      `import { openBackends } from ${JSON.stringify(BACKENDS)};
      const log = { trace() {}, debug() {}, info() {}, warn() {}, error() {} };
      await openBackends({ ...${
        JSON.stringify(options)
      }, log, health: {}, metrics: { store: () => ({}) } }, {}).catch((error) => console.log(error.name + ": " + error.message));`,
    );
    const flags = process.versions.bun === undefined ? ["-A", "--no-check", "--config", join(ROOT, "deno.json")] : [];
    await using program = new Program(process.execPath, ["run", ...flags, script]);
    const { exitCode, stdout, stderr } = await program.ended;
    assert.equal(exitCode, 0, stderr);
    assert.match(stdout, /^ConfigError: Cannot read --store\.redis\.tls\.file\.root-ca: /);
  });
});
