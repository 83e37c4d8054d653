// The code of hash-wasm (bcrypt and argon2 as WebAssembly) for the threads that check passwords. Executables carry it as text: their build
// replaces this module.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

/** Files of the package, each of which is a script that adds to `exports`. */
export const LIBRARY_FILES: readonly string[] = ["hash-wasm/dist/argon2.umd.min.js", "hash-wasm/dist/bcrypt.umd.min.js"];

export async function readLibraries(): Promise<readonly string[]> {
  const { resolve } = createRequire(import.meta.url);
  return await Promise.all(LIBRARY_FILES.map((file) => readFile(resolve(file), "utf8")));
}
