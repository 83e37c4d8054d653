// The commands `service …`: install a role as a service of systemd or launchd, from a join string or a configuration file.
import { execFile } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { homedir, platform, userInfo } from "node:os";
import { resolve as resolvePath } from "node:path";
import { stringify } from "yaml";
import { readConfig } from "../../config/file.ts";
import { joinProblem, readJoin } from "../../config/join.ts";
import { ConfigError, defineOptions, flagOf, type Options, type ValuesOf } from "../../config/option.ts";
import { resolve } from "../../config/sources.ts";
import { describeFileError, readTextSync } from "../../files/read.ts";
import { CommandFailure, type Group, type Subcommand, type Terminal } from "../command.ts";
import { applyChanges, type Change, changesFiles, type Ran } from "./changes.ts";
import { type Machine, MARK, type Place, placeOf, ROLES } from "./place.ts";
import type { SecretFile } from "./systemd.ts";

const SECRET = 0o600;

const commonOptions = defineOptions({
  "role": { kind: "string", default: "agent", choices: ROLES, description: "Role of the service." },
  "name": {
    kind: "string",
    description: "Name of the service, unique for its role; by default the agent's id in --join.",
    check: (name) => /^[\w.-]{1,64}$/.test(name) ? undefined : "it has other characters than letters, digits, _, . and -, or more than 64",
  },
  "user": { kind: "boolean", description: "Use the service manager of this user, not the system's." },
  "dry-run": { kind: "boolean", description: "Only print what would change." },
  "root": {
    kind: "file",
    description: "Folder of another system, such as an image, which is changed instead of this one; nothing is started.",
  },
});

const installOptions = defineOptions({
  "join": {
    kind: "string",
    description: "Join string for an agent, - for standard input, or file:NAME; other users see the command line.",
    check: (text) => text === "-" ? undefined : joinProblem(text, "agent"),
  },
  "config": { kind: "file", description: "Instead of a join string: configuration file, of which the service gets a copy." },
  ...commonOptions,
  "executable": { kind: "file", description: "Path of reverse-http for the service; by default that of this process." },
  "run-as": { kind: "string", description: "User of a system service of launchd; by default the one who called sudo." },
});

type InstallValues = ValuesOf<typeof installOptions>;
type CommonValues = ValuesOf<typeof commonOptions>;

/** Dependencies of the commands. */
export interface ServiceDeps {
  /** The options of every service, by role. */
  readonly family: Readonly<Record<string, Options>>;
  /** Runs a command. Default: as a child process. */
  readonly run?: (command: readonly string[]) => Promise<Ran>;
  /** Default: that of this system. */
  readonly manager?: Machine["manager"];
}

/** The command group `service`. */
export function serviceCommand(deps: ServiceDeps): Group {
  const install: Subcommand<InstallValues> = {
    name: "install",
    description: "Install and start a service, from a join string or a configuration file. Repeat it to change one.",
    options: installOptions,
    run: (values, terminal) => installService(values, terminal, deps),
  };
  const uninstall: Subcommand<CommonValues> = {
    name: "uninstall",
    description: "Stop a service, and remove the files that install has written.",
    options: commonOptions,
    run: (values, terminal) => uninstallService(values, terminal, deps),
  };
  const status: Subcommand<CommonValues> = {
    name: "status",
    description: "Print whether a service is installed and runs: exit code 0 if it does, else 1.",
    options: commonOptions,
    run: (values, terminal) => printStatus(values, terminal, deps),
  };
  return {
    name: "service",
    description: "Run a role as a service of systemd or launchd.",
    commands: [install as Subcommand, uninstall as Subcommand, status as Subcommand],
  };
}

