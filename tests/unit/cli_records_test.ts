// Options whose values are records: how each source writes them, and the errors for invalid ones.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { completionScript } from "../../shared/cli/completion.ts";
import { type Executable, helpText, readCommandLine, type Service } from "../../shared/cli/command.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import { readConfig } from "../../shared/config/file.ts";
import { defineOptions, type ValuesOf } from "../../shared/config/option.ts";
import { formatRecord, splitRecords } from "../../shared/config/records.ts";
import { configSchema } from "../../shared/config/schema.ts";
import { resolve, type Sources } from "../../shared/config/sources.ts";
import { optionTable } from "../../tools/option_table.ts";
import { refusal } from "../../testing/refusal.ts";

const options = defineOptions({
  "forward": {
    kind: "records",
    description: "Local listeners.",
    keys: {
      "listen": { kind: "address", description: "Where to listen." },
      "agent": {
        kind: "string",
        description: "The agent id.",
        check: (id) => id.length > 20 ? "it is longer than 20 characters" : undefined,
      },
      "to": { kind: "string", description: "The destination." },
      "idle-timeout": { kind: "duration", default: "5m", description: "After which it ends." },
      "log": { kind: "boolean", default: "true", description: "Whether it is logged." },
      "name": { kind: "list", description: "Names." },
      "note": { kind: "string", optional: true, description: "A note." },
    },
    check: (all) => new Set(all.map(({ listen }) => listen)).size < all.length ? "two listen on the same address" : undefined,
  },
  "other": { kind: "string", description: "" },
});

type Forward = ValuesOf<typeof options>["forward"][number];

const DATABASE: Forward = { listen: ":5432", agent: "db-site", to: "127.0.0.1:5432", idleTimeout: 300_000, log: true, name: [] };
const WEB: Forward = { listen: "[::1]:80", agent: "web", to: "web:80", idleTimeout: 1_000, log: false, name: ["a", "b"], note: "x" };
const TEXTS = [
  "listen=:5432,agent=db-site,to=127.0.0.1:5432",
  "listen=[::1]:80, agent=web, to=web:80, idle-timeout=1s, log=false, name=a, name=b, note=x",
] as const;

const FILE = `forward:
  - listen: ":5432"
    agent: db-site
    to: 127.0.0.1:5432
  - {listen: "[::1]:80", agent: web, to: "web:80", idle-timeout: 1s, log: false, name: [a, b], note: x}
`;

const service: Service = {
  name: "test",
  description: "A test.",
  options,
  check: () => Promise.resolve(),
  start: () => Promise.reject(new Error("It is not started")),
};
const executable: Executable = { root: service, version: "1", family: { test: options } };

function run(...args: string[]): ReturnType<typeof readCommandLine> {
  return readCommandLine(executable, { args, env: {}, home: undefined });
}

function fromArguments(...args: string[]): unknown {
  const task = run(...args);
  assert.ok(task.do === "run");
  return task.resolved.values.forward;
}

function from(sources: Partial<Sources>): unknown {
  return resolve(options, { flags: new Map(), env: {}, ...sources }).values.forward;
}

function fromFile(text: string): unknown {
  return from({ file: readConfig(options, { name: "c.yaml", text }) });
}

