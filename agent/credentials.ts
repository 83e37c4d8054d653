// What the agent shows the proxy: its id, or its token, which may be in a file that others renew.
import { readFile } from "node:fs/promises";
import { decodeJwt } from "jose";
import { checkAgentId } from "../shared/auth/authenticator.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/cli/option.ts";
import type { AgentOptions } from "./options.ts";

/** The bytes of the first frame, and the id in them. */
export interface Credentials {
  readonly agentId: string;
  readonly bytes: Uint8Array;
  /** By the token's own word, in milliseconds since 1970; `Infinity` for what does not expire. */
  readonly expiresAt: number;
}

const FILE = "file:";

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
    return await readFile(file, "utf8");
  } catch (cause) {
    throw new ConfigError(`Cannot read --auth.jwt.token: ${(cause as Error).message}`, { cause });
  }
}

/** Whether the proxy takes it is the proxy's to say; what is no token at all is told here. */
function readToken(text: string, file: string | undefined): Credentials {
  const token = text.trim();
  const fail = (why: string) => new ConfigError(`Cannot use --auth.jwt.token${file === undefined ? "" : ` ${FILE}${file}`}: it ${why}`);
  if (token === "") throw fail("is empty");
  if (token.length > MAX_TOKEN) throw fail(`has ${token.length} bytes, and ${MAX_TOKEN} is the limit`);
  let claims;
  try {
    claims = decodeJwt(token);
  } catch {
    throw fail(file === undefined ? "is no JWT; to read it from a file, write file:NAME" : "holds no JWT");
  }
  const { agent_id: agentId, exp } = claims;
  if (typeof agentId !== "string") throw fail("has no agent_id");
  return { agentId, bytes: new TextEncoder().encode(token), expiresAt: typeof exp === "number" ? exp * 1000 : Infinity };
}
