// The executables that are made, and what the release that they belong to is called.
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The folder of the sources. */
export const ROOT = join(import.meta.dirname!, "..");

/** By name, the file that each starts with. */
export const EXECUTABLES = {
  "reverse-http": "main.ts",
  "reverse-http-proxy": "proxy/main.ts",
  "reverse-http-agent": "agent/main.ts",
  "reverse-http-lb": "lb/main.ts",
} as const;

interface Manifest {
  readonly version: string;
  readonly imports: Readonly<Record<string, string>>;
}

/** What deno.json says. */
export const manifest = (): Manifest => JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));
