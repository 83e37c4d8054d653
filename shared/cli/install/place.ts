// Where the files of an installed service are, and what starts it: systemd or launchd, of the system or of a user.
import { join } from "node:path";
import type { Change } from "./changes.ts";
import { renderJob } from "./launchd.ts";
import { renderUnit, type SecretFile } from "./systemd.ts";

export const ROLES = ["agent", "proxy", "lb"] as const;

/** The service to install. */
export interface Installation {
  readonly role: (typeof ROLES)[number];
  readonly name: string;
  readonly executable: string;
}

/** The system that is changed. */
export interface Machine {
  readonly manager: "systemd" | "launchd";
  /** Whether the service is the user's, and not the system's. */
  readonly isOfUser: boolean;
  /** Home directory of the user. */
  readonly home: string;
  /** Id of the user. */
  readonly uid: number;
  /** Folder of another system, such as an image, in which nothing is started. Default: this system. */
  readonly root?: string;
  /** User of a service of launchd. Default: root. */
  readonly runAs?: string;
}

/** The files and commands of a service. */
export interface Place {
  /** Name of the unit or label of the job. */
  readonly id: string;
  /** The unit or property list. */
  readonly unit: string;
  /** Its configuration, which only the service reads. */
  readonly config: string;
  /** The text of {@link unit}. */
  render(secrets: readonly SecretFile[]): string;
  /** Commands after the files were written. */
  start(isChanged: boolean): Change[];
  /** Commands before the files are removed, and after. */
  stop(): { readonly before: Change[]; readonly after: Change[] };
  /** The commands that say whether it is enabled, and runs. */
  readonly state: readonly (readonly string[])[];
}

/** In the first line of each file that this program writes. */
export const MARK = "Written by reverse-http service install, and removed by reverse-http service uninstall";

const run = (...command: string[]): Change => ({ kind: "run", command });
const runIfPossible = (...command: string[]): Change => ({ kind: "run", command, isOptional: true });

export function placeOf(installation: Installation, machine: Machine): Place {
  return machine.manager === "systemd" ? systemd(installation, machine) : launchd(installation, machine);
}

function systemd({ role, name, executable }: Installation, { isOfUser, home, root }: Machine): Place {
  const id = `reverse-http-${role}-${name}.service`;
  const configuration = join(home, ".config");
  const config = isOfUser
    ? join(configuration, "reverse-http", "services", `${role}-${name}.yaml`)
    : `/etc/reverse-http/services/${role}-${name}.yaml`;
  const unit = isOfUser ? join(configuration, "systemd", "user", id) : `/etc/systemd/system/${id}`;
  const at = (file: string) => root === undefined ? file : join(root, file);
  const systemctl = ["systemctl", ...isOfUser ? ["--user"] : [], ...root === undefined ? [] : [`--root=${root}`]];
  return {
    id,
    unit: at(unit),
    config: at(config),
    render: (secrets) =>
      renderUnit({
        role,
        name,
        executable,
        config,
        secrets,
        isOfUser,
        // the certificate of a proxy is where reverse-http invite of root looks for it
        state: role === "agent" ? `reverse-http-${role}-${name}` : "reverse-http",
        origin: MARK,
      }),
    start(isChanged) {
      if (root !== undefined) return [run(...systemctl, "enable", id)];
      const restart = isChanged ? [run(...systemctl, "restart", id)] : [run(...systemctl, "start", id)];
      return [run(...systemctl, "daemon-reload"), run(...systemctl, "enable", id), ...restart];
    },
    stop: () => ({
      before: [runIfPossible(...systemctl, "disable", ...root === undefined ? ["--now"] : [], id)],
      after: root === undefined ? [run(...systemctl, "daemon-reload")] : [],
    }),
    state: [[...systemctl, "is-enabled", id], ...root === undefined ? [[...systemctl, "is-active", id]] : []],
  };
}

function launchd({ role, name, executable }: Installation, { isOfUser, home, uid, root, runAs }: Machine): Place {
  const label = `reverse-http.${role}.${name}`;
  const library = isOfUser ? join(home, "Library") : "/Library";
  const at = (file: string) => root === undefined ? file : join(root, file);
  const config = join(library, "Application Support", "reverse-http", `${role}-${name}.yaml`);
  const unit = join(library, isOfUser ? "LaunchAgents" : "LaunchDaemons", `${label}.plist`);
  const domain = isOfUser ? `gui/${uid}` : "system";
  return {
    id: label,
    unit: at(unit),
    config: at(config),
    render: () => renderJob({ label, role, executable, config, user: runAs, log: join(library, "Logs", `${label}.log`), origin: MARK }),
    start(isChanged) {
      if (root !== undefined) return [];
      const owner = runAs === undefined || isOfUser ? [] : [run("chown", runAs, config)];
      const bootout = isChanged ? [runIfPossible("launchctl", "bootout", `${domain}/${label}`)] : [];
      const bootstrap = isChanged ? run("launchctl", "bootstrap", domain, unit) : run("launchctl", "kickstart", `${domain}/${label}`);
      return [...owner, ...bootout, run("launchctl", "enable", `${domain}/${label}`), bootstrap];
    },
    stop: () => ({ before: root === undefined ? [runIfPossible("launchctl", "bootout", `${domain}/${label}`)] : [], after: [] }),
    state: [["launchctl", "print", `${domain}/${label}`]],
  };
}
