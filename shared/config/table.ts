// Formats options as a table for the documentation.
import { flagOf, type Options } from "./option.ts";

/** A Markdown table of flag, default and meaning. Environment variables and keys follow from the flags. */
export function optionTable(options: Options): string {
  const rows = Object.entries(options).map(([name, { default: value, description, choices }]) => {
    const text = choices ? `${description} One of ${choices.map((c) => `\`${c}\``).join(", ")}.` : description;
    return `| \`${flagOf(name)}\` | ${value === undefined ? "" : `\`${value}\``} | ${text.replace(/\|/g, "\\|")} |`;
  });
  return `| option | default | meaning |\n| --- | --- | --- |\n${rows.join("\n")}\n`;
}
