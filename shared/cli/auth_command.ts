// The commands `auth …`: create keys and tokens, in files that only their owner can read.
import { decodeJwt, type JWTPayload } from "jose";
import { PRIVATE_KEY_FILE, readKey, writeOutput } from "./auth_files.ts";
import type { Group, Subcommand, Terminal } from "./command.ts";
import { checkPatterns, LIST_WORDS, NOT_GIVEN } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { showTime } from "../auth/claim_time.ts";
import { createAgentList } from "../auth/agent_list.ts";
import { createPublishList } from "../auth/publish_list.ts";
import { AuthenticationError } from "../auth/authenticator.ts";
import {
  ALGORITHMS,
  generatePrivateKey,
  KeyError,
  parsePublicKeys,
  publicKeyOf,
  type SigningKey,
  type VerificationKey,
} from "../auth/keys.ts";
import { OPERATOR_NAME, OPERATOR_ROLES, signOperatorToken, verifyOperatorToken } from "../auth/operator_token.ts";
import { isTicket, readTicket, signTicket, type Ticket, type TicketRequest } from "../auth/ticket.ts";
import { MAX_TOKEN, renewToken, ROLES, signToken, type TokenRequest, verifyToken } from "../auth/token.ts";
import { printable } from "../net/printable.ts";

const PUBLIC_KEY_FILE = "auth-key-public.pem";
const TOKEN_FILE = "jwt.b64";
const TICKET_FILE = "ticket.txt";
/** Readable by the owner only. */
const SECRET = 0o600;
const PUBLIC = 0o644;

const force = { kind: "boolean", short: "f", description: "Replace an existing file." } as const;
const input = {
  kind: "file",
  short: "i",
  default: PRIVATE_KEY_FILE,
  description: "Private key file, PEM; - is standard input.",
} as const;

const privateOptions = defineOptions({
  "algo": { kind: "string", default: "ES256", choices: ALGORITHMS, description: "Signature algorithm of the key." },
  "out": { kind: "file", short: "o", default: PRIVATE_KEY_FILE, description: "File for the private key; - is standard output." },
  force,
});

const privateCommand: Subcommand<ValuesOf<typeof privateOptions>> = {
  name: "private",
  description: "Create a private key, which signs tokens.",
  options: privateOptions,
  async run({ algo, out, force }, terminal) {
    await writeOutput(generatePrivateKey(algo), { file: out, mode: SECRET, force }, terminal);
    if (out !== "-") terminal.write(`private key ${out}, ${algo}, readable by its owner only\n`);
  },
};

const publicOptions = defineOptions({
  "in": input,
  "out": { kind: "file", short: "o", default: PUBLIC_KEY_FILE, description: "File for the public key; - is standard output." },
  force,
});

const publicCommand: Subcommand<ValuesOf<typeof publicOptions>> = {
  name: "public",
  description: "Write the public key of a private key; proxies verify tokens with it.",
  options: publicOptions,
  async run({ in: file, out, force }, terminal) {
    await writeOutput(publicKeyOf(await readKey(file, terminal)), { file: out, mode: PUBLIC, force }, terminal);
    if (out !== "-") terminal.write(`public key ${out}, for --auth.jwt.public-key\n`);
  },
};

const tokenOptions = defineOptions({
  "agent-id": { kind: "string", description: "Id of the agent that presents the token, or that a client may reach with it." },
  "agents": {
    guards: NOT_GIVEN,
    kind: "list",
    description: "Instead of an agent id: patterns, such as site-*, of the agents that a client may reach with the token.",
    check: checkAgents,
  },
  "role": { kind: "string", default: "client", choices: ROLES, description: "Role of the program that presents the token." },
  "audience": { kind: "string", description: "Audience, if the proxy requires one." },
  "duration": {
    kind: "duration",
    default: "24h",
    // the longest duration in Go
    maxMs: 2_562_047 * 3_600_000,
    description: "Time until the token expires.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "name": {
    kind: "string",
    description: "Name of the person or program: shown in logs, and used as name: in a policy and a revocation file. By default none.",
    check: checkName,
  },
  "allow": {
    guards: LIST_WORDS,
    kind: "list",
    description: "Allow-list patterns of the destinations that the token permits, in addition to all other lists; by default all.",
    check: checkPatterns,
  },
  "publish": {
    kind: "list",
    description:
      "Ports and names that an agent may have proxies publish: :5432, :8000-8100, udp:5353, www.example:443 or *.zone.example:443; by default none.",
    check: checkPublish,
  },
  "in": input,
  "out": { kind: "file", short: "o", default: TOKEN_FILE, description: "File for the token; - is standard output." },
  force,
});

