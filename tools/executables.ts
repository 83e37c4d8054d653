// The executables, and the name and version of their release.
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The repository's root. */
export const ROOT = join(import.meta.dirname!, "..");

/** The entry point of each executable. */
export const EXECUTABLES = {
  "reverse-http": "main.ts",
  "reverse-http-proxy": "proxy/main.ts",
  "reverse-http-agent": "agent/main.ts",
  "reverse-http-lb": "lb/main.ts",
} as const;

interface Manifest {
  readonly version: string;
  readonly homepage: string;
  readonly imports: Readonly<Record<string, string>>;
}

/** Reads deno.json. */
export const manifest = (): Manifest => JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));

/** The project's addresses, derived from `homepage` in deno.json. */
export interface Home {
  /** The repository's URL, without a trailing slash. */
  readonly url: string;
  /** The image's name, without a tag. */
  readonly image: string;
  /** The maintainer of the packages: a name, and the GitHub address of the repository's owner. */
  readonly maintainer: string;
}

/** @throws {Error} if the homepage is not a GitHub repository */
export function home(url: string = manifest().homepage): Home {
  const [, owner, name] = /^https:\/\/github\.com\/([\w-]+)\/([\w.-]+)$/.exec(url) ?? [];
  if (owner === undefined) throw new Error(`Cannot use the homepage ${JSON.stringify(url)} of deno.json: it is not a GitHub repository`);
  return {
    url,
    image: `ghcr.io/${owner}/${name}`.toLowerCase(),
    maintainer: `The reverse-http authors <${owner}@users.noreply.github.com>`,
  };
}
