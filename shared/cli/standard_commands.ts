// Commands that every executable has.
import { BUILD } from "../build.ts";
import type { Action, Executable } from "./command.ts";
import { defineOptions, type ValuesOf } from "./option.ts";

/** `executable` with the commands that all have. */
export function withStandardCommands(executable: Executable): Executable {
  const { root, version } = executable;
  return { ...executable, root: { ...root, commands: [...root.commands ?? [], versionCommand(version)] } };
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
