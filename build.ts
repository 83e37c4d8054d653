// Makes the executables in dist/: one file each, with the runtime and the native engine inside. Run by Bun: `deno task build`.
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

const root = import.meta.dirname!;
const addon = join(root, "native", "reverse-http.node");

const EXECUTABLES = {
  "reverse-http": "main.ts",
  "reverse-http-proxy": "proxy/main.ts",
  "reverse-http-agent": "agent/main.ts",
  "reverse-http-lb": "lb/main.ts",
};

/** Where the sources load the addon's file, executables carry it. */
const embedAddon: Bun.BunPlugin = {
  name: "embed-addon",
  setup(build) {
    build.onLoad({ filter: /shared\/net\/addon\.ts$/ }, () => ({
      loader: "ts",
      contents: `
        import asset from ${JSON.stringify(addon)} with { type: "file" };
        import { createRequire } from "node:module";
        import { loadEmbedded } from "./embedded.ts";
        export const loadAddon = (path?: string) => path === undefined ? loadEmbedded(asset) : createRequire(import.meta.url)(path);
      `,
    }));
  },
};

/** What is built of what: without git, or outside of it, nobody knows. */
const stampBuild: Bun.BunPlugin = {
  name: "stamp-build",
  setup(build) {
    const git = (...args: string[]) => {
      const { status, stdout } = spawnSync("git", args, { cwd: root, encoding: "utf8" });
      return status === 0 ? stdout.trim() : undefined;
    };
    const [commit, date] = git("log", "-1", "--format=%H %cI", "--", ".")?.split(" ") ?? [];
    const dirty = commit && git("status", "--porcelain", "--untracked-files=no") !== "" ? "-dirty" : "";
    const facts = { commit: commit ? `${commit}${dirty}` : "unknown", date: date ?? "unknown" };
    build.onLoad({ filter: /shared\/build\.ts$/ }, () => ({ loader: "ts", contents: `export const BUILD = ${JSON.stringify(facts)};` }));
  },
};

mkdirSync(join(root, "dist"), { recursive: true });
for (const [name, entry] of Object.entries(EXECUTABLES)) {
  const result = await Bun.build({
    entrypoints: [join(root, entry)],
    compile: { outfile: join(root, "dist", name) },
    format: "esm",
    bytecode: true,
    minify: true,
    plugins: [embedAddon, stampBuild],
  });
  for (const message of result.logs) console.error(String(message));
  if (!result.success) process.exit(1);
  console.log(`dist/${name}`);
}
