// From a command line to a running part and its end: exit codes, signals, logs. The process is an argument: only a main.ts has it.
import { createLogger, type LogFormat, type Logger, type LogLevel } from "../log.ts";
import { NetError } from "../net/errors.ts";
import { type CommandDefinition, readCommandLine } from "./command.ts";
import { ConfigError } from "./option.ts";

/** Exit codes: 0 for a clean stop, 1 for a failure at run time, 2 for a configuration that cannot be used. */
const FAILED = 1;
const MISCONFIGURED = 2;

type Process = NodeJS.Process;

/** An executable. */
export interface Program<Values> extends CommandDefinition {
  /** Checks what the values name, files above all. */
  check: (values: Values) => Promise<void>;
  /** Resolves when it runs. */
  start: (values: Values, log: Logger) => Promise<{ close(): Promise<void> }>;
}

/** Runs until a signal, or until it fails. Sets the exit code; rejects for nothing. */
export async function run<Values extends { log: { format: LogFormat; level: LogLevel } }>(
  program: Program<Values>,
  process: Process,
): Promise<void> {
  const write = (line: string) => void process.stderr.write(line);
  try {
    const task = readCommandLine(program, { args: process.argv.slice(2), env: process.env, home: process.env.HOME });
    if (task.do === "print") return void process.stdout.write(task.text);
    const values = task.resolved.values as Values;
    await program.check(values);
    if (task.do === "check") return void process.stdout.write("The configuration can be used\n");
    const log = createLogger({ ...values.log, write, color: process.stderr.isTTY === true });
    dieOnAccidents(process, log);
    await runToTheEnd(program, values, process, log);
  } catch (error) {
    write(`${program.name}: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode = isMisconfigured(error) ? MISCONFIGURED : FAILED;
  }
}

/** What the network refuses before it opens a socket is a mistake in the configuration too. */
function isMisconfigured(error: unknown): boolean {
  return error instanceof ConfigError || (error instanceof NetError && ["tls", "invalid", "unknown-host"].includes(error.code));
}

async function runToTheEnd<Values>(program: Program<Values>, values: Values, process: Process, log: Logger): Promise<void> {
  const signal = new Promise<string>((resolve) => {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => resolve(name));
  });
  const running = await program.start(values, log);
  log.info("stopping", { signal: await signal });
  // whoever asks twice is in a hurry
  for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => process.exit(FAILED));
  await running.close();
  process.exit(0);
}

/** What nobody caught leaves a state that nobody knows: better to be started anew. */
function dieOnAccidents(process: Process, log: Logger): void {
  const die = (error: unknown) => {
    log.error("fatal", { error: error instanceof Error ? error.stack ?? error.message : String(error) });
    process.exit(FAILED);
  };
  process.on("uncaughtException", die);
  process.on("unhandledRejection", die);
}
