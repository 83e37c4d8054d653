// Warns of secret files that other users can read. The rule is PostgreSQL's: mode 0600 or less, or 0640 or less if root owns the file, as
// service managers and certificate tools install keys for the group of a service.
import { realpath, stat } from "node:fs/promises";
import type { Logger } from "../log/logger.ts";

/** Directories in which Docker, Podman and systemd manage the modes of secrets. */
const MANAGED = /^(?:\/var)?\/run\/(?:secrets|credentials)\//;

/** Files of a Kubernetes volume: the volume sets their mode. */
const KUBERNETES = /\/\.\.\d{4}_/;

/** A file with a mode that is too permissive. */
export interface Exposure {
  readonly file: string;
  /** In octal: `0644`. */
  readonly mode: string;
  /** How to fix it. */
  readonly remedy: string;
}

/** `undefined` if only the owner can read the file, it is not a regular file, or the platform manages its mode. */
export async function findExposure(file: string): Promise<Exposure | undefined> {
  try {
    const [stats, path] = await Promise.all([stat(file), realpath(file)]);
    if (!stats.isFile() || MANAGED.test(path)) return undefined;
    const allowed = stats.uid === 0 ? 0o740 : 0o700;
    const mode = stats.mode & 0o777;
    if ((mode & ~allowed) === 0) return undefined;
    const remedy = KUBERNETES.test(path) ? "defaultMode: 0440 for the volume" : `chmod ${stats.uid === 0 ? "640" : "600"} ${file}`;
    return { file, mode: `0${mode.toString(8)}`, remedy };
  } catch {
    return undefined; // the code that reads the file reports this
  }
}

/** Warns once per file and mode. */
export class SecretFiles {
  readonly #reported = new Set<string>();

  constructor(private readonly log: Logger) {}

  /** Checks the mode of `file`, which contains `what`. Never rejects. */
  async check(what: string, file: string): Promise<void> {
    const exposure = await findExposure(file);
    if (exposure === undefined) return;
    const { mode, remedy } = exposure;
    const report = `${file} ${mode}`;
    if (this.#reported.has(report)) return;
    this.#reported.add(report);
    this.log.warn("secret file is readable by other users", { what, file, mode, remedy });
  }
}
