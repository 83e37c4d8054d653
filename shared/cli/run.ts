// Runs the command of a command line: exit codes, signals, logs. The process is an argument; only main.ts files import it.
import { rmSync, writeSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { Writable } from "node:stream";
import { createLogger, type LogControl, type LogFormat, type Logger, type LogLevel } from "../log/logger.ts";
import { createLineWriter, type LineWriter } from "../log/writer.ts";
import { NetError, type NetErrorCode } from "../net/errors.ts";
import { CommandFailure, type Executable, readCommandLine, type Task, type Terminal } from "./command.ts";
import type { Resolved } from "../config/sources.ts";
import { ConfigError, envOf, flagOf, type Options } from "../config/option.ts";
import { canRestart, restart, saferStart, secretsOnCommandLine } from "./restart.ts";
import { openFullScreen } from "./full_screen.ts";
import { withStandardCommands } from "./standard_commands.ts";
import { readStream } from "../files/read.ts";
import { SecretFiles } from "../files/secret_files.ts";
import type { ConfigurationState } from "../service/configuration.ts";
import { createSupervisor, type Supervisor } from "../service/supervisor.ts";
import { changedOptions, hashOf } from "../config/plan.ts";
import { watchFile } from "../files/version.ts";
import { Gate } from "../async/gate.ts";
import { Reloader, reportOfReload } from "./reload.ts";
import { createSuccessorStarter } from "./successor.ts";
import { WORKER_VARIABLE } from "./worker_messages.ts";
import { WorkerProcess } from "./worker_process.ts";
import { spawnWorker, withWorkerDirectory, Workers } from "./workers.ts";
import { messageOf } from "../log/error_message.ts";

/** Exit codes: 0 for a clean stop, 1 for a failure at run time, 2 for an invalid configuration. */
const FAILED = 1;
const MISCONFIGURED = 2;

/** Interval in milliseconds at which the configuration file is checked for changes. */
const WATCH_MS = 5_000;

/** Timeout for writing the remaining log lines before the exit, in milliseconds. */
const FLUSH_MS = 1_000;

type Process = NodeJS.Process;
type RunTask = Extract<Task, { do: "run" }>;

/** Options that services have. */
interface CommonValues {
  log: { format: LogFormat; level: LogLevel };
  handover?: { socket?: string };
  /** Missing for services that are one process. */
  workers?: number;
}

/** Runs until a stop signal, the end of a subcommand, or a failure. Sets the exit code; never rejects. */
export async function run(executable: Executable, process: Process): Promise<void> {
  const complete = withStandardCommands(executable);
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") return; // the reader has what it wanted, as `head` has
    process.stderr.write(`${executable.root.name}: Cannot write to standard output: ${error.message}\n`);
    process.exitCode = FAILED;
  });
  try {
    const task = readTask(complete, process);
    await perform(task, process, complete);
  } catch (error) {
    const message = messageOf(error);
    if (message !== "") process.stderr.write(`${executable.root.name}: ${message}\n`);
    process.exitCode = error instanceof CommandFailure ? error.exitCode : isMisconfigured(error) ? MISCONFIGURED : FAILED;
  }
}

function readTask(executable: Executable, process: Process): Task {
  return readCommandLine(executable, { args: process.argv.slice(2), env: process.env, home: process.env.HOME });
}

/** Errors of the network before it opens a socket are configuration errors too. */
function isMisconfigured(error: unknown): boolean {
  return error instanceof ConfigError || (error instanceof NetError && ["tls", "invalid", "unknown-host"].includes(error.code));
}