const tokenCommand: Subcommand<ValuesOf<typeof tokenOptions>> = {
  name: "token",
  description: "Create a token (JWT) for an agent, or for clients of one or several agents.",
  options: tokenOptions,
  async run({ agentId, agents, role, audience, duration, name, allow, publish, in: file, out, force }, terminal) {
    if (agents.length > 0 && agentId !== undefined) throw new ConfigError("Cannot use both --agent-id and --agents: set only one");
    if (agents.length > 0 && role !== "client") throw new ConfigError(`Cannot use --agents: a token for an ${role} has one id, --agent-id`);
    if (agents.length === 0 && agentId === undefined) throw new ConfigError("Cannot create a token: --agent-id or --agents is required");
    if (publish.length > 0 && role !== "agent") {
      throw new ConfigError("Cannot use --publish: --role=agent is needed, because clients publish nothing");
    }
    const key = await readKey(file, terminal);
    const whom = agents.length > 0 ? { agents } : { agentId };
    const token = await sign(key, { ...whom, role, audience, durationMs: duration, name, allow, publish });
    await writeOutput(token, { file: out, mode: SECRET, force }, terminal);
    const { jti, exp } = decodeJwt(token);
    // needed to revoke the token, and to renew it in time
    if (out !== "-") terminal.write(`jti ${jti}, expires ${new Date(exp! * 1000).toISOString()}\n`);
  },
};

const operatorOptions = defineOptions({
  "name": {
    kind: "string",
    description: "Name of the operator, shown in logs and in the audit log.",
    check: (name) => OPERATOR_NAME.test(name) ? undefined : `${JSON.stringify(name)} is not up to 64 letters, digits, dots, dashes and @`,
  },
  "role": { kind: "string", default: "viewer", choices: OPERATOR_ROLES, description: "viewer may read; operator may also act." },
  "duration": tokenOptions.duration,
  "in": input,
  "out": { kind: "file", short: "o", default: "operator.jwt", description: "File for the token; - is standard output." },
  force,
});

const operatorCommand: Subcommand<ValuesOf<typeof operatorOptions>> = {
  name: "operator",
  description: "Create a token (JWT) for an operator of the admin API, who is verified by --admin.jwt.public-key.",
  options: operatorOptions,
  async run({ name, role, duration, in: file, out, force }, terminal) {
    if (name === undefined) throw new ConfigError("Cannot create a token: --name is required");
    const token = await signOperatorToken(await readKey(file, terminal), { name, role, durationMs: duration });
    await writeOutput(token, { file: out, mode: SECRET, force }, terminal);
    const { exp } = decodeJwt(token);
    if (out !== "-") terminal.write(`${role} ${name}, expires ${new Date(exp! * 1000).toISOString()}\n`);
  },
};

const showOptions = defineOptions({
  "key": { kind: "list", description: `Public key files that verify it, PEM or JWKS; by default ${PUBLIC_KEY_FILE}, if it exists.` },
});

const showCommand: Subcommand<ValuesOf<typeof showOptions>> = {
  name: "show",
  description: "Show what a token permits, until when, and whether a public key verifies it.",
  options: showOptions,
  operands: { name: "file", description: `File with the token; by default ${TOKEN_FILE}. - is standard input.` },
  async run({ key }, terminal, { operands: [file = TOKEN_FILE] }) {
    const token = await readTokenFile(file, "the token", terminal);
    const lines = isTicket(token) ? describeTicket(token) : await describeToken(token, key);
    terminal.write(lines.map(([name, value]) => `${`${name}:`.padEnd(10)}${printable(value, 1_000)}\n`).join(""));
  },
};

