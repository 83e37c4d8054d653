// The life of a program: exit codes, signals, and output streams. The process is a fake.
import assert from "node:assert/strict";
import { EventEmitter, once } from "node:events";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { after, describe, it } from "node:test";
import { logOptions } from "../../shared/config/common_options.ts";
import { ConfigError, defineOptions } from "../../shared/config/option.ts";
import type { Diagnosis, Service, Subcommand } from "../../shared/cli/command.ts";
import { run } from "../../shared/cli/run.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import { Folder } from "../../testing/programs.ts";

/** A file for the standard error of the processes. */
const outputs = new Folder();
const descriptors: number[] = [];
after(() => {
  descriptors.forEach(closeSync);
  outputs[Symbol.dispose]();
});

/** The part of a process that a program uses. `exit` is recorded and has no other effect. */
class FakeProcess extends EventEmitter {
  readonly argv: string[];
  readonly env: Record<string, string>;
  exitCode: number | undefined;
  readonly exits: number[] = [];
  out = "";
  stdin: Iterable<string> = [];
  readonly stdout = { write: (text: string) => void (this.out += text), on: () => {} };
  readonly #errors = outputs.write(`${descriptors.length}.txt`, "");
  readonly #descriptor = openSync(this.#errors, "a");
  readonly stderr = { isTTY: false, fd: this.#descriptor, write: (text: string) => void writeSync(this.#descriptor, text) };

  constructor(args: string[], home: string) {
    super();
    this.argv = ["bun", "thing", ...args];
    this.env = { HOME: home };
    descriptors.push(this.#descriptor);
  }

  get err(): string {
    return readFileSync(this.#errors, "utf8");
  }

  exit(code: number): void {
    this.exits.push(code);
    this.emit("exited");
  }

  /** The first code that it ended with, or would end with. */
  get code(): number | undefined {
    return this.exits[0] ?? this.exitCode;
  }
}

interface Started {
  process: FakeProcess;
  done: Promise<void>;
}

function start(service: Partial<Service>, args: string[] = []): Started {
  using home = new Folder();
  home.write(".reverse-http.yaml", "");
  const process = new FakeProcess(["--log.format=json", ...args], home.path);
  const root: Service = {
    name: "thing",
    description: "Does a thing.",
    options: logOptions,
    check: async () => {},
    start: () => Promise.reject(new Error("not to be started")),
    ...service,
  };
  const done = run({ root, version: "1.2.3", family: {} }, process as unknown as NodeJS.Process);
  return { process, done };
}

function logged(process: FakeProcess): Record<string, unknown>[] {
  return process.err.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** Starts a program that runs until it is stopped; `closing` determines how long that takes. */
async function startRunning(
  closing: () => Promise<void> = async () => {},
  reloading: () => Promise<void> = async () => {},
): Promise<Started & { log: Logger }> {
  let started!: (log: Logger) => void;
  const running = new Promise<Logger>((resolve) => started = resolve);
  const it = start({
    start: (_, log) => {
      started(log);
      return Promise.resolve({ closesWithinMs: 5_000, reload: reloading, update: () => Promise.resolve({}), close: closing });
    },
  });
  return { ...it, log: await running };
}

describe("program", () => {
  for (const signal of ["SIGINT", "SIGTERM"]) {
    it(`closes on ${signal} and exits 0`, async () => {
      let closed = 0;
      const { process, done } = await startRunning(() => Promise.resolve(void closed++));
      process.emit(signal);
      await done;
      assert.equal(closed, 1);
      assert.deepEqual(process.exits, [0]);
      assert.equal(logged(process)[0]!.signal, signal);
    });
  }

  it("exits at once at the second signal, even while it closes", async () => {
    let finish!: () => void;
    let closing!: () => void;
    const began = new Promise<void>((resolve) => closing = resolve);
    const { process, done } = await startRunning(() => {
      closing();
      return new Promise((resolve) => finish = resolve);
    });
    process.emit("SIGTERM");
    await began;
    const exited = once(process, "exited");
    process.emit("SIGINT");
    await exited;
    assert.deepEqual(process.exits, [1]);
    finish();
    await done;
  });

  it("stops cleanly on a signal during its start", async () => {
    let begun!: () => void;
    let finish!: () => void;
    const starting = new Promise<void>((resolve) => begun = resolve);
    let closed = false;
    const { process, done } = start({
      start: async () => {
        begun();
        await new Promise<void>((resolve) => finish = resolve);
        return {
          closesWithinMs: 0,
          reload: async () => {},
          update: () => Promise.resolve({}),
          close: () => Promise.resolve(void (closed = true)),
        };
      },
    });
    await starting;
    process.emit("SIGTERM");
    finish();
    await done;
    assert.ok(closed);
    assert.equal(process.code, 0);
  });

  it("reloads files on each SIGHUP, and continues if that fails", async () => {
    const reloads = [Promise.withResolvers<void>(), Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    let count = 0;
    const { process, done } = await startRunning(undefined, () => {
      reloads[count++]!.resolve();
      return Promise.reject(new Error(`no luck ${count}`));
    });
    await new Promise((resolve) => setImmediate(resolve)); // started
    for (const { promise } of reloads.slice(0, 2)) {
      process.emit("SIGHUP");
      await promise;
    }
    for (let i = 0; i < 100; i++) process.emit("SIGHUP");
    await reloads[2]!.promise;
    process.emit("SIGTERM");
    await done;
    assert.equal(count, 3, "Many signals at once are one reload");
    const failed = logged(process).filter(({ message }) => message === "reload failed; the configuration in force stays");
    assert.deepEqual(failed.map(({ reason }) => reason), ["no luck 1", "no luck 2", "no luck 3"]);
    assert.deepEqual(process.exits, [0]);
  });

  it("reloads once it runs after SIGHUP at its start, ignores SIGUSR1, and SIGUSR2 without a socket for a hand-over", async () => {
    const [starting, finishing, reloading] = [1, 2, 3].map(() => Promise.withResolvers<void>());
    const { process, done } = start({
      start: async () => {
        starting!.resolve();
        await finishing!.promise;
        const reload = () => Promise.resolve(reloading!.resolve());
        return { closesWithinMs: 0, reload, update: () => Promise.resolve({}), close: async () => {} };
      },
    });
    await starting!.promise;
    for (const signal of ["SIGHUP", "SIGUSR1", "SIGUSR2"]) assert.ok(process.emit(signal), `${signal} has a handler`);
    finishing!.resolve();
    await reloading!.promise;
    process.emit("SIGTERM");
    await done;
    assert.equal(process.code, 0);
  });

  it("exits with 2 for invalid options, and does not start", async () => {
    const { process, done } = start({}, ["--log.level=loud"]);
    await done;
    assert.equal(process.code, 2);
    assert.match(process.err, /^thing: Cannot use --log\.level: "loud"[^\n]*\n$/);
    assert.equal(process.out, "");
  });

  it("exits with 2 if its check fails, and does not start", async () => {
    const { process, done } = start({ check: () => Promise.reject(new ConfigError("Cannot read --key: not there")) });
    await done;
    assert.equal(process.code, 2);
    assert.equal(process.err, "thing: Cannot read --key: not there\n");
  });

  it("exits with 2 for a certificate that the network cannot use", async () => {
    const { process, done } = start({ start: () => Promise.reject(new NetError("tls", "Cannot read the key: it is none")) });
    await done;
    assert.equal(process.code, 2);
  });

  it("exits with 1 for a failure at run time", async () => {
    for (const error of [new NetError("reset", "Cannot listen on :1: reset"), new Error("no luck")]) {
      const { process, done } = start({ start: () => Promise.reject(error) });
      await done;
      assert.equal(process.code, 1);
      assert.equal(process.err, `thing: ${error.message}\n`);
    }
  });

  it("says what to do about an address in use, and which option has it", async () => {
    const options = { ...logOptions, ...defineOptions({ "listen-address": { kind: "address", default: ":1", description: "Where." } }) };
    const failure = (address: string) => new NetError("address-in-use", `Cannot listen on ${address}: Address already in use`);
    const advice = "another program uses it: stop that program or choose another address";
    for (const [address, said] of [[":1", `${advice} with --listen-address`], [":12", advice]] as const) {
      const { process, done } = start({ options, start: () => Promise.reject(failure(address)) });
      await done;
      assert.equal(process.code, 1);
      assert.equal(process.err, `thing: Cannot listen on ${address}: Address already in use; ${said}\n`);
    }
  });

  it("exits with 1 if closing fails", async () => {
    const { process, done } = await startRunning(() => Promise.reject(new Error("stuck")));
    process.emit("SIGTERM");
    await done;
    assert.equal(process.code, 1);
    assert.match(process.err, /thing: stuck\n$/);
  });

  for (const accident of ["uncaughtException", "unhandledRejection"]) {
    it(`logs an ${accident} with its stack and exits 1`, async () => {
      const { process, done } = await startRunning();
      const exited = once(process, "exited");
      process.emit(accident, new Error("unforeseen"));
      await exited;
      assert.equal(process.code, 1);
      const [entry] = logged(process);
      assert.equal(entry!.level, "ERROR");
      assert.match(String(entry!.error), /unforeseen[^]*cli_run_test/);
      process.emit("SIGTERM");
      await done;
    });
  }

  it("writes the requested output to standard output, and logs elsewhere", async () => {
    const version = start({}, ["--version"]);
    await version.done;
    assert.equal(version.process.out, "1.2.3\n");
    assert.equal(version.process.err, "");
    assert.equal(version.process.code, undefined);
    const running = await startRunning();
    running.log.info("hello");
    running.process.emit("SIGTERM");
    await running.done;
    assert.equal(running.process.out, "");
    assert.equal(logged(running.process)[0]!.message, "hello");
  });

  it("checks with --check-config and does not start", async () => {
    let checked = 0;
    const { process, done } = start({ check: () => Promise.resolve(void checked++) }, ["--check-config"]);
    await done;
    assert.equal(checked, 1);
    assert.equal(process.out, "The configuration is valid\n");
    assert.equal(process.code, undefined);
  });

  for (const [works, code] of [[true, undefined], [false, 1]] as const) {
    it(`runs the diagnosis that a flag asks for after the check, and does not start: ${works ? "it works" : "it does not"}`, async () => {
      const steps: string[] = [];
      const diagnosis: Diagnosis = {
        flag: "look",
        description: "Look.",
        run: (_, { write }) => {
          steps.push("diagnosis");
          write("a table\n");
          return Promise.resolve(works);
        },
      };
      const { process, done } = start({ check: () => Promise.resolve(void steps.push("check")), diagnosis }, ["--look"]);
      await done;
      assert.deepEqual([steps, process.out, process.code], [["check", "diagnosis"], "a table\n", code]);
    });
  }

  it("exits with 2 with --check-config if its check fails", async () => {
    const { process, done } = start({ check: () => Promise.reject(new ConfigError("Cannot read --key")) }, ["--check-config"]);
    await done;
    assert.equal(process.code, 2);
    assert.equal(process.out, "");
  });
});

describe("action", () => {
  function act(name: string, args: string[], input: string[] = [], error?: Error): Started {
    const process = new FakeProcess([name, ...args], "/nonexistent");
    process.stdin = input;
    const options = defineOptions({ "in": { kind: "file", default: "-", description: "From." } });
    const copy: Subcommand<{ in: string }> = {
      name: "copy",
      description: "Copies.",
      options,
      run: async (values, { read, write }) => {
        if (error) throw error;
        write(`${values.in}: ${await read()}`);
      },
    };
    const root = { name: "thing", description: "Things.", commands: [copy] };
    return { process, done: run({ root, version: "1.2.3", family: {} }, process as unknown as NodeJS.Process) };
  }

  it("reads standard input to its end and writes to standard output", async () => {
    const { process, done } = act("copy", ["--in", "x"], ["one, ", "two"]);
    await done;
    assert.equal(process.out, "x: one, two");
    assert.deepEqual([process.err, process.code], ["", undefined]);
  });

  it("exits with 2 for invalid arguments, and with 1 for a failure", async () => {
    for (const [error, code] of [[new ConfigError("Cannot use --in"), 2], [new Error("no luck"), 1]] as const) {
      const { process, done } = act("copy", [], [], error);
      await done;
      assert.equal(process.code, code);
      assert.equal(process.err, `thing: ${error.message}\n`);
      assert.equal(process.out, "");
    }
  });

  it("prints the version, and with JSON the facts of the build", async () => {
    const plain = act("version", []);
    await plain.done;
    assert.equal(plain.process.out, "1.2.3\n");
    for (const flag of ["-V", "--verbose"]) {
      const { process, done } = act("version", [flag]);
      await done;
      assert.deepEqual(Object.keys(JSON.parse(process.out) as object), ["version", "commit", "date", "platform"]);
    }
  });
});
