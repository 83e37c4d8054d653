// Loads the native engine's file. Compiled executables have another one of these, which carries the file inside.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { arch, platform } from "node:os";
import { fileURLToPath } from "node:url";

/**
 * The exports of the addon at `path`; by default the one that is built beside the sources, else the one of this platform that came with the
 * npm package.
 * @throws {Error} where it cannot be loaded
 */
export function loadAddon(path?: string): unknown {
  const require = createRequire(import.meta.url);
  const built = path ?? fileURLToPath(new URL("../../native/reverse-http.node", import.meta.url).href);
  return require(path !== undefined || existsSync(built) ? built : `@reverse-http/native-${platform()}-${arch()}`);
}
