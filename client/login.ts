// The command `login`: stores a profile, which connect and forward read for each connection.
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { stringify } from "yaml";
import { writeOutput } from "../shared/cli/auth_files.ts";
import type { Subcommand, Terminal } from "../shared/cli/command.ts";
import { profileFile } from "../shared/cli/profile.ts";
import { ConfigError, defineOptions, flagOf, type ValuesOf } from "../shared/config/option.ts";
import { resolve } from "../shared/config/sources.ts";
import { describeWriteError } from "../shared/files/read.ts";
import { expandJoin } from "./join.ts";
import { type ClientOptions, clientOptions } from "./options.ts";
import { checkAccess } from "./tunnel.ts";

const { "connect-timeout": _, ...stored } = clientOptions;

const options = defineOptions({
  "name": {
    kind: "string",
    description: "Name of the profile, for --profile; by default that of connect and forward without --profile.",
    check: (name) => /^[\w-]+$/.test(name) ? undefined : "it has other characters than letters, digits, _ and -",
  },
  ...stored,
  "force": { kind: "boolean", short: "f", description: "Replace an existing profile." },
});

type LoginOptions = ValuesOf<typeof options>;

/** Stores a profile from flags, from a join string on standard input, or from answers on a terminal. */
export const loginCommand: Subcommand<LoginOptions> = {
  name: "login",
  description:
    "Store a profile for connect and forward, readable by this user only. Reads a join string from standard input, or asks, unless flags say all.",
  options,
  async run({ name, force }, terminal, { flags }) {
    const file = profileFile(name, { env: terminal.env, home: terminal.env.HOME });
    if (file === undefined) throw new ConfigError("Cannot store a profile: there is no home directory; set XDG_CONFIG_HOME");
    const given = new Map([...flags].filter(([flag]) => flag in stored));
    for (const flag of ["token", "tls.key-password"]) {
      const text = given.get(flag);
      if (text === undefined || text.startsWith("file:")) continue;
      throw new ConfigError(`Cannot use ${flagOf(flag)}: other users see the command line; leave it out to be asked, or write file:NAME`);
    }
    if (given.has("join") && !given.get("join")!.startsWith("file:")) {
      terminal.report("warning: other users could see the string on the command line; next time leave --join out, and paste it when asked");
    }
    const texts = given.has("proxy") || given.has("join") ? given : new Map([...await ask(terminal), ...given]);
    await store(file, settingsOf(texts), force, terminal);
    const flag = name === undefined ? "" : ` --profile ${name}`;
    terminal.write(`profile ${file}; try: reverse-http connect${flag} HOST:PORT\n`);
  },
};

/** Asks on a terminal; otherwise standard input has a join string. */
async function ask(terminal: Terminal): Promise<Map<string, string>> {
  const { prompt } = terminal;
  if (prompt === undefined) return new Map([["join", (await terminal.read()).trim()]]);
  const join = await prompt("Join string, which is not shown; or nothing, to be asked for each setting: ", { isSecret: true });
  if (join !== "") return new Map([["join", join]]);
  const answers = new Map([["proxy", await prompt("Address of the proxy, host:port: ", { isSecret: false })]]);
  const pin = await prompt("SHA-256 of the proxy's certificate, yes for TLS with one that this system trusts, or nothing without TLS: ", {
    isSecret: false,
  });
  if (pin !== "" && !/^no?$/i.test(pin)) answers.set("tls.enable", "true");
  if (pin !== "" && !/^(?:no?|y|yes)$/i.test(pin)) answers.set("tls.pin-sha256", pin);
  const agentId = await prompt("Id of the agent, or nothing if the token says it: ", { isSecret: false });
  if (agentId !== "") answers.set("agent-id", agentId);
  const token = await prompt("Token, command:COMMAND that prints one, or nothing: ", { isSecret: true });
  if (token.startsWith(COMMAND)) answers.set("token-command", token.slice(COMMAND.length));
  else if (token !== "") answers.set("token", token);
  return answers;
}

const COMMAND = "command:";

/**
 * The settings of the profile, checked.
 * @throws {ConfigError}
 */
function settingsOf(given: ReadonlyMap<string, string>): Map<string, string> {
  const { values } = resolve(clientOptions, { flags: given, env: {} }); // a bad value is refused before the string is expanded
  const { join } = values as ClientOptions;
  const all = new Map([...Object.entries(join === undefined ? {} : expandJoin(join)), ...given]);
  all.delete("join");
  checkAccess(resolve(clientOptions, { flags: all, env: {} }).values as ClientOptions);
  return all;
}

/** Writes the settings as YAML, nested at the dots. */
async function store(file: string, settings: ReadonlyMap<string, string>, force: boolean, terminal: Terminal): Promise<void> {
  const root: Record<string, unknown> = {};
  for (const [name, text] of settings) {
    const keys = name.split(".");
    let group = root;
    for (const key of keys.slice(0, -1)) group = (group[key] ??= {}) as Record<string, unknown>;
    const { kind } = clientOptions[name as keyof typeof clientOptions];
    group[keys.at(-1)!] = kind === "list" ? text.split(",") : kind === "boolean" ? text === "true" : text;
  }
  try {
    await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new Error(`Cannot create ${dirname(file)}: ${describeWriteError(cause)}`, { cause });
  }
  await writeOutput(stringify(root), { file, mode: 0o600, force, what: `the profile ${file}` }, terminal);
}