async function perform(task: Task, process: Process, executable: Executable): Promise<void> {
  const { root } = executable;
  const write = (text: string) => void process.stdout.write(text);
  if (task.do === "print") return write(task.text);
  const { values } = task.resolved;
  const terminal: Terminal = {
    write,
    report: (line) => void process.stderr.write(`${root.name}: ${line}\n`),
    read: () => readInput(process.stdin),
    prompt: process.stdin.isTTY ? (question, { isSecret }) => ask(process, question, isSecret) : undefined,
    executable: canRestart() ? process.execPath : undefined,
    columns: process.stdout.isTTY ? process.stdout.columns : undefined,
    screen: process.stderr.isTTY
      ? { columns: () => process.stderr.columns || 80, write: (text) => void process.stderr.write(text) }
      : undefined,
    openFullScreen: () => openFullScreen(process),
    env: process.env,
    stopped: async () => {
      await whenStopped(process);
      exitWhenStopped(process);
    },
  };
  if (task.do === "subcommand") {
    const { subcommand: { profile }, resolved } = task;
    if (profile) {
      restartWhereSafer(
        profile,
        resolved,
        process,
        (message, fields = {}) => terminal.report([message, ...Object.values(fields)].join("; ")),
      );
    }
    return await task.subcommand.run(values, terminal, task.line);
  }
  if (task.do === "check") {
    await task.service.check(values);
    return write(task.running ? reportOfReload(task.service.options, task.running, task.resolved) : "The configuration is valid\n");
  }
  if (task.do === "diagnosis") {
    await task.service.check(values);
    if (!await task.diagnosis.run(values, terminal, task.value)) process.exitCode = FAILED;
    return;
  }
  const { log: options } = values as unknown as CommonValues;
  // https://no-color.org
  const color = process.stderr.isTTY === true && !process.env.NO_COLOR;
  const early = createLogger({ ...options, color, write: (line) => void writeSync(process.stderr.fd, line) });
  restartWhereSafer(task.service.options, task.resolved, process, (message, fields) => early.warn(message, fields));
  const worker = process.env[WORKER_VARIABLE] === undefined ? undefined : await startWorker(process);
  const onLoss = (count: number) => log.warn("log lines dropped", { count });
  const lines = createLineWriter(process.stderr.fd, { onLoss, isShared: worker !== undefined });
  const log = createLogger({ ...options, color, write: lines.write, fields: worker && { worker: worker.worker.index } });
  exitOnUncaughtErrors(process, log, lines);
  const signals = worker ? signalsOfWorker(process, worker) : handleSignals(process, log);
  const { file, ignored } = task.files;
  if (file !== undefined) log.debug("configuration file", { file });
  if (ignored.length > 0) log.warn("configuration files ignored", { files: ignored.join(","), read: file });
  let exitCode = 0;
  try {
    if (worker === undefined || worker.worker.isFirst) await checkConfigFileMode(task, log);
    await task.service.check(values);
    const { workers = 1 } = values as unknown as CommonValues;
    if (workers > 1 && worker === undefined) exitCode = await supervise(workers, process, log, signals, executable);
    else await runUntilSignalled(task, process, log, signals, executable, worker);
  } finally {
    worker?.close();
    await lines.flush(FLUSH_MS);
  }
  process.exit(exitCode);
}

/**
 * Starts processes that are the service, and supervises them until they have ended. Resolves with the exit code.
 * @throws {ConfigError} if there can be none
 */
async function supervise(
  count: number,
  process: Process,
  log: Logger,
  signals: Signals,
  { notify }: Executable,
): Promise<number> {
  if (!canRestart()) throw new ConfigError(`Cannot use --workers ${count}: they are processes of the executable, which this is not`);
  const supervisor = supervisorOf(process, log, notify);
  const start = { args: process.argv.slice(2), env: process.env };
  return await withWorkerDirectory(process.env.RUNTIME_DIRECTORY, async (directory) => {
    const workers = new Workers({
      count,
      directory,
      log,
      supervisor,
      spawn: (events) => spawnWorker(process.execPath, start, events),
    });
    signals.onReload(() => Promise.resolve(workers.reload()));
    void signals.stop.then(() => {
      workers.stop();
      for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => workers.stop());
    });
    return await workers.ended;
  });
}

/** The service manager that has started this process; `undefined` if it is not told anything. */
function supervisorOf(process: Process, log: Logger, notify: Executable["notify"]): Supervisor | undefined {
  const monotonicUs = () => process.hrtime.bigint() / 1_000n;
  return notify && createSupervisor({ env: process.env, pid: process.pid, notify, log, monotonicUs });
}

/** Reads what the supervising process says first. The worker ends with it. */
async function startWorker(process: Process): Promise<WorkerProcess> {
  return await WorkerProcess.start({
    input: process.stdin,
    write: (text) => void process.stdout.write(text),
    onOrphaned: (directory) => {
      if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
      process.stderr.write("worker ends: the supervising process has ended\n");
      process.exit(FAILED);
    },
  });
}