async function installService(values: InstallValues, terminal: Terminal, deps: ServiceDeps): Promise<void> {
  const { join: given, role, config, dryRun } = values;
  const { run = runCommand, family } = deps;
  if ((given === undefined) === (config === undefined)) throw new ConfigError("Cannot install: one of --join and --config is required");
  if (given !== undefined && role !== "agent") throw new ConfigError(`Cannot use --join: the role is ${role}; write --config`);
  const isOnCommandLine = given !== undefined && given !== "-" && !given.startsWith("file:");
  if (isOnCommandLine) terminal.report("warning: other users could see the string on the command line; --join=- reads standard input");
  const text = given === "-" ? (await terminal.read()).trim() : given;
  const invitation = text === undefined ? undefined : readJoin(text, "agent");
  const name = values.name ?? nameOf(invitation?.agentId);
  const place = placeFor({ ...values, name }, terminal, deps);
  const content = invitation === undefined
    ? readFile(config!, "--config")
    : stringify({ join: text!.startsWith("file:") ? readFile(text!.slice("file:".length), "--join").trim() : text });
  const secrets = values.user ? [] : secretFiles(family[role]!, { name: config ?? "--join", text: content }, family);
  refuseForeign(place);
  if (config !== undefined) await checkWhereItRuns(values.executable ?? terminal.executable!, role, config, run);
  const files: Change[] = [
    { kind: "write", file: place.config, text: content, mode: SECRET, folderMode: 0o700 },
    { kind: "write", file: place.unit, text: place.render(secrets), mode: 0o644 },
  ];
  const isChanged = changesFiles(files);
  const context = { run, say: (line: string) => terminal.write(`${line}\n`), isDry: dryRun };
  await applyChanges([...files, ...place.start(isChanged)], context);
  for (const { option, file } of secrets) {
    terminal.report(`${file} is handed over for ${flagOf(option)} at each start: restart the service when it changes`);
  }
  if (values.user && place.id.endsWith(".service")) {
    terminal.report("it runs while you are logged in; loginctl enable-linger lets it run always");
  }
  terminal.write(`${dryRun ? "would be" : "is"} installed as ${place.id}\n`);
}

async function uninstallService(values: CommonValues, terminal: Terminal, deps: ServiceDeps): Promise<void> {
  const { run = runCommand } = deps;
  const place = placeFor({ ...values, name: nameOf(values.name) }, terminal, deps);
  if (!existsSync(place.unit) && !existsSync(place.config)) return terminal.write(`nothing to remove: ${place.id} is not installed\n`);
  refuseForeign(place);
  const { before, after } = place.stop();
  const files: Change[] = [{ kind: "remove", file: place.unit }, { kind: "remove", file: place.config }];
  const context = { run, say: (line: string) => terminal.write(`${line}\n`), isDry: values.dryRun };
  await applyChanges([...before, ...files, ...after], context);
}

async function printStatus(values: CommonValues, { write, env }: Terminal, deps: ServiceDeps): Promise<void> {
  const { run = runCommand } = deps;
  const place = placeFor({ ...values, name: nameOf(values.name) }, { env }, deps);
  if (!existsSync(place.unit)) throw new CommandFailure(1, `${place.id} is not installed`);
  write(`${place.unit}\n${place.config}\n`);
  let isRunning = true;
  for (const command of place.state) {
    const { code, output } = await run(command);
    write(`${command.join(" ")}: ${output.trim().split("\n")[0] ?? ""}\n`);
    isRunning &&= code === 0;
  }
  if (!isRunning) throw new CommandFailure(1, `${place.id} does not run`);
}

/** @throws {ConfigError} if the name is missing or cannot be one */
function nameOf(name: string | undefined): string {
  if (name === undefined) throw new ConfigError("Cannot name the service: --name is required");
  const plain = name.replace(/[^\w.-]+/g, "-").slice(0, 64);
  if (plain !== name && /^-*$/.test(plain)) throw new ConfigError(`Cannot name the service after ${JSON.stringify(name)}: set --name`);
  return plain;
}

type PlaceValues = CommonValues & { readonly name: string; readonly executable?: string; readonly runAs?: string };

