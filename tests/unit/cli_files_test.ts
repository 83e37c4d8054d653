// Which configuration file is read if none is named, and what is logged about the others.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { readCommandLine, type Service } from "../../shared/cli/command.ts";
import { logOptions } from "../../shared/config/common_options.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { Folder } from "../../testing/programs.ts";

const service: Service = {
  name: "thing",
  description: "Does a thing.",
  options: logOptions,
  check: async () => {},
  start: () => Promise.reject(new Error("not to be started")),
};

function read(home: string) {
  const task = readCommandLine({ root: service, version: "1", family: {} }, { args: [], env: {}, home });
  if (task.do !== "run") throw new Error(`It is to ${task.do}`);
  return task;
}

describe("the configuration file of the home", () => {
  for (const ending of ["yaml", "yml", "json"]) {
    it(`may have the extension .${ending}`, () => {
      using home = new Folder();
      const file = home.write(`.reverse-http.${ending}`, '{"log": {"level": "warn"}}');
      const { resolved, files } = read(home.path);
      assert.deepEqual(resolved.settings.get("log.level"), { text: "warn", origin: `${file}:1` });
      assert.equal(files.file, file);
    });
  }

  it("is the first of several, and the others are reported", () => {
    using home = new Folder();
    for (const ending of ["json", "yml", "yaml"]) {
      home.write(`.reverse-http.${ending}`, `{"log": {"level": "${ending === "yaml" ? "warn" : "no"}"}}`);
    }
    const { resolved, files } = read(home.path);
    assert.equal(resolved.settings.get("log.level")?.text, "warn");
    assert.deepEqual(files, {
      file: `${home.path}/.reverse-http.yaml`,
      ignored: ["yml", "json"].map((ending) => `${home.path}/.reverse-http.${ending}`),
    });
  });

  it("is refused if it is not UTF-8", () => {
    using home = new Folder();
    home.write(".reverse-http.yaml", new Uint8Array([0x61, 0x3a, 0x20, 0xe9]));
    assert.throws(() => read(home.path), (error) => error instanceof ConfigError && error.message.endsWith(": it is not UTF-8"));
  });

  it("may start with a byte-order mark", () => {
    using home = new Folder();
    home.write(".reverse-http.yaml", "\ufefflog:\n  level: warn\n");
    assert.equal(read(home.path).resolved.settings.get("log.level")?.text, "warn");
  });
});
