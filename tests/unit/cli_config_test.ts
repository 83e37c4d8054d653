// The sources of values: precedence, origins, and errors about unknown names and invalid values.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { readConfig } from "../../shared/config/file.ts";
import { checkEnvironment, didYouMean, resolve, type Resolved, type Sources } from "../../shared/config/sources.ts";
import { ConfigError, defineOptions } from "../../shared/config/option.ts";

const options = defineOptions({
  "server.listen-address": { kind: "address", default: ":1", description: "" },
  "server.tls.file.key": { kind: "file", description: "" },
  "server.tls.enable": { kind: "boolean", description: "" },
  "server.dial-timeout": { kind: "duration", default: "10s", description: "" },
  "server.allow": { kind: "list", description: "" },
  "agent-id": { kind: "string", description: "" },
  "guarded.list": { kind: "list", guards: "write all, or none", description: "" },
  "guarded.word": { kind: "string", guards: "leave it out", description: "" },
  "password": { kind: "string", secret: true, choices: ["the-only-one"], description: "" },
  "log.level": { kind: "string", default: "info", choices: ["info", "warn"], env: "LOG_LEVEL", description: "" },
});

interface Given {
  flags?: Record<string, string>;
  env?: Sources["env"];
  file?: string;
}

function read({ flags = {}, env = {}, file }: Given): Resolved {
  checkEnvironment(options, env);
  return resolve(options, {
    flags: new Map(Object.entries(flags)),
    env,
    file: file === undefined ? undefined : readConfig(options, { name: "c.yaml", text: file }),
  });
}

/** The error message. */
function refusal(given: Given): string {
  try {
    read(given);
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.message;
  }
  throw new Error("it was taken");
}

function origin(resolved: Resolved, name: string): string {
  return resolved.settings.get(name)!.origin;
}

describe("resolve", () => {
  it("returns defaults, and undefined for an option without one", () => {
    assert.deepEqual(read({}).values, {
      server: { listenAddress: ":1", tls: { file: { key: undefined }, enable: false }, dialTimeout: 10_000, allow: [] },
      agentId: undefined,
      guarded: { list: [], word: undefined },
      password: undefined,
      log: { level: "info" },
    });
  });

  it("prefers the command line to the environment, that to the file, and that to the default", () => {
    const flags = { "server.listen-address": ":4" };
    const env = { REVERSE_HTTP_SERVER_LISTEN_ADDRESS: ":3" };
    const file = "server:\n  listen-address: :2\n";
    const cases: [Given, string, string][] = [
      [{ flags, env, file }, ":4", "--server.listen-address"],
      [{ env, file }, ":3", "REVERSE_HTTP_SERVER_LISTEN_ADDRESS"],
      [{ file }, ":2", "c.yaml:2"],
      [{}, ":1", "default"],
    ];
    for (const [given, value, from] of cases) {
      const resolved = read(given);
      assert.equal((resolved.values.server as { listenAddress: string }).listenAddress, value);
      assert.equal(origin(resolved, "server.listen-address"), from);
    }
  });

  it("replaces a list of a source of lower precedence instead of adding to it", () => {
    const { values } = read({ flags: { "server.allow": "a" }, file: "server: {allow: [b, c]}" });
    assert.deepEqual((values.server as { allow: string[] }).allow, ["a"]);
  });

  it("does not check a value that a source of higher precedence replaces", () => {
    assert.equal((read({ flags: { "log.level": "warn" }, env: { LOG_LEVEL: "loud" } }).values.log as { level: string }).level, "warn");
  });

  it("names the origin of an invalid value", () => {
    assert.equal(
      refusal({ flags: { "server.dial-timeout": "10" } }),
      'Cannot use --server.dial-timeout: "10" has no unit: write for example 10s or 10ms',
    );
    assert.match(refusal({ env: { LOG_LEVEL: "loud" } }), /^Cannot use --log\.level \(LOG_LEVEL\): "loud" is not one of info, warn$/);
    assert.match(
      refusal({ file: "\n\nserver:\n  dial-timeout: 10\n" }),
      /^Cannot use --server\.dial-timeout \(c\.yaml:4\): "10" has no unit/,
    );
  });

  it("does not show an invalid secret", () => {
    const given: Given[] = [
      { flags: { password: "hunter2" } },
      { env: { REVERSE_HTTP_PASSWORD: "hunter2" } },
      { file: "password: hunter2" },
    ];
    for (const source of given) {
      const message = refusal(source);
      assert.match(message, /^Cannot use --password/);
      assert.doesNotMatch(message, /hunter2/);
    }
  });
});

