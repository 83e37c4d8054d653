// The agent's credentials: its id, or a token, possibly in a file that another program renews.
import { decodeJwt, decodeProtectedHeader } from "jose";
import { checkAgentId } from "../shared/auth/authenticator.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import type { AgentOptions } from "./options.ts";

/** The bytes of the first frame, and the id in them. */
export interface Credentials {
  readonly agentId: string;
  readonly bytes: Uint8Array;
  /** File that the token was read from. */
  readonly file?: string;
  /** The token's `exp`, in milliseconds since 1970; `Infinity` if it does not expire. */
  readonly expiresAt: number;
}

const FILE = "file:";
/** Limit on the size of a token file, in bytes. */
const MAX_FILE = 1024 * 1024;

/**
 * Reads the credentials. Error messages contain no part of a token.
 * @throws {ConfigError} for an invalid id or token, and for an unreadable file
 */
export async function readCredentials({ type, noauth, jwt }: AgentOptions["auth"]): Promise<Credentials> {
  if (type === "noauth") {
    if (jwt.token !== undefined) throw new ConfigError("Cannot use --auth.jwt.token: --auth.type=jwt is not set");
    const agentId = readId(noauth.agentId);
    return { agentId, bytes: new TextEncoder().encode(agentId), expiresAt: Infinity };
  }
  if (jwt.token === undefined) throw new ConfigError("Cannot start: --auth.jwt.token is required with --auth.type=jwt");
  const file = jwt.token.startsWith(FILE) ? jwt.token.slice(FILE.length) : undefined;
  return readToken(file === undefined ? jwt.token : await readTokenFile(file), file);
}

function readId(id: string | undefined): string {
  if (id === undefined) throw new ConfigError("Cannot start: --auth.noauth.agent-id is required");
  try {
    return checkAgentId(id);
  } catch (cause) {
    const why = (cause as Error).message.replace(/^Cannot use the agent id: /, "");
    throw new ConfigError(`Cannot use --auth.noauth.agent-id ${JSON.stringify(id)}: ${why}`, { cause });
  }
}

async function readTokenFile(file: string): Promise<string> {
  try {
    return await readText(file, MAX_FILE);
  } catch (cause) {
    throw new ConfigError(`Cannot read --auth.jwt.token ${FILE}${file}: ${describeFileError(cause)}`, { cause });
  }
}

/** Checks that a token is well-formed; the proxy verifies it. */
function readToken(text: string, file: string | undefined): Credentials {
  const token = text.trim(); // also removes a byte-order mark
  const fail = (why: string) => new ConfigError(`Cannot use --auth.jwt.token${file === undefined ? "" : ` ${FILE}${file}`}: it ${why}`);
  const problem = problemOf(token, file !== undefined);
  if (problem !== undefined) throw fail(problem);
  let claims;
  try {
    decodeProtectedHeader(token);
    claims = decodeJwt(token);
  } catch {
    throw fail(file === undefined ? "is not a JWT; to read it from a file, write file:NAME" : "does not contain a JWT");
  }
  const { agent_id: agentId, role, exp } = claims;
  if (typeof agentId !== "string") throw fail("has no agent_id");
  if (role === "client") throw fail('has the role "client"; create one for an agent: auth jwt token --role=agent');
  return { agentId, bytes: new TextEncoder().encode(token), file, expiresAt: typeof exp === "number" ? exp * 1000 : Infinity };
}

/** Describes common mistakes in a token without quoting it. */
function problemOf(token: string, inFile: boolean): string | undefined {
  if (token === "") return "is empty";
  if (token.includes("\0")) return "is not text in UTF-8";
  if (/^["'`]|["'`]$/.test(token)) return "has quotation marks around it: write the token alone";
  if (/^Bearer\s/i.test(token)) return "begins with Bearer: write the token alone";
  const lines = token.split(/\s*[\r\n]+\s*/);
  if (lines.some((line) => line.startsWith("#"))) return "has a comment: write the token alone";
  if (lines.length > 1) return `has ${lines.length} lines: write the token alone on one line`;
  if (token.length > MAX_TOKEN) return `has ${token.length} bytes; the limit is ${MAX_TOKEN}`;
  if (/^[\w-]+\.[\w-]+\.[\w-]*$/.test(token)) return undefined;
  return inFile ? "does not contain a JWT" : "is not a JWT; to read it from a file, write file:NAME";
}
