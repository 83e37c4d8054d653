// The command line: commands, flags, help and version from the definitions, and the option values that they give.
import { Command as Parser, CommanderError, Option as Flag } from "commander";
import { statSync } from "node:fs";
import { isLoggable } from "../auth/authenticator.ts";
import { describeFileError, readBytesSync } from "../files/read.ts";
import type { LogControl, LogFields, Logger } from "../log/logger.ts";
import type { ConfigurationState } from "../service/configuration.ts";
import type { Notify, Supervisor } from "../service/supervisor.ts";
import type { BoundAddresses, Worker } from "../service/worker.ts";
import { readConfig } from "../config/file.ts";
import { profileFile, refuseExposed } from "./profile.ts";
import { secretsOnCommandLine } from "./restart.ts";
import type { FullScreen } from "./full_screen.ts";
import { hideSecret } from "../config/plan.ts";
import { shellWord } from "../config/shell_word.ts";
import { combine, type Expansion, resolveExpanded } from "../config/expansion.ts";
import { checkEnvironment, didYouMean, resolve, type Resolved } from "../config/sources.ts";
import {
  CLIENT_ENV_PREFIX,
  ConfigError,
  defineOptions,
  describeOption,
  envOf,
  flagOf,
  type Option,
  type Options,
  separatorOf,
  type ValuesOf,
} from "../config/option.ts";

/** Properties of every command. */
interface CommandBase {
  /** The command's word; of the root command, the executable's name. */
  readonly name: string;
  /** One sentence. */
  readonly description: string;
  readonly options?: Options;
  readonly commands?: readonly Command[];
  /** An option of a service or a profile that stands for others. Default: none. */
  readonly expansion?: Expansion;
}

/** Runs until it is stopped. Its options come from the command line, the environment and the configuration file. */
export interface Service<Values = object> extends CommandBase {
  readonly options: Options;
  /** Checks the files and other things that the values refer to, without opening sockets. */
  check(values: Values): Promise<void>;
  /** Another task of the service, with the same options. Default: none. */
  readonly diagnosis?: Diagnosis<Values>;
  /** Resolves when the service is running. */
  start(values: Values, log: Logger & LogControl, context: StartContext): Promise<Running<Values>>;
}

/** Access of a service to its process. */
export interface StartContext {
  /** Given if the process runs under one; the caller reports readiness to it. */
  readonly supervisor?: Supervisor;
  /** The state of the configuration, for metrics. */
  readonly configuration: ConfigurationState;
  /** Starts a new process that takes over. Resolves with the reason if it has ended without that. Default: it is not known how. */
  readonly startSuccessor?: () => Promise<string>;
  /** Given if the process is one of several that are the service. */
  readonly worker?: Worker;
}

/** Looks for what keeps a service from working, and ends. */
export interface Diagnosis<Values = object> {
  /** The flag that asks for it, without dashes. */
  readonly flag: string;
  /** One sentence. */
  readonly description: string;
  /** Whether the flag has a value, which it examines. Default `false`. */
  readonly takesValue?: boolean;
  /** Runs after {@link Service.check}. Resolves with whether the service can work. `value` is that of the flag, empty if it has none. */
  run(values: Values, terminal: Terminal, value: string): Promise<boolean>;
}

/** A running service. */
export interface Running<Values = object> {
  /** Approximate upper bound of the duration of {@link close}, in milliseconds. */
  readonly closesWithinMs: number;
  /** Of a worker, for the others. */
  readonly addresses?: BoundAddresses;
  /** Resolves when it has closed, by {@link close} or by an operator. Default: no operator can close it. */
  readonly closed?: Promise<void>;
  /** Resolves when another process has taken over, and this one serves only open tunnels. Default: no process can. */
  readonly handedOver?: Promise<void>;
  /**
   * Applies values of options that can be reloaded; the others have not changed. Resolves with the numbers of ended tunnels
   * and connections, for the log. If it rejects, nothing has changed.
   */
  update(values: Values): Promise<LogFields>;
  /** Reloads certificates, keys and revocation lists. Connections that they still permit stay open. */
  reload(): Promise<void>;
  close(): Promise<void>;
}

/** A terminal that lines can be drawn on again. */
export interface Screen {
  /** Its current width in characters. */
  columns(): number;
  write(text: string): void;
}