describe("environment", () => {
  it("ignores other programs' variables", () => {
    read({ env: { PATH: "/bin", REVERSE: "1", reverse_http_x: "1", HTTP_PROXY: "http://a" } });
  });

  it("refuses an unknown variable with the prefix, and suggests the most similar one", () => {
    assert.equal(
      refusal({ env: { REVERSE_HTTP_SERVER_LISTEN_ADRESS: ":1" } }),
      "Unknown environment variable REVERSE_HTTP_SERVER_LISTEN_ADRESS; did you mean REVERSE_HTTP_SERVER_LISTEN_ADDRESS?",
    );
  });

  it("suggests no variable that has only the prefix in common", () => {
    assert.equal(refusal({ env: { REVERSE_HTTP_AGENT_SERVR: "1" } }), "Unknown environment variable REVERSE_HTTP_AGENT_SERVR");
    assert.equal(didYouMean("REVERSE_HTTP_AGENT_SERVR", ["REVERSE_HTTP_AUDIT_STRICT"], "REVERSE_HTTP_"), "");
  });

  it("ignores the variables that Kubernetes sets for a service with this program's name", () => {
    const env = {
      REVERSE_HTTP_PROXY_SERVICE_HOST: "10.0.0.1",
      REVERSE_HTTP_PROXY_SERVICE_PORT: "3128",
      REVERSE_HTTP_PROXY_SERVICE_PORT_HTTP: "3128",
      REVERSE_HTTP_PROXY_PORT: "tcp://10.0.0.1:3128",
      REVERSE_HTTP_PROXY_PORT_3128_TCP: "tcp://10.0.0.1:3128",
      REVERSE_HTTP_PROXY_PORT_3128_TCP_PROTO: "tcp",
      REVERSE_HTTP_PROXY_PORT_3128_TCP_PORT: "3128",
      REVERSE_HTTP_PROXY_PORT_3128_TCP_ADDR: "10.0.0.1",
    };
    read({ env });
    assert.match(refusal({ env: { REVERSE_HTTP_PROXY_PORT: "3128" } }), /^Unknown environment variable/);
    assert.match(refusal({ env: { ...env, REVERSE_HTTP_PROXY_SECRET: "1" } }), /^Unknown environment variable REVERSE_HTTP_PROXY_SECRET/);
  });

  it("accepts variables of the other services that share it", () => {
    const family = { other: defineOptions({ "other.wait": { kind: "duration", description: "" } }) };
    checkEnvironment(options, { REVERSE_HTTP_OTHER_WAIT: "anything" }, family);
    assert.throws(() => checkEnvironment(options, { REVERSE_HTTP_OTHER_WIAT: "1s" }, family), /did you mean REVERSE_HTTP_OTHER_WAIT\?$/);
  });

  it("does not show the value of an unknown variable", () => {
    assert.doesNotMatch(refusal({ env: { REVERSE_HTTP_PASWORD: "hunter2" } }), /hunter2/);
  });
});

