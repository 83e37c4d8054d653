// The directory for state that outlives the process. Each user of it has a file there.
import { join } from "node:path";

/** Directory for state that outlives the process. */
export interface StateDirectory {
  /** Default: nothing is stored. */
  readonly path?: string;
  /** Whether it was configured explicitly; then it is an error if it is unusable. */
  readonly required: boolean;
}

/** The directory that the options name, or else the default one. */
export function stateDirectoryOf({ stateDir }: { readonly stateDir?: string }, { stateDirectory }: StateDirectoryDefault): StateDirectory {
  return { path: stateDir || stateDirectory, required: Boolean(stateDir) };
}

/** The directory if the options name none. */
export interface StateDirectoryDefault {
  readonly stateDirectory?: string;
}

/**
 * The default state directory of the user `uid`: systemd's `$STATE_DIRECTORY`, `$XDG_STATE_HOME/reverse-http`, `/var/lib/reverse-http` for
 * root, or `$HOME/.local/state/reverse-http`; `undefined` if none applies.
 */
export function defaultStateDirectory(env: Readonly<Record<string, string | undefined>>, uid: number | undefined): string | undefined {
  const [systemd] = (env.STATE_DIRECTORY ?? "").split(":");
  if (systemd) return systemd;
  if (env.XDG_STATE_HOME) return join(env.XDG_STATE_HOME, "reverse-http");
  if (uid === 0) return "/var/lib/reverse-http";
  return env.HOME ? join(env.HOME, ".local", "state", "reverse-http") : undefined;
}
