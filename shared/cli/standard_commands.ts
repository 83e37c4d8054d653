// Commands that every executable has.
import { BUILD } from "../build.ts";
import type { Action, Command, Executable } from "./command.ts";
import { completionScript, howToLoad, SHELLS } from "./completion.ts";
import { defineOptions, type ValuesOf } from "./option.ts";

/** `executable` with the commands that all have. */
export function withStandardCommands(executable: Executable): Executable {
  const { root } = executable;
  return { ...executable, root: { ...root, commands: [...root.commands ?? [], ...standardCommands(executable)] } };
}

function standardCommands(executable: Executable): Command[] {
  return [versionCommand(executable.version), completionCommand(executable)];
}

const versionOptions = defineOptions({
  "verbose": { kind: "boolean", short: "V", description: "Print JSON with version, commit and date." },
});

function versionCommand(version: string): Action<ValuesOf<typeof versionOptions>> {
  return {
    name: "version",
    description: "Print the version.",
    options: versionOptions,
    act({ verbose }, { write }) {
      write(`${verbose ? JSON.stringify({ version, ...BUILD }) : version}\n`);
      return Promise.resolve();
    },
  };
}

function completionCommand(executable: Executable): Command {
  return {
    name: "completion",
    description: "Print a script that completes commands and flags in a shell.",
    commands: SHELLS.map((shell) => ({
      name: shell,
      description: `For ${shell}: ${howToLoad(shell, executable.root.name)}.`,
      act: (_, { write }) => Promise.resolve(write(completionScript(shell, withStandardCommands(executable).root))),
    })),
  };
}
