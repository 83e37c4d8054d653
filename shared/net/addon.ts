// Loads the native engine's file. Compiled executables have another one of these, which carries the file inside.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

/**
 * The exports of the addon at `path`; by default the one that is built beside the sources.
 * @throws {Error} where it cannot be loaded
 */
export function loadAddon(path?: string): unknown {
  const file = path ?? fileURLToPath(new URL("../../native/reverse-http.node", import.meta.url).href);
  return createRequire(import.meta.url)(file);
}
