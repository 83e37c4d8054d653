// Bundles the dashboard's files into dashboard/built/, where the sources and the npm package have them, or into the folder that is given.
// Run by Bun: `deno task dashboard`.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import type { DashboardFile } from "../shared/service/dashboard/files.ts";
import { ROOT } from "./executables.ts";

const require = createRequire(import.meta.url);

/** The file of a package that the bundle contains, such as its licence. */
function packageFile(name: string, file: string): string {
  const entry = require.resolve(name);
  const folder = entry.slice(0, entry.lastIndexOf(`/node_modules/${name}/`) + `/node_modules/${name}/`.length);
  return readFileSync(join(folder, file), "utf8");
}

/** The content of the dashboard's files. */
export async function bundleDashboard(): Promise<Record<DashboardFile, string>> {
  const licenses = ["preact", "uplot"].map((name) => `${name}\n\n${packageFile(name, "LICENSE").trim()}`);
  const result = await Bun.build({
    entrypoints: [join(ROOT, "dashboard", "main.tsx")],
    target: "browser",
    format: "esm",
    minify: true,
    jsx: { runtime: "automatic", importSource: "preact", development: false },
    banner: `/*!\n${licenses.join("\n\n")}\n*/`,
  });
  if (!result.success) throw new AggregateError(result.logs, "Cannot bundle the dashboard");
  return {
    "index.html": readFileSync(join(ROOT, "dashboard", "index.html"), "utf8"),
    "app.js": await result.outputs[0]!.text(),
    "style.css": packageFile("uplot", "dist/uPlot.min.css") + readFileSync(join(ROOT, "dashboard", "style.css"), "utf8"),
  };
}

if (import.meta.main) {
  const folder = process.argv[2] ?? join(ROOT, "dashboard", "built");
  mkdirSync(folder, { recursive: true });
  for (const [name, content] of Object.entries(await bundleDashboard())) writeFileSync(join(folder, name), content);
}
