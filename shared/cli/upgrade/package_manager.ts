// Whose a file is: copies that a package manager has installed are its to replace.
import type { Run } from "./run_command.ts";

/** A package manager, and its command for an upgrade. */
export interface Owner {
  readonly name: string;
  readonly command: string;
}

/** The release that shall be installed, for the command. */
export interface Wanted {
  readonly version: string;
  /** The folder of its files. */
  readonly url: string;
  readonly arch: string;
  readonly image: string;
}

interface Manager {
  readonly name: string;
  /** Part of the paths of its files. */
  readonly path?: RegExp;
  /** Exits with 0 if the file, which is added, is of it. */
  readonly query?: readonly string[];
  command(wanted: Wanted): string;
}

const MANAGERS: readonly Manager[] = [
  {
    name: "the image of this container",
    path: /^\/reverse-http$/,
    command: ({ image, version }) => `docker pull ${image}:${version}, and start a new container`,
  },
  { name: "Nix", path: /^\/nix\/store\//, command: () => "nix profile upgrade reverse-http, or a change of the system's configuration" },
  { name: "Homebrew", path: /\/(?:Cellar|homebrew|linuxbrew)\//, command: () => "brew upgrade reverse-http" },
  { name: "snap", path: /^\/snap\//, command: () => "snap refresh reverse-http" },
  {
    name: "dpkg",
    query: ["dpkg-query", "--search"],
    command: ({ version, arch, url }) => {
      const file = `reverse-http_${version}_linux_${arch}.deb`;
      return `curl -fLO ${url}/${file} && sudo apt install ./${file}`;
    },
  },
  {
    name: "rpm",
    query: ["rpm", "--query", "--file"],
    command: ({ version, arch, url }) => `sudo dnf install ${url}/reverse-http_${version}_linux_${arch}.rpm`,
  },
  { name: "apk", query: ["apk", "info", "--who-owns"], command: () => "apk upgrade reverse-http" },
  { name: "pacman", query: ["pacman", "--query", "--owns"], command: () => "pacman -Syu" },
];

/** Returns the package manager that has installed `file`; `undefined` if none has. */
export async function ownerOf(file: string, wanted: Wanted, run: Run): Promise<Owner | undefined> {
  for (const { name, path, query, command } of MANAGERS) {
    const isOwner = path?.test(file) || (query && (await run([...query, file])).code === 0);
    if (isOwner) return { name, command: command(wanted) };
  }
  return undefined;
}