describe("configuration file", () => {
  it("is YAML, nested by the dots of the options", () => {
    const file = `
# a comment
server:
  listen-address: "[::1]:80"
  dial-timeout: 1m30s
  tls:
    enable: true
    file:
      key: key.pem
  allow:
    - "*.example.com"
    - 10.0.0.0/8:80
`;
    assert.deepEqual(read({ file }).values.server, {
      listenAddress: "[::1]:80",
      dialTimeout: 90_000,
      tls: { enable: true, file: { key: "key.pem" } },
      allow: ["*.example.com", "10.0.0.0/8:80"],
    });
  });

  it("is JSON too", () => {
    const resolved = read({ file: '{\n  "server": {\n    "allow": ["a", "b"],\n    "tls": {"enable": true}\n  }\n}' });
    assert.deepEqual((resolved.values.server as { allow: string[] }).allow, ["a", "b"]);
    assert.equal(origin(resolved, "server.tls.enable"), "c.yaml:4");
  });

  it("may have keys with dots", () => {
    assert.equal((read({ file: "log.level: warn" }).values.log as { level: string }).level, "warn");
  });

  it("may be empty or contain only comments", () => {
    for (const file of ["", "\n", "# nothing\n"]) assert.equal(origin(read({ file }), "log.level"), "default", JSON.stringify(file));
  });

  it("refuses an unknown key with its line, and suggests the most similar one", () => {
    assert.equal(
      refusal({ file: "log:\n  level: info\nserver:\n  listen-adress: :1\n" }),
      "Unknown key server.listen-adress (c.yaml:4); did you mean server.listen-address?",
    );
    assert.match(refusal({ file: "sever:\n  listen-address: :1\n" }), /^Unknown key sever \(c\.yaml:1\)/);
    assert.match(refusal({ file: "log:\n  level:\n    deep: 1\n" }), /^Cannot use log\.level \(c\.yaml:2\): it is not a plain value; /);
  });

  it("refuses a value in place of a group", () => {
    for (const value of ["true", "[a]", "text"]) {
      assert.equal(refusal({ file: `\nserver: ${value}\n` }), "Cannot use server (c.yaml:2): it is a group of keys, not a value", value);
    }
  });

  it("refuses a list in place of a single value, and a nested list", () => {
    assert.match(refusal({ file: "agent-id: [a, b]" }), /^Cannot use agent-id \(c\.yaml:1\): it is not a plain value; /);
    assert.match(refusal({ file: "server: {allow: [[a], b]}" }), /it is not a plain value; /);
  });

  it("keeps numbers as they are written", () => {
    for (const id of ["007", "1e3", "4711.0", "12345678901234567890", "0x1F"]) {
      for (const file of [`agent-id: ${id}`, `agent-id: &id ${id}`]) assert.equal(read({ file }).values.agentId, id);
    }
    assert.deepEqual((read({ file: "server: {allow: [007, a]}" }).values.server as { allow: string[] }).allow, ["007", "a"]);
  });

  it("may have anchors and aliases, and refuses an alias without an anchor", () => {
    assert.equal((read({ file: "agent-id: &level warn\nlog:\n  level: *level" }).values.log as { level: string }).level, "warn");
    assert.equal(
      refusal({ file: "log:\n  level: *level" }),
      "Cannot use log.level (c.yaml:2): *level is a YAML alias without an anchor &level; " +
        'a pattern that begins with * needs quotes: "*level"',
    );
  });

  const sameGroup: Record<string, string> = {
    "by an alias": "server: &s {allow: [x], tls: {enable: true}}\nother: *s",
    "by a merge key": "server: &s {allow: [x], tls: {enable: true}}\nother: {<<: *s}",
    "by a merge key that comes last": "server: &s {allow: [x]}\nother:\n  tls: {enable: true}\n  <<: *s",
    "by a list of what is merged": "server: &s {allow: [x]}\nother:\n  <<: [*s, {tls: {enable: true}}]",
    "by an alias of an alias": "server: {allow: &l [x], tls: &t {enable: true}}\nother: {allow: *l, tls: *t}",
    "by a merge in what is merged": "server: &s {allow: [x], tls: &t {enable: true}}\nother: {<<: *s, tls: {<<: *t}}",
  };
  for (const [how, file] of Object.entries(sameGroup)) {
    it(`sets the options of a group that is given ${how}`, () => {
      const both = defineOptions({
        ...options,
        "other.allow": { kind: "list", description: "" },
        "other.tls.enable": { kind: "boolean", description: "" },
      });
      const { values } = resolve(both, { flags: new Map(), env: {}, file: readConfig(both, { name: "c.yaml", text: file }) });
      assert.deepEqual(values.other, { allow: ["x"], tls: { enable: true } });
    });
  }

  it("prefers a group's own keys to merged ones, and earlier merges to later ones", () => {
    const file = "server: &s {allow: [x], dial-timeout: 1s}\nlog: &l {level: warn}\n";
    const merged = read({
      file: `${file}agent-id: x`.replace("allow: [x]", "<<: [{allow: [a]}, {allow: [b], listen-address: ':2'}], allow: [x]"),
    });
    assert.deepEqual((merged.values.server as { allow: string[] }).allow, ["x"]);
    assert.equal((merged.values.server as { listenAddress: string }).listenAddress, ":2");
    assert.equal(refusal({ file: "log:\n  <<: {levl: warn}" }), "Unknown key log.levl (c.yaml:2); did you mean log.level?");
    assert.equal(refusal({ file: "log:\n  <<: warn" }), "Cannot use << (c.yaml:2): only groups of keys can be merged");
    assert.match(refusal({ file: "log:\n  <<: *none" }), /^Cannot use << \(c\.yaml:2\): \*none is a YAML alias/);
  });

  it("limits the expansion of aliases", () => {
    let file = "server:\n  allow: &l0 [" + "x,".repeat(20) + "]\n";
    assert.match(refusal({ file: `agent-id: x\nserver: &s\n  tls: *s\n` }), /^(Cannot|Unknown) /);
    const levels = Array.from({ length: 12 }, (_, i) => `  - &m${i + 1} {<<: [${Array(10).fill(`*m${i}`).join(", ")}]}`);
    file = `server:\n  <<:\n  - &m0 {allow: [x]}\n${levels.join("\n")}\n`;
    assert.match(refusal({ file }), /^Cannot read c\.yaml:\d+: there are more than 10000 keys and items$/);
  });

  it("refuses a group that merges itself", () => {
    const said = /^Cannot use << \(c\.yaml:2\): a group cannot be merged into itself$/;
    for (const merged of ["*l", "[*l]", "{level: warn, <<: *l}"]) assert.match(refusal({ file: `log: &l\n  <<: ${merged}\n` }), said);
  });

  const misread: [what: string, file: string, said: RegExp][] = [
    [
      "a group without keys",
      "server:\nlog: {level: warn}",
      /^Cannot use server \(c\.yaml:1\): it is a group of keys and has none/,
    ],
    ["a group that is null", '{"server": null}', /^Cannot use server \(c\.yaml:1\): it is a group of keys/],
    ["a group without keys in a group", "server:\n  tls: ~\n", /^Cannot use server\.tls \(c\.yaml:2\): it is a group of keys/],
    ["a list with nothing in it", "guarded:\n  list:\n", /^Cannot use --guarded\.list \(c\.yaml:2\): it is empty; write all, or none$/],
    ["a list of no items", "guarded: {list: []}", /^Cannot use --guarded\.list \(c\.yaml:1\): it is empty; write all, or none$/],
    ["a list with an empty text", 'guarded: {list: [""]}', /--guarded\.list \(c\.yaml:1\): it is empty/],
    ["an item with nothing in it", "guarded:\n  list:\n  - a\n  -\n", /^Cannot use guarded\.list \(c\.yaml:2\): /],
    ["an empty item", 'guarded: {list: [a, ""]}', /^Cannot use guarded\.list \(c\.yaml:1\): an item is empty/],
    ["a value of nothing", "log:\n  level:\n", /^Cannot use --log\.level \(c\.yaml:2\): it is empty; leave it out for the default$/],
    ["the same key twice", "log: {level: info}\nlog: {level: warn}", /^Cannot read c\.yaml:2: this key is set twice$/],
    ["a second document", "log: {level: info}\n---\nlog: {level: warn}", /^Cannot read c\.yaml:2: a second YAML document begins here/],
    [
      "a zone without quotes",
      "server:\n  allow: [*.zone, a]",
      /^Cannot use server\.allow \(c\.yaml:2\): \*\.zone is a YAML alias .* needs quotes: "\*\.zone"$/,
    ],
    ["a zone with a port without quotes", "server:\n  allow:\n  - *.zone:80", /needs quotes/],
    ["a * alone", "server: {allow: [*]}", /^Cannot read c\.yaml:1: a value that begins with \* needs quotes$/],
    ["an address in brackets without quotes", "server:\n  listen-address: [::1]:80", /needs quotes/],
    ["a tag that is unknown", "agent-id: !id x", /^Cannot read c\.yaml:1: a value that begins with ! needs quotes$/],
    ["yes for true", "server: {tls: {enable: yes}}", /"yes" is not true or false$/],
    ["off for false", "server: {tls: {enable: off}}", /"off" is not true or false$/],
    ["a number for true", "server: {tls: {enable: 0x1}}", /"0x1" is not true or false$/],
    ["a number without a unit", "server: {dial-timeout: 10}", /"10" has no unit/],
    ["a list of keys", "- log\n", /^Cannot read c\.yaml: it is not a mapping of keys$/],
    ["a key of a list", "? [a]\n: b\n", /^Unknown key /],
    ["a key of nothing", ": b\n", /^Unknown key /],
    ["a key that is an alias", "agent-id: &a log\n*a : {level: warn}\n", /^Unknown key \*a /],
    ["a key of another case", "Log: {level: warn}", /^Unknown key Log \(c\.yaml:1\); did you mean/],
  ];
  for (const [what, file, said] of misread) {
    it(`refuses ${what}`, () => assert.match(refusal({ file }), said));
  }

  it("shows no part of a secret that YAML does not read as text", () => {
    for (
      const written of [
        "*hunter2",
        "!hunter2",
        "&hunter2 x",
        "[hunter2",
        "{hunter2: x}",
        "%hunter2",
        "@hunter2",
        "`hunter2`",
        "|hunter2",
        "- hunter2",
        '"\\hunter2"',
        '"\\xhunter2"',
      ]
    ) {
      const said = refusal({ file: `password: ${written}\n` });
      assert.doesNotMatch(said, /hunter2|hu|xh/, said);
    }
    assert.equal(
      refusal({ file: "password: &hunter2 the-only-one" }),
      "Cannot use password (c.yaml:1): a value that begins with & needs quotes",
    );
  });

  it("strips the newline at the end of a block", () => {
    for (const mark of ["|", ">", "|+"]) assert.equal(read({ file: `agent-id: ${mark}\n  4711\n` }).values.agentId, "4711");
  });

  it("refuses a key that is given both with dots and nested", () => {
    assert.equal(
      refusal({ file: "log.level: info\nlog:\n  level: warn" }),
      "Cannot use log.level (c.yaml:3): it is set twice, first in line 1",
    );
  });

  it("accepts the keys of the other services that share it, whatever their values, and refuses keys that none has", () => {
    const family = { other: defineOptions({ "other.wait": { kind: "duration", description: "" } }) };
    const readShared = (text: string) => readConfig(options, { name: "c.yaml", text }, family);
    const settings = readShared("other:\n  wait: anything\nlog:\n  level: warn\n");
    assert.equal((resolve(options, { flags: new Map(), env: {}, file: settings }).values.log as { level: string }).level, "warn");
    assert.throws(
      () => readShared("other:\n  wiat: 1s\n"),
      /^ConfigError: Unknown key other\.wiat \(c\.yaml:2\); did you mean other\.wait\?$/,
    );
  });

  it("refuses invalid YAML, with its line", () => {
    assert.match(
      refusal({ file: "log:\n\tlevel: info\n" }),
      /^Cannot read c\.yaml:2: it is indented with a tab; YAML allows only spaces$/,
    );
    assert.match(refusal({ file: '{"log": ' }), /^Cannot read c\.yaml:1: /);
    assert.match(refusal({ file: "log: {}\n---\nlog: {}\n" }), /^Cannot read c\.yaml:2: /);
    assert.match(refusal({ file: "log: [a\n" }), /^Cannot read c\.yaml:\d: [^\n]*[^:\n]$/);
    for (const file of ["only text", "- log\n", "42"]) assert.equal(refusal({ file }), "Cannot read c.yaml: it is not a mapping of keys");
  });

  it("refuses a duplicate key", () => {
    assert.match(refusal({ file: "agent-id: a\nagent-id: b\n" }), /^Cannot read c\.yaml:2: this key is set twice$/);
  });
});

