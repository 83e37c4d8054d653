// One executable's command line: flags, help and version made of the definitions, and from there to values.
import { Command, CommanderError, Option as Flag } from "@commander-js/extra-typings";
import { existsSync, readFileSync } from "node:fs";
import { didYouMean, resolve, type Resolved } from "./config.ts";
import { ConfigError, envOf, flagOf, type Options } from "./option.ts";

/** What an executable is, for its command line. */
export interface CommandDefinition {
  name: string;
  description: string;
  version: string;
  options: Options;
}

/** What the process was given. */
export interface Invocation {
  /** Without the executable. */
  args: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  /** For the configuration file in it. */
  home: string | undefined;
}

/** What is to be done: run with values, or print a text, or check the values and stop. */
export type Task = { do: "run" | "check"; resolved: Resolved } | { do: "print"; text: string };

/**
 * Reads a command line.
 * @throws {ConfigError} for a flag, key, variable or value that cannot be used
 */
export function readCommandLine(definition: CommandDefinition, { args, env, home }: Invocation): Task {
  const flags = new Map<string, string>();
  const own: { config?: string; check: boolean; print: boolean } = { check: false, print: false };
  const command = createCommand(definition, flags)
    .option("--config <file>", "configuration file, YAML or JSON", (file) => own.config = file)
    .option("--check-config", "check all options and the files they name, then exit", () => own.check = true)
    .option("--print-config", "print the effective options and where each was set, then exit", () => own.print = true);
  let printed = "";
  command.configureOutput({ writeOut: (text) => printed += text, writeErr: () => {}, getOutHelpWidth: () => 120 });
  try {
    command.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { do: "print", text: printed };
    throw new ConfigError(describeMistake(error, command.options.map(({ long }) => long!)));
  }
  const file = own.config ?? findConfig(home);
  const resolved = resolve(definition.options, {
    flags,
    env,
    file: file === undefined ? undefined : { name: file, text: readConfig(file) },
  });
  if (own.print) return { do: "print", text: printSettings(definition.options, resolved) };
  return { do: own.check ? "check" : "run", resolved };
}

function createCommand({ name, description, version, options }: CommandDefinition, flags: Map<string, string>): Command {
  const command = new Command(name)
    .description(description)
    .version(version, "--version", "print the version")
    .helpOption("-h, --help", "print this help")
    .configureHelp({ sortOptions: false })
    .allowExcessArguments(false)
    .exitOverride();
  for (const [option, definition] of Object.entries(options)) {
    const value = definition.kind === "boolean" ? "[boolean]" : `<${definition.kind}>`;
    const flag = new Flag(`${flagOf(option)} ${value}`, helpText(option, definition)).argParser((text: string) => {
      const before = definition.kind === "list" ? flags.get(option) : undefined;
      flags.set(option, before === undefined ? text : `${before},${text}`);
      return text;
    });
    if (definition.kind === "boolean") flag.preset("true");
    command.addOption(flag);
  }
  return command;
}

function helpText(name: string, definition: Options[string]): string {
  const parts = [definition.description];
  if (definition.choices) parts.push(`One of ${definition.choices.join(", ")}.`);
  if (definition.notBuilt) parts.push("Not built yet.");
  const notes = [definition.default === undefined ? [] : [`default ${definition.default}`], [`env ${envOf(name, definition)}`]].flat();
  return `${parts.join(" ")} (${notes.join(", ")})`;
}

/** In one line, and without the value of an option that is unknown: it may be a misspelt secret. */
function describeMistake({ code, message }: CommanderError, known: string[]): string {
  const [, flag] = /unknown option '([^'=]*)/.exec(message) ?? [];
  if (code === "commander.unknownOption" && flag !== undefined) return `unknown option '${flag}'${didYouMean(flag, known)}`;
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

function readConfig(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new ConfigError(`Cannot read the configuration file: ${(cause as Error).message}`, { cause });
  }
}

/** One line an option, as it could stand on a command line, with its origin. */
function printSettings(options: Options, { settings }: Resolved): string {
  const lines = [...settings].map(([name, { text, origin }]) =>
    `${flagOf(name)}=${options[name]!.secret && text !== "" ? "******" : text}  # ${origin}`
  );
  return `${lines.join("\n")}\n`;
}