const renewOptions = defineOptions({
  "token": { kind: "file", short: "t", default: TOKEN_FILE, description: "File with the token to renew; - is standard input." },
  "duration": tokenOptions.duration,
  "in": input,
  "out": { kind: "file", short: "o", default: TOKEN_FILE, description: "File for the new token; - is standard output." },
  force,
});

const renewCommand: Subcommand<ValuesOf<typeof renewOptions>> = {
  name: "renew",
  description: "Create a token with the permissions of another one, but a new id and lifetime.",
  options: renewOptions,
  async run({ token: old, duration, in: file, out, force }, terminal) {
    if (old === "-" && file === "-") throw new ConfigError("Cannot use --token -: --in is standard input");
    const [key, text] = [await readKey(file, terminal), await readTokenFile(old, "--token", terminal)];
    const token = await renewToken(text, key, duration).catch((cause) => {
      if (!(cause instanceof AuthenticationError)) throw cause;
      throw new ConfigError(`Cannot use --token ${JSON.stringify(old)}: ${cause.message}`, { cause });
    });
    await writeOutput(token, { file: out, mode: SECRET, force }, terminal);
    const [before, { jti, exp }] = [decodeJwt(text), decodeJwt(token)];
    if (out === "-") return;
    const isValid = before.exp! * 1_000 > Date.now();
    // operators' tokens have no revocation list
    const unless = isOfOperator(before.role) ? "" : `, unless its jti ${before.jti} is revoked`;
    const advice = isValid ? `the old one stays valid until ${timeOf(before.exp!)}${unless}\n` : "";
    terminal.write(`jti ${jti}, expires ${timeOf(exp!)}\n${advice}`);
  },
};

function timeOf(seconds: number): string {
  return new Date(seconds * 1_000).toISOString();
}

const ticketOptions = defineOptions({
  "agent-id": { kind: "string", description: "Id of the agent that a client may reach with the ticket; the client's user name." },
  "audience": {
    kind: "string",
    description: "Audience, which must be --auth.jwt.audience of proxy and lb; leave it out if they have none.",
  },
  "duration": tokenOptions.duration,
  "in": { ...input, description: "Private key file for ES256 or EdDSA, PEM; - is standard input. With RSA a ticket would be too long." },
  "out": { kind: "file", short: "o", default: TICKET_FILE, description: "File for the ticket; - is standard output." },
  force,
});

const ticketCommand: Subcommand<ValuesOf<typeof ticketOptions>> = {
  name: "ticket",
  description: "Create a ticket for clients of an agent: a password of 118 characters, which SOCKS clients can send.",
  options: ticketOptions,
  async run({ agentId, audience, duration, in: file, out, force }, terminal) {
    if (agentId === undefined) throw new ConfigError("Cannot create a ticket: --agent-id is required");
    const key = await readKey(file, terminal);
    const { text, id, expiresAt } = await issueTicket(key, { agentId, audience, durationMs: duration }, file);
    await writeOutput(text, { file: out, mode: SECRET, force }, terminal);
    if (out !== "-") terminal.write(`jti ${id}, expires ${new Date(expiresAt).toISOString()}\n`);
  },
};

/** The command group `auth`. */
export const authCommand: Group = {
  name: "auth",
  description: "Create keys, tokens (JWT) and tickets for authentication.",
  commands: [
    { name: "key", description: "Create keys.", commands: [privateCommand as Subcommand, publicCommand as Subcommand] },
    {
      name: "jwt",
      description: "Create, show and renew tokens.",
      commands: [tokenCommand as Subcommand, operatorCommand as Subcommand, showCommand as Subcommand, renewCommand as Subcommand],
    },
    ticketCommand as Subcommand,
  ],
};

/** Returns why a pattern of ports or names is invalid, or `undefined`. */
function checkPublish(patterns: readonly string[]): string | undefined {
  try {
    createPublishList(patterns);
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message.replace(/^Cannot use /, "");
  }
}