describe("didYouMean", () => {
  it("suggests names with the same end", () => {
    const known = ["agent-server.listen-address", "http-proxy.listen-address", "log.level"];
    assert.equal(didYouMean("listen-address", known), "; did you mean agent-server.listen-address or http-proxy.listen-address?");
    assert.equal(didYouMean("--level", ["--log.level"]), "; did you mean --log.level?");
  });

  it("suggests the most similar name", () => {
    assert.equal(didYouMean("log.levle", ["log.format", "log.level"]), "; did you mean log.level?");
  });

  it("suggests nothing if nothing is similar", () => {
    assert.equal(didYouMean("xyz", ["agent-server.listen-address"]), "");
    assert.equal(didYouMean("xyz", []), "");
  });
});

describe("an empty value", () => {
  it("is refused on the command line and in the file, for every kind of option", () => {
    for (const name of Object.keys(options)) {
      assert.match(refusal({ flags: { [name]: "" } }), new RegExp(`^Cannot use --${name.replaceAll(".", "\\.")}: it is empty; `));
      assert.match(refusal({ file: `${name}: ""` }), /^Cannot use --.* \(c\.yaml:1\): it is empty; /);
    }
  });

  it("of a variable counts as not set", () => {
    const env = Object.fromEntries(
      ["SERVER_ALLOW", "SERVER_TLS_ENABLE", "SERVER_LISTEN_ADDRESS", "AGENT_ID", "PASSWORD"].map((name) => [`REVERSE_HTTP_${name}`, ""]),
    );
    const given = read({ env: { ...env, LOG_LEVEL: "" }, file: "agent-id: x" });
    for (const name of ["server.allow", "server.tls.enable", "server.listen-address", "password", "log.level"]) {
      assert.equal(origin(given, name), "default");
    }
    assert.equal(given.values.agentId, "x");
  });

  it("of a variable is refused if it would allow more", () => {
    assert.equal(
      refusal({ env: { REVERSE_HTTP_GUARDED_LIST: "" } }),
      "Cannot use --guarded.list (REVERSE_HTTP_GUARDED_LIST): it is empty; write all, or none",
    );
    assert.equal(
      refusal({ env: { REVERSE_HTTP_GUARDED_WORD: "" } }),
      "Cannot use --guarded.word (REVERSE_HTTP_GUARDED_WORD): it is empty; leave it out",
    );
  });
});

describe("words and names", () => {
  it("of choices are accepted in upper case", () => {
    for (const level of ["WARN", "Warn", "warn"]) {
      assert.equal((read({ env: { LOG_LEVEL: level } }).values.log as { level: string }).level, "warn");
    }
    assert.match(refusal({ env: { LOG_LEVEL: "WARNING" } }), /"WARNING" is not one of info, warn$/);
  });

  it("of variables without a prefix are suggested if one is written with it", () => {
    assert.equal(
      refusal({ env: { REVERSE_HTTP_LOG_LEVEL: "warn" } }),
      "Unknown environment variable REVERSE_HTTP_LOG_LEVEL; did you mean LOG_LEVEL?",
    );
  });
});
