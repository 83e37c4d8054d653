// Where the sources and the npm package have the dashboard's files. Executables contain them instead: build.ts replaces this module.
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The files that `deno task dashboard` creates from `dashboard/`. */
export type DashboardFile = "index.html" | "app.js" | "style.css";

/** The content, or `undefined` if the dashboard has not been built. */
export function readDashboardFile(name: DashboardFile): string | undefined {
  try {
    return readFileSync(join(import.meta.dirname!, "..", "..", "..", "dashboard", "built", name), "utf8");
  } catch {
    return undefined;
  }
}
