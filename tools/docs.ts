// Writes the option tables of docs/options.md from the definitions. `--check` writes nothing and fails where they are stale.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { FAMILY } from "../family.ts";
import { optionTable } from "../shared/cli/option_table.ts";

const file = join(import.meta.dirname!, "..", "docs", "options.md");
const [begin, end] = ["<!-- options:begin -->", "<!-- options:end -->"];

const document = readFileSync(file, "utf8");
const [before, rest] = document.split(begin);
const after = rest?.split(end)[1];
if (before === undefined || after === undefined) throw new Error(`${file} has no place for the options`);
const tables = Object.entries(FAMILY).map(([name, options]) => `## reverse-http-${name}\n\n${optionTable(options)}`);
const fresh = `${before}${begin}\n\n${tables.join("\n")}\n${end}${after}`;
if (!process.argv.includes("--check")) writeFileSync(file, fresh);
else if (fresh !== document) {
  console.error("The option tables of docs/options.md are stale: run deno task docs");
  process.exit(1);
}
