// The manual page and the schema of the configuration file: complete, and readable by other programs.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { describe, it } from "node:test";
import { SERVICES } from "../../services.ts";
import type { Executable } from "../../shared/cli/command.ts";
import { readConfig } from "../../shared/config/file.ts";
import { configSchema } from "../../shared/config/schema.ts";
import { manualPage } from "../../shared/cli/manual.ts";
import { defineOptions } from "../../shared/config/option.ts";

const executable: Executable = {
  version: "1.2.3",
  family: {},
  root: {
    name: "a-thing",
    description: "Does things that take a good many words to describe, more of them than there is room for in one line.",
    options: defineOptions({
      "log.level": { kind: "string", default: "info", choices: ["info", "warn"], env: "LOG_LEVEL", description: '.How "much"; a\\b ~.' },
      "tls.key": { kind: "file", description: "'Key." },
    }),
    check: async () => {},
    start: () => Promise.reject(new Error("not to be started")),
    commands: [{
      name: "show",
      description: "Show.",
      options: defineOptions({ "long": { kind: "boolean", short: "l", description: "All." } }),
      run: async () => {},
    }],
  },
};

function mandoc(args: string[], input: string): string {
  const { stdout, stderr } = spawnSync("mandoc", args, { input, encoding: "utf8", env: { ...process.env, LC_ALL: "C.UTF-8" } });
  return stdout + stderr;
}

describe("manual page", () => {
  const page = manualPage(executable, "2026-01-31T12:00:00Z");
  const withMandoc = { skip: spawnSync("mandoc", ["-l", "/dev/null"]).error ? "there is no mandoc here" : false };

  it("has every command, flag, variable, default and choice", () => {
    const plain = page.replaceAll("\\-", "-").replace(/\s+/g, " ");
    assert.match(plain, /^\.TH A-THING 1 "2026-01-31" "reverse-http 1\.2\.3"/);
    assert.match(plain, /\.SH "NAME" a-thing - Does things/);
    assert.match(plain, /\.B --log\.level <string> .*One of info, warn\. \(default info, env LOG_LEVEL\)/);
    assert.match(plain, /\.B --tls\.key <file> .*\(env REVERSE_HTTP_TLS_KEY\)/);
    assert.match(plain, /\.SH "a-thing show" Show\. \.TP \.B -l, --long \[boolean\] All\. \.SH/);
    for (const word of ["--config", "--check-config", "--print-config", "EXIT STATUS", "/etc/reverse-http/config.yaml"]) {
      assert.ok(plain.includes(word), word);
    }
  });

  it("passes mandoc's lint, with a date and without", withMandoc, () => {
    for (const date of ["2026-01-31T12:00:00Z", undefined]) {
      const faults = mandoc(["-T", "lint", "-W", "all"], manualPage(executable, date));
      assert.deepEqual(faults.split("\n").filter((line) => line !== "" && !line.includes("missing date")), []);
    }
  });

  it("shows texts unchanged, whatever their characters", withMandoc, () => {
    // deno-lint-ignore no-control-regex -- bold is a letter over itself
    const shown = mandoc(["-T", "utf8"], page).replace(/.\x08/g, "").replace(/\s+/g, " ");
    assert.ok(shown.includes('.How "much"; a\\b ~. One of info, warn.'), shown);
    assert.ok(shown.includes("'Key. (env"), shown);
  });
});

describe("schema of the configuration file", () => {
  interface Schema {
    properties?: Record<string, Schema>;
    additionalProperties?: boolean;
    default?: string;
    description?: string;
    enum?: string[];
  }
  const schema = configSchema(SERVICES) as Schema;

  /** All keys of leaves, with their dots. */
  function leaves({ properties = {} }: Schema, path = ""): [string, Schema][] {
    return Object.entries(properties).flatMap(([key, inner]) =>
      inner.properties ? leaves(inner, `${path}${key}.`) : [[`${path}${key}`, inner] as [string, Schema]]
    );
  }

  it("has the options of all services, and accepts no others", () => {
    const names = new Set(Object.values(SERVICES).flatMap((options) => Object.keys(options)));
    assert.deepEqual(leaves(schema).map(([name]) => name).sort(), [...names].sort());
    assert.equal(schema.additionalProperties, false);
  });

  it("has descriptions, defaults and choices", () => {
    const level = new Map(leaves(schema)).get("log.level")!;
    assert.equal(level.default, "info");
    assert.match(level.description!, /\.$/);
    assert.deepEqual(level.enum, ["trace", "debug", "info", "warn", "error"]);
  });

  it("accepts what any service accepts if several have an option with one name", () => {
    const option = (choices: string[]) => defineOptions({ "a.b": { kind: "string", choices, description: "One." } });
    const merged = configSchema({ first: option(["x", "y"]), second: option(["y", "z"]) }) as Schema;
    assert.deepEqual(new Map(leaves(merged)).get("a.b")!.enum, ["x", "y", "z"]);
  });

  it("names keys as in the configuration file", () => {
    const all = Object.fromEntries(leaves(schema).map(([name]) => [name, "1"]));
    assert.equal(readConfig({}, { name: "c.json", text: JSON.stringify(all) }, SERVICES).size, leaves(schema).length);
  });
});
