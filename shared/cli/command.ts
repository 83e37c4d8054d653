// A command line: commands, flags, help and version made of the definitions, and from there to values.
import { Command as Parser, CommanderError, Option as Flag } from "commander";
import { readFileSync, statSync } from "node:fs";
import { describeFileError } from "../files/read.ts";
import type { Logger } from "../log/logger.ts";
import type { Notify, Supervisor } from "../service/supervisor.ts";
import { readConfig } from "../config/file.ts";
import { checkEnvironment, didYouMean, resolve, type Resolved } from "../config/sources.ts";
import { ConfigError, defineOptions, envOf, flagOf, type Option, type Options, type ValuesOf } from "../config/option.ts";

/** What every command has. */
interface Described {
  /** The word that chooses it; of the outermost command, the executable's name. */
  readonly name: string;
  /** One sentence. */
  readonly description: string;
  readonly options?: Options;
  readonly commands?: readonly Command[];
}

/** Runs until it is told to stop. Its options come from the command line, the environment and the configuration file. */
export interface Service<Values = object> extends Described {
  readonly options: Options;
  /** Checks what the values name, files above all. */
  check(values: Values): Promise<void>;
  /** Resolves when it runs. `supervisor` is there where somebody wants to know how it is; that it is ready is told by the caller. */
  start(values: Values, log: Logger, supervisor?: Supervisor): Promise<Running>;
}

/** A service that runs. */
export interface Running {
  /** Longest time in milliseconds that {@link close} takes, about. */
  readonly closesWithinMs: number;
  /** Reads certificates, keys, and files of tokens again, without ending anything that they still allow. */
  reload(): Promise<void>;
  close(): Promise<void>;
}

/** Where an action reads and writes. */
export interface Terminal {
  /** Writes to standard output. */
  write(text: string): void;
  /** Standard input to its end. */
  read(): Promise<string>;
}

/** Does one thing and ends. Its options come from the command line alone. */
export interface Subcommand<Values = object> extends Described {
  /** Its options are those of a running service: they come from the environment and the configuration file too. */
  readonly asService?: boolean;
  run(values: Values, terminal: Terminal): Promise<void>;
}

/** Does nothing but hold others. */
export interface Group extends Described {
  readonly commands: readonly Command[];
}

export type Command = Service | Subcommand | Group;

/** An executable. */
export interface Executable {
  readonly root: Command;
  readonly version: string;
  /** The options of every service there is, by its name: one environment and one configuration file serve them all. */
  readonly family: Readonly<Record<string, Options>>;
  /** Reaches the service manager that has started the process, where one has. Default: nobody is told. */
  readonly notify?: Notify;
}

/** What the process was given. */
export interface Invocation {
  /** Without the executable. */
  args: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  /** For the configuration file in it. */
  home: string | undefined;
}

/** What is to be done. */
export type Task =
  | { do: "run" | "check"; service: Service; resolved: Resolved; files: FoundFiles }
  | { do: "act"; action: Subcommand; resolved: Resolved }
  | { do: "print"; text: string };

/** What the parser found. */
interface Found {
  /** The innermost command that was named. */
  command: Command;
  flags: Map<string, string>;
}

/** Flags that every service has besides its options. */
const SERVICE_FLAGS = defineOptions({
  "config": { kind: "file", description: "Configuration file, YAML or JSON." },
  "check-config": { kind: "boolean", description: "Check all options and the files they name, then exit." },
  "print-config": { kind: "boolean", description: "Print the effective options and where each was set, then exit." },
});

/** All flags of a command but for --help and --version, in the order in which they are shown. */
export function flagsOf(command: Command): Options {
  return "start" in command ? { ...command.options, ...SERVICE_FLAGS } : command.options ?? {};
}

/**
 * Reads a command line.
 * @throws {ConfigError} for a command, flag, key, variable or value that cannot be used
 */
