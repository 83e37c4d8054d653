// What the README shows runs as it stands there.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { describe, it } from "node:test";
import { Folder, ROOT, runToEnd } from "../support/processes.ts";
import { makeAuthority } from "../support/certificates.ts";

const readme = readFileSync(join(ROOT, "README.md"), "utf8");

/** The code in this language. */
function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, "gm"))].map((match) => match[1]!);
}

/** What runs a program of the library's: the runtime of this test. */
const [runtime, ...runtimeArgs] = process.versions.bun
  ? [process.execPath, "run"]
  : [process.execPath, "run", "-A", "--quiet", "--no-check", `--config=${join(ROOT, "deno.json")}`];

describe("the README's programs", () => {
  for (const [index, code] of blocks("ts").entries()) {
    it(`run, number ${index + 1}`, async () => {
      using folder = new Folder();
      const authority = await makeAuthority();
      const server = await authority.issue({ names: ["127.0.0.1"] });
      folder.write("key.pem", server.key);
      folder.write("cert.pem", `${server.cert}\n${authority.cert}\n`); // the agent trusts what is in it
      const program = folder.write("program.ts", code.replaceAll('"./mod.ts"', JSON.stringify(pathToFileURL(join(ROOT, "mod.ts")).href)));
      const { exitCode, stdout, stderr } = await runToEnd(runtime!, [...runtimeArgs, program], {
        cwd: folder.path,
        env: process.env as Record<string, string>,
      });
      assert.equal(exitCode, 0, stderr);
      assert.match(stdout, /^agent 4711 came from 127\.0\.0\.1:\d+$/m, stderr);
      assert.match(stdout, /^clients may dial http:\/\/4711:password@127\.0\.0\.1:\d+$/m);
      assert.match(stdout, /^agent 4711 went: closed by the agent/m);
    });
  }

  it("are there", () => assert.ok(blocks("ts").length > 0));
});
