// Replaces an executable atomically: a process that starts meanwhile is of the old one or of the new one. The old one stays beside it.
import { chmod, chown, copyFile, link, mkdtemp, open, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** The name of the executable that was replaced. */
export function previousOf(file: string): string {
  return `${file}.previous`;
}

/** A file in the folder of an executable that can take its place. */
export class Candidate implements AsyncDisposable {
  private constructor(readonly file: string, readonly folder: string) {}

  /**
   * Writes `content`, to the disk too, with mode and owner of `executable`.
   * @throws {Error} of the file system
   */
  static async write(executable: string, content: Uint8Array): Promise<Candidate> {
    return await Candidate.#create(executable, async (file) => {
      const { mode, uid, gid } = await stat(executable);
      const handle = await open(file, "wx", 0o700);
      try {
        await handle.writeFile(content);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await chown(file, uid, gid).catch(() => {}); // only root can
      await chmod(file, mode & 0o7777);
    });
  }

  /**
   * The executable that was replaced last.
   * @throws {Error} of the file system
   */
  static async previous(executable: string): Promise<Candidate> {
    return await Candidate.#create(executable, (file) => linkOrCopy(previousOf(executable), file));
  }

  static async #create(executable: string, write: (file: string) => Promise<void>): Promise<Candidate> {
    // in the same folder: others may be of another file system, small, or mounted noexec
    const folder = await mkdtemp(join(dirname(executable), ".reverse-http-upgrade-"));
    const candidate = new Candidate(join(folder, basename(executable)), folder);
    try {
      await write(candidate.file);
      return candidate;
    } catch (error) {
      await candidate[Symbol.asyncDispose]();
      throw error;
    }
  }

  /**
   * Takes the place of `executable`, which stays under the name of {@link previousOf}.
   * @throws {Error} of the file system; then nothing has changed
   */
  async replace(executable: string): Promise<void> {
    const kept = join(this.folder, "previous");
    await linkOrCopy(executable, kept);
    await rename(kept, previousOf(executable));
    await rename(this.file, executable);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Puts the executable back that was replaced. */
export async function restore(executable: string): Promise<void> {
  await rename(previousOf(executable), executable);
}

async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw error;
    await copyFile(from, to); // the file system has no hard links
  }
}
