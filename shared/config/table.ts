// Options as a table for the documents.
import { flagOf, type Options } from "./option.ts";

/** A Markdown table. Environment variables and keys follow from the flags, and are not in it. */
export function optionTable(options: Options): string {
  const rows = Object.entries(options).map(([name, { default: value, description, choices }]) => {
    const text = choices ? `${description} One of ${choices.map((c) => `\`${c}\``).join(", ")}.` : description;
    return `| \`${flagOf(name)}\` | ${value === undefined ? "" : `\`${value}\``} | ${text.replace(/\|/g, "\\|")} |`;
  });
  return `| option | default | meaning |\n| --- | --- | --- |\n${rows.join("\n")}\n`;
}
