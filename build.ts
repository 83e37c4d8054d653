// Makes the executables in dist/: one file each, with the runtime and the native engine inside. Run by Bun: `deno task build`.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

const root = import.meta.dirname!;
const addon = join(root, "native", "reverse-http.node");

const EXECUTABLES = { "reverse-http-proxy": "proxy/main.ts", "reverse-http-agent": "agent/main.ts" };

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

mkdirSync(join(root, "dist"), { recursive: true });
for (const [name, entry] of Object.entries(EXECUTABLES)) {
  const result = await Bun.build({
    entrypoints: [join(root, entry)],
    compile: { outfile: join(root, "dist", name) },
    format: "esm",
    bytecode: true,
    minify: true,
    plugins: [embedAddon],
  });
  for (const message of result.logs) console.error(String(message));
  if (!result.success) process.exit(1);
  console.log(`dist/${name}`);
}
