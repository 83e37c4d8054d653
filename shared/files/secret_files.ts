// May others read a file that holds a secret? The rule is PostgreSQL's for its key: mode 0600 or less, or 0640 or less where root owns it, as
// service managers and certificate tools leave keys for the group of a service.
import { realpath, stat } from "node:fs/promises";
import type { Logger } from "../log/logger.ts";

/** Where platforms put secrets with modes of their own: containers (Docker, Podman) and credentials of systemd. */
const MANAGED = /^(?:\/var)?\/run\/(?:secrets|credentials)\//;

/** Where Kubernetes puts a volume's files: their mode is the volume's. */
const KUBERNETES = /\/\.\.\d{4}_/;

/** What is wrong with a file's mode. */
export interface Exposure {
  readonly file: string;
  /** In octal: `0644`. */
  readonly mode: string;
  /** What mends it. */
  readonly remedy: string;
}

/** `undefined` where only the owner can read the file, it is not a regular file, or the platform manages its mode. */
export async function findExposure(file: string): Promise<Exposure | undefined> {
  try {
    const [stats, place] = await Promise.all([stat(file), realpath(file)]);
    if (!stats.isFile() || MANAGED.test(place)) return undefined;
    const allowed = stats.uid === 0 ? 0o740 : 0o700;
    const mode = stats.mode & 0o777;
    if ((mode & ~allowed) === 0) return undefined;
    const remedy = KUBERNETES.test(place) ? "defaultMode: 0440 for the volume" : `chmod ${stats.uid === 0 ? "640" : "600"} ${file}`;
    return { file, mode: `0${mode.toString(8)}`, remedy };
  } catch {
    return undefined; // the code that reads the file reports this
  }
}

/** Warns of each file and mode once. */
export class SecretFiles {
  readonly #told = new Set<string>();

  constructor(private readonly log: Logger) {}

  /** Looks at the file; `what` is in it. Never rejects. */
  async check(what: string, file: string): Promise<void> {
    const exposure = await findExposure(file);
    if (exposure === undefined) return;
    const { mode, remedy } = exposure;
    const told = `${file} ${mode}`;
    if (this.#told.has(told)) return;
    this.#told.add(told);
    this.log.warn("a secret may be read by others", { what, file, mode, remedy });
  }
}
