// The commands `auth …`: they make keys and tokens, in files that nobody else may read.
import { randomBytes } from "node:crypto";
import { open, readFile, rename, rm } from "node:fs/promises";
import { decodeJwt } from "jose";
import type { Group, Subcommand, Terminal } from "./command.ts";
import { checkPatterns, LIST_WORDS } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";
import { describeFileError, describeWriteError } from "../files/read.ts";
import { AuthenticationError } from "../auth/authenticator.ts";
import { ALGORITHMS, generatePrivateKey, KeyError, parsePrivateKey, publicKeyOf, type SigningKey } from "../auth/keys.ts";
import { ROLES, signToken } from "../auth/token.ts";

const PRIVATE_KEY_FILE = "auth-key-private.pem";
const PUBLIC_KEY_FILE = "auth-key-public.pem";
const TOKEN_FILE = "jwt.b64";
/** For the owner alone. */
const SECRET = 0o600;
const PUBLIC = 0o644;

const force = { kind: "boolean", short: "f", description: "Replace the file where there is one." } as const;
const input = {
  kind: "file",
  short: "i",
  default: PRIVATE_KEY_FILE,
  description: "File of the private key, PEM; - is standard input.",
} as const;

const privateOptions = defineOptions({
  "algo": { kind: "string", default: "ES256", choices: ALGORITHMS, description: "Algorithm of the tokens that the key is to sign." },
  "out": { kind: "file", short: "o", default: PRIVATE_KEY_FILE, description: "File for the private key; - is standard output." },
  force,
});

const privateCommand: Subcommand<ValuesOf<typeof privateOptions>> = {
  name: "private",
  description: "Make a private key, which signs tokens.",
  options: privateOptions,
  async run({ algo, out, force }, terminal) {
    await put(generatePrivateKey(algo), { file: out, mode: SECRET, force }, terminal);
    if (out !== "-") terminal.write(`private key ${out}, ${algo}, for its owner alone to read\n`);
  },
};

const publicOptions = defineOptions({
  "in": input,
  "out": { kind: "file", short: "o", default: PUBLIC_KEY_FILE, description: "File for the public key; - is standard output." },
  force,
});

const publicCommand: Subcommand<ValuesOf<typeof publicOptions>> = {
  name: "public",
  description: "Write the public key of a private one, with which a proxy verifies tokens.",
  options: publicOptions,
  async run({ in: file, out, force }, terminal) {
    await put(publicKeyOf(await readKey(file, terminal)), { file: out, mode: PUBLIC, force }, terminal);
    if (out !== "-") terminal.write(`public key ${out}, for --auth.jwt.public-key\n`);
  },
};

const tokenOptions = defineOptions({
  "agent-id": { kind: "string", description: "The agent that shows the token, or that a client may reach with it." },
  "role": { kind: "string", default: "client", choices: ROLES, description: "Who is to show the token." },
  "audience": { kind: "string", description: "Audience, where the proxy asks for one." },
  "duration": {
    kind: "duration",
    default: "24h",
    // as long as Go's can be
    maxMs: 2_562_047 * 3_600_000,
    description: "Time until the token expires.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "allow": {
    guards: LIST_WORDS,
    kind: "list",
    description: "Allow-list patterns of what can be reached with the token, on top of all other lists; by default all.",
    check: checkPatterns,
  },
  "in": input,
  "out": { kind: "file", short: "o", default: TOKEN_FILE, description: "File for the token; - is standard output." },
  force,
});

const tokenCommand: Subcommand<ValuesOf<typeof tokenOptions>> = {
  name: "token",
  description: "Make a token (JWT) for an agent, or for the clients of one.",
  options: tokenOptions,
  async run({ agentId, role, audience, duration, allow, in: file, out, force }, terminal) {
    if (agentId === undefined) throw new ConfigError("Cannot make a token: --agent-id is needed");
    const key = await readKey(file, terminal);
    const token = await sign(key, agentId, { role, audience, durationMs: duration, allow });
    await put(token, { file: out, mode: SECRET, force }, terminal);
    const { jti, exp } = decodeJwt(token);
    // what it takes to revoke it, and when to renew it
    if (out !== "-") terminal.write(`jti ${jti}, expires ${new Date(exp! * 1000).toISOString()}\n`);
  },
};

/** Makes keys and tokens. */
export const authCommand: Group = {
  name: "auth",
  description: "Make keys and tokens for authentication by JWT.",
  commands: [
    { name: "key", description: "Make keys.", commands: [privateCommand as Subcommand, publicCommand as Subcommand] },
    { name: "jwt", description: "Make tokens.", commands: [tokenCommand as Subcommand] },
  ],
};

async function sign(
  key: SigningKey,
  agentId: string,
  request: { role: "agent" | "client"; audience?: string; durationMs: number; allow: readonly string[] },
): Promise<string> {
  try {
    return await signToken(key, { agentId, ...request });
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new ConfigError(`Cannot use --agent-id ${JSON.stringify(agentId)}: ${cause.message}`, { cause });
  }
}

async function readKey(file: string, terminal: Terminal): Promise<SigningKey> {
  try {
    return parsePrivateKey(file === "-" ? await terminal.read() : await readFile(file, "utf8"));
  } catch (cause) {
    if (cause instanceof KeyError) throw new ConfigError(`Cannot use --in ${JSON.stringify(file)}: ${cause.message}`, { cause });
    throw new ConfigError(`Cannot read --in ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
  }
}

/** Writes to a file, or to standard output with the newline that people want there. */
async function put(text: string, { file, mode, force }: { file: string; mode: number; force: boolean }, terminal: Terminal): Promise<void> {
  if (file === "-") return terminal.write(text.endsWith("\n") ? text : `${text}\n`);
  try {
    if (force) await replace(file, text, mode);
    else await create(file, text, mode);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "EEXIST") {
      throw new Error(`Cannot write --out ${JSON.stringify(file)}: ${describeWriteError(cause)}`, { cause });
    }
    throw new ConfigError(`Cannot write --out ${JSON.stringify(file)}: there is such a file; --force replaces it`, { cause });
  }
}

/** Beside it, then in its place: who reads it gets the old or the new, and its mode is the new one's. */
async function replace(file: string, text: string, mode: number): Promise<void> {
  const fresh = `${file}.${randomBytes(6).toString("hex")}`;
  await create(fresh, text, mode);
  try {
    await rename(fresh, file);
  } catch (error) {
    await rm(fresh, { force: true });
    throw error;
  }
}

/** A new file, which has its mode from the first moment on; none is left where that fails. */
async function create(file: string, text: string, mode: number): Promise<void> {
  const handle = await open(file, "wx", mode);
  try {
    await handle.writeFile(text);
    await handle.close();
  } catch (error) {
    await handle.close().catch(() => {});
    await rm(file, { force: true });
    throw error;
  }
}
