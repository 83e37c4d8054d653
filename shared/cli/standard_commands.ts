// Commands of every executable.
import { BUILD } from "../build.ts";
import type { Command, Executable, Subcommand } from "./command.ts";
import { configSchema } from "../config/schema.ts";
import { completionScript, howToLoad, SHELLS } from "./completion.ts";
import { healthcheckCommand } from "./healthcheck.ts";
import { manualPage } from "./manual.ts";
import { upgradeCommand } from "./upgrade/command.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";

/** Adds the standard commands to `executable`. */
export function withStandardCommands(executable: Executable): Executable {
  const { root } = executable;
  return { ...executable, root: { ...root, commands: [...root.commands ?? [], ...standardCommands(executable)] } };
}

function standardCommands(executable: Executable): Command[] {
  // completion and manual include the standard commands themselves
  const complete = () => withStandardCommands(executable);
  const print = (name: string, description: string, text: () => string): Subcommand => ({
    name,
    description,
    run: (_, { write }) => Promise.resolve(write(text())),
  });
  return [
    versionCommand(executable.version),
    healthcheckCommand,
    upgradeCommand(executable) as Subcommand,
    {
      name: "completion",
      description: "Print a script that completes commands and flags in a shell.",
      commands: SHELLS.map((shell) =>
        print(shell, `For ${shell}: ${howToLoad(shell, executable.root.name)}.`, () => completionScript(shell, complete().root))
      ),
    },
    print("man", "Print the manual page, for man(1).", () => manualPage(complete(), BUILD.date === "unknown" ? undefined : BUILD.date)),
    print(
      "config-schema",
      "Print a JSON Schema of the configuration file, for editors.",
      () => `${JSON.stringify(configSchema(executable.family), null, 2)}\n`,
    ),
  ];
}

const versionOptions = defineOptions({
  "verbose": { kind: "boolean", short: "V", description: "Print JSON with version, commit and date." },
});

function versionCommand(version: string): Subcommand<ValuesOf<typeof versionOptions>> {
  return {
    name: "version",
    description: "Print the version.",
    options: versionOptions,
    run({ verbose }, { write }) {
      write(`${verbose ? JSON.stringify({ version, ...BUILD }) : version}\n`);
      return Promise.resolve();
    },
  };
}
