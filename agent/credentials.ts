// The agent's credentials: its id, or a token, possibly in a file that another program renews, or from an issuer.
import { decodeJwt, decodeProtectedHeader } from "jose";
import { checkAgentId } from "../shared/auth/authenticator.ts";
import { timeOf } from "../shared/auth/claim_time.ts";
import type { Fetch } from "../shared/auth/fetch.ts";
import { IssuerClient, IssuerError } from "../shared/auth/issuer_client.ts";
import { parsePrivateKey, type SigningKey } from "../shared/auth/keys.ts";
import { claimAt } from "../shared/auth/oidc_token.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { readJoin } from "../shared/config/join.ts";
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

type AuthOptions = AgentOptions["auth"];

/** Credentials that can be read again. */
export interface CredentialsSource {
  readonly agentId: string;
  /** File that they are read from. */
  readonly file?: string;
  /** @throws {ConfigError} as {@link readCredentials} */
  read(): Promise<Credentials>;
}

/**
 * Reads the credentials of the options; `undefined` if an issuer has them. A token of a file with a join string is read from that again, too,
 * unless another option has set it.
 * @throws {ConfigError} as {@link readCredentials}
 */
export async function openCredentials({ auth, join }: Pick<AgentOptions, "auth" | "join">): Promise<CredentialsSource | undefined> {
  if (auth.type === "oidc") return undefined;
  const { agentId, file: ofToken } = await readCredentials(auth);
  const { token } = auth.jwt;
  if (auth.type === "noauth" || ofToken !== undefined || !join?.startsWith(FILE) || readJoin(join, "agent").token !== token) {
    return { agentId, file: ofToken, read: () => readCredentials(auth) };
  }
  const file = join.slice(FILE.length);
  const read = async (): Promise<Credentials> => {
    const { token } = readJoin(join, "agent");
    return { ...await readCredentials({ ...auth, jwt: { ...auth.jwt, token } }), file };
  };
  return { agentId, file, read };
}

/**
 * Reads the credentials, without an issuer. Error messages contain no part of a token.
 * @throws {ConfigError} for an invalid id or token, and for an unreadable file
 */
export async function readCredentials({ type, noauth, jwt }: Omit<AuthOptions, "oidc">): Promise<Credentials> {
  if (type === "noauth") {
    if (jwt.token !== undefined) throw new ConfigError("Cannot use --auth.jwt.token: --auth.type=jwt is not set");
    const agentId = readId(noauth.agentId);
    return { agentId, bytes: new TextEncoder().encode(agentId), expiresAt: Infinity };
  }
  if (jwt.token === undefined) throw new ConfigError("Cannot start: --auth.jwt.token is required with --auth.type=jwt");
  const file = jwt.token.startsWith(FILE) ? jwt.token.slice(FILE.length) : undefined;
  return readToken(file === undefined ? jwt.token : await readTokenFile(file), file);
}

/**
 * Checks the agent's credentials for the issuer, and that all options belong to `type`.
 * @throws {ConfigError}
 */
export async function checkIssuerOptions({ type, oidc, jwt }: AuthOptions): Promise<void> {
  const { issuer, clientId, clientSecret, clientKeyFile } = oidc;
  if (type !== "oidc") {
    const given = [["issuer", issuer], ["client-id", clientId], ["client-secret", clientSecret], ["client-key-file", clientKeyFile]]
      .find(([name, value]) => name !== "issuer" && value !== undefined); // a proxy with the same environment may have the issuer
    if (given) throw new ConfigError(`Cannot use --auth.oidc.${given[0]}: --auth.type=oidc is not set`);
    return;
  }
  if (jwt.token !== undefined) throw new ConfigError("Cannot use --auth.jwt.token: --auth.type=jwt is not set");
  for (const [name, value] of [["issuer", issuer], ["client-id", clientId]]) {
    if (value === undefined) throw new ConfigError(`Cannot start: --auth.oidc.${name} is required with --auth.type=oidc`);
  }
  if ((clientSecret === undefined) === (clientKeyFile === undefined)) {
    throw new ConfigError(
      "Cannot start: either --auth.oidc.client-secret or --auth.oidc.client-key-file is required with --auth.type=oidc",
    );
  }
  await readClientCredentials(oidc);
}

/** @throws {ConfigError} */
async function readClientCredentials(
  { clientSecret, clientKeyFile }: AuthOptions["oidc"],
): Promise<{ readonly secret?: string; readonly key?: SigningKey }> {
  if (clientKeyFile !== undefined) {
    try {
      return { key: parsePrivateKey(await readText(clientKeyFile, MAX_FILE)) };
    } catch (cause) {
      throw new ConfigError(`Cannot use --auth.oidc.client-key-file ${JSON.stringify(clientKeyFile)}: ${describeFileError(cause)}`, {
        cause,
      });
    }
  }
  if (!clientSecret?.startsWith(FILE)) return { secret: clientSecret };
  const secret = await readText(clientSecret.slice(FILE.length), MAX_FILE).catch((cause) => {
    throw new ConfigError(`Cannot read --auth.oidc.client-secret ${clientSecret}: ${describeFileError(cause)}`, { cause });
  });
  if (!/^[!-~]+$/.test(secret.trim())) {
    throw new ConfigError(`Cannot use --auth.oidc.client-secret ${clientSecret}: it is not a secret of ASCII characters in one line`);
  }
  return { secret: secret.trim() };
}

/**
 * Gets a token from the issuer.
 * @throws {IssuerError}
 * @throws {ConfigError} for a file that cannot be read
 */
export async function requestCredentials({ oidc }: AuthOptions, now: () => number = Date.now, fetch?: Fetch): Promise<Credentials> {
  const { issuer, clientId, scopes, requestedAudience: audience, requestedResource: resource, agentIdClaim } = oidc;
  const client = await IssuerClient.open({ issuer: issuer!, clientId: clientId!, ...await readClientCredentials(oidc), fetch });
  const { accessToken, lifetimeMs } = await client.clientCredentials({ scopes, audience, resource });
  let claims;
  try {
    claims = decodeJwt(accessToken);
  } catch {
    throw new IssuerError(
      "refused",
      `The issuer ${issuer} gives tokens that are not JWT: set --auth.oidc.requested-audience or requested-resource`,
    );
  }
  if (accessToken.length > MAX_TOKEN) {
    throw new IssuerError("refused", `The issuer ${issuer} gives tokens of ${accessToken.length} bytes, and ${MAX_TOKEN} is the limit`);
  }
  const agentId = claimAt(claims, agentIdClaim);
  // the clock of this machine may be wrong
  const expiresAt = lifetimeMs !== undefined ? now() + lifetimeMs : timeOf(claims.exp) ?? Infinity;
  return { agentId: typeof agentId === "string" ? agentId : clientId!, bytes: new TextEncoder().encode(accessToken), expiresAt };
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
  return { agentId, bytes: new TextEncoder().encode(token), file, expiresAt: timeOf(exp) ?? Infinity };
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
