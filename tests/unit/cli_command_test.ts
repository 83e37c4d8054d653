// The command line: flags, help, version, and the printed effective options.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type Executable, readCommandLine, type Service, type Task } from "../../shared/cli/command.ts";
import { ConfigError, defineOptions } from "../../shared/config/option.ts";
import { Folder } from "../../testing/programs.ts";

const definition: Service = {
  name: "thing",
  description: "Does a thing.",
  check: async () => {},
  start: () => Promise.reject(new Error("not to be started")),
  options: defineOptions({
    "server.listen-address": { kind: "address", default: ":1", description: "Where it listens." },
    "server.tls.enable": { kind: "boolean", description: "Speak TLS." },
    "server.allow": { kind: "list", description: "Who may." },
    "password": { kind: "string", secret: true, description: "A secret." },
    "log.level": { kind: "string", default: "info", choices: ["info", "warn"], env: "LOG_LEVEL", description: "How much." },
  }),
};

const executable: Executable = { root: definition, version: "1.2.3", family: {} };

/** With an empty home, so that no file of this machine is read. */
function read(args: string[], { config = "", env = {} }: { config?: string; env?: Record<string, string> } = {}): Task {
  using home = new Folder();
  home.write(".reverse-http.yaml", config);
  return readCommandLine(executable, { args, env, home: home.path });
}

function valuesOf(args: string[]): Record<string, unknown> {
  const task = read(args);
  assert.equal(task.do, "run");
  return (task as Extract<Task, { do: "run" | "check" }>).resolved.values;
}

function printed(task: Task): string {
  assert.equal(task.do, "print");
  return (task as Extract<Task, { do: "print" }>).text;
}

function refusal(args: string[]): string {
  try {
    read(args);
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    assert.doesNotMatch(error.message, /\n/);
    return error.message;
  }
  throw new Error("it was taken");
}