export function readCommandLine(executable: Executable, { args, env, home }: Invocation): Task {
  const found: Found = { command: executable.root, flags: new Map() };
  let printed = "";
  const parser = createParser(executable.root, found, (text) => printed += text)
    .version(executable.version, "--version", "print the version");
  try {
    parser.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { do: "print", text: printed };
    throw new ConfigError(describeMistake(error, found.command, executable, args));
  }
  const { command, flags } = found;
  if ("run" in command && !command.asService) {
    return { do: "act", action: command, resolved: resolve(command.options ?? {}, { flags, env: {} }) };
  }
  if ("run" in command) {
    const options = command.options ?? {};
    return {
      do: "act",
      action: command,
      resolved: resolve(options, { flags, env, file: readSettings(options, findConfig(home).file, executable) }),
    };
  }
  if (!("start" in command)) throw new Error(`The command ${command.name} does nothing`); // the parser asks for one of its commands
  checkEnvironment(command.options, env, executable.family);
  const own = resolve(SERVICE_FLAGS, { flags, env: {} }).values as unknown as ValuesOf<typeof SERVICE_FLAGS>;
  const files: FoundFiles = own.config === undefined ? findConfig(home) : { file: own.config, ignored: [] };
  const resolved = resolve(command.options, { flags, env, file: readSettings(command.options, files.file, executable) });
  if (own.printConfig) return { do: "print", text: printSettings(command.options, resolved) };
  return { do: own.checkConfig ? "check" : "run", service: command, resolved, files };
}

/** What a configuration file says of `options`; `undefined` where there is none. */
function readSettings(options: Options, file: string | undefined, { family }: Executable): ReturnType<typeof readConfig> | undefined {
  return file === undefined ? undefined : readConfig(options, { name: file, text: readText(file) }, family);
}

/** The parser of a command and of those in it; tells `found` what it meets. */
function createParser(command: Command, found: Found, writeOut: (text: string) => void): Parser {
  const parser = new Parser(command.name)
    .description(command.description)
    .helpOption("-h, --help", "print this help")
    .configureHelp({ sortOptions: false, optionDescription: ({ description }) => description })
    .configureOutput({ writeOut, writeErr: () => {}, getOutHelpWidth: () => 120 })
    .allowExcessArguments(false)
    .exitOverride()
    .hook("preSubcommand", (_, inner) => {
      found.command = found.command.commands!.find(({ name }) => name === inner.name())!;
    });
  for (const [name, option] of Object.entries(flagsOf(command))) {
    parser.addOption(createFlag(name, option, found.flags, envIn(command, name)));
  }
  if ("start" in command || "run" in command) parser.action(() => {});
  for (const inner of command.commands ?? []) parser.addCommand(createParser(inner, found, writeOut));
  return parser;
}

/** `command` and all that are in it, each with the words that lead to it. */
export function* walkCommands(command: Command, path: readonly string[] = []): Generator<[path: readonly string[], command: Command]> {
  yield [path, command];
  for (const inner of command.commands ?? []) yield* walkCommands(inner, [...path, inner.name]);
}

/** The variable that sets an option of `command`; `undefined` where none does. */
export function envIn(command: Command, name: string): string | undefined {
  const option = "start" in command || ("run" in command && command.asService) ? command.options?.[name] : undefined;
  return option && envOf(name, option);
}

/** `-V, --verbose [boolean]` */
export function usageOf(name: string, { kind, short }: Option): string {
  return `${short === undefined ? "" : `-${short}, `}${flagOf(name)} ${kind === "boolean" ? "[boolean]" : `<${kind}>`}`;
}

function createFlag(name: string, definition: Option, flags: Map<string, string>, env: string | undefined): Flag {
  const flag = new Flag(usageOf(name, definition), helpText(definition, env));
  flag.argParser((text: string) => {
    const before = definition.kind === "list" ? flags.get(name) : undefined;
    flags.set(name, before === undefined ? text : `${before},${text}`);
    return text;
  });
  return definition.kind === "boolean" ? flag.preset("true") : flag;
}

