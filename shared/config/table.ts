// Formats options as a table for the documentation.
import { describeOption, flagOf, type Options } from "./option.ts";

/** A Markdown table of flag, default and meaning. Environment variables and keys follow from the flags. */
export function optionTable(options: Options): string {
  const rows = Object.entries(options).map(([name, option]) => {
    const { default: value, choices } = option;
    const description = describeOption(option);
    const text = choices ? `${description} One of ${choices.map((c) => `\`${c}\``).join(", ")}.` : description;
    return `| \`${flagOf(name)}\` | ${value === undefined ? "" : `\`${value}\``} | ${text.replace(/\|/g, "\\|")} |`;
  });
  return `| option | default | meaning |\n| --- | --- | --- |\n${rows.join("\n")}\n`;
}
