// The commands `auth …`: create keys and tokens, in files that only their owner can read.
import { decodeJwt } from "jose";
import { PRIVATE_KEY_FILE, readKey, writeOutput } from "./auth_files.ts";
import type { Group, Subcommand } from "./command.ts";
import { checkPatterns, LIST_WORDS, NOT_GIVEN } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";
import { createAgentList } from "../auth/agent_list.ts";
import { createPublishList } from "../auth/publish_list.ts";
import { AuthenticationError } from "../auth/authenticator.ts";
import { ALGORITHMS, generatePrivateKey, KeyError, publicKeyOf, type SigningKey } from "../auth/keys.ts";
import { signTicket, type Ticket, type TicketRequest } from "../auth/ticket.ts";
import { ROLES, signToken, type TokenRequest } from "../auth/token.ts";

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
  "role": { kind: "string", default: "client", choices: ROLES, description: "Who presents the token." },
  "audience": { kind: "string", description: "Audience, if the proxy requires one." },
  "duration": {
    kind: "duration",
    default: "24h",
    // the longest duration in Go
    maxMs: 2_562_047 * 3_600_000,
    description: "Time until the token expires.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
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
  async run({ agentId, agents, role, audience, duration, allow, publish, in: file, out, force }, terminal) {
    if (agents.length > 0 && agentId !== undefined) throw new ConfigError("Cannot use both --agent-id and --agents: set only one");
    if (agents.length > 0 && role !== "client") throw new ConfigError(`Cannot use --agents: a token for an ${role} has one id, --agent-id`);
    if (agents.length === 0 && agentId === undefined) throw new ConfigError("Cannot create a token: --agent-id or --agents is required");
    if (publish.length > 0 && role !== "agent") {
      throw new ConfigError("Cannot use --publish: --role=agent is needed, because clients publish nothing");
    }
    const key = await readKey(file, terminal);
    const whom = agents.length > 0 ? { agents } : { agentId };
    const token = await sign(key, { ...whom, role, audience, durationMs: duration, allow, publish });
    await writeOutput(token, { file: out, mode: SECRET, force }, terminal);
    const { jti, exp } = decodeJwt(token);
    // needed to revoke the token, and to renew it in time
    if (out !== "-") terminal.write(`jti ${jti}, expires ${new Date(exp! * 1000).toISOString()}\n`);
  },
};

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
    { name: "jwt", description: "Create tokens.", commands: [tokenCommand as Subcommand] },
    ticketCommand as Subcommand,
  ],
};

/** Returns why a pattern of what may be published is invalid, or `undefined`. */
function checkPublish(patterns: readonly string[]): string | undefined {
  try {
    createPublishList(patterns);
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message.replace(/^Cannot use /, "");
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
