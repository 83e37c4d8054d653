// Reading files and standard input whole: an endless one does not fill the memory.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { describe, it } from "node:test";
import { expandJoin } from "../../client/join.ts";
import { readKey } from "../../shared/cli/auth_files.ts";
import { readCommandLine, type Terminal } from "../../shared/cli/command.ts";
import { logOptions } from "../../shared/config/common_options.ts";
import { readBytes, readBytesSync, readStream, readTextSync } from "../../shared/files/read.ts";
import { Folder } from "../../testing/programs.ts";

const ENDLESS = "/dev/zero";
const isTooLarge = /it has more than [0-9]+ bytes, the limit$/;

describe("reading", () => {
  it("returns a whole file, and refuses a larger one", async () => {
    using folder = new Folder();
    const text = "ä".repeat(100_000);
    const file = folder.write("file", text);
    assert.equal(readTextSync(file, 200_000), text);
    assert.deepEqual(readBytesSync(file, 200_000), await readBytes(file, 200_000));
    assert.throws(() => readBytesSync(file, 199_999), isTooLarge);
    await assert.rejects(readBytes(file, 199_999), isTooLarge);
    assert.throws(() => readBytesSync(folder.path, 1), { code: "EISDIR" });
  });

  it("stops in an endless input", async () => {
    let parts = 0;
    const endless = async function* () {
      for (; parts < 1_000; parts++) yield new Uint8Array(1_000);
    };
    await assert.rejects(readStream(endless(), 5_500), isTooLarge);
    assert.equal(parts, 5);
    const halves = async function* () {
      for (const part of [Uint8Array.of(0xc3), Uint8Array.of(0xa4)]) yield part;
    };
    assert.equal(await readStream(halves(), 2), "ä");
  });

  it("stops in an endless file, whatever it is for", { skip: !existsSync(ENDLESS) }, async () => {
    assert.throws(() => expandJoin(`file:${ENDLESS}`), isTooLarge);
    await assert.rejects(readKey(ENDLESS, {} as Terminal), isTooLarge);
    const service = {
      name: "thing",
      description: "Does a thing.",
      options: logOptions,
      check: async () => {},
      start: () => Promise.reject(),
    };
    assert.throws(
      () => readCommandLine({ root: service, version: "1", family: {} }, { args: [`--config=${ENDLESS}`], env: {}, home: undefined }),
      isTooLarge,
    );
  });
});
