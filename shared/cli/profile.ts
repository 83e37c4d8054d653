// The user's profiles: files with the options of clients, by name, which only their owner can read.
import { statSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "../config/option.ts";
import { describeFileError } from "../files/read.ts";

/** What names the folder of profiles. */
export interface ProfileEnvironment {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly home: string | undefined;
}

/**
 * The file of a profile: `client.yaml` without a name, `client-NAME.yaml` with one. A name with a slash or an extension is a file itself.
 * `undefined` if there is no home directory.
 */
export function profileFile(name: string | undefined, { env, home }: ProfileEnvironment): string | undefined {
  if (name !== undefined && !/^[\w-]+$/.test(name)) return name;
  const folder = env.XDG_CONFIG_HOME || (home ? join(home, ".config") : undefined);
  return folder && join(folder, "reverse-http", name === undefined ? "client.yaml" : `client-${name}.yaml`);
}

/** @throws {ConfigError} for a file that other users can read or change */
export function refuseExposed(file: string): void {
  let mode;
  try {
    mode = statSync(file).mode & 0o777;
  } catch (cause) {
    throw new ConfigError(`Cannot read the profile ${file}: ${describeFileError(cause)}`, { cause });
  }
  if ((mode & 0o077) === 0) return;
  throw new ConfigError(`Cannot use the profile ${file}: other users may use it (mode 0${mode.toString(8)}); run chmod 600 ${file}`);
}
