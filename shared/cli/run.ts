// From a command line to a running service or a finished action: exit codes, signals, logs. The process is an argument: only a main.ts has it.
import { writeSync } from "node:fs";
import { createLogger, type LogFormat, type Logger, type LogLevel } from "../log/logger.ts";
import { createLineWriter, type LineWriter } from "../log/writer.ts";
import { NetError, type NetErrorCode } from "../net/errors.ts";
import { type Executable, readCommandLine, type Task } from "./command.ts";
import type { Resolved } from "../config/sources.ts";
import { ConfigError, envOf, flagOf } from "../config/option.ts";
import { canRestart, restart, saferStart, secretsOnCommandLine } from "./restart.ts";
import { withStandardCommands } from "./standard_commands.ts";
import { SecretFiles } from "../files/secret_files.ts";
import { createSupervisor, type Notify } from "../service/supervisor.ts";

/** Exit codes: 0 for a clean stop, 1 for a failure at run time, 2 for a configuration that cannot be used. */
const FAILED = 1;
const MISCONFIGURED = 2;

/** Longest wait in milliseconds, before the end, for whoever reads the log. */
const FLUSH_MS = 1_000;

type Process = NodeJS.Process;
type Run = Extract<Task, { do: "run" | "check" }>;

/** Options that every service has. */
interface LogValues {
  log: { format: LogFormat; level: LogLevel };
}

