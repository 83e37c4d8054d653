// Changes of files and of the service manager, which can be applied or only displayed. If one fails, those before it are undone.
import { existsSync, readFileSync, statSync } from "node:fs";
import { chmod, mkdir, rm, rmdir } from "node:fs/promises";
import { dirname } from "node:path";
import { describeWriteError } from "../../files/read.ts";
import { writeFileAtomically } from "../../files/write.ts";

/** One change. */
export type Change =
  | { readonly kind: "write"; readonly file: string; readonly text: string; readonly mode: number; readonly folderMode?: number }
  | { readonly kind: "remove"; readonly file: string }
  /** A command. `isOptional`: it may fail, such as stopping what does not run. */
  | { readonly kind: "run"; readonly command: readonly string[]; readonly isOptional?: boolean };

/** The result of a command. */
export interface Ran {
  readonly code: number;
  /** Standard output and error. */
  readonly output: string;
}

/** What changes need. */
export interface ChangeContext {
  readonly run: (command: readonly string[]) => Promise<Ran>;
  /** Writes a line about each change. */
  readonly say: (line: string) => void;
  /** Only describes the changes. */
  readonly isDry: boolean;
}

/** Whether `file` has this content and mode. */
function isCurrent({ file, text, mode }: Extract<Change, { kind: "write" }>): boolean {
  return existsSync(file) && (statSync(file).mode & 0o777) === mode && readFileSync(file, "utf8") === text;
}

/** Whether a file would change. */
export function changesFiles(changes: readonly Change[]): boolean {
  return changes.some((change) => change.kind === "write" ? !isCurrent(change) : change.kind === "remove" && existsSync(change.file));
}

/**
 * Makes the changes in their order.
 * @throws {Error} for a change that failed; files are then as they were before
 */
export async function applyChanges(changes: readonly Change[], { run, say, isDry }: ChangeContext): Promise<void> {
  const undo: (() => Promise<void>)[] = [];
  try {
    for (const change of changes) {
      if (change.kind === "run") {
        const command = change.command.join(" ");
        say(isDry ? `would run ${command}` : `run ${command}`);
        if (isDry) continue;
        const { code, output } = await run(change.command);
        if (code !== 0 && !change.isOptional) throw new Error(`${command} failed with ${code}: ${output.trim()}`);
      } else if (change.kind === "remove") {
        if (!existsSync(change.file)) continue;
        say(`${isDry ? "would remove" : "remove"} ${change.file}`);
        if (!isDry) await attempt(`remove ${change.file}`, () => rm(change.file));
      } else await write(change, { say, isDry }, undo);
    }
  } catch (error) {
    for (const step of undo.reverse()) await step().catch(() => {}); // the first error is the cause
    throw error;
  }
}

async function write(
  change: Extract<Change, { kind: "write" }>,
  { say, isDry }: Pick<ChangeContext, "say" | "isDry">,
  undo: (() => Promise<void>)[],
): Promise<void> {
  const { file, text, mode, folderMode = 0o755 } = change;
  if (isCurrent(change)) return say(`unchanged ${file}`);
  const isNew = !existsSync(file);
  const octal = `mode 0${mode.toString(8)}`;
  say(isDry ? `would ${isNew ? "write" : "replace"} ${file}, ${octal}` : `${isNew ? "write" : "replace"} ${file}, ${octal}`);
  if (isDry) return;
  const before = isNew ? undefined : { text: readFileSync(file, "utf8"), mode: statSync(file).mode & 0o777 };
  await attempt(`write ${file}`, async () => {
    await mkdir(dirname(dirname(file)), { recursive: true });
    const folder = await mkdir(dirname(file), { recursive: true, mode: folderMode });
    if (folder !== undefined) undo.push(() => rmdir(folder));
    await writeFileAtomically(file, text, { mode, existing: "replace" });
    undo.push(async () => {
      if (before === undefined) return await rm(file);
      await writeFileAtomically(file, before.text, { mode: before.mode, existing: "replace" });
    });
    await chmod(file, mode); // whatever the umask
  });
}

async function attempt(what: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (cause) {
    throw new Error(`Cannot ${what}: ${describeWriteError(cause)}`, { cause });
  }
}