/** The supervising process says what to do: signals may come to all processes of the service, or to it alone. */
function signalsOfWorker(process: Process, worker: WorkerProcess): Signals {
  for (const name of ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"] as const) process.on(name, () => {});
  void worker.stoppedAgain.then(() => process.exit(FAILED));
  return {
    stop: worker.stopped.then(() => "stop"),
    onReload: (reload) => worker.onReload(() => void reload()), // never rejects
    onHandover: () => {},
  };
}

/** Warns if other users can read a configuration file that contains a secret. */
async function checkConfigFileMode({ service: { options }, resolved: { settings } }: RunTask, log: Logger): Promise<void> {
  const files = new SecretFiles(log);
  for (const [name, { text, origin }] of settings) {
    const [, file] = /^(.+):\d+$/.exec(origin) ?? [];
    if (file === undefined || !options[name]!.secret || text === "" || text.startsWith("file:") || mayBePublic(text)) continue;
    await files.check(flagOf(name), file);
  }
}

/** Secret options whose value may be `file:NAME`. */
const FROM_FILE = ["auth.jwt.token", "agent-client.proxy", "join"];

/** Re-executes the process as {@link saferStart} says, if that is possible. */
function restartWhereSafer(options: Options, resolved: Resolved, process: Process, warn: Logger["warn"]): void {
  if (!canRestart()) return;
  const start = saferStart(options, resolved, { args: process.argv.slice(2), env: process.env });
  if (start === undefined) return;
  for (const name of secretsOnCommandLine(options, resolved)) {
    if (mayBePublic(resolved.settings.get(name)!.text)) continue;
    const remedy = `use ${envOf(name, options[name]!)}, the configuration file${FROM_FILE.includes(name) ? ", or file:NAME" : ""}`;
    warn("secret on the command line is visible to other users while the program starts", { option: flagOf(name), remedy });
  }
  const error = restart(process, start);
  warn("cannot restart without secrets on the command line", { reason: messageOf(error) });
}

/** A URL without a user contains no password, and neither does a word that stands for no value. */
function mayBePublic(text: string): boolean {
  return text === "none" || (URL.canParse(text) && !text.includes("@"));
}

/** The signals of a running service. */
interface Signals {
  /** Resolves with the first stop signal. */
  readonly stop: Promise<string>;
  /** Sets the handler of SIGHUP, which never rejects. */
  onReload(reload: () => Promise<void>): void;
  /** Sets the handler of SIGUSR2. */
  onHandover(handOver: () => void): void;
}

/** Installs handlers: without one, each of these signals would kill the process and all its tunnels. */
function handleSignals(process: Process, log: Logger): Signals {
  let reload: (() => Promise<void>) | undefined;
  let isAsked = false;
  process.on("SIGHUP", () => {
    isAsked ||= reload === undefined; // the configuration may have been read already
    if (reload === undefined) return log.info("reloading once the service runs", { signal: "SIGHUP" });
    log.debug("reloading", { signal: "SIGHUP" });
    void reload();
  });
  let handOver: (() => void) | undefined;
  process.on("SIGUSR1", () => log.info("signal ignored", { signal: "SIGUSR1" }));
  process.on("SIGUSR2", () => {
    if (handOver === undefined) return log.info("signal ignored", { signal: "SIGUSR2", remedy: "set --handover.socket" });
    log.debug("handing over", { signal: "SIGUSR2" });
    handOver();
  });
  return {
    stop: whenStopped(process),
    onReload(next) {
      reload = next;
      if (isAsked) void reload();
      isAsked = false;
    },
    onHandover: (next) => handOver = next,
  };
}

/** Resolves with the first stop signal. */
function whenStopped(process: Process): Promise<string> {
  return new Promise((resolve) => {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => resolve(name));
  });
}

/** A second signal stops at once. */
function exitWhenStopped(process: Process): void {
  for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => process.exit(FAILED));
}

/** Limit on standard input, in bytes. */
const MAX_INPUT = 1024 * 1024;

async function readInput(stream: AsyncIterable<Uint8Array | string>): Promise<string> {
  try {
    return await readStream(stream, MAX_INPUT);
  } catch (cause) {
    throw new ConfigError(`Cannot read standard input: ${messageOf(cause)}`, { cause });
  }
}

/** Asks on standard error, and returns the answer without blanks around it. */
async function ask(process: Process, question: string, isSecret: boolean): Promise<string> {
  let isMuted = false;
  const output = new Writable({
    write(chunk: Uint8Array, _encoding, done) {
      if (!isMuted) process.stderr.write(chunk);
      done();
    },
  });
  const prompts = createInterface({ input: process.stdin, output, terminal: true });
  try {
    const answer = prompts.question(question);
    isMuted = isSecret;
    return (await answer).trim();
  } finally {
    prompts.close();
    if (isSecret) process.stderr.write("\n");
  }
}

