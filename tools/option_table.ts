// Formats options as a table for the documentation.
import { describeOption, flagOf, type Option, type Options } from "../shared/config/option.ts";

/** A Markdown table of flag, default, meaning, and when a reload applies it. Environment variables and keys follow from the flags. */
export function optionTable(options: Options): string {
  const isReloaded = Object.values(options).some(({ reload }) => reload !== undefined);
  const takesEffect = ({ reload, restart }: Option) => reload ?? `restart${restart === undefined ? "" : `: ${restart}`}`;
  const rows = Object.entries(options).map(([name, option]) => {
    const { default: value, choices } = option;
    const description = describeOption(option);
    const text = choices ? `${description} One of ${choices.map((c) => `\`${c}\``).join(", ")}.` : description;
    const when = isReloaded ? ` ${takesEffect(option)} |` : "";
    return `| \`${flagOf(name)}\` | ${value === undefined ? "" : `\`${value}\``} | ${text.replace(/\|/g, "\\|")} |${when}`;
  });
  const [head, line] = isReloaded ? [" takes effect |", " --- |"] : ["", ""];
  return `| option | default | meaning |${head}\n| --- | --- | --- |${line}\n${rows.join("\n")}\n`;
}
