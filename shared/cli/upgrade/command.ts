// The command `upgrade`: replaces this executable by another release, and lets its running services hand over to it.
import { realpath } from "node:fs/promises";
import { BUILD } from "../../build.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../../config/option.ts";
import { describeFileError, describeWriteError, readText } from "../../files/read.ts";
import { messageOf } from "../../log/error_message.ts";
import { printable } from "../../net/printable.ts";
import { CommandFailure, type Executable, type Subcommand, type Terminal } from "../command.ts";
import { type Owner, ownerOf } from "./package_manager.ts";
import { compareVersions, isVersion, ReleaseServer, REPOSITORY } from "./release.ts";
import { Candidate, previousOf, restore } from "./replacement.ts";
import { type Run, runCommand } from "./run_command.ts";
import { findServices, type RunningService } from "./services.ts";
import { requestSuccessor } from "./takeover.ts";

/** Exit code of --check if there is a newer release. */
const NEWER = 3;

const MAX_TRUSTED_ROOT = 1 << 20;
/** Maximum length of a new executable's output that is shown, in characters. */
const MAX_SHOWN = 500;

const options = defineOptions({
  "version": {
    kind: "string",
    description: "Install this release, such as 1.2.3; by default the latest.",
    check: (text) => isVersion(text.replace(/^v/, "")) ? undefined : "it is not a version such as 1.2.3",
  },
  "check": { kind: "boolean", description: `Only print whether there is a newer release: exit code ${NEWER} if there is one, 0 if not.` },
  "dry-run": { kind: "boolean", description: "Only print what would be done." },
  "allow-downgrade": { kind: "boolean", description: "Install an earlier release than this one, too." },
  "rollback": { kind: "boolean", description: "Return to the executable that the last upgrade has replaced." },
  "handover.socket": {
    kind: "list",
    description: "Sockets at which running services hand over, besides those that are found; on macOS none are found.",
  },
  "keep-running": { kind: "boolean", description: "Leave running services as they are." },
  "base-url": {
    kind: "string",
    description: "URL of a mirror with the layout of the releases; by default INSTALL_BASE_URL, as of install.sh, or that of the project.",
    check: (text) => /^https?:$/.test(URL.parse(text)?.protocol ?? "") ? undefined : "it is no URL with http or https",
  },
  "trusted-root": {
    kind: "file",
    description: "File with Sigstore's authorities, trusted_root.json; by default those at the time of this release.",
  },
});

type Values = ValuesOf<typeof options>;

/** The command's access to this machine. */
export interface UpgradeDeps {
  readonly run: Run;
  /** The platform of this executable, as in the names of archives. */
  readonly platform: string;
  /** Finds the running services of an executable. */
  readonly find: (file: string) => Promise<RunningService[]>;
  readonly requestSuccessor: typeof requestSuccessor;
}

/** @param given replaces parts of that access */
export function upgradeCommand(executable: Executable, given: Partial<UpgradeDeps> = {}): Subcommand<Values> {
  const find = (file: string) => findServices(executable, file, runCommand);
  const deps: UpgradeDeps = { run: runCommand, platform: BUILD.platform, find, requestSuccessor, ...given };
  return {
    name: "upgrade",
    description: "Replace this executable by the latest release, and let its running services hand over to it.",
    options,
    run: (values, terminal) => upgrade(values, terminal, executable, deps),
  };
}

