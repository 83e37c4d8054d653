// Generates the tables of docs/options.md and options.ts from the definitions of options.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { OPERATORS } from "../admin/options.ts";
import { CLIENTS } from "../client/options.ts";
import { SERVICES } from "../services.ts";
import { optionTable } from "./option_table.ts";
import { ROOT } from "./executables.ts";
import { optionTypes } from "./option_types.ts";

const file = join(ROOT, "docs", "options.md");
const [begin, end] = ["<!-- options:begin -->", "<!-- options:end -->"];

const [before, rest] = readFileSync(file, "utf8").split(begin);
const after = rest?.split(end)[1];
if (before === undefined || after === undefined) throw new Error(`${file} has no marks around the options`);
const tables = [
  ...Object.entries(SERVICES).map(([name, options]) => `## reverse-http-${name}\n\n${optionTable(options)}`),
  ...Object.entries({ ...CLIENTS, ...OPERATORS }).map(([heading, options]) => `## reverse-http ${heading}\n\n${optionTable(options)}`),
];
writeFileSync(file, `${before}${begin}\n\n${tables.join("\n")}\n${end}${after}`);
writeFileSync(join(ROOT, "options.ts"), optionTypes());
