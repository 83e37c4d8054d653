// The code of js-yaml for the thread that parses large policies. Executables carry it as text: their build replaces this module.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

/** A script that adds to `exports`. */
export const YAML_LIBRARY = "js-yaml";

export async function readYamlLibrary(): Promise<string> {
  return await readFile(createRequire(import.meta.url).resolve(YAML_LIBRARY), "utf8");
}