async function upgrade(values: Values, terminal: Terminal, executable: Executable, deps: UpgradeDeps): Promise<void> {
  const { root: { name }, version: current } = executable;
  const say = (line: string) => terminal.write(`${line}\n`);
  if (terminal.executable === undefined || deps.platform === "unknown") {
    throw new ConfigError("Cannot upgrade: this is no executable of a release, but runs from the sources");
  }
  const file = await realpath(terminal.executable);
  const stopped = new AbortController();
  void terminal.stopped().then(() => stopped.abort(new Error("it was stopped")));
  const base = (values.baseUrl ?? (terminal.env.INSTALL_BASE_URL || `${REPOSITORY}/releases`)).replace(/\/+$/, "");
  const server = new ReleaseServer({
    base,
    trustedRoot: values.trustedRoot === undefined ? undefined : await readTrustedRoot(values.trustedRoot),
    signal: stopped.signal,
  });
  const release = values.rollback ? undefined : await server.find(values.version?.replace(/^v/, ""));
  const wanted = release?.version ?? "the previous one";
  const order = release === undefined ? 1 : compareVersions(release.version, current);
  const owner = await ownerOfCopy(file, { version: wanted, base }, deps);
  if (values.check) {
    if (order <= 0) return say(`${name} ${current} is the latest release`);
    throw new CommandFailure(NEWER, `${name} ${wanted} is available: ${owner ? owner.command : `${name} upgrade`}; this is ${current}`);
  }
  if (order === 0) return say(`${name} ${current} is installed already`);
  if (owner) throw new ConfigError(`Cannot upgrade ${file}: it is of ${owner.name}; to get ${wanted}: ${owner.command}`);
  if (order < 0 && !values.allowDowngrade) {
    throw new ConfigError(`Cannot upgrade to ${wanted}: it is earlier than ${current}; --allow-downgrade installs it nevertheless`);
  }
  const services = values.keepRunning ? [] : [
    ...await deps.find(file),
    ...values.handover.socket.map((socket): RunningService => ({ name: `the service at ${socket}`, socket })),
  ];
  if (values.dryRun) {
    say(`would replace ${file} ${current} by ${wanted}`);
    for (const { name, problem } of services) say(problem === undefined ? `${name} would hand over` : `${name} would go on: ${problem}`);
    return;
  }
  try {
    await using candidate = release === undefined
      ? await Candidate.previous(file)
      : await Candidate.write(file, await server.executable(release, name, deps.platform));
    await checkStart(candidate.file, release?.version, deps.run);
    stopped.signal.throwIfAborted();
    await candidate.replace(file);
  } catch (error) {
    throw describeFailure(error, file, values);
  }
  say(`${file} is replaced by ${wanted}; ${previousOf(file)} is the one before`);
  await handOver(services, { file, say, deps });
}

async function readTrustedRoot(file: string): Promise<string> {
  try {
    return await readText(file, MAX_TRUSTED_ROOT);
  } catch (cause) {
    throw new ConfigError(`Cannot use --trusted-root ${file}: ${describeFileError(cause)}`, { cause });
  }
}

async function ownerOfCopy(
  file: string,
  { version, base }: { version: string; base: string },
  deps: UpgradeDeps,
): Promise<Owner | undefined> {
  const [, arch = "amd64"] = /_(\w+?)(?:_musl)?$/.exec(deps.platform) ?? [];
  const image = REPOSITORY.replace("https://github.com", "ghcr.io");
  return await ownerOf(file, { version, arch, url: `${base}/download/v${version}`, image }, deps.run);
}

/** @throws {Error} if it does not start, or is of another version */
async function checkStart(file: string, version: string | undefined, run: Run): Promise<void> {
  const { code, stdout, stderr } = await run([file, "--version"]);
  const printed = printable(stdout.trim(), MAX_SHOWN);
  if (code !== 0) throw new Error(`Cannot run the new executable on this machine: ${printable(stderr.trim(), MAX_SHOWN)}`);
  if (version !== undefined && printed !== version) throw new Error(`Cannot use the new executable: it says that it is ${printed}`);
}

function describeFailure(error: unknown, file: string, { rollback }: Values): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (rollback && code === "ENOENT") return new ConfigError(`Cannot roll back: ${previousOf(file)} does not exist`);
  if (typeof code !== "string") return error;
  const remedy = code === "EACCES" || code === "EPERM" ? "; run it as the owner of the folder, with sudo" : "";
  return new Error(`Cannot replace ${file}: ${describeWriteError(error)}${remedy}`, { cause: error });
}

/**
 * Lets each service hand over. If one does not, the executable is put back, and those that have handed over do it once more.
 * @throws {Error} after that
 */
async function handOver(
  services: readonly RunningService[],
  { file, say, deps }: { file: string; say: (line: string) => void; deps: UpgradeDeps },
): Promise<void> {
  const done: RunningService[] = [];
  for (const service of services) {
    const { name, socket, problem } = service;
    if (socket === undefined) {
      say(`${name} still runs the one before: ${problem}; restart it`);
      continue;
    }
    try {
      const { pid, version } = await deps.requestSuccessor(socket);
      done.push(service);
      say(`${name} has handed over to process ${pid ?? "?"} of ${version}`);
    } catch (cause) {
      await restore(file);
      for (const { name, socket } of done) {
        await deps.requestSuccessor(socket!).then(() => say(`${name} has returned`), (error) => say(`${name}: ${messageOf(error)}`));
      }
      throw new Error(`Cannot upgrade ${name}, which goes on as before: ${messageOf(cause)}; the executable is the one before again`, {
        cause,
      });
    }
  }
}
