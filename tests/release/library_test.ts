// The library without its native engine.
import assert from "node:assert/strict";
import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import { Folder, ROOT } from "../../testing/programs.ts";

describe("library without a native engine", () => {
  it("names the package that has it, and how to install that", async () => {
    using folder = new Folder();
    mkdirSync(join(folder.path, "shared", "net", "native"), { recursive: true });
    const file = join(folder.path, "shared", "net", "native", "addon.ts");
    cpSync(join(ROOT, "shared", "net", "native", "addon.ts"), file);
    const { loadAddon } = await import(pathToFileURL(file).href) as { loadAddon(): unknown };
    const name = `@reverse-http/native-${process.platform}-${process.arch}`;
    assert.throws(() => loadAddon(), ({ message }: Error) => {
      assert.ok(message.startsWith(`Cannot load the native engine from the npm package ${name}: `), message);
      assert.match(message, /npm install @reverse-http\/native-\S+,.* deno add npm:@reverse-http\/native-/);
      return true;
    });
  });
});