describe("command line", () => {
  it("accepts a value after a space or an equals sign", () => {
    for (const args of [["--server.listen-address=:2"], ["--server.listen-address", ":2"]]) {
      assert.equal((valuesOf(args).server as { listenAddress: string }).listenAddress, ":2");
    }
  });

  it("accepts a boolean with or without a value", () => {
    const enabled = (args: string[]) => (valuesOf(args).server as { tls: { enable: boolean } }).tls.enable;
    assert.equal(enabled([]), false);
    assert.equal(enabled(["--server.tls.enable"]), true);
    assert.equal(enabled(["--server.tls.enable=true"]), true);
    assert.equal(enabled(["--server.tls.enable=false"]), false);
    assert.equal(enabled(["--server.tls.enable", "--password", "x"]), true);
  });

  it("accepts a list in one flag, in several, or both", () => {
    const { allow } = valuesOf(["--server.allow=a,b", "--server.allow", "c"]).server as { allow: string[] };
    assert.deepEqual(allow, ["a", "b", "c"]);
  });

  it("uses the last value of a repeated flag that is not a list", () => {
    assert.equal((valuesOf(["--log.level=info", "--log.level=warn"]).log as { level: string }).level, "warn");
  });

  it("accepts a value that contains an equals sign", () => {
    assert.equal(valuesOf(["--password=a=b=="]).password, "a=b==");
  });

  it("refuses an unknown flag, and suggests the most similar one", () => {
    assert.match(refusal(["--log.levle", "info"]), /unknown option '--log\.levle'.*--log\.level/);
  });

  it("refuses a flag without its value, and an argument that is not a flag", () => {
    assert.match(refusal(["--log.level"]), /--log\.level.*argument missing/);
    assert.match(refusal(["extra"]), /extra/);
  });

  it("refuses a flag that is followed by another one instead of its value, and does not show that one's value", () => {
    for (const before of ["--password", "--server.allow", "--log.level", "--config"]) {
      assert.equal(refusal([before, "--password=hunter2"]), `option '${before}' has no value: --password follows it`);
    }
    assert.equal(refusal(["--password", "--check-config"]), "option '--password' has no value: --check-config follows it");
    assert.equal(valuesOf(["--password", "--hunter2"]).password, "--hunter2");
  });

  it("prints its version", () => assert.equal(printed(read(["--version"])), "1.2.3\n"));

  it("shows the default, the variable and the choices of every option", () => {
    const help = printed(read(["--help"])).replace(/\s+/g, " ");
    assert.match(help, /^Usage: thing /);
    assert.match(help, /--server\.listen-address <address> Where it listens\. \(default :1, env REVERSE_HTTP_SERVER_LISTEN_ADDRESS\)/);
    assert.match(help, /--server\.tls\.enable \[boolean\] Speak TLS\. \(env REVERSE_HTTP_SERVER_TLS_ENABLE\)/);
    assert.match(help, /--log\.level <string> How much\. One of info, warn\. \(default info, env LOG_LEVEL\)/);
    for (const flag of ["--config <file>", "--check-config", "--print-config", "--version", "--help"]) assert.ok(help.includes(flag), flag);
  });

  it("prints its version and its help whatever the environment and the file contain", () => {
    const broken = { config: "unknown: 1", env: { REVERSE_HTTP_UNKNOWN: "1" } };
    assert.equal(printed(read(["--version"], broken)), "1.2.3\n");
    assert.match(printed(read(["-h"], broken)), /^Usage: thing/);
  });

  it("prints the effective options with their origin, without secrets", () => {
    const text = printed(
      read(["--print-config", "--server.allow=a", "--password=hunter2"], {
        config: "\nserver:\n  tls:\n    enable: true\n",
        env: { LOG_LEVEL: "warn" },
      }),
    );
    assert.doesNotMatch(text, /hunter2/);
    const lines = text.trimEnd().split("\n");
    assert.equal(lines.length, Object.keys(definition.options).length);
    assert.equal(lines[0], "--server.listen-address=:1  # default");
    assert.match(lines[1]!, /^--server\.tls\.enable=true {2}# .*\/\.reverse-http\.yaml:4$/);
    assert.equal(lines[2], "--server.allow=a  # --server.allow");
    assert.equal(lines[3], "--password=******  # --password");
    assert.equal(lines[4], "--log.level=warn  # LOG_LEVEL");
  });

  it("prints options quoted for a shell", () => {
    const text = printed(read(["--print-config", "--server.allow=*.a, b", "--log.level", "warn"], { config: "password: file:token.jwt" }));
    assert.match(text, /^--server\.allow='\*\.a, b' {2}# --server\.allow$/m);
  });

  it("prints the name of a secret's file, not the secret", () => {
    const text = (value: string) => printed(read([`--password=${value}`, "--print-config"]));
    assert.match(text("file:/etc/token"), /^--password=file:\/etc\/token {2}#/m);
    for (const secret of ["hunter2", "hunter2,b", "File:x", "a file:x"]) assert.match(text(secret), /^--password=\*{6} {2}#/m);
  });

  it("shows no mask if there is no secret", () => {
    assert.match(printed(read(["--print-config"])), /^# --password= {2}# default$/m);
  });

  it("refuses with --check-config what it refuses without", () => {
    assert.equal(read(["--check-config"]).do, "check");
    assert.match(refusal(["--check-config", "--log.level=loud"]), /^Cannot use --log\.level/);
    assert.match(refusal(["--print-config", "--log.level=loud"]), /^Cannot use --log\.level/);
  });
});

describe("configuration file on the command line", () => {
  it("is the one that --config names instead of the one in the home", () => {
    using folder = new Folder();
    folder.write(".reverse-http.yaml", "log: {level: info}");
    const file = folder.write("own.json", '{"log": {"level": "warn"}}');
    const task = readCommandLine(executable, { args: ["--config", file], env: {}, home: folder.path });
    assert.equal((task as Extract<Task, { do: "run" | "check" }>).resolved.settings.get("log.level")!.origin, `${file}:1`);
  });

  it("is YAML before JSON in the home", () => {
    using folder = new Folder();
    const level = () => {
      const task = readCommandLine(executable, { args: [], env: {}, home: folder.path });
      return (task as Extract<Task, { do: "run" | "check" }>).resolved.settings.get("log.level")!.text;
    };
    folder.write(".reverse-http.json", '{"log": {"level": "warn"}}');
    assert.equal(level(), "warn");
    folder.write(".reverse-http.yaml", "log: {level: info}");
    assert.equal(level(), "info");
  });

  it("must exist and be a file", () => {
    using folder = new Folder();
    const missing = join(folder.path, "missing.yaml");
    const read = (file: string) => () => readCommandLine(executable, { args: ["--config", file], env: {}, home: undefined });
    assert.throws(read(missing), (error: unknown) => error instanceof ConfigError && error.message.includes(missing));
    const directory = join(folder.path, "folder");
    mkdirSync(directory);
    assert.throws(read(directory), ConfigError);
  });
});

describe("commands", () => {
  const act = async () => {};
  const key = defineOptions({
    "algo": { kind: "string", default: "ES256", choices: ["ES256", "RS256"], description: "The algorithm." },
    "out": { kind: "file", default: "key.pem", description: "Where to." },
    "all": { kind: "boolean", short: "a", description: "All." },
  });
  const tree: Executable = {
    version: "1.2.3",
    family: { thing: definition.options, other: defineOptions({ "other.wait": { kind: "duration", description: "A wait." } }) },
    root: {
      name: "things",
      description: "Many things.",
      commands: [definition, {
        name: "auth",
        description: "Keys.",
        commands: [{ name: "key", description: "A key.", options: key, run: act }],
      }],
    },
  };
  const withInner: Executable = { ...tree, root: { ...definition, commands: tree.root.commands!.slice(1) } };

  function readOf(executable: Executable, args: string[], env: Record<string, string> = {}): Task {
    return readCommandLine(executable, { args, env, home: "/nonexistent" });
  }

  function refusalOf(executable: Executable, args: string[]): string {
    let message = "";
    assert.throws(() => readOf(executable, args), (error) => error instanceof ConfigError && (message = error.message) !== "");
    return message;
  }

  it("are selected by name", () => {
    const service = readOf(tree, ["thing", "--server.listen-address=:2"]) as Extract<Task, { do: "run" | "check" }>;
    assert.equal(service.do, "run");
    assert.equal(service.service, definition);
    assert.deepEqual((service.resolved.values.server as { listenAddress: string }).listenAddress, ":2");
    const task = readOf(tree, ["auth", "key", "--algo", "RS256", "-a"]) as Extract<Task, { do: "subcommand" }>;
    assert.equal(task.subcommand.name, "key");
    assert.deepEqual(task.resolved.values, { algo: "RS256", out: "key.pem", all: true });
  });

  it("may follow a service's own options", () => {
    assert.equal(readOf(withInner, ["--log.level=warn"]).do, "run");
    assert.equal(readOf(withInner, ["auth", "key"]).do, "subcommand");
    assert.equal(readOf(withInner, ["--server.tls.enable", "--password", "auth"]).do, "run");
  });

  it("that are not services read neither variables nor files", () => {
    const { resolved } = readOf(tree, ["auth", "key"], { REVERSE_HTTP_OUT: "x", REVERSE_HTTP_UNKNOWN: "x" }) as Extract<
      Task,
      { do: "subcommand" }
    >;
    assert.equal(resolved.values.out, "key.pem");
    assert.match(refusalOf(tree, ["auth", "key", "--config=x"]), /^unknown option '--config'$/);
  });

  it("are required, and the error lists them", () => {
    assert.equal(refusalOf(tree, []), "a command is required: thing, auth; see --help");
    assert.equal(refusalOf(tree, ["auth"]), "a command is required: key; see --help");
  });

  it("that are unknown are named, with the most similar one", () => {
    assert.equal(refusalOf(tree, ["thnig"]), "unknown argument 'thnig'; did you mean thing?");
    assert.equal(refusalOf(tree, ["auth", "kee"]), "unknown argument 'kee'; did you mean key?");
    assert.equal(refusalOf(withInner, ["auht"]), "unknown argument 'auht'; did you mean auth?");
    assert.equal(refusalOf(tree, ["thing", "extra", "more"]), "unknown argument 'extra'");
  });

  it("do not show a misplaced argument that may be a secret", () => {
    for (const args of [["--password=", "hunter2"], ["--password=a", "hunter2"]]) {
      assert.equal(refusalOf(tree, ["thing", ...args]), "unknown argument after --password");
    }
    for (const word of [`${"eyJ"}hbGciOiJFUzI1NiJ9.e30.AAAA`, "x".repeat(65)]) {
      assert.equal(refusalOf(tree, ["thing", word]), "unknown argument, which is long or a token and is not shown");
    }
  });

  it("name the command that has an unknown option, or their own most similar option", () => {
    assert.equal(refusalOf(tree, ["thing", "--other.wait=1s"]), "unknown option '--other.wait'; it is an option of other");
    assert.equal(refusalOf(tree, ["thing", "--log.levl=warn"]), "unknown option '--log.levl'; did you mean --log.level?");
    assert.equal(refusalOf(tree, ["thing", "--confg=x"]), "unknown option '--confg'; did you mean --config?");
    assert.equal(refusalOf(tree, ["auth", "key", "--algoo=x"]), "unknown option '--algoo'; did you mean --algo?");
  });

  it("have a help that lists their subcommands", () => {
    const help = printed(readOf(tree, ["--help"]));
    assert.match(help, /^Usage: things \[options\] \[command\]/);
    for (const text of ["thing [options]", "Does a thing.", "auth", "Keys."]) assert.ok(help.includes(text), text);
    assert.match(printed(readOf(tree, ["auth", "key", "--help"])), /^Usage: things auth key [^]*--algo <string> +The algorithm\. One of/);
    assert.equal(printed(readOf(tree, ["--version"])), "1.2.3\n");
  });
});