/** @throws {ConfigError} if there is no service manager, or no executable for it */
function placeFor(values: PlaceValues, terminal: Pick<Terminal, "env" | "executable">, deps: ServiceDeps): Place {
  const { role, name, user: isOfUser, root } = values;
  const manager = deps.manager ?? (platform() === "darwin" ? "launchd" : "systemd");
  const { env } = terminal;
  if (root === undefined && deps.run === undefined && manager === "systemd" && !existsSync("/run/systemd/system")) {
    throw new ConfigError(
      `Cannot use systemd: it does not run here, as in most containers; start reverse-http ${role} as the command of the container, or use --root`,
    );
  }
  const executable = values.executable ?? terminal.executable;
  if ("executable" in values || executable !== undefined) refuseHidden(executable, isOfUser);
  const machine: Machine = {
    manager,
    isOfUser,
    root,
    home: env.HOME || homedir(),
    uid: userInfo().uid,
    runAs: isOfUser ? undefined : values.runAs ?? env.SUDO_USER,
  };
  return placeOf({ role, name, executable: executable ?? "" }, machine);
}

/** The sandbox of a system service hides home directories and temporary ones. @throws {ConfigError} */
function refuseHidden(executable: string | undefined, isOfUser: boolean): void {
  if (executable === undefined) throw new ConfigError("Cannot install: this is no executable of its own; name one with --executable");
  if (isOfUser || !/^\/(?:home|root|tmp|var\/tmp)\//.test(executable)) return;
  throw new ConfigError(
    `Cannot install ${executable} as a system service, which sees no home and no temporary folders; move it to /usr/local/bin`,
  );
}

/** @throws {ConfigError} for a unit that this command has not written */
function refuseForeign({ unit }: Place): void {
  if (!existsSync(unit) || readFile(unit, "").includes(MARK)) return;
  throw new ConfigError(`Cannot change ${unit}: another program wrote it; choose another --name`);
}

/** Limit on a configuration, in bytes. */
const MAX_FILE = 16 * 1024 * 1024;

/** @throws {ConfigError} */
function readFile(file: string, option: string): string {
  try {
    return readTextSync(file, MAX_FILE);
  } catch (cause) {
    throw new ConfigError(`Cannot read ${option === "" ? "" : `${option} `}${file}: ${describeFileError(cause)}`, { cause });
  }
}

/**
 * The files that the configuration names and other users than their owner cannot read; the service has a user of its own.
 * @throws {ConfigError} for a configuration that cannot be used, and a relative file name
 */
function secretFiles(options: Options, config: { name: string; text: string }, family: ServiceDeps["family"]): SecretFile[] {
  const { settings } = resolve(options, { flags: new Map(), env: {}, file: readConfig(options, config, family) });
  return [...settings].flatMap(([option, { text, origin }]): SecretFile[] => {
    const definition = options[option]!;
    const isMarked = definition.secret === true && text.startsWith("file:");
    const file = isMarked ? text.slice("file:".length) : definition.kind === "file" ? text : "";
    if (file === "" || origin === "default" || option === "state-dir") return [];
    if (!file.startsWith("/")) {
      throw new ConfigError(`Cannot use ${flagOf(option)} ${file} (${origin}): a service has no current folder; write the whole path`);
    }
    const isReadable = existsSync(file) && (statSync(file).mode & 0o004) !== 0;
    return isReadable ? [] : [{ option, file, isMarked }];
  });
}

/**
 * Lets the executable check the configuration, in the folder in which services start.
 * @throws {ConfigError} with its message
 */
async function checkWhereItRuns(
  executable: string,
  role: string,
  config: string,
  run: (command: readonly string[]) => Promise<Ran>,
): Promise<void> {
  if (!existsSync(executable)) return; // it is in the other system
  const { code, output } = await run([executable, role, `--config=${resolvePath(config)}`, "--check-config"]);
  if (code !== 0) throw new ConfigError(`Cannot install ${config}: ${output.trim()}`);
}

/** Runs a command in the root folder, as services are. */
async function runCommand(command: readonly string[]): Promise<Ran> {
  const [file, ...args] = command as [string, ...string[]];
  return await new Promise((done) => {
    execFile(file, args, { cwd: "/", encoding: "utf8", timeout: 90_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1;
      done({ code, output: stdout + (stderr || (error !== null && code === 1 ? error.message : "")) });
    });
  });
}