describe("an option of records", () => {
  it("is the same from repeated flags, one flag, a variable, a file in YAML or JSON, and a program", () => {
    const both = [DATABASE, WEB];
    assert.deepEqual(fromArguments("--forward", TEXTS[0], `--forward=${TEXTS[1]}`), both);
    assert.deepEqual(fromArguments("--forward", TEXTS.join("; ")), both);
    assert.deepEqual(from({ env: { REVERSE_HTTP_FORWARD: TEXTS.join(";") } }), both);
    assert.deepEqual(fromFile(FILE), both);
    assert.deepEqual(fromFile(`forward: ${JSON.stringify(TEXTS.join(";"))}`), both);
    const { log: _, ...unset } = WEB;
    assert.deepEqual(fromFile(JSON.stringify({ forward: [{ ...{ listen: ":5432", agent: "db-site", to: "127.0.0.1:5432" } }] })), [
      DATABASE,
    ]);
    assert.deepEqual(withDefaults(options, { forward: [DATABASE, WEB] }).forward, both);
    const { idleTimeout: __, log: ___, ...required } = DATABASE;
    const given = { forward: [required, { ...unset, log: false }] } as unknown as PartialValues<ValuesOf<typeof options>>;
    assert.deepEqual(withDefaults(options, given).forward, both);
  });

  it("has lists as keys, written by repeating the key, with commas or as a list of the file", () => {
    const record = { ...DATABASE, name: ["a", "b", "c"] };
    for (const names of ["name=a,name=b,name=c", "name=a\\,b,name=c"]) {
      assert.deepEqual(fromArguments(`--forward=${TEXTS[0]},${names}`), [record]);
    }
    const text = `forward: [{listen: ":5432", agent: db-site, to: "127.0.0.1:5432", name: "a,b,c"}]`;
    assert.deepEqual(fromFile(text), [record]);
    assert.deepEqual(fromFile(text.replace('"a,b,c"', "[a, b, c]")), [record]);
  });

  it("is empty by default", () => {
    assert.deepEqual(from({}), []);
    assert.deepEqual(withDefaults(options, {}).forward, []);
  });

  it("can have keys and values with every character", () => {
    const agent = "a,b;c=d\\e";
    assert.deepEqual(fromFile(`forward: [{listen: ":1", agent: 'a,b;c=d\\e', to: "x:1"}]`), [
      { listen: ":1", agent, to: "x:1", idleTimeout: 300_000, log: true, name: [] },
    ]);
    fc.assert(fc.property(fc.array(fc.array(fc.tuple(fc.stringMatching(/^[a-z-]+$/), fc.string()), { minLength: 1 })), (records) => {
      const trimmed = records.map((pairs) => pairs.map(([key, value]) => [key, value.trim()] as const));
      assert.deepEqual(splitRecords(trimmed.map(formatRecord).join(";")), trimmed);
    }));
  });

  it("resolves aliases and merged groups of the file", () => {
    const text = `forward:\n  - &db {listen: ":5432", agent: db-site, to: "127.0.0.1:5432"}\n  - {<<: *db, listen: ":1"}\n`;
    assert.deepEqual(fromFile(text), [DATABASE, { ...DATABASE, listen: ":1" }]);
  });

  const FORM = "write listen=ADDRESS,agent=STRING,to=STRING[,idle-timeout=DURATION][,log=BOOLEAN][,name=ITEM]...[,note=STRING]";
  const bad: [what: string, text: string, message: string][] = [
    ["an unknown key", "listen=:1,agnt=a,to=b:1", `record 1: "agnt" is an unknown key; ${FORM}`],
    ["a key of every object", "listen=:1,__proto__=a,to=b:1", `record 1: "__proto__" is an unknown key; ${FORM}`],
    ["a missing key", "listen=:1,to=b:1", `record 1: it has no agent; ${FORM}`],
    ["a key twice", "listen=:1,listen=:2,agent=a,to=b:1", `record 1: listen is set twice, to ":1" and ":2"; ${FORM}`],
    ["an empty value", "listen=,agent=a,to=b:1", `record 1: listen is empty; ${FORM}`],
    ["no equals sign", "listen=:1,agent,to=b:1", `record 1: "agent" is not key=value; ${FORM}`],
    ["an empty record", `${TEXTS[0]};`, `record 2: it is empty; ${FORM}`],
    ["nothing", "", "it is empty; leave it out for the default"],
    [
      "a bad value",
      `${TEXTS[0]};${TEXTS[1]},`.replace("1s,", "1,").slice(0, -1),
      'record 2: idle-timeout: "1" has no unit: write for example 1s or 1ms',
    ],
    [
      "a value that its key does not take",
      "listen=:1,agent=aaaaaaaaaaaaaaaaaaaaa,to=b:1",
      "record 1: agent: it is longer than 20 characters",
    ],
    ["records that exclude each other", `${TEXTS[0]};${TEXTS[0]}`, "two listen on the same address"],
  ];
  for (const [what, text, message] of bad) {
    it(`with ${what} is refused, naming option, value and remedy`, () => {
      assert.equal(refusal(() => fromArguments("--forward", text)), `Cannot use --forward: ${message}`);
      if (text === "") return; // an empty variable is unset
      assert.equal(refusal(() => from({ env: { REVERSE_HTTP_FORWARD: text } })), `Cannot use --forward (REVERSE_HTTP_FORWARD): ${message}`);
    });
  }

  const badFiles: [what: string, text: string, message: string][] = [
    ["an unknown key", `forward:\n  - listen: ":1"\n    agnt: a\n`, "Unknown key forward.agnt (c.yaml:3); did you mean agent?"],
    ["a missing key", `forward:\n  - listen: ":1"\n    agent: a\n`, `Cannot use --forward (c.yaml:1): record 1: it has no to; ${FORM}`],
    ["a key twice", `forward:\n  - listen: ":1"\n    listen: ":2"\n`, "Cannot read c.yaml:3: this key is set twice"],
    ["an empty value", `forward:\n  - listen:\n`, `Cannot use --forward (c.yaml:1): record 1: listen is empty; ${FORM}`],
    ["no record", "forward: []\n", "Cannot use --forward (c.yaml:1): it is empty; leave it out for the default"],
    ["a list for a value", `forward:\n  - listen: [a]\n`, "Cannot use forward (c.yaml:1): record 1: listen is not a plain value"],
    ["a text among records", `forward:\n  - listen\n`, "Cannot use forward (c.yaml:1): record 1: it is not a mapping of keys"],
  ];
  for (const [what, text, message] of badFiles) {
    it(`with ${what} in a file is refused, naming the line`, () => assert.equal(refusal(() => fromFile(text)), message));
  }

  const badValues: [what: string, value: unknown, message: string][] = [
    ["an unknown key", [{ ...DATABASE, agnt: "a" }], `record 1: "agnt" is an unknown key; ${FORM}`],
    ["a missing key", [{ ...DATABASE, agent: undefined }], `record 1: it has no agent; ${FORM}`],
    ["an empty value", [{ ...DATABASE, agent: "" }], `record 1: agent is empty; ${FORM}`],
    ["a value of another type", [{ ...DATABASE, log: "yes" }], 'record 1: log: "yes" is not a boolean'],
    ["no object", [[]], `record 1: [] is not an object; ${FORM}`],
    ["no list", "listen=:1", '"listen=:1" is not a list of records'],
  ];
  for (const [what, forward, message] of badValues) {
    it(`with ${what} from a program is refused`, () => {
      const given = { forward } as PartialValues<ValuesOf<typeof options>>;
      assert.equal(refusal(() => withDefaults(options, given)), `Cannot use --forward: ${message}`);
    });
  }

  it("is printed as it can be read again", () => {
    const task = run("--print-config", "--forward", TEXTS[0], "--forward", TEXTS[1]);
    assert.ok(task.do === "print");
    const [, text] = /^--forward='(.*)' {2}# --forward$/m.exec(task.text) ?? [];
    assert.deepEqual(fromArguments(`--forward=${text}`), [DATABASE, WEB]);
  });

  it("has its keys in help, table and schema, and can be repeated in completions", () => {
    for (const text of [helpText(options.forward, "X"), optionTable(options)]) {
      assert.match(
        text,
        /Written listen=ADDRESS,agent=STRING,to=STRING\[,idle-timeout=DURATION\]\[,log=BOOLEAN\]\[,name=ITEM\]\.\.\.\[,note=STRING\], repeatable/,
      );
      assert.match(text, /idle-timeout: After which it ends\. \(default 5m\)/);
    }
    assert.match(completionScript("zsh", service), /'\*--forward=\[/);
    const { properties } = configSchema({ test: options }) as { properties: Record<string, { anyOf: [unknown, { items: unknown }] }> };
    const { properties: keys, ...rest } = properties.forward!.anyOf[1].items as { properties: object };
    assert.deepEqual(Object.keys(keys), ["listen", "agent", "to", "idle-timeout", "log", "name", "note"]);
    assert.deepEqual(rest, { type: "object", additionalProperties: false, required: ["listen", "agent", "to"] });
  });
});
