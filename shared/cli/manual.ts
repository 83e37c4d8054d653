// Generates an executable's manual page from the definitions, in roff for man(1).
import { type Command, envIn, type Executable, flagsOf, helpText, usageOf, walkCommands } from "./command.ts";
import { howToLoad, SHELLS } from "./completion.ts";

/** `date` in ISO 8601, of which the day is shown; `undefined` if it is unknown. */
export function manualPage({ root, version }: Executable, date: string | undefined): string {
  const commands = [...walkCommands(root)].filter(([, command]) => "start" in command || "run" in command);
  const sections = [
    `.TH ${text(root.name.toUpperCase())} 1 "${date?.slice(0, 10) ?? ""}" "reverse\\-http ${text(version)}" "User Commands"`,
    ".ad l", // no justification and no hyphenation: names must be copyable
    ".nh",
    section("NAME", [text(`${root.name} - ${root.description.replace(/\.$/, "")}`)]),
    section("SYNOPSIS", [commands.map(([path, command]) => synopsis(root, path, command)).join("\n.br\n")]),
    ...commands.map(([path, command]) => commandSection(root, path, command)),
  ];
  if (commands.some(([, command]) => "start" in command)) sections.push(...SERVICE_SECTIONS);
  sections.push(
    section("EXIT STATUS", [
      ...item("0", "A clean stop, or the command succeeded."),
      ...item("1", "A failure at run time."),
      ...item("2", "An invalid configuration or command line; no socket was opened."),
    ]),
    section("COMPLETION", SHELLS.flatMap((shell) => item(shell, `${howToLoad(shell, root.name)}.`))),
  );
  return `${sections.join("\n")}\n`;
}

/** Sections about every service. */
const SERVICE_SECTIONS = [
  section("CONFIGURATION", [
    text(
      "Every option of a service is a flag, an environment variable and a key of the configuration file, nested at the dots: " +
        "--log.level=debug is log: {level: debug}. In order of precedence: command line, environment, file, default. " +
        "Unknown options are errors. Durations are written like 300ms, 10s, 1m30s or 24h; lists are repeated or separated by commas. " +
        "Allow-list patterns are hosts (localhost), zones (*.example.com, which includes example.com), addresses and networks " +
        "(10.0.0.0/8, [2001:db8::1]), each with an optional port or range (:80, :1000-2000).",
    ),
  ]),
  section("FILES", [
    text("Without --config, the first of these that exists is read:"),
    ...["~/.reverse-http.yaml", "~/.reverse-http.json", "/etc/reverse-http/config.yaml", "/etc/reverse-http/config.json"].flatMap((
      file,
    ) => [
      ".br",
      `.I ${text(file)}`,
    ]),
  ]),
  section("SIGNALS", item("SIGINT, SIGTERM", "Stop. A second signal stops at once.")),
];

function synopsis(root: Command, path: readonly string[], command: Command): string {
  const options = Object.keys(flagsOf(command)).length === 0 ? "" : " [options]";
  return `.B ${text([root.name, ...path].join(" "))}${options}`;
}

function commandSection(root: Command, path: readonly string[], command: Command): string {
  const title = path.length === 0 ? "OPTIONS" : [root.name, ...path].join(" ");
  const flags = Object.entries(flagsOf(command)).flatMap(([name, option]) =>
    item(usageOf(name, option), helpText(option, envIn(command, name)))
  );
  return section(title, [text(command.description), ...flags]);
}

function section(title: string, lines: readonly string[]): string {
  return [`.SH "${text(title)}"`, ...lines].join("\n");
}

function item(term: string, description: string): string[] {
  return [".TP", `.B ${text(term)}`, text(description)];
}

/** Escapes text for roff and wraps it to lines of fewer than 80 bytes. */
function text(words: string): string {
  const escaped = words.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll('"', "\\(dq").replaceAll("~", "\\(ti");
  return escaped.replace(/(.{1,76})(?: |$)/g, "$1\n").trimEnd().replace(/^(?=[.'])/gm, "\\&");
}
