// Copies the repository's URL, the homepage in deno.json, to all other files that contain it: install.sh, documents, deploy/, the image.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Home, home, ROOT } from "./executables.ts";

/** Generated and third-party files; deno.json, the source of the URL; the test, which names forks. */
const SKIPPED = /^(\.git|node_modules|dist|target|crates|deno\.json|deno\.lock|Cargo\.lock|home_test\.ts)$/;

/** All text files that may contain the URL, relative to the root. */
export function* texts(folder = "."): Generator<string> {
  for (const entry of readdirSync(join(ROOT, folder), { withFileTypes: true })) {
    const name = join(folder, entry.name);
    if (SKIPPED.test(entry.name)) continue;
    if (entry.isDirectory()) yield* texts(name);
    else if (entry.isFile() && !/\.(node|png|pem)$/.test(name)) yield name;
  }
}

/** Replaces one home by another in a text. */
export function rehome(text: string, from: Home, to: Home): string {
  const replace = (text: string, from: string, to: string) => text.replace(new RegExp(`${RegExp.escape(from)}(?![\\w-])`, "g"), () => to);
  return replace(replace(text, from.url, to.url), from.image, to.image);
}

/** The URL at the last run: the installer contains it. */
function formerHome(): Home {
  return home(/^REPOSITORY="(.*)"$/m.exec(readFileSync(join(ROOT, "install.sh"), "utf8"))?.[1]);
}

if (import.meta.main) {
  const [from, to] = [formerHome(), home()];
  for (const name of texts()) {
    const before = readFileSync(join(ROOT, name), "utf8");
    const after = rehome(before, from, to);
    if (after === before) continue;
    writeFileSync(join(ROOT, name), after);
    console.log(name);
  }
}
