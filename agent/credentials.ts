// What the agent shows the proxy: its id, or its token, which may be in a file that others renew.
import { Buffer } from "node:buffer";
import { decodeJwt, decodeProtectedHeader } from "jose";
import { checkAgentId } from "../shared/auth/authenticator.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readBytes } from "../shared/files/read.ts";
import type { AgentOptions } from "./options.ts";

/** The bytes of the first frame, and the id in them. */
export interface Credentials {
  readonly agentId: string;
  readonly bytes: Uint8Array;
  /** Where the token was read. */
  readonly file?: string;
  /** By the token's own word, in milliseconds since 1970; `Infinity` for what does not expire. */
  readonly expiresAt: number;
}

const FILE = "file:";
/** What is larger is something else. */
const MAX_FILE = 1024 * 1024;

/**
 * Reads them anew. No message holds any part of a token.
 * @throws {ConfigError} for an id or a token that cannot be used, and for a file that cannot be read
 */
export async function readCredentials({ type, noauth, jwt }: AgentOptions["auth"]): Promise<Credentials> {
  if (type === "noauth") {
    const agentId = readId(noauth.agentId);
    return { agentId, bytes: new TextEncoder().encode(agentId), expiresAt: Infinity };
  }
  if (jwt.token === undefined) throw new ConfigError("Cannot start: --auth.jwt.token is needed with --auth.type jwt");
  const file = jwt.token.startsWith(FILE) ? jwt.token.slice(FILE.length) : undefined;
  return readToken(file === undefined ? jwt.token : await readTokenFile(file), file);
}

function readId(id: string | undefined): string {
  if (id === undefined) throw new ConfigError("Cannot start: --auth.noauth.agent-id is needed");
  try {
    return checkAgentId(id);
  } catch (cause) {
    throw new ConfigError(`Cannot use --auth.noauth.agent-id ${JSON.stringify(id)}: ${(cause as Error).message}`, { cause });
  }
}

async function readTokenFile(file: string): Promise<string> {
  try {
    return Buffer.from(await readBytes(file, MAX_FILE)).toString("utf8");
  } catch (cause) {
    throw new ConfigError(`Cannot read --auth.jwt.token ${FILE}${file}: ${describeFileError(cause)}`, { cause });
  }
}

/** Whether the proxy takes it is the proxy's to say; what is no token at all is told here. */
function readToken(text: string, file: string | undefined): Credentials {
  const token = text.trim(); // of a byte-order mark too
  const fail = (why: string) => new ConfigError(`Cannot use --auth.jwt.token${file === undefined ? "" : ` ${FILE}${file}`}: it ${why}`);
  const problem = problemOf(token, file !== undefined);
  if (problem !== undefined) throw fail(problem);
  let claims;
  try {
    decodeProtectedHeader(token);
    claims = decodeJwt(token);
  } catch {
    throw fail(file === undefined ? "is no JWT; to read it from a file, write file:NAME" : "holds no JWT");
  }
  const { agent_id: agentId, role, exp } = claims;
  if (typeof agentId !== "string") throw fail("has no agent_id");
  if (role === "client") throw fail('has the role "client", and an agent needs its own: auth jwt token --role=agent makes one');
  return { agentId, bytes: new TextEncoder().encode(token), file, expiresAt: typeof exp === "number" ? exp * 1000 : Infinity };
}

/** Why a text that should be a token is none, where that can be said without showing it. */
function problemOf(token: string, inFile: boolean): string | undefined {
  if (token === "") return "is empty";
  if (token.includes("\0")) return "is not text in UTF-8";
  if (/^["'`]|["'`]$/.test(token)) return "has quotation marks around it: the token alone is needed";
  if (/^Bearer\s/i.test(token)) return "begins with Bearer: the token alone is needed";
  const lines = token.split(/\s*[\r\n]+\s*/);
  if (lines.some((line) => line.startsWith("#"))) return "has a comment: the token alone is needed";
  if (lines.length > 1) return `has ${lines.length} lines, and one with the token alone is needed`;
  if (token.length > MAX_TOKEN) return `has ${token.length} bytes, and ${MAX_TOKEN} is the limit`;
  if (/^[\w-]+\.[\w-]+\.[\w-]*$/.test(token)) return undefined;
  return inFile ? "holds no JWT" : "is no JWT; to read it from a file, write file:NAME";
}
