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
  readonly homepage: string;
  readonly imports: Readonly<Record<string, string>>;
}

/** What deno.json says. */
export const manifest = (): Manifest => JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));

/** Where the project lives: all of it follows from the `homepage` of deno.json. */
export interface Home {
  /** The repository, with no slash at its end. */
  readonly url: string;
  /** The image, without a tag. */
  readonly image: string;
  /** Of the packages: a name, and an address that the repository's owner has at GitHub. */
  readonly maintainer: string;
}

/** @throws {Error} where deno.json names something else than a repository of GitHub */
export function home(url: string = manifest().homepage): Home {
  const [, owner, name] = /^https:\/\/github\.com\/([\w-]+)\/([\w.-]+)$/.exec(url) ?? [];
  if (owner === undefined) throw new Error(`Cannot use the homepage ${JSON.stringify(url)} of deno.json: it is no repository of GitHub`);
  return {
    url,
    image: `ghcr.io/${owner}/${name}`.toLowerCase(),
    maintainer: `The reverse-http authors <${owner}@users.noreply.github.com>`,
  };
}
