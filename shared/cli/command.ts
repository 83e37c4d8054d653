// A command line: commands, flags, help and version made of the definitions, and from there to values.
import { Command as Parser, CommanderError, Option as Flag } from "commander";
import { existsSync, readFileSync } from "node:fs";
import type { Logger } from "../log.ts";
import { readConfig } from "./config_file.ts";
import { checkEnvironment, didYouMean, resolve, type Resolved } from "./config.ts";
import { ConfigError, envOf, flagOf, type Options } from "./option.ts";

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
  /** Resolves when it runs. */
  start(values: Values, log: Logger): Promise<{ close(): Promise<void> }>;
}

/** Where an action reads and writes. */
export interface Terminal {
  /** Writes to standard output. */
  write(text: string): void;
  /** Standard input to its end. */
  read(): Promise<string>;
}

/** Does one thing and ends. Its options come from the command line alone. */
export interface Action<Values = object> extends Described {
  act(values: Values, terminal: Terminal): Promise<void>;
}

/** Does nothing but hold others. */
export interface Group extends Described {
  readonly commands: readonly Command[];
}

export type Command = Service | Action | Group;

/** An executable. */
export interface Executable {
  readonly root: Command;
  readonly version: string;
  /** The options of every service there is, by its name: one environment and one configuration file serve them all. */
  readonly family: Readonly<Record<string, Options>>;
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
  | { do: "run" | "check"; service: Service; resolved: Resolved }
  | { do: "act"; action: Action; resolved: Resolved }
  | { do: "print"; text: string };

/** What the parser found. */
interface Found {
  /** The innermost command that was named. */
  command: Command;
  flags: Map<string, string>;
  config?: string;
  check: boolean;
  print: boolean;
}

/**
 * Reads a command line.
 * @throws {ConfigError} for a command, flag, key, variable or value that cannot be used
 */
export function readCommandLine(executable: Executable, { args, env, home }: Invocation): Task {
  const found: Found = { command: executable.root, flags: new Map(), check: false, print: false };
  let printed = "";
  const parser = createParser(executable.root, found, (text) => printed += text)
    .version(executable.version, "--version", "print the version");
  try {
    parser.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { do: "print", text: printed };
    throw new ConfigError(describeMistake(error, found.command, executable));
  }
  const { command, flags } = found;
  if ("act" in command) return { do: "act", action: command, resolved: resolve(command.options ?? {}, { flags, env: {} }) };
  if (!("start" in command)) throw new Error(`The command ${command.name} does nothing`); // the parser asks for one of its commands
  checkEnvironment(command.options, env, executable.family);
  const file = found.config ?? findConfig(home);
  const settings = file === undefined ? undefined : readConfig(command.options, { name: file, text: readText(file) }, executable.family);
  const resolved = resolve(command.options, { flags, env, file: settings });
  if (found.print) return { do: "print", text: printSettings(command.options, resolved) };
  return { do: found.check ? "check" : "run", service: command, resolved };
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
  const fromCommandLineOnly = !("start" in command);
  for (const [option, definition] of Object.entries(command.options ?? {})) {
    parser.addOption(createFlag(option, definition, fromCommandLineOnly, found.flags));
  }
  if ("start" in command) {
    parser
      .option("--config <file>", "configuration file, YAML or JSON", (file) => found.config = file)
      .option("--check-config", "check all options and the files they name, then exit", () => found.check = true)
      .option("--print-config", "print the effective options and where each was set, then exit", () => found.print = true);
  }
  if ("start" in command || "act" in command) parser.action(() => {});
  for (const inner of command.commands ?? []) parser.addCommand(createParser(inner, found, writeOut));
  return parser;
}

function createFlag(name: string, definition: Options[string], fromCommandLineOnly: boolean, flags: Map<string, string>): Flag {
  const value = definition.kind === "boolean" ? "[boolean]" : `<${definition.kind}>`;
  const short = definition.short === undefined ? "" : `-${definition.short}, `;
  const flag = new Flag(`${short}${flagOf(name)} ${value}`, helpText(name, definition, fromCommandLineOnly));
  flag.argParser((text: string) => {
    const before = definition.kind === "list" ? flags.get(name) : undefined;
    flags.set(name, before === undefined ? text : `${before},${text}`);
    return text;
  });
  return definition.kind === "boolean" ? flag.preset("true") : flag;
}

function helpText(name: string, definition: Options[string], fromCommandLineOnly: boolean): string {
  const parts = [definition.description];
  if (definition.choices) parts.push(`One of ${definition.choices.join(", ")}.`);
  if (definition.notBuilt) parts.push("Not built yet.");
  const notes: string[] = [];
  if (definition.default !== undefined) notes.push(`default ${definition.default}`);
  if (!fromCommandLineOnly) notes.push(`env ${envOf(name, definition)}`);
  if (notes.length > 0) parts.push(`(${notes.join(", ")})`);
  return parts.join(" ");
}

/** In one line, and without the value of an option that is unknown: it may be a misspelt secret. */
function describeMistake({ code, message }: CommanderError, command: Command, { family }: Executable): string {
  const commands = (command.commands ?? []).map(({ name }) => name);
  const [, flag] = /unknown option '([^'=]*)/.exec(message) ?? [];
  if (code === "commander.unknownOption" && flag !== undefined) {
    const known = [...Object.keys(command.options ?? {}), ..."start" in command ? ["config", "check-config", "print-config"] : []];
    const owners = Object.entries(family).filter(([, options]) => flag.slice(2) in options).map(([name]) => name);
    const hint = owners.length > 0 ? `; it is an option of ${owners.join(" and ")}` : didYouMean(flag, known.map(flagOf));
    return `unknown option '${flag}'${hint}`;
  }
  if (code === "commander.help") return `a command is needed: ${commands.join(", ")}; --help says more`;
  const [, word] = /unknown command '([^']*)'/.exec(message) ?? /too many arguments.*?: ([^,]*)/.exec(message) ?? [];
  if (word !== undefined) {
    return `unknown argument '${word.replace(/\.$/, "")}'${didYouMean(word, commands)}`;
  }
  return message.replace(/^error: /, "").replace(/\n/g, " ");
}

/** The user's own file beats the machine's. */
function findConfig(home: string | undefined): string | undefined {
  const files = [
    ...home === undefined ? [] : [`${home}/.reverse-http.yaml`, `${home}/.reverse-http.json`],
    "/etc/reverse-http/config.yaml",
    "/etc/reverse-http/config.json",
  ];
  return files.find((file) => existsSync(file));
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new ConfigError(`Cannot read the configuration file: ${(cause as Error).message}`, { cause });
  }
}

/** One line an option, as it could stand in a shell, with its origin. */
function printSettings(options: Options, { settings }: Resolved): string {
  const lines = [...settings].map(([name, { text, origin }]) => `${flagOf(name)}=${shown(text, options[name]!)}  # ${origin}`);
  return `${lines.join("\n")}\n`;
}

/** Of a secret in a file, its name is shown and no secret. */
function shown(text: string, { secret }: Options[string]): string {
  if (secret && text !== "" && !text.startsWith("file:")) return "******";
  return /^[\w@%+=:,./-]*$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