/** Returns why a name cannot be used, or `undefined`. */
function checkName(name: string): string | undefined {
  // deno-lint-ignore no-control-regex -- what must not be in a line of the revocation list
  const isUsable = name.trim() === name && name.length <= 256 && !/[\x00-\x1f\x7f-\x9f#*]/.test(name);
  return isUsable ? undefined : `${JSON.stringify(name)} has more than 256 characters, spaces around it, or control characters, # or *`;
}

/** Reads a token without its surrounding white space. */
async function readTokenFile(file: string, what: string, terminal: Terminal): Promise<string> {
  try {
    return (file === "-" ? await terminal.read() : await readText(file, MAX_TOKEN)).trim();
  } catch (cause) {
    throw new ConfigError(`Cannot read ${what} ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
  }
}

/** Limit on a file of public keys, in bytes. */
const MAX_KEYS = 1024 * 1024;

/** Whether a token with these claims is valid, in words. Without files, the usual one is tried. */
async function verdictOn(token: string, { role: named }: JWTPayload, files: readonly string[]): Promise<string> {
  const keys: VerificationKey[] = [];
  for (const file of files.length > 0 ? files : [PUBLIC_KEY_FILE]) {
    try {
      keys.push(...await parsePublicKeys(await readText(file, MAX_KEYS)));
    } catch (cause) {
      if (files.length === 0 && (cause as NodeJS.ErrnoException).code === "ENOENT") return "no, there is no public key; --key names one";
      throw new ConfigError(`Cannot use --key ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
    }
  }
  try {
    if (isOfOperator(named)) await verifyOperatorToken(token, keys, Date.now());
    else await verifyToken(token, keys, { role: ROLES.find((role) => role === named) ?? "client", now: Date.now() });
    return "yes";
  } catch (error) {
    if (!(error instanceof AuthenticationError)) throw error;
    return `no: ${error.message}`;
  }
}

function readClaims(token: string): JWTPayload {
  try {
    return decodeJwt(token);
  } catch (cause) {
    throw new ConfigError("Cannot show the token: it is neither a JWT nor a ticket", { cause });
  }
}

function isOfOperator(role: unknown): boolean {
  return OPERATOR_ROLES.some((known) => known === role);
}

/** The contents of a token, as names and values. The token itself is not shown. */
async function describeToken(token: string, keys: readonly string[]): Promise<[name: string, value: string][]> {
  const claims = readClaims(token);
  const verdict = await verdictOn(token, claims, keys);
  const { role, name, sub, agent_id: id, agents, allow, publish, aud, jti, nbf, exp } = claims;
  const text = (value: unknown) => Array.isArray(value) ? value.join(", ") : String(value);
  const rows: [string, unknown][] = [
    ["verified", verdict],
    ["role", role],
    ["name", name],
    ["subject", sub === id ? undefined : sub],
    ["agents", id ?? agents],
    ["allow", allow ?? (isOfOperator(role) ? undefined : "all")],
    ["publish", publish],
    ["audience", aud],
    ["jti", jti],
    ["from", nbf && showTime(nbf)],
    ["until", exp && showTime(exp)],
  ];
  return rows.filter(([, value]) => value !== undefined).map(([name, value]) => [name, text(value)]);
}

/** The same for a ticket. */
function describeTicket(text: string): [name: string, value: string][] {
  try {
    const { id, expiresAt } = readTicket(text);
    const verdict = "no: a ticket has no agent id; a proxy verifies it with the one that the client names";
    return [["verified", verdict], ["jti", id], ["until", showTime(expiresAt / 1_000)]];
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new ConfigError(`Cannot show the ticket: ${cause.message}`, { cause });
  }
}

/** Returns why a pattern of agents is invalid, or `undefined`. */
function checkAgents(patterns: readonly string[]): string | undefined {
  try {
    createAgentList(patterns);
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

async function sign(key: SigningKey, request: TokenRequest): Promise<string> {
  try {
    return await signToken(key, request);
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new ConfigError(`Cannot use --agent-id ${JSON.stringify(request.agentId)}: ${cause.message}`, { cause });
  }
}

async function issueTicket(key: SigningKey, request: TicketRequest, file: string): Promise<Ticket> {
  try {
    return await signTicket(key, request);
  } catch (cause) {
    if (cause instanceof KeyError) throw new ConfigError(`Cannot use --in ${JSON.stringify(file)}: ${cause.message}`, { cause });
    if (cause instanceof RangeError) throw new ConfigError(`Cannot use --duration: ${cause.message}`, { cause });
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new ConfigError(`Cannot use --agent-id ${JSON.stringify(request.agentId)}: ${cause.message}`, { cause });
  }
}