/** Access of a subcommand to its process. */
export interface Terminal {
  /** Writes to standard output. */
  write(text: string): void;
  /** Writes a line to standard error. */
  report(line: string): void;
  /** Reads standard input to its end. */
  read(): Promise<string>;
  /** Asks on the terminal, if standard input is one. A secret answer is not shown. */
  readonly prompt?: (question: string, options: { readonly isSecret: boolean }) => Promise<string>;
  /** Path of this program, if it is an executable of its own and not run by a separate runtime. */
  readonly executable?: string;
  /** Width in characters if standard output is a terminal. */
  readonly columns?: number;
  /** Standard error, if it is a terminal. */
  readonly screen?: Screen;
  /**
   * Takes the whole terminal.
   * @throws {Error} if there is none
   */
  openFullScreen(): FullScreen;
  /** The environment, for processes that the command starts. */
  readonly env: Invocation["env"];
  /** Resolves at SIGINT or SIGTERM, which end the process only when they come again. Without a call they end it at once. */
  stopped(): Promise<void>;
}

/** Settings of the command line besides option values. */
export interface SubcommandLine {
  /** The words that are no flags. */
  readonly operands: readonly string[];
  /** The flags that are set, with their texts. */
  readonly flags: ReadonlyMap<string, string>;
  /**
   * Reads the profile again, and returns all values as they are now. Only of a subcommand with a profile.
   * @throws {ConfigError}
   */
  readonly reread?: () => unknown;
}

/** The words that a subcommand takes besides flags. */
export interface Operands {
  /** As the help shows it, such as `host:port`. */
  readonly name: string;
  /** One sentence. */
  readonly description: string;
  /** Whether there may be several. Default `false`. */
  readonly variadic?: boolean;
}

/** Does one task and ends. Its options come from the command line only, except for those of {@link service} and {@link profile}. */
export interface Subcommand<Values = object> extends CommandBase {
  /** Options besides `options` that are a service's: they come from the environment and the configuration file too. Default: none. */
  readonly service?: Options;
  /** Options besides `options` that come from the environment and the user's profile too. Default: none, and no profile is read. */
  readonly profile?: Options;
  /** Default: none. */
  readonly operands?: Operands;
  /** @throws {CommandFailure} for an exit code of its own */
  run(values: Values, terminal: Terminal, line: SubcommandLine): Promise<void>;
}

