// The documents as data: their code blocks, headings and links.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { ROOT } from "./programs.ts";

/** A fenced block of code. */
export interface Block {
  readonly line: number;
  /** `sh`, `ts` … */
  readonly language: string;
  /** The words after the language: `no-test`, `background`. */
  readonly flags: readonly string[];
  readonly code: string;
}

export interface Document {
  /** Relative to the repository's root. */
  readonly name: string;
  readonly text: string;
  readonly blocks: readonly Block[];
}

export function readDocument(name: string): Document {
  const text = readFileSync(join(ROOT, name), "utf8");
  const blocks = Array.from(text.matchAll(/^```([^\n]*)\n([^]*?)^```$/gm), ({ index, 1: info, 2: code }): Block => {
    const [language = "", ...flags] = info!.trim().split(/\s+/);
    return { line: text.slice(0, index).split("\n").length, language, flags, code: code! };
  });
  return { name, text, blocks };
}

/** All documents. */
export function readDocuments(): Document[] {
  const markdown = (folder: string) =>
    readdirSync(join(ROOT, folder)).filter((name) => name.endsWith(".md")).map((name) => join(folder, name));
  return [".", "docs", "docs/adr", "deploy", "examples", "findings", ".github"].flatMap(markdown).sort().map(readDocument);
}

/** The anchors that GitHub creates from headings. */
export function anchorsOf({ text }: Document): Set<string> {
  const prose = text.replace(/^```[^]*?^```$/gm, "");
  return new Set(
    Array.from(prose.matchAll(/^#+ +(.*)$/gm), ([, title]) => title!.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, "").replaceAll(" ", "-")),
  );
}

/** Targets of links and images. */
export function linksOf({ text }: Document): string[] {
  const prose = text.replace(/^```[^]*?^```$/gm, "").replace(/`[^`\n]*`/g, "");
  return [
    ...Array.from(prose.matchAll(/\]\(([^)\s]+)\)/g), ([, target]) => target!),
    ...Array.from(prose.matchAll(/\bsrc="([^"]+)"/g), ([, target]) => target!),
  ];
}

/** An `@example` of one of the library's functions. */
export interface Example {
  readonly name: string;
  readonly code: string;
}

/** The examples of the functions that `file` exports. */
export function readExamples(file: string): Example[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  const documented = text.matchAll(/^\/\*\*((?:(?!\*\/)[^])*)\*\/\nexport (?:async )?function (\w+)/gm);
  return Array.from(documented).flatMap(([, comment, name]) => {
    const prose = comment!.replace(/^ \* ?/gm, "");
    return Array.from(prose.matchAll(/@example[^\n]*\n+```ts\n([^]*?)^```$/gm), ([, code]) => ({ name: name!, code: code! }));
  });
}

/** The command that runs a program with the library, on the runtime of the tests. */
export const RUNTIME: readonly string[] = process.versions.bun
  ? [process.execPath, "run"]
  : [process.execPath, "run", "-A", "--quiet", "--no-check", `--config=${join(ROOT, "deno.json")}`];

/** Changes a program that imports the library by its package's name to import it from these sources. */
export function importLibrary(code: string): string {
  return code.replaceAll('"@reverse-http/reverse-http"', JSON.stringify(pathToFileURL(join(ROOT, "mod.ts")).href));
}
