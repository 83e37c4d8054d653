// Starting a new process of the program.
import assert from "node:assert/strict";
import { chmod, readFile, writeFile } from "node:fs/promises";
import { describe, it } from "node:test";
import { createSuccessorStarter } from "../../shared/cli/successor.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { within } from "../conformance/support.ts";

/** Writes a script in place of the program. */
async function writeProgram(folder: Folder, script: string): Promise<string> {
  const file = folder.write("program", `#!/bin/sh\n${script}\n`);
  await chmod(file, 0o700);
  return file;
}

describe("a successor", () => {
  it("gets the arguments and the environment, without what concerns this process alone", async () => {
    using folder = new Folder();
    const file = await writeProgram(folder, 'echo "$@ $WATCHDOG_PID $WATCHDOG_USEC" > "$0.out"; exit 3');
    const log = new LogBook();
    const env = { PATH: "/usr/bin:/bin", WATCHDOG_PID: "7", WATCHDOG_USEC: "9" };
    const starter = await createSuccessorStarter(file, { args: ["proxy", "--a b"], env }, log);
    const [reason, same] = await within(Promise.all([starter.start(), starter.start()]));
    assert.deepEqual([reason, same], ["the new process has ended: code 3", reason]);
    await log.waitFor("a new process is already starting");
    assert.equal(await readFile(`${file}.out`, "utf8"), "proxy --a b  9\n");
    assert.equal((await log.waitFor("new process has ended")).code, 3);
    await within(starter.start());
  });

  it("that cannot be started is logged", async () => {
    const log = new LogBook();
    const starter = await createSuccessorStarter("/nonexistent/program", { args: [], env: {} }, log);
    await within(starter.start());
    assert.match(String((await log.waitFor("new process has ended")).reason), /ENOENT|not found/);
  });

  it("is due when the program's file is another one", async () => {
    using folder = new Folder();
    const file = await writeProgram(folder, "exit 0");
    const starter = await createSuccessorStarter(file, { args: [], env: {} }, new LogBook());
    assert.equal(await starter.isReplaced(), false);
    await writeFile(file, "another one");
    assert.equal(await starter.isReplaced(), true);
  });
});
