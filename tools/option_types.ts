// Generates explicit TypeScript types of the options for the library. Types derived from the definitions would show no documentation in
// editors, and could not be published with it.
import { clientOptions } from "../client/options.ts";
import { SERVICES } from "../services.ts";
import { camelCase, flagOf, isRequired, type Option, type Options, parseValue } from "../shared/config/option.ts";

type Tree = { [key: string]: Tree | { readonly name: string; readonly option: Option } };

/** Generates options.ts. */
export function optionTypes(): string {
  const types = [
    interfaceOf("ProxyOptions", "What a program may tell a proxy.", SERVICES.proxy),
    interfaceOf("AgentOptions", "What a program may tell an agent.", SERVICES.agent),
    interfaceOf("LoadBalancerOptions", "What a program may tell a load balancer.", SERVICES.lb),
    interfaceOf("ClientOptions", "How a program reaches a proxy as its client.", clientOptions),
  ];
  return `// The options of the command line for programs, nested by the dots. Written by \`deno task docs\`: their definitions are elsewhere.\n\n${
    types.join("\n")
  }`;
}

function interfaceOf(name: string, sentence: string, options: Options): string {
  const tree: Tree = {};
  for (const [name, option] of Object.entries(options)) {
    const path = name.split(".").map(camelCase);
    let group = tree;
    for (const key of path.slice(0, -1)) group = (group[key] ??= {}) as Tree;
    group[path.at(-1)!] = { name, option };
  }
  return `/** ${sentence} */\nexport interface ${name} {\n${members(tree, "", "  ")}}\n`;
}

/** @param names the common prefix of the options' names */
function members(tree: Tree, names: string, indent: string): string {
  return Object.entries(tree).map(([key, value]) => {
    if ("option" in value) {
      const { name, option } = value as { name: string; option: Option };
      return `${indent}/** ${describe(name, option)} */\n${indent}${key}?: ${typeOf(option, indent)};\n`;
    }
    const group = `${names}${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}.`;
    const inner = members(value as Tree, group, `${indent}  `);
    return `${indent}/** \`--${group}*\` */\n${indent}${key}?: {\n${inner}${indent}};\n`;
  }).join("");
}

function describe(name: string, option: Option): string {
  const unit = option.kind === "duration" ? " In milliseconds." : "";
  const preset = option.default === undefined ? "" : ` Default: \`${JSON.stringify(parseValue(option, option.default))}\`.`;
  return `\`${flagOf(name)}\`: ${option.description}${unit}${preset}`.replaceAll("*/", "*\\/");
}

/** @param indent of the line that it is in */
function typeOf(option: Option, indent: string): string {
  const { kind, choices } = option;
  if (choices !== undefined) return choices.map((choice) => JSON.stringify(choice)).join(" | ");
  if (kind === "duration" || kind === "integer") return "number";
  if (kind === "list") return "string[]";
  if (option.kind === "records") {
    const lines = Object.entries(option.keys).map(([key, of]) =>
      `${indent}  ${camelCase(key)}${isRequired(of) ? "" : "?"}: ${typeOf(of, indent)};\n`
    );
    return `{\n${lines.join("")}${indent}}[]`;
  }
  return kind === "boolean" ? "boolean" : "string";
}
