// A process that starts itself again, in its own place, without what should not stay in its command line or environment: secrets, which every
// user sees in ps(1) and which the runtime's crash report prints, and variables that make the runtime do something else than this program.
import type { Resolved } from "../config/sources.ts";
import { envOf, flagOf, type Options } from "../config/option.ts";

/** What a process is started with. */
export interface Start {
  /** Without the executable. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** They load code, open a debugger, or set options of the runtime. */
const RUNTIME_VARIABLES = ["BUN_OPTIONS", "BUN_INSPECT", "BUN_INSPECT_CONNECT_TO", "BUN_INSPECT_PRELOAD"];

/** Options whose secret value is on the command line. */
export function secretsOnCommandLine(options: Options, { settings }: Pick<Resolved, "settings">): string[] {
  return Object.keys(options).filter((name) => {
    const { text = "", origin } = settings.get(name) ?? {};
    return options[name]!.secret === true && origin === flagOf(name) && text !== "" && !text.startsWith("file:");
  });
}

/** The same start with the secrets in variables of the environment, and without the runtime's own; `undefined` where nothing differs. */
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

/** Only an executable can be started again from what it was started with: beside a runtime's own arguments nothing is known. */
export function canRestart(): boolean {
  return (globalThis as { Bun?: { isStandaloneExecutable?: boolean } }).Bun?.isStandaloneExecutable === true;
}

/**
 * Replaces the process by one with another start (execve(2)): the process id stays. Returns only where that fails.
 */
export function restart(process: NodeJS.Process, { args, env }: Start): unknown {
  try {
    process.execve!(process.execPath, [process.argv0, ...args], { ...env } as NodeJS.ProcessEnv);
  } catch (error) {
    return error;
  }
}
