// Loads the native engine's file. Compiled executables have another one of these, which carries the file inside.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { arch, platform } from "node:os";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * The exports of the addon at `path`; by default the one that is built beside the sources, else the package of npm with the one for this
 * platform: beside the library, or, where that was not installed by npm, in `node_modules` of the working directory.
 * @throws {Error} where it cannot be loaded
 */
export function loadAddon(path?: string): unknown {
  const own = import.meta.url.startsWith("file:") ? import.meta.url : undefined; // JSR serves the sources over https
  const here = resolve("here.js");
  if (path !== undefined) return createRequire(own ?? here)(path);
  const built = own && fileURLToPath(new URL("../../../native/reverse-http.node", own).href);
  if (built && existsSync(built)) return createRequire(own)(built);
  return loadPackage(own === undefined ? [here] : [own, here]);
}

/** The first that can be loaded; on Linux npm installs the one for glibc or the one for musl. */
function loadPackage(places: readonly string[]): unknown {
  const name = `@reverse-http/native-${platform()}-${arch()}`;
  const problems = new Set<string>();
  for (const place of places) {
    for (const found of platform() === "linux" ? [name, `${name}-musl`] : [name]) {
      try {
        return createRequire(place)(found);
      } catch (error) {
        problems.add(String(error instanceof Error ? error.message : error).split("\n")[0]!);
      }
    }
  }
  throw new Error(
    `Cannot load the native engine: it is in the package ${name} of npm. Run npm install ${name}, or, with "nodeModulesDir": "auto" in ` +
      `deno.json, deno add npm:${name} (${[...problems].join("; ")})`,
  );
}
