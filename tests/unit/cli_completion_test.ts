// Shell completion: each shell loads its script and is asked for its suggestions.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, it } from "node:test";
import type { Command } from "../../shared/cli/command.ts";
import { completionScript, type Shell, SHELLS } from "../../shared/cli/completion.ts";
import { defineOptions } from "../../shared/config/option.ts";
import { Folder } from "../../testing/programs.ts";

const act = async () => {};
const options = defineOptions({
  "log.format": { kind: "string", choices: ["text", "json"], description: "It's for [people]: or `machines` at $HOME." },
  "log.level": { kind: "string", description: "How much." },
  "tls.enable": { kind: "boolean", description: "Speak TLS." },
  "tls.key": { kind: "file", description: "A key." },
  "allow": { kind: "list", description: "Who may." },
  "verbose": { kind: "boolean", short: "V", description: "More." },
});
const root: Command = {
  name: "a-thing",
  description: "Does things.",
  commands: [
    { name: "serve", description: "Serve.", options, run: act },
    { name: "show", description: "Show.", run: act },
    { name: "key", description: "Keys.", commands: [{ name: "make", description: "Make: one.", options, run: act }] },
  ],
};

/** A shell's suggestions for the last of these words, in this folder. */
type Ask = (words: string[], folder: Folder) => string[];

function run(folder: Folder, command: string, args: string[]): string[] {
  const { stdout, stderr, status, error } = spawnSync(command, args, { cwd: folder.path, encoding: "utf8", timeout: 30_000 });
  assert.equal(stderr, "", `${error}`);
  assert.equal(status, 0);
  return stdout.split(/\r?\n/).map((line) => line.trim()).filter((line) => line !== "").sort();
}

const askBash: Ask = (words, folder) => {
  const script = folder.write("completion", completionScript("bash", root));
  // the words as bash splits them; with -o default it completes files where there is nothing else
  const split = words.flatMap((word) => word.split(/(=)/).filter((part, i) => part !== "" || i === 0));
  const harness = `
    source ${script}
    compopt() { [[ $* == "-o default" ]] && files=1; }
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) files=
    $(complete -p a-thing | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    [[ $files ]] && COMPREPLY=($(compgen -f -- "\${COMP_WORDS[COMP_CWORD]}"))
    printf '%s\\n' "\${COMPREPLY[@]}"`;
  return run(folder, "bash", ["--norc", "-c", harness, "a-thing", ...split]);
};

const askFish: Ask = (words, folder) => {
  const script = folder.write("completion", completionScript("fish", root));
  const lines = run(folder, "fish", ["--no-config", "-c", `source ${script}; complete -C "${words.join(" ")}"`]);
  // with what stands before the sign, and with descriptions
  return lines.map((line) => line.split("\t")[0]!.replace(/^--[^=]*=(?=.)/, "")).sort();
};

const askZsh: Ask = (words, folder) => {
  const script = folder.write("completion", completionScript("zsh", root));
  const setup = folder.write(
    "setup",
    `
    autoload -U compinit && compinit -u -D
    source ${script}
    compadd() {
      if [[ \${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then builtin compadd "$@"; return; fi
      local -a hits
      builtin compadd -A hits "$@"
      builtin compadd "$@"
      (( $#hits )) && print -rl -- offered:$^hits
    }
    finish() { print over; exit }
    comppostfuncs=(finish)
    bindkey '^I' complete-word
    PROMPT=
    print ready`,
  );
  const harness = `
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z "TERM=dumb; unsetopt zle_bracketed_paste; source ${setup}"
    zpty -r z line '*ready*'
    zpty -w -n z ${JSON.stringify(words.join(" "))}$'\\t'
    zpty -r z line '*over*'
    print -r -- $line`;
  return run(folder, "zsh", ["-f", "-c", harness]).flatMap((line) => /offered:(.*)/.exec(line)?.[1] ?? []).sort();
};

const ASK: Record<Shell, Ask> = { bash: askBash, zsh: askZsh, fish: askFish };

const FILES = ["completion", "key.pem", "sub"];

/** Words, and the suggestions for the last; of flags only those with this prefix. */
const CASES: [what: string, words: string[], offered: string[]][] = [
  ["commands", ["a-thing", ""], ["key", "serve", "show"]],
  ["commands that begin so", ["a-thing", "s"], ["serve", "show"]],
  ["commands of commands", ["a-thing", "key", ""], ["make"]],
  ["flags of the outermost command", ["a-thing", "--v"], ["--version"]],
  ["flags of a command", ["a-thing", "serve", "--log"], ["--log.format", "--log.level"]],
  ["flags of a command of a command", ["a-thing", "key", "make", "--t"], ["--tls.enable", "--tls.key"]],
  ["flags after other flags", ["a-thing", "serve", "--log.level", "info", "--tls.enable", "--al"], ["--allow"]],
  ["no flags of another command", ["a-thing", "show", "--l"], []],
  ["choices", ["a-thing", "serve", "--log.format", ""], ["json", "text"]],
  ["choices after the sign", ["a-thing", "serve", "--log.format=te"], ["text"]],
  ["truth after the sign", ["a-thing", "serve", "--tls.enable=t"], ["true"]],
  ["files", ["a-thing", "serve", "--tls.key", "k"], ["key.pem"]],
  ["files after the sign", ["a-thing", "serve", "--tls.key=k"], ["key.pem"]],
  ["nothing for values that cannot be known", ["a-thing", "serve", "--log.level", "k"], []],
];

for (const shell of SHELLS) {
  const missing = spawnSync(shell, ["-c", ":"]).error !== undefined;
  describe(`completion in ${shell}`, { skip: missing ? `there is no ${shell} here` : false }, () => {
    for (const [what, words, offered] of CASES) {
      it(`offers ${what}`, () => {
        using folder = new Folder();
        for (const file of FILES) folder.write(file, "");
        const found = ASK[shell](words, folder);
        assert.deepEqual([...new Set(found.map((text) => text.replace(/=$/, "")))], offered, words.join(" "));
      });
    }
  });
}