/** Runs until a signal, or until it has done what it was asked for, or until it fails. Sets the exit code; rejects for nothing. */
export async function run(executable: Executable, process: Process): Promise<void> {
  const complete = withStandardCommands(executable);
  try {
    const task = readCommandLine(complete, { args: process.argv.slice(2), env: process.env, home: process.env.HOME });
    await perform(task, process, executable.notify);
  } catch (error) {
    process.stderr.write(`${executable.root.name}: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode = isMisconfigured(error) ? MISCONFIGURED : FAILED;
  }
}

/** What the network refuses before it opens a socket is a mistake in the configuration too. */
function isMisconfigured(error: unknown): boolean {
  return error instanceof ConfigError || (error instanceof NetError && ["tls", "invalid", "unknown-host"].includes(error.code));
}

async function perform(task: Task, process: Process, notify: Notify | undefined): Promise<void> {
  const write = (text: string) => void process.stdout.write(text);
  if (task.do === "print") return write(task.text);
  const { values } = task.resolved;
  if (task.do === "act") return await task.action.run(values, { write, read: () => readAll(process.stdin) });
  if (task.do === "check") {
    await task.service.check(values);
    return write("The configuration can be used\n");
  }
  const { log: options } = values as unknown as LogValues;
  // https://no-color.org
  const color = process.stderr.isTTY === true && !process.env.NO_COLOR;
  restartWhereSafer(task, process, createLogger({ ...options, color, write: (line) => void writeSync(process.stderr.fd, line) }));
  const lines = createLineWriter(process.stderr.fd, { onLoss: (count) => log.warn("log lines dropped", { count }) });
  const log = createLogger({ ...options, color, write: lines.write });
  exitOnUncaughtErrors(process, log, lines);
  const signals = heedSignals(process, log);
  const { file, ignored } = task.files;
  if (file !== undefined) log.debug("configuration file", { file });
  if (ignored.length > 0) log.warn("configuration files that are not read", { files: ignored.join(","), read: file });
  try {
    await warnOfReadableFile(task, log);
    await task.service.check(values);
    await runUntilSignalled(task, process, log, signals, notify);
  } finally {
    await lines.flush(FLUSH_MS);
  }
  process.exit(0);
}

/** A configuration file with a secret in it is for its owner alone. */
async function warnOfReadableFile({ service: { options }, resolved: { settings } }: Run, log: Logger): Promise<void> {
  const files = new SecretFiles(log);
  for (const [name, { text, origin }] of settings) {
    const [, file] = /^(.+):\d+$/.exec(origin) ?? [];
    if (file === undefined || !options[name]!.secret || text === "" || text.startsWith("file:") || mayBePublic(text)) continue;
    await files.check(flagOf(name), file);
  }
}

/** See {@link saferStart}. Where the process cannot start itself again, it goes on as it is. */
function restartWhereSafer({ service: { options }, resolved }: Run, process: Process, log: Logger): void {
  if (!canRestart()) return;
  const start = saferStart(options, resolved, { args: process.argv.slice(2), env: process.env });
  if (start === undefined) return;
  for (const name of secretsOnCommandLine(options, resolved)) {
    if (mayBePublic(resolved.settings.get(name)!.text)) continue;
    const remedy = `use ${envOf(name, options[name]!)}, the configuration file${name === "auth.jwt.token" ? ", or file:NAME" : ""}`;
    log.warn("secret on the command line, where other users can see it while the program starts", { option: flagOf(name), remedy });
  }
  const error = restart(process, start);
  log.warn("cannot start again without secrets on the command line", { reason: error instanceof Error ? error.message : String(error) });
}

/** A URL without a user is no secret. */
function mayBePublic(text: string): boolean {
  return URL.canParse(text) && !text.includes("@");
}

/** The signals of a service besides those that end it. */
interface Signals {
  /** The first of those that end it. */
  readonly stop: Promise<string>;
  /** Called at SIGHUP from now on. */
  onReload(reload: () => Promise<void>): void;
}

/** Without a handler, each of these signals would end the process at once, with all its tunnels. */
function heedSignals(process: Process, log: Logger): Signals {
  let reload: (() => Promise<void>) | undefined;
  process.on("SIGHUP", () => {
    if (reload === undefined) return log.info("signal ignored, for the service does not run", { signal: "SIGHUP" });
    log.info("reading files again", { signal: "SIGHUP" });
    reload().catch((error) => log.error("cannot read files again", { reason: error instanceof Error ? error.message : String(error) }));
  });
  for (const signal of ["SIGUSR1", "SIGUSR2"] as const) process.on(signal, () => log.info("signal ignored", { signal }));
  return {
    stop: new Promise<string>((resolve) => {
      for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => resolve(name));
    }),
    onReload: (next) => reload = next,
  };
}

async function readAll(stream: AsyncIterable<Uint8Array | string>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of stream) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks).toString("utf8");
}

/** What to do about an address that cannot be used, and whose it is. */
function withAdvice(error: unknown, settings: Resolved["settings"]): unknown {
  const advice = error instanceof NetError ? ADVICE[error.code] : undefined;
  if (advice === undefined) return error;
  const { code, message } = error as NetError;
  // an address ends where it is said that it does: :1 is not :12
  const [, address = ""] = /^Cannot listen on "?(.*?)"?: /.exec(message) ?? [];
  const owners = [...settings].filter(([, { text }]) => text !== "" && text === address).map(([name]) => flagOf(name));
  return new NetError(code, `${message}; ${advice}${owners.length === 1 ? ` with ${owners[0]}` : ""}`, { cause: error });
}

const ADVICE: Partial<Record<NetErrorCode, string>> = {
  "address-in-use": "another program has it: stop that one, or choose another address",
  "address-not-available": "this machine does not have it: choose one that it has, or :port for all,",
  "permission-denied": "ports below 1024 need a privilege: choose another",
  "unknown-host": "choose an address of this machine, or :port for all,",
};

async function runUntilSignalled(
  { service, resolved: { values, settings } }: Run,
  process: Process,
  log: Logger,
  signals: Signals,
  notify: Notify | undefined,
): Promise<void> {
  const supervisor = notify && createSupervisor({ env: process.env, pid: process.pid, notify, log });
  const running = await service.start(values, log, supervisor).catch((error) => {
    throw withAdvice(error, settings);
  });
  supervisor?.ready();
  signals.onReload(() => running.reload());
  log.info("stopping", { signal: await signals.stop });
  supervisor?.stopping(running.closesWithinMs);
  // whoever asks twice is in a hurry
  for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => process.exit(FAILED));
  await running.close();
}

/** What nobody caught leaves a state that nobody knows: better to be started anew. */
function exitOnUncaughtErrors(process: Process, log: Logger, lines: LineWriter): void {
  const die = (error: unknown) => {
    log.error("fatal", { error: error instanceof Error ? error.stack ?? error.message : String(error) });
    void lines.flush(FLUSH_MS).then(() => process.exit(FAILED));
  };
  process.on("uncaughtException", die);
  process.on("unhandledRejection", die);
}