/** What an option is, for whoever asks for help. */
export function helpText({ description, choices, default: value }: Option, env: string | undefined): string {
  const parts = [description];
  if (choices) parts.push(`One of ${choices.join(", ")}.`);
  const notes: string[] = [];
  if (value !== undefined) notes.push(`default ${value}`);
  if (env !== undefined) notes.push(`env ${env}`);
  if (notes.length > 0) parts.push(`(${notes.join(", ")})`);
  return parts.join(" ");
}

/** In one line, and without the value of an option that is unknown: it may be a misspelt secret. */
function describeMistake({ code, message }: CommanderError, command: Command, { family }: Executable, args: readonly string[]): string {
  const commands = (command.commands ?? []).map(({ name }) => name);
  const [, flag] = /unknown option '([^'=]*)/.exec(message) ?? [];
  if (code === "commander.unknownOption" && flag !== undefined) {
    const owners = Object.entries(family).filter(([, options]) => flag.slice(2) in options).map(([name]) => name);
    const hint = owners.length > 0
      ? `; it is an option of ${owners.join(" and ")}`
      : didYouMean(flag, [...Object.keys(flagsOf(command)), "help"].map(flagOf));
    return `unknown option '${flag}'${hint}`;
  }
  if (code === "commander.help") return `a command is needed: ${commands.join(", ")}; --help says more`;
  const [, word] = /unknown command '([^']*)'/.exec(message) ?? /too many arguments.*?: (.*?)(?:, .*)?\.$/.exec(message) ?? [];
  if (word !== undefined) {
    // it may be what belongs there: the value itself, or the rest of one with blanks and without quotes
    const flags = args.slice(0, args.indexOf(word)).map((arg) => arg.split("=")[0]!);
    const before = flags.findLast((flag) => flag.startsWith("--"));
    if (before !== undefined && command.options?.[before.slice(2)]?.secret) return `unknown argument after ${before}`;
    return `unknown argument '${word}'${didYouMean(word, commands)}`;
  }
  return message.replace(/^error: /, "").replace(/\n/g, " ");
}

/** The configuration file that is read where none is named, and those that are there besides. */
interface FoundFiles {
  readonly file?: string;
  /** They are not read. */
  readonly ignored: readonly string[];
}

const ENDINGS = ["yaml", "yml", "json"];

/**
 * The user's own file beats the machine's.
 * @throws {ConfigError} where it cannot be known whether the machine has one
 */
function findConfig(home: string | undefined): FoundFiles {
  const own = home ? ENDINGS.map((ending) => `${home}/.reverse-http.${ending}`).filter(isThere) : [];
  const shared = ENDINGS.map((ending) => `/etc/reverse-http/config.${ending}`).filter((file) => {
    try {
      return statSync(file, { throwIfNoEntry: false }) !== undefined;
    } catch (cause) {
      if (own.length > 0) return false;
      throw new ConfigError(`Cannot read the configuration file ${file}: ${describeFileError(cause)}`, { cause });
    }
  });
  const [file, ...ignored] = [...own, ...shared];
  return { file, ignored };
}

/** A home directory that this user may not read belongs to another user; sudo(8) keeps the variable. */
function isThere(file: string): boolean {
  try {
    return statSync(file, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return false;
  }
}

function readText(file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(file));
  } catch (cause) {
    const reason = cause instanceof TypeError ? "it is not UTF-8" : describeFileError(cause);
    throw new ConfigError(`Cannot read the configuration file ${file}: ${reason}`, { cause });
  }
}

/** One line an option, as it could stand in a shell, with its origin. */
function printSettings(options: Options, { settings }: Resolved): string {
  const lines = [...settings].map(([name, { text, origin }]) =>
    `${text === "" ? "# " : ""}${flagOf(name)}=${shown(text, options[name]!)}  # ${origin}` // what is not given is no option of a shell
  );
  return `${lines.join("\n")}\n`;
}

/** Of a secret in a file, its name is shown and no secret. */
function shown(text: string, { secret }: Option): string {
  if (secret && text !== "" && !text.startsWith("file:")) return "******";
  return /^[\w@%+=:,./-]*$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
