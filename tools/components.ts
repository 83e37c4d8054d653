// The third-party components in the executables: npm packages and crates with their licences, for the notices and the bill of materials.
import { spawnSync } from "node:child_process";
import { existsSync, globSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { manifest, ROOT } from "./executables.ts";
import { TARGETS } from "./targets.ts";

export interface Component {
  readonly name: string;
  readonly version: string;
  /** SPDX expression. */
  readonly license: string;
  /** Package URL: https://github.com/package-url/purl-spec. */
  readonly purl: string;
  readonly hash?: { readonly alg: "SHA-256" | "SHA-512"; readonly content: string };
  /** The copyright and licence files of the package. */
  readonly texts: readonly string[];
}

/** All components, sorted by package URL. */
export function readComponents(): Component[] {
  const runtime = join(ROOT, "node_modules", "bun");
  const { version } = JSON.parse(readFileSync(join(runtime, "package.json"), "utf8")) as { version: string };
  const bun: Component = { name: "bun", version, license: "MIT", purl: `pkg:npm/bun@${version}`, texts: licenseTexts(runtime) };
  return [bun, ...npmPackages(), ...crates()].sort((a, b) => a.purl < b.purl ? -1 : 1);
}

function licenseTexts(folder: string): string[] {
  const files = readdirSync(folder).filter((name) =>
    /^(licen[cs]e|copying|copyright|notice|unlicense)/i.test(name) && !/\.(ts|js)$/.test(name)
  );
  return files.sort().flatMap((name) => {
    try {
      return [readFileSync(join(folder, name), "utf8").replaceAll("\r\n", "\n").trim()];
    } catch {
      return []; // a folder
    }
  });
}

interface LockedPackage {
  readonly integrity: string;
  readonly dependencies?: readonly string[];
}

/** The packages that the sources import, and their dependencies. */
function npmPackages(): Component[] {
  const lock = JSON.parse(readFileSync(join(ROOT, "deno.lock"), "utf8")) as {
    specifiers: Record<string, string>;
    npm: Record<string, LockedPackage>;
  };
  // keys of the lock file are name@version, with a suffix for the peer dependencies
  const parse = (key: string) => /^(@?[^@]+)@([^_]+)/.exec(key)!.slice(1) as [name: string, version: string];
  const keys = Object.keys(lock.npm);
  const keyOf = (dependency: string): string => {
    const found = keys.find((key) => key === dependency) ?? keys.find((key) => parse(key)[0] === parse(`${dependency}@0`)[0]);
    if (found === undefined) throw new Error(`Cannot find ${dependency} in deno.lock`);
    return found;
  };
  const { imports } = manifest();
  const wanted = new Set([...importedNames()].map((name) => keyOf(`${name}@${lock.specifiers[imports[name]!]}`)));
  for (const key of wanted) { // grows meanwhile
    for (const dependency of lock.npm[key]!.dependencies ?? []) wanted.add(keyOf(dependency));
  }
  return [...wanted].map((key) => {
    const [name, version] = parse(key);
    const folder = join(ROOT, "node_modules", ".deno", `${name.replace("/", "+")}@${version}`, "node_modules", name);
    const { license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { license?: string };
    const content = Buffer.from(lock.npm[key]!.integrity.replace("sha512-", ""), "base64").toString("hex");
    return {
      name,
      version,
      license: license ?? "",
      purl: `pkg:npm/${name.replace("@", "%40")}@${version}`,
      hash: { alg: "SHA-512", content },
      texts: licenseTexts(folder),
    };
  });
}

/** The packages that the sources of the executables import. */
function importedNames(): Set<string> {
  const names = new Set<string>();
  const known = Object.keys(manifest().imports);
  for (const file of globSync("{main.ts,{proxy,agent,lb,client,admin,shared,dashboard}/**/*.{ts,tsx}}", { cwd: ROOT })) {
    const text = readFileSync(join(ROOT, file), "utf8");
    for (const [, specifier] of text.matchAll(/\b(?:from|import)\s*\(?\s*"([^".][^":]*)"/g)) {
      if (known.includes(specifier!)) names.add(specifier!);
    }
  }
  return names;
}

interface Metadata {
  packages: { id: string; name: string; version: string; license?: string; manifest_path: string }[];
  resolve: { root: string; nodes: { id: string; deps: { pkg: string; dep_kinds: { kind: string | null }[] }[] }[] };
}

/** The crates that the native engine is linked with, on any platform. */
function crates(): Component[] {
  const checksums = cargoChecksums();
  const found = new Map<string, Component>();
  for (const { rust } of Object.values(TARGETS)) {
    const { status, stdout, stderr } = spawnSync("cargo", ["metadata", "--format-version=1", "--locked", "--filter-platform", rust], {
      cwd: join(ROOT, "native"),
      encoding: "utf8",
      maxBuffer: 1 << 28,
    });
    if (status !== 0) throw new Error(`Cannot list the crates: ${stderr}`);
    const { packages, resolve } = JSON.parse(stdout) as Metadata;
    const wanted = new Set([resolve.root]);
    for (const id of wanted) { // grows meanwhile
      for (const { pkg, dep_kinds } of resolve.nodes.find((node) => node.id === id)!.deps) {
        if (dep_kinds.some(({ kind }) => kind === null)) wanted.add(pkg);
      }
    }
    for (const { id, name, version, license, manifest_path } of packages) {
      if (!wanted.has(id) || id === resolve.root) continue;
      const content = checksums.get(`${name} ${version}`);
      found.set(id, {
        name,
        version,
        license: (license ?? "").replaceAll("/", " OR "),
        purl: `pkg:cargo/${name}@${version}`,
        hash: content === undefined ? undefined : { alg: "SHA-256", content },
        texts: licenseTexts(dirname(manifest_path)),
      });
    }
  }
  return [...found.values()];
}

function cargoChecksums(): Map<string, string> {
  // the checksums of patched crates are in the second
  const files = ["native/Cargo.lock", "native/patches/Cargo.lock"].map((file) => join(ROOT, file));
  const text = files.map((file) => existsSync(file) ? readFileSync(file, "utf8") : "").join("\n");
  const entries = text.matchAll(/name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"/g);
  return new Map([...entries].map(([, name, version, checksum]) => [`${name} ${version}`, checksum!]));
}
