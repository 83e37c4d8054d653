// Loads the native addon from a file or an npm package. Compiled executables use embedded.ts instead.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { arch, platform } from "node:os";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * Loads the addon at `path` and returns its exports. By default it loads the one built with the sources, or else the npm package for this
 * platform, installed with the library or in `node_modules` of the working directory.
 * @throws {Error} if it cannot be loaded
 */
export function loadAddon(path?: string): unknown {
  const library = import.meta.url.startsWith("file:") ? import.meta.url : undefined; // JSR serves the sources over https
  const workingDirectory = resolve("index.js");
  if (path !== undefined) return createRequire(library ?? workingDirectory)(path);
  const built = library && fileURLToPath(new URL("../../../native/reverse-http.node", library).href);
  if (built && existsSync(built)) return createRequire(library)(built);
  return loadPackage(library === undefined ? [workingDirectory] : [library, workingDirectory]);
}

/** Loads the first package that works; on Linux npm installs the one for glibc or for musl. */
function loadPackage(origins: readonly string[]): unknown {
  const name = `@reverse-http/native-${platform()}-${arch()}`;
  const problems = new Set<string>();
  for (const origin of origins) {
    for (const candidate of platform() === "linux" ? [name, `${name}-musl`] : [name]) {
      try {
        return createRequire(origin)(candidate);
      } catch (error) {
        problems.add(String(error instanceof Error ? error.message : error).split("\n")[0]!);
      }
    }
  }
  throw new Error(
    `Cannot load the native engine from the npm package ${name}: run npm install ${name}, or, with "nodeModulesDir": "auto" in ` +
      `deno.json, deno add npm:${name} (${[...problems].join("; ")})`,
  );
}
