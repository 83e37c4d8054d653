// The commands `login`, which stores a profile that connect and forward read for each connection, and signs in at an identity provider if the
// profile names one, and `logout`, which ends that.
import { existsSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { dirname, resolve as absolute } from "node:path";
import { stringify } from "yaml";
import { writeOutput } from "../shared/cli/auth_files.ts";
import { IssuerError } from "../shared/auth/issuer_client.ts";
import { CommandFailure, type Subcommand, type Terminal } from "../shared/cli/command.ts";
import { profileFile, refuseExposed } from "../shared/cli/profile.ts";
import { printQrCode } from "../shared/cli/qr_code.ts";
import { readConfig } from "../shared/config/file.ts";
import { ConfigError, defineOptions, flagOf, type ValuesOf } from "../shared/config/option.ts";
import { resolve } from "../shared/config/sources.ts";
import { describeFileError, describeWriteError, readText } from "../shared/files/read.ts";
import { expandJoin } from "./join.ts";
import { type ClientOptions, clientOptions, forwardProfile, socksProfile } from "./options.ts";
import { openIssuer, readSession, scopeOf, sessionOf, writeSession } from "./session.ts";
import { checkAccess } from "./tunnel.ts";

const { "connect-timeout": _, ...stored } = clientOptions;

const nameOption = defineOptions({
  "name": {
    kind: "string",
    description: "Name of the profile, for --profile; by default that of connect and forward without --profile.",
    check: (name) => /^[\w-]+$/.test(name) ? undefined : "it has other characters than letters, digits, _ and -",
  },
});

const options = defineOptions({
  ...nameOption,
  ...stored,
  "force": { kind: "boolean", short: "f", description: "Replace an existing profile." },
});

type LoginOptions = ValuesOf<typeof options>;

/** Stores a profile from flags, from a join string on standard input, or from answers on a terminal. */
export const loginCommand: Subcommand<LoginOptions> = {
  name: "login",
  description:
    "Store a profile for connect and forward, readable by this user only. Reads a join string from standard input, or asks for settings that no flag has. " +
    "With --issuer, or a profile that has one, sign in at an identity provider.",
  options,
  async run({ name, force }, terminal, { flags }) {
    const file = fileOf(name, terminal);
    const given = new Map([...flags].filter(([flag]) => flag in stored));
    const known = given.size === 0 && !force && existsSync(file) ? await readProfile(file) : undefined;
    if (known?.issuer !== undefined) return await signIn(known, terminal);
    const isComplete = given.has("proxy") || given.has("join");
    if (!isComplete && terminal.prompt !== undefined) refuseExisting(file, force); // before a person answers for nothing
    for (const flag of ["token", "client-secret", "tls.key-password"]) {
      const text = given.get(flag);
      if (text === undefined || text.startsWith("file:")) continue;
      throw new ConfigError(`Cannot use ${flagOf(flag)}: other users see the command line; leave it out to be asked, or write file:NAME`);
    }
    if (given.has("join") && !given.get("join")!.startsWith("file:")) {
      terminal.report("warning: other users could see the string on the command line; next time leave --join out, and paste it when asked");
    }
    if (given.has("issuer") && !given.has("session-file")) {
      given.set("session-file", absolute(file.replace(/(?:\.\w+)?$/, ".session.json")));
    }
    const texts = isComplete ? given : new Map([...await ask(terminal, given.has("issuer")), ...given]);
    const settings = settingsOf(texts);
    refuseExisting(file, force);
    await createFolder(dirname(file));
    if (settings.has("issuer")) await signIn(resolve(clientOptions, { flags: settings, env: {} }).values as ClientOptions, terminal);
    await store(file, settings, force, terminal);
    const flag = name === undefined ? "" : ` --profile ${name}`;
    terminal.write(`profile ${file}; try: reverse-http connect${flag} HOST:PORT\n`);
  },
};

/** Signs out at the identity provider; the profile stays. */
export const logoutCommand: Subcommand<ValuesOf<typeof nameOption>> = {
  name: "logout",
  description: "End the session of a profile at its identity provider: revoke its tokens, and remove them from this machine.",
  options: nameOption,
  async run({ name }, terminal) {
    const file = fileOf(name, terminal);
    const profile = await readProfile(file);
    const { issuer, sessionFile } = profile;
    if (issuer === undefined || sessionFile === undefined) throw new ConfigError(`Cannot sign out: the profile ${file} has no issuer`);
    if (!existsSync(sessionFile)) return terminal.write(`there is no session at ${issuer}\n`);
    try {
      const { refreshToken, token } = await readSession(sessionFile, profile);
      const isRevoked = await (await openIssuer(profile)).revoke(refreshToken ?? token);
      terminal.write(
        isRevoked ? `signed out at ${issuer}\n` : `the tokens are removed; ${issuer} revokes none, so they stay valid until they expire\n`,
      );
    } catch (cause) {
      if (!(cause instanceof IssuerError)) throw cause;
      throw new CommandFailure(1, `The tokens are removed, but may stay valid until they expire: ${cause.message}`, { cause });
    } finally {
      await rm(sessionFile, { force: true });
    }
  },
};

/** @throws {ConfigError} without a home directory */
function fileOf(name: string | undefined, { env }: Terminal): string {
  const file = profileFile(name, { env, home: env.HOME });
  if (file === undefined) throw new ConfigError("Cannot find profiles: there is no home directory; set XDG_CONFIG_HOME");
  return file;
}

/** Largest profile in bytes. */
const MAX_PROFILE = 1024 * 1024;

/** @throws {ConfigError} */
async function readProfile(file: string): Promise<ClientOptions> {
  const text = await readText(file, MAX_PROFILE).catch((cause) => {
    throw new ConfigError(`Cannot read the profile ${file}: ${describeFileError(cause)}`, { cause });
  });
  refuseExposed(file);
  const all = { ...forwardProfile, ...socksProfile };
  return resolve(all, { flags: new Map(), env: {}, file: readConfig(all, { name: file, text }) }).values as ClientOptions;
}

/** Before a person signs in for nothing. @throws {ConfigError} */
function refuseExisting(file: string, force: boolean): void {
  if (!force && existsSync(file)) throw new ConfigError(`Cannot write the profile ${file}: the file exists; --force replaces it`);
}

/** Signs in with a code, and stores the tokens. */
async function signIn(profile: ClientOptions, terminal: Terminal): Promise<void> {
  const { sessionFile, issuer } = checkAccess(profile);
  if (sessionFile === undefined) throw new ConfigError("Cannot sign in: the profile has no session-file");
  try {
    const client = await openIssuer(profile);
    const tokens = await client.signIn(scopeOf(profile), async ({ userCode, url, completeUrl, validMs }) => {
      terminal.write(`Open ${url} and enter the code ${userCode} within ${Math.ceil(validMs / 60_000)} min\n`);
      if (completeUrl === undefined) return;
      terminal.write(`or open ${completeUrl}\n`);
      if (terminal.columns !== undefined) await printQrCode(completeUrl, terminal);
    });
    const session = sessionOf(profile, tokens, Date.now());
    await writeSession(sessionFile, session);
    const until = new Date(session.expiresAt).toISOString();
    terminal.write(`signed in at ${issuer}${session.refreshToken === undefined ? `, until ${until}: it gave no refresh token` : ""}\n`);
  } catch (cause) {
    if (!(cause instanceof IssuerError)) throw cause;
    throw new CommandFailure(1, `Cannot sign in: ${cause.message}${cause.kind === "ended" ? "; run the command again" : ""}`, { cause });
  }
}

/** Asks on a terminal; otherwise standard input has a join string. */
async function ask(terminal: Terminal, hasIssuer: boolean): Promise<Map<string, string>> {
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
  if (hasIssuer) return answers;
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
  await writeOutput(stringify(root), { file, mode: 0o600, force, what: `the profile ${file}` }, terminal);
}

async function createFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new Error(`Cannot create ${folder}: ${describeWriteError(cause)}`, { cause });
  }
}