/** A subcommand has failed, with an exit code that says how. */
export class CommandFailure extends Error {
  override readonly name = "CommandFailure";
  /** @param message one line for standard error; nothing if it is empty */
  constructor(readonly exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** A group of commands, which does nothing itself. */
export interface Group extends CommandBase {
  readonly commands: readonly Command[];
}

export type Command = Service | Subcommand | Group;

/** An executable. */
export interface Executable {
  readonly root: Command;
  readonly version: string;
  /** The options of every service, by its name. All services may share one environment and one configuration file. */
  readonly family: Readonly<Record<string, Options>>;
  /** Sends state to the service manager that started the process. Default: nothing is sent. */
  readonly notify?: Notify;
}

/** The inputs of the process. */
export interface Invocation {
  /** Without the executable. */
  args: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  /** Home directory, for the user's configuration file. */
  home: string | undefined;
}

/** The request that the command line states. */
export type Task =
  | { do: "run"; service: Service; resolved: Resolved; files: ConfigFiles; isWatched: boolean }
  | { do: "check"; service: Service; resolved: Resolved; files: ConfigFiles; running?: Resolved }
  | { do: "diagnosis"; service: Service; diagnosis: Diagnosis; value: string; resolved: Resolved }
  | { do: "subcommand"; subcommand: Subcommand; resolved: Resolved; line: SubcommandLine }
  | { do: "print"; text: string };

/** The parser's result. */
interface ParsedCommandLine {
  /** The innermost command named. */
  command: Command;
  flags: Map<string, string>;
  operands: string[];
}

const CONFIG_FLAG = defineOptions({ "config": { kind: "file", description: "Configuration file, YAML or JSON." } });

/** Flags of every service besides its options. */
const SERVICE_FLAGS = defineOptions({
  ...CONFIG_FLAG,
  "check-config": { kind: "boolean", description: "Check all options and the files they refer to, then exit." },
  "check-reload": {
    kind: "file",
    description: "Check, and print what a reload would change if this configuration file is in force, then exit.",
  },
  "watch-config": { kind: "boolean", description: "Reload the configuration file when it changes, as on SIGHUP." },
  "print-config": { kind: "boolean", description: "Print the effective options and where each was set, then exit." },
});

/** The flag of every subcommand with a profile. */
const PROFILE_FLAGS = defineOptions({
  "profile": {
    kind: "file",
    description:
      "Profile that reverse-http login has stored with this name, or a file with such options, YAML or JSON; by default the profile without a " +
      "name, ~/.config/reverse-http/client.yaml, if it exists.",
  },
});

/** All flags of a command except --help and --version, in display order. */
export function flagsOf(command: Command): Options {
  if ("start" in command) return { ...command.options, ...SERVICE_FLAGS, ...diagnosisFlag(command) };
  if (!("run" in command)) return { ...command.options };
  const { options, service, profile } = command;
  return { ...options, ...service, ...service && CONFIG_FLAG, ...profile, ...profile && PROFILE_FLAGS };
}

function diagnosisFlag({ diagnosis }: Service): Options {
  if (diagnosis === undefined) return {};
  const { flag, description, takesValue = false } = diagnosis;
  return { [flag]: { kind: takesValue ? "string" : "boolean", description } };
}

/**
 * Parses a command line and resolves its options.
 * @throws {ConfigError} for an unknown or invalid command, flag, key, variable or value
 */
export function readCommandLine(executable: Executable, { args, env, home }: Invocation): Task {
  const parsed: ParsedCommandLine = { command: executable.root, flags: new Map(), operands: [] };
  let printed = "";
  const parser = createParser(executable.root, parsed, (text) => printed += text);
  const named = executable.root.commands?.find(({ name }) => name === args[0]);
  // the parser would take an option of that name for this one
  if (named?.options?.["version"] === undefined) parser.version(executable.version, "--version", "print the version");
  try {
    parser.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { do: "print", text: printed };
    throw new ConfigError(describeParserError(error, parsed.command, executable, args));
  }
  const { command, flags, operands } = parsed;
  const line = { operands, flags };
  if ("run" in command && command.profile) {
    const { profile } = command;
    const read = () => resolveWithProfile(command, profile, clientFamily(executable), { args, env, home }, flags);
    return { do: "subcommand", subcommand: command, resolved: read(), line: { ...line, reread: () => read().values } };
  }
  if ("run" in command) {
    const own = resolve(command.options ?? {}, { flags, env: {} });
    const { service: options } = command;
    if (options === undefined) return { do: "subcommand", subcommand: command, resolved: own, line };
    const file = flags.get("config") ?? findConfig(home).file;
    const shared = resolveExpanded(options, command.expansion, { flags, env, file: readSettings(options, file, executable) });
    return { do: "subcommand", subcommand: command, resolved: combine(shared, own), line };
  }
  if (!("start" in command)) throw new Error(`The command ${command.name} does nothing`); // the parser requires a subcommand
  checkEnvironment(command.options, variables(env, "services"), executable.family);
  const serviceFlags = resolve(SERVICE_FLAGS, { flags, env: {} }).values as unknown as ValuesOf<typeof SERVICE_FLAGS>;
  const files: ConfigFiles = serviceFlags.config === undefined ? findConfig(home) : { file: serviceFlags.config, ignored: [] };
  const resolved = resolveExpanded(command.options, command.expansion, {
    flags,
    env,
    file: readSettings(command.options, files.file, executable),
  });
  if (serviceFlags.printConfig) return { do: "print", text: printSettings(command.options, resolved) };
  if (serviceFlags.checkConfig) return { do: "check", service: command, resolved, files };
  if (serviceFlags.checkReload !== undefined) {
    const running = resolve(command.options, { flags, env, file: readSettings(command.options, serviceFlags.checkReload, executable) });
    return { do: "check", service: command, resolved, files, running };
  }
  const { diagnosis } = command;
  const [asked = false] = Object.values(resolve(diagnosisFlag(command), { flags, env: {} }).values);
  if (diagnosis && asked !== false) {
    return { do: "diagnosis", service: command, diagnosis, value: typeof asked === "string" ? asked : "", resolved };
  }
  return { do: "run", service: command, resolved, files, isWatched: serviceFlags.watchConfig };
}

/** The settings in a configuration file; `undefined` without one. */
function readSettings(options: Options, file: string | undefined, { family }: Executable): ReturnType<typeof readConfig> | undefined {
  return file === undefined ? undefined : readConfig(options, { name: file, text: readText(file) }, family);
}

/** The variables of clients, or all others. */
function variables(env: Invocation["env"], of: "clients" | "services"): Invocation["env"] {
  return Object.fromEntries(Object.entries(env).filter(([name]) => name.startsWith(CLIENT_ENV_PREFIX) === (of === "clients")));
}

/** The options of all commands that share the user's profile. */
function clientFamily({ root }: Executable): Readonly<Record<string, Options>> {
  const commands = [...walkCommands(root)].map(([, command]) => command);
  return Object.fromEntries(commands.flatMap((command) => "run" in command && command.profile ? [[command.name, command.profile]] : []));
}

/**
 * Resolves the options of a subcommand with a profile. Secrets on its command line are refused: it would show them as long as the command runs.
 * @throws {ConfigError}
 */
function resolveWithProfile(
  { options = {}, expansion }: Subcommand,
  profile: Options,
  family: Readonly<Record<string, Options>>,
  { env, home }: Invocation,
  flags: ParsedCommandLine["flags"],
): Resolved {
  checkEnvironment(profile, variables(env, "clients"), family);
  const named = flags.get("profile");
  const place = profileFile(named, { env, home });
  const file = named === undefined && place !== undefined && !exists(place) ? undefined : place;
  if (file !== undefined) refuseExposed(file);
  const shared = resolveExpanded(profile, expansion, {
    flags,
    env,
    file: file === undefined ? undefined : readConfig(profile, { name: file, text: readText(file) }, family),
  });
  for (const name of secretsOnCommandLine(profile, shared)) {
    if (name === expansion?.option) continue; // it is there to be pasted; the process restarts without it
    const remedy = `set ${envOf(name, profile[name]!)}, or ${name} in the profile`;
    throw new ConfigError(`Cannot use ${flagOf(name)}: other users see the command line; write file:NAME, ${remedy}`);
  }
  return combine(shared, resolve(options, { flags, env: {} }));
}

/** Creates the parser of a command and its subcommands, which records its result in `parsed`. */
function createParser(command: Command, parsed: ParsedCommandLine, writeOut: (text: string) => void): Parser {
  const parser = new Parser(command.name)
    .description(command.description)
    .helpOption("-h, --help", "print this help")
    .configureHelp({ sortOptions: false, optionDescription: ({ description }) => description })
    .configureOutput({ writeOut, writeErr: () => {}, getOutHelpWidth: () => 120 })
    .allowExcessArguments(false)
    .exitOverride()
    .hook("preSubcommand", (_, inner) => {
      parsed.command = parsed.command.commands!.find(({ name }) => name === inner.name())!;
    });
  const known = flagsOf(command);
  for (const [name, option] of Object.entries(known)) {
    parser.addOption(createFlag(name, option, parsed, known, envIn(command, name)));
  }
  if ("run" in command && command.operands) {
    const { name, description, variadic } = command.operands;
    parser.argument(variadic ? `[${name}...]` : `[${name}]`, description);
    parser.action((given?: string | string[]) => {
      parsed.operands.push(...given === undefined ? [] : [given].flat());
      const [, second] = parsed.operands;
      if (!variadic && second !== undefined) throw new ConfigError(`unknown argument '${second}': there is one ${name}`);
    });
  } else if ("start" in command || "run" in command) parser.action(() => {});
  for (const inner of command.commands ?? []) parser.addCommand(createParser(inner, parsed, writeOut));
  return parser;
}

/** Yields `command` and all its subcommands, each with its path of words. */
export function* walkCommands(command: Command, path: readonly string[] = []): Generator<[path: readonly string[], command: Command]> {
  yield [path, command];
  for (const inner of command.commands ?? []) yield* walkCommands(inner, [...path, inner.name]);
}

/** The environment variable of an option of `command`; `undefined` if it has none. */
export function envIn(command: Command, name: string): string | undefined {
  const subcommand = "run" in command ? command : undefined;
  const option = "start" in command ? command.options[name] : subcommand?.service?.[name] ?? subcommand?.profile?.[name];
  return option && envOf(name, option);
}

/** `-V, --verbose [boolean]` */
export function usageOf(name: string, { kind, short }: Option): string {
  return `${short === undefined ? "" : `-${short}, `}${flagOf(name)} ${kind === "boolean" ? "[boolean]" : `<${kind}>`}`;
}

/** @param known all flags of the command */
function createFlag(name: string, definition: Option, parsed: ParsedCommandLine, known: Options, env: string | undefined): Flag {
  const { flags } = parsed;
  const flag = new Flag(usageOf(name, definition), helpText(definition, env));
  flag.argParser((text: string) => {
    // as with an unset variable of a shell: --name $UNSET --other
    const [, next] = /^--([^=]+)/.exec(text) ?? [];
    if (next !== undefined && Object.hasOwn(known, next)) {
      throw new ConfigError(`option '${flagOf(name)}' has no value: ${flagOf(next)} follows it`);
    }
    // a boolean flag before an operand has no value
    const { command } = parsed;
    if (definition.kind === "boolean" && "run" in command && command.operands && !/^(?:[01tf]|true|false)$/i.test(text)) {
      parsed.operands.push(text);
      flags.set(name, "true");
      return text;
    }
    const separator = separatorOf(definition);
    const before = separator === undefined ? undefined : flags.get(name);
    flags.set(name, before === undefined ? text : `${before}${separator}${text}`);
    return text;
  });
  return definition.kind === "boolean" ? flag.preset("true") : flag;
}

/** The description of an option in help and manual. */
export function helpText(option: Option, env: string | undefined): string {
  const { choices, default: value } = option;
  const parts = [describeOption(option)];
  if (choices) parts.push(`One of ${choices.join(", ")}.`);
  const notes: string[] = [];
  if (value !== undefined) notes.push(`default ${value}`);
  if (env !== undefined) notes.push(`env ${env}`);
  if (notes.length > 0) parts.push(`(${notes.join(", ")})`);
  return parts.join(" ");
}

/** Describes an error on one line, without the value of an unknown option: it may be a secret. */
function describeParserError({ code, message }: CommanderError, command: Command, { family }: Executable, args: readonly string[]): string {
  const commands = (command.commands ?? []).map(({ name }) => name);
  const [, flag] = /unknown option '([^'=]*)/.exec(message) ?? [];
  if (code === "commander.unknownOption" && flag !== undefined) {
    const owners = Object.entries(family).filter(([, options]) => flag.slice(2) in options).map(([name]) => name);
    const hint = owners.length > 0
      ? `; it is an option of ${owners.join(" and ")}`
      : didYouMean(flag, [...Object.keys(flagsOf(command)), "help"].map(flagOf));
    return `unknown option '${flag}'${hint}`;
  }
  if (code === "commander.help") return `a command is required: ${commands.join(", ")}; see --help`;
  const [, word] = /unknown command '([^']*)'/.exec(message) ?? /too many arguments.*?: (.*?)(?:, .*)?\.$/.exec(message) ?? [];
  if (word !== undefined) {
    // it may be part of a secret value: the value itself, or the rest of one with unquoted spaces
    const flags = args.slice(0, args.indexOf(word)).map((arg) => arg.split("=")[0]!);
    const before = flags.findLast((flag) => flag.startsWith("--"));
    if (before !== undefined && command.options?.[before.slice(2)]?.secret) return `unknown argument after ${before}`;
    if (!isLoggable(word)) return "unknown argument, which is long or a token and is not shown";
    return `unknown argument '${word}'${didYouMean(word, commands)}`;
  }
  return message.replace(/^error: /, "").replace(/\n/g, " ");
}

