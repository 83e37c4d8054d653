// Shell completion scripts for commands, flags, choices and files, generated from the definitions. They start no process.
import { type Command, flagsOf, walkCommands } from "./command.ts";
import { flagOf, type Option, separatorOf } from "../config/option.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** Returns the script for an executable with the root command `root`. */
export function completionScript(shell: Shell, root: Command): string {
  return { bash, zsh, fish }[shell](root);
}

/** How to load the script; in its header and in the manual. */
export function howToLoad(shell: Shell, name: string): string {
  switch (shell) {
    case "bash":
      return `source <(${name} completion bash), or keep it as /etc/bash_completion.d/${name}`;
    case "zsh":
      return `source <(${name} completion zsh), or keep it as _${name} in a folder of $fpath`;
    case "fish":
      return `${name} completion fish | source, or keep it as ~/.config/fish/completions/${name}.fish`;
  }
}

/** Flags without a value. */
function bareFlags(path: readonly string[]): { name: string; short?: string; description: string }[] {
  const help = { name: "help", short: "h", description: "Print this help." };
  return path.length === 0 ? [help, { name: "version", description: "Print the version." }] : [help];
}

function functionName(root: Command, path: readonly string[] = []): string {
  return ["_" + root.name, ...path].join("__").replace(/[^a-zA-Z0-9_]/g, "_");
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The flag, after its short form if it has one. */
function spellings(name: string, { short }: Option): string[] {
  return short === undefined ? [flagOf(name)] : [`-${short}`, flagOf(name)];
}

function bash(root: Command): string {
  const commands = [...walkCommands(root)];
  const key = (path: readonly string[], word: string) => quote([root.name, ...path, word].join(" "));
  const paths = commands.filter(([path]) => path.length > 0).map(([path]) => key(path.slice(0, -1), path.at(-1)!));
  const keysByAction = new Map<string, string[]>();
  for (const [path, command] of commands) {
    for (const [name, option] of Object.entries(flagsOf(command))) {
      const action = bashAction(option);
      keysByAction.set(action, [...keysByAction.get(action) ?? [], ...spellings(name, option).map((flag) => key(path, flag))]);
    }
  }
  const values = [...keysByAction].map(([action, keys]) => `  ${keys.join(" | \\\n  ")})\n    ${action} ;;`);
  const words = commands.map(([path, command]) => {
    const inner = (command.commands ?? []).map(({ name }) => name);
    const flags = [...Object.keys(flagsOf(command)), ...bareFlags(path).map(({ name }) => name)].map(flagOf);
    return `  ${quote([root.name, ...path].join(" "))}) words=${quote(inner.join(" "))} flags=${quote(flags.join(" "))} ;;`;
  });
  return `# Completion of ${root.name} for bash: ${howToLoad("bash", root.name)}
${functionName(root)}() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD - 1]} path=${quote(root.name)} equals= words= flags= i
  # bash splits --flag=value into three words
  if [[ $cur == = ]]; then
    cur= equals=1
  elif [[ $prev == = ]]; then
    prev=\${COMP_WORDS[COMP_CWORD - 2]} equals=1
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$path \${COMP_WORDS[i]}" in
    ${paths.join(" | ")})
      path+=" \${COMP_WORDS[i]}" ;;
    esac
  done
  COMPREPLY=()
  case "$path $prev" in
${values.join("\n")}
  esac
  case $path in
${words.join("\n")}
  esac
  if [[ $cur == -* || ! $words ]]; then words=$flags; fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F ${functionName(root)} ${root.name}
`;
}

/** The bash code that completes the value of an option. */
function bashAction({ kind, choices }: Option): string {
  if (choices) return `COMPREPLY=($(compgen -W ${quote(choices.join(" "))} -- "$cur")); return`;
  // takes a value only after =
  if (kind === "boolean") return `if [[ $equals ]]; then COMPREPLY=($(compgen -W 'true false' -- "$cur")); return; fi`;
  // with an empty result bash completes files; before bash 4 there is no compopt
  if (kind === "file") return `compopt -o default 2> /dev/null || COMPREPLY=($(compgen -f -- "$cur")); return`;
  return "return";
}

function zsh(root: Command): string {
  const functions = [...walkCommands(root)].map(([path, command]) => {
    const specs = Object.entries(flagsOf(command)).flatMap(([name, option]) =>
      spellings(name, option).map((flag) => zshSpec(flag, option))
    );
    for (const { name, short, description } of bareFlags(path)) {
      specs.push(short === undefined ? `(- *)--${name}[${description}]` : `(- *)'{-${short},--${name}}'[${description}]`);
    }
    const inner = command.commands ?? [];
    if (inner.length === 0) return `${functionName(root, path)}() {\n  _arguments -s \\\n${zshLines(specs)}\n}`;
    const cases = inner.map(({ name }) => `    ${name}) ${functionName(root, [...path, name])} ;;`);
    const described = inner.map(({ name, description }) => `      ${quote(`${name}:${description}`)}`);
    return `${functionName(root, path)}() {
  local context state state_descr line curcontext=$curcontext
  typeset -A opt_args
  local -a commands
  _arguments -s -C \\
${zshLines([...specs, "1: :->command", "*:: :->rest"])} && return
  case $state in
  command)
    commands=(
${described.join("\n")}
    )
    _describe -t commands command commands
    ;;
  rest)
    case $line[1] in
${cases.join("\n")}
    esac
    ;;
  esac
}`;
  });
  const main = functionName(root);
  return `#compdef ${root.name}
# Completion of ${root.name} for zsh: ${howToLoad("zsh", root.name)}
${functions.join("\n")}
# autoloaded from $fpath it runs as the completion function; sourced, it registers itself
if [[ $funcstack[1] == _${root.name} ]]; then ${main} "$@"; else compdef ${main} ${root.name}; fi
`;
}

function zshLines(specs: readonly string[]): string {
  return specs.map((spec) => `    ${`'${spec}'`}`).join(" \\\n");
}

function zshSpec(flag: string, option: Option): string {
  const { kind, choices, description } = option;
  const text = description.replace(/[[\]:\\]/g, "\\$&").replaceAll("'", "'\\''");
  const action = choices ? `(${choices.join(" ")})` : kind === "boolean" ? "(true false)" : kind === "file" ? "_files" : " ";
  const sign = flag.startsWith("--") ? "=" : "";
  if (kind === "boolean") return sign ? `${flag}=-[${text}]::boolean:${action}` : `${flag}[${text}]`;
  return `${separatorOf(option) === undefined ? "" : "*"}${flag}${sign}[${text}]:${kind}:${action}`;
}

function fish(root: Command): string {
  const lines = [...walkCommands(root)].flatMap(([path, command]) => {
    const inner = command.commands ?? [];
    const seen = path.map((word) => `__fish_seen_subcommand_from ${word}`);
    const deeper = inner.map(({ name }) => name).join(" ");
    const here = [...seen, ...deeper === "" ? [] : [`not __fish_seen_subcommand_from ${deeper}`]].join("; and ");
    const when = `complete -c ${root.name}${here === "" ? "" : ` -n ${quote(here)}`}`;
    return [
      ...inner.map(({ name, description }) => `${when} -f -a ${name} -d ${quote(description)}`),
      ...Object.entries(flagsOf(command)).map(([name, option]) => `${when} ${fishFlag(name, option)}`),
      ...bareFlags(path).map(({ name, short, description }) =>
        `${when} ${short === undefined ? "" : `-s ${short} `}-l ${name} -d ${quote(description)}`
      ),
    ];
  });
  return `# Completion of ${root.name} for fish: ${howToLoad("fish", root.name)}
complete -c ${root.name} -f
${lines.join("\n")}
`;
}

function fishFlag(name: string, { kind, short, choices, description }: Option): string {
  const words = choices ?? (kind === "boolean" ? ["true", "false"] : undefined);
  const value = kind === "file" ? " -r -F" : kind === "boolean" ? "" : " -x";
  return `${short === undefined ? "" : `-s ${short} `}-l ${name}${value}${words ? ` -a ${quote(words.join(" "))}` : ""} -d ${
    quote(description)
  }`;
}