/** Adds to an error about a listen address what to do, and the option that sets the address. */
function withAdvice(error: unknown, settings: Resolved["settings"]): unknown {
  const advice = error instanceof NetError ? ADVICE[error.code] : undefined;
  if (advice === undefined) return error;
  const { code, message } = error as NetError;
  // compares the whole address: :1 must not match :12
  const [, address = ""] = /^Cannot listen on "?(.*?)"?: /.exec(message) ?? [];
  const owners = [...settings].filter(([, { text }]) => text !== "" && text === address).map(([name]) => flagOf(name));
  return new NetError(code, `${message}; ${advice}${owners.length === 1 ? ` with ${owners[0]}` : ""}`, { cause: error });
}

const ADVICE: Partial<Record<NetErrorCode, string>> = {
  "address-in-use": "another program uses it: stop that program or choose another address",
  "address-not-available": "this machine does not have it: choose an address of this machine, or :port for all,",
  "permission-denied": "ports below 1024 require privileges: choose another",
  "unknown-host": "choose an address of this machine, or :port for all,",
};

async function runUntilSignalled(
  { service, resolved, files: { file }, isWatched }: RunTask,
  process: Process,
  log: Logger & LogControl,
  signals: Signals,
  executable: Executable,
  worker: WorkerProcess | undefined,
): Promise<void> {
  const { notify } = executable;
  const { values, settings } = resolved;
  const supervisor = worker?.supervisor ?? supervisorOf(process, log, notify);
  const configuration: ConfigurationState = {
    hash: hashOf(service.options, resolved),
    changed: changedOptions(service.options, resolved),
    isReloaded: true,
    turns: new Gate(1, Infinity),
  };
  const { handover } = values as unknown as CommonValues;
  // of a separate runtime the arguments are unknown
  const successor = handover?.socket !== undefined && canRestart()
    ? await createSuccessorStarter(process.execPath, { args: process.argv.slice(2), env: process.env }, log)
    : undefined;
  const startSuccessor = successor && (() => successor.start());
  const context = { supervisor, configuration, startSuccessor, worker: worker?.worker };
  const running = await service.start(values, log, context).catch((error) => {
    throw withAdvice(error, settings);
  });
  if (worker) worker.ready(running.addresses, running.closesWithinMs);
  else supervisor?.ready();
  const reloader = new Reloader({
    options: service.options,
    running: resolved,
    state: configuration,
    read: () => (readTask(executable, process) as RunTask).resolved,
    check: (wanted) => service.check(wanted),
    async apply(next) {
      const ended = await running.update(next);
      const { level, format } = (next as unknown as CommonValues).log;
      Object.assign(log, { level, format });
      return ended;
    },
    reloadFiles: () => running.reload(),
    passOn(pid) {
      log.info("reload passed on to the process that has taken over", { pid });
      if (pid !== undefined) process.kill(pid, "SIGHUP");
    },
    log,
  });
  const reload = async () => {
    supervisor?.reloading();
    if (await successor?.isReplaced()) return handOver(); // by an upgrade
    await reloader.reload();
    supervisor?.ready();
  };
  const handOver = () => void successor?.start().then(() => supervisor?.ready());
  signals.onReload(reload);
  if (successor) signals.onHandover(handOver);
  configuration.reload = worker ? () => Promise.resolve(worker.worker.ask("reload")) : reload;
  const watching = isWatched && file !== undefined ? await watchFile(file, WATCH_MS, reload) : undefined;
  void running.handedOver?.then(async () => {
    const ignore = () => log.info("signal ignored: another process has taken over");
    signals.onReload(() => Promise.resolve(ignore()));
    signals.onHandover(ignore);
    await watching?.close();
  });
  const signal = await Promise.race([signals.stop, ...running.closed ? [running.closed.then(() => undefined)] : []]);
  if (signal !== undefined) log.info("stopping", { signal });
  await watching?.close();
  supervisor?.stopping(running.closesWithinMs);
  if (!worker) exitWhenStopped(process);
  await running.close();
}

/** After an uncaught error the state is unknown: exit and let the supervisor restart the process. */
function exitOnUncaughtErrors(process: Process, log: Logger, lines: LineWriter): void {
  const die = (error: unknown) => {
    log.error("fatal", { error: error instanceof Error ? error.stack ?? error.message : String(error) });
    void lines.flush(FLUSH_MS).then(() => process.exit(FAILED));
  };
  process.on("uncaughtException", die);
  process.on("unhandledRejection", die);
}
