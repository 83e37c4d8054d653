// Re-executes the process without what should not stay in its command line or environment: secrets, which ps(1) shows to every user and the
// runtime's crash report prints, and variables that change what the runtime does.
import type { Resolved } from "../config/sources.ts";
import { envOf, flagOf, type Options } from "../config/option.ts";

/** Arguments and environment of a process. */
export interface Start {
  /** Without the executable. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Variables that load code, open a debugger, or set options of the runtime. */
const RUNTIME_VARIABLES = ["BUN_OPTIONS", "BUN_INSPECT", "BUN_INSPECT_CONNECT_TO", "BUN_INSPECT_PRELOAD"];

/** Names of the options whose secret value is on the command line. */
export function secretsOnCommandLine(options: Options, { settings }: Pick<Resolved, "settings">): string[] {
  return Object.keys(options).filter((name) => {
    const { text = "", origin } = settings.get(name) ?? {};
    return options[name]!.secret === true && origin === flagOf(name) && text !== "" && !text.startsWith("file:");
  });
}

/** The arguments with the secrets moved to the environment, without the runtime's variables; `undefined` if nothing changes. */
export function saferStart(options: Options, resolved: Pick<Resolved, "settings">, { args, env }: Start): Start | undefined {
  const secrets = secretsOnCommandLine(options, resolved);
  const unwanted = RUNTIME_VARIABLES.filter((variable) => env[variable] !== undefined);
  if (secrets.length === 0 && unwanted.length === 0) return undefined;
  const flags = new Set(secrets.map(flagOf));
  const kept = args.filter((arg, i) => !flags.has(arg.split("=", 1)[0]!) && !flags.has(args[i - 1] ?? ""));
  const moved = secrets.map((name) => [envOf(name, options[name]!), resolved.settings.get(name)!.text]);
  const left = Object.entries(env).filter(([variable]) => !unwanted.includes(variable));
  return { args: kept, env: { ...Object.fromEntries(left), ...Object.fromEntries(moved) } };
}

/** Only a standalone executable can be re-executed: the arguments of a separate runtime are unknown. */
export function canRestart(): boolean {
  return (globalThis as { Bun?: { isStandaloneExecutable?: boolean } }).Bun?.isStandaloneExecutable === true;
}

/**
 * Replaces the process image (execve(2)); the process id stays. Returns only on failure, with the error.
 */
export function restart(process: NodeJS.Process, { args, env }: Start): unknown {
  try {
    process.execve!(process.execPath, [process.argv0, ...args], { ...env } as NodeJS.ProcessEnv);
  } catch (error) {
    return error;
  }
}