/** The configuration file to read, and others that exist. */
interface ConfigFiles {
  readonly file?: string;
  /** Existing files that are not read. */
  readonly ignored: readonly string[];
}

const EXTENSIONS = ["yaml", "yml", "json"];

/**
 * Finds the configuration file. The user's file takes precedence over the system's.
 * @throws {ConfigError} if the system's file cannot be accessed
 */
function findConfig(home: string | undefined): ConfigFiles {
  const user = home ? EXTENSIONS.map((extension) => `${home}/.reverse-http.${extension}`).filter(exists) : [];
  const system = EXTENSIONS.map((extension) => `/etc/reverse-http/config.${extension}`).filter((file) => {
    try {
      return statSync(file, { throwIfNoEntry: false }) !== undefined;
    } catch (cause) {
      if (user.length > 0) return false;
      throw new ConfigError(`Cannot read the configuration file ${file}: ${describeFileError(cause)}`, { cause });
    }
  });
  const [file, ...ignored] = [...user, ...system];
  return { file, ignored };
}

/** `false` in a home directory that is not readable: sudo(8) keeps the variable, so it may be another user's. */
function exists(file: string): boolean {
  try {
    return statSync(file, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return false;
  }
}

/** Limit on a configuration file, in bytes. */
const MAX_CONFIG = 16 * 1024 * 1024;

function readText(file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readBytesSync(file, MAX_CONFIG));
  } catch (cause) {
    const reason = cause instanceof TypeError ? "it is not UTF-8" : describeFileError(cause);
    throw new ConfigError(`Cannot read the configuration file ${file}: ${reason}`, { cause });
  }
}

/** Formats one line per option in shell syntax, with its origin. */
function printSettings(options: Options, { settings }: Resolved): string {
  const lines = [...settings].map(([name, { text, origin }]) =>
    `${text === "" ? "# " : ""}${flagOf(name)}=${redact(text, options[name]!)}  # ${origin}` // unset options are commented out
  );
  return `${lines.join("\n")}\n`;
}

function redact(text: string, option: Option): string {
  const shown = hideSecret(text, option);
  return shown === text && text !== "" ? shellWord(text) : shown;
}
