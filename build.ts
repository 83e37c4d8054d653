// Builds the executables, single files that contain the runtime and the native engine: into dist/ for this machine or, with --target, into
// dist/<target>/ for a release. Run by Bun: `deno task build`.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { LIBRARY_FILES } from "./shared/auth/password_libraries.ts";
import { bundleDashboard } from "./tools/dashboard.ts";
import { EXECUTABLES, ROOT } from "./tools/executables.ts";
import { buildNative } from "./tools/native.ts";
import { signMac } from "./tools/sign.ts";
import { hostTarget, parseTargets, platformOf, type TargetName, TARGETS } from "./tools/targets.ts";

/** Where the sources load the addon's file, executables carry it. */
const embedAddon = (addon: string): Bun.BunPlugin => ({
  name: "embed-addon",
  setup(build) {
    build.onLoad({ filter: /shared\/net\/native\/addon\.ts$/ }, () => ({
      loader: "ts",
      contents: `
        import asset from ${JSON.stringify(addon)} with { type: "file" };
        import { createRequire } from "node:module";
        import { loadEmbedded } from "./embedded.ts";
        export const loadAddon = (path?: string) => path === undefined ? loadEmbedded(asset) : createRequire(import.meta.url)(path);
      `,
    }));
  },
});

/** Where the sources read the libraries' files, executables carry their text. */
const embedLibraries: Bun.BunPlugin = {
  name: "embed-libraries",
  setup(build) {
    build.onLoad({ filter: /shared\/auth\/password_libraries\.ts$/ }, () => ({
      loader: "ts",
      contents: `export const readLibraries = () => Promise.resolve(${JSON.stringify(readLibraryTexts())});`,
    }));
  },
};

function readLibraryTexts(): string[] {
  return LIBRARY_FILES.map(readLibraryText);
}

function readLibraryText(file: string): string {
  return readFileSync(createRequire(import.meta.url).resolve(file), "utf8");
}

/** Where the sources read the dashboard's files, executables contain them. */
const embedDashboard = (files: Readonly<Record<string, string>>): Bun.BunPlugin => ({
  name: "embed-dashboard",
  setup(build) {
    build.onLoad({ filter: /shared\/service\/dashboard\/files\.ts$/ }, () => ({
      loader: "ts",
      contents: `const FILES = ${JSON.stringify(files)}; export const readDashboardFile = (name: keyof typeof FILES) => FILES[name];`,
    }));
  },
});

interface Facts {
  readonly commit: string;
  readonly date: string;
}

/** The facts about a build. Without git the commit is unknown. */
function readFacts(): Facts {
  const git = (...args: string[]) => {
    const { status, stdout } = spawnSync("git", args, { cwd: ROOT, encoding: "utf8" });
    return status === 0 ? stdout.trim() : undefined;
  };
  const [commit, date] = git("log", "-1", "--format=%H %cI", "--", ".")?.split(" ") ?? [];
  const dirty = commit && git("status", "--porcelain", "--untracked-files=no") !== "" ? "-dirty" : "";
  return { commit: commit ? `${commit}${dirty}` : "unknown", date: date ?? "unknown" };
}

const stampBuild = (facts: Facts, target: TargetName | undefined): Bun.BunPlugin => ({
  name: "stamp-build",
  setup(build) {
    const built = { ...facts, platform: target === undefined ? "unknown" : platformOf(target) };
    build.onLoad({ filter: /shared\/build\.ts$/ }, () => ({ loader: "ts", contents: `export const BUILD = ${JSON.stringify(built)};` }));
  },
});

/** Files in the working directory must neither set options nor run code. */
const ALONE = { autoloadDotenv: false, autoloadBunfig: false, autoloadTsconfig: false, autoloadPackageJson: false };

/** Builds all executables into `folder`; without `target` for this machine. */
async function compile(folder: string, plugins: Bun.BunPlugin[], target?: TargetName): Promise<void> {
  mkdirSync(folder, { recursive: true });
  for (const [name, entry] of Object.entries(EXECUTABLES)) {
    const outfile = join(folder, name);
    const result = await Bun.build({
      entrypoints: [join(ROOT, entry)],
      compile: { ...ALONE, ...target === undefined ? { outfile } : { outfile, target: TARGETS[target].bun } },
      format: "esm",
      bytecode: true,
      minify: true,
      // without paths of this machine: the same executable in any folder
      define: { __dirname: '"/nowhere"', __filename: '"/nowhere"' },
      plugins,
    });
    for (const message of result.logs) console.error(String(message));
    if (!result.success) throw new Error(`Cannot build ${name}`);
    if (target !== undefined && TARGETS[target].os === "darwin") signMac(outfile);
    console.log(outfile.slice(ROOT.length + 1));
  }
}

async function build(): Promise<void> {
  const { values } = parseArgs({ options: { target: { type: "string", multiple: true }, release: { type: "boolean" } } });
  const targets = parseTargets(values.target ?? (values.release ? ["all"] : []));
  const facts = readFacts();
  if (values.release && !/^[0-9a-f]{40,}$/.test(facts.commit)) {
    throw new Error(`Cannot build a release of commit ${facts.commit}: commit or undo the local changes`);
  }
  const plugins = [embedDashboard(await bundleDashboard()), embedLibraries];
  if (targets.length === 0) await compile(join(ROOT, "dist"), [...plugins, stampBuild(facts, hostTarget()), embedAddon(buildNative())]);
  for (const target of targets) {
    const addon = buildNative(target);
    const folder = join(ROOT, "dist", target);
    rmSync(folder, { recursive: true, force: true });
    await compile(folder, [...plugins, stampBuild(facts, target), embedAddon(addon)], target);
    copyFileSync(addon, join(folder, "reverse-http.node")); // for where nothing can be unpacked: see shared/net/native/embedded.ts
  }
}

try {
  await build();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
