// Agents and clients show tokens: whom they name, until when, and what ends with a token that expires, is revoked or whose key is removed.
import { Buffer } from "node:buffer";
import { ConfigError, flagOf } from "../config/option.ts";
import { readBytes } from "../files/read.ts";
import type { Logger } from "../log/logger.ts";
import { agentIdOf, AuthenticationError, type Authenticator, type ClientCredentials, type Identity, isLoggable } from "./authenticator.ts";
import { parsePublicKeys, type VerificationKey } from "./keys.ts";
import { readRevocations, type Revocations } from "./revocations.ts";
import { LEEWAY_S, type Role, type Token, verifyToken } from "./token.ts";
import { WatchedFile } from "../files/watched_file.ts";

/** What ends when a token expires. */
export const ON_EXPIRY = ["close-agents", "close", "keep"] as const;
export type OnExpiry = (typeof ON_EXPIRY)[number];

export interface JwtOptions {
  /** Files of public keys, PEM or JWKS; read again when they change. */
  publicKey: readonly string[];
  /** Tokens must name it. Default: any, or none. */
  audience?: string;
  /** `close-agents`: the connections of agents; `close`: the tunnels of clients too; `keep`: nothing. */
  onExpiry: OnExpiry;
  /** A file with the `jti` of a revoked token a line; read again when it changes. */
  revocationFile?: string;
}

export interface JwtDeps {
  log: Logger;
  /** Milliseconds since 1970. Default `Date.now`. */
  now?: () => number;
}

/** Looks, a second apart, that a key file must be missing for its keys to be: a file that is replaced may be gone for a moment. */
const MAX_MISSING_POLLS = 2;
/** Verified tokens that are kept: who comes again and again with the same token costs no signature. */
const MAX_KNOWN = 1000;

/** Something that was opened with a token. */
interface CurrentToken {
  readonly token: Token;
  /** When it ends, in milliseconds since 1970; `Infinity` where it outlives its token. */
  readonly endsAt: number;
  readonly ending: AbortController;
}

/**
 * Authentication by tokens. Reads the files when it is made; from then on a file that is missing or spoilt is logged, and counts as it was.
 * Looks after them, and ends what is to end, until it is closed.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function createJwtAuth(options: JwtOptions, { log, now = Date.now }: JwtDeps): Promise<Authenticator> {
  const files = await openFiles(options);
  warnOfForeign(files, log);
  const known = new Map<string, Token>();
  const live = new Set<CurrentToken>();
  let keys = currentKeys(files.keys);

  const verify = async (text: string, role: Role): Promise<Token> => {
    // a token is for one role: nobody else knows it
    const name = `${role} ${text}`;
    let token = known.get(name);
    known.delete(name);
    token ??= await verifyToken(text, [...keys.values()], { role, audience: options.audience, now: now() });
    known.set(name, token);
    if (known.size > MAX_KNOWN) known.delete(known.keys().next().value!);
    return token;
  };

  const problemOf = ({ id, keyId }: Token): string | undefined => {
    if (!keys.has(keyId)) return "The public key of the token was removed";
    if (id !== undefined && files.revocations?.value.has(id)) return "The token is revoked";
    return undefined;
  };

  const admit = async (text: string, role: Role): Promise<Identity> => {
    const token = await verify(text, role);
    // the files may have changed since it was verified
    const closes = options.onExpiry === "close" || (options.onExpiry === "close-agents" && role === "agent");
    // what ends with its token is not taken again within the leeway, by no proxy
    const expired = token.expiresAt + (closes ? 0 : LEEWAY_S * 1000) <= now() ? describeExpiry(token) : undefined;
    const problem = problemOf(token) ?? expired;
    if (problem !== undefined) {
      throw new AuthenticationError("denied", `${problem} (agent_id ${JSON.stringify(token.agentId)}, jti ${JSON.stringify(token.id)})`, {
        agentId: token.agentId,
        tokenId: token.id,
      });
    }
    const entry: CurrentToken = { token, endsAt: closes ? token.expiresAt : Infinity, ending: new AbortController() };
    live.add(entry);
    const { agentId, id: tokenId, allowList } = token;
    return { agentId, tokenId, allowList, signal: entry.ending.signal, release: () => void live.delete(entry) };
  };

  const end = (entry: CurrentToken, why: string) => {
    live.delete(entry);
    entry.ending.abort(new Error(why));
  };

  const endExpired = () => {
    const time = now();
    for (const entry of live) {
      if (entry.endsAt > time) continue;
      end(entry, "The token has expired");
    }
  };

  const lookAtFiles = async (): Promise<void> => {
    const changed = await look(files, log);
    const before = keys;
    keys = currentKeys(files.keys);
    const removed = [...before.keys()].filter((id) => !keys.has(id)).length;
    const added = [...keys.keys()].filter((id) => !before.has(id)).length;
    if (removed + added > 0) log.info("public keys reloaded", { keys: keys.size, added, removed });
    if (!changed && removed === 0) return;
    if (removed > 0) known.clear();
    for (const entry of live) {
      const why = problemOf(entry.token);
      if (why !== undefined) end(entry, why);
    }
  };

  let looking: Promise<void> | undefined;
  let timer: ReturnType<typeof setTimeout>;
  // tokens expire at whole seconds of the wall clock, and so this wakes at each: however the clock is set, nothing waits longer
  const wait = () => timer = setTimeout(tick, 1000 - now() % 1000);
  const reload = () => looking ??= lookAtFiles().finally(() => looking = undefined);
  const tick = () => {
    wait();
    endExpired();
    void reload();
  };
  wait();

  return {
    authenticateAgent: (credentials) => admit(decode(credentials), "agent"),
    async authenticateClient(credentials) {
      const identity = await admit(tokenOf(credentials), "client");
      if (credentials.scheme === "basic" && ![credentials.username, agentIdOf(credentials.username)].includes(identity.agentId)) {
        identity.release?.();
        const name = isLoggable(credentials.username) ? JSON.stringify(credentials.username) : "too long, or a token";
        const claim = JSON.stringify(identity.agentId);
        throw new AuthenticationError("denied", `The token is for the agent id ${claim}, and the user name is ${name}`, identity);
      }
      return identity;
    },
    reload,
    close: () => clearTimeout(timer),
  };
}

interface Files {
  readonly keys: readonly WatchedFile<VerificationKey[]>[];
  readonly revocations?: WatchedFile<Revocations>;
}

async function openFiles({ publicKey, revocationFile }: JwtOptions): Promise<Files> {
  if (publicKey.length === 0) throw new ConfigError("Cannot start: --auth.jwt.public-key is needed");
  const open = async <T>(option: string, name: string, read: (name: string) => Promise<T>): Promise<WatchedFile<T>> => {
    const file = new WatchedFile(name, read);
    try {
      await file.poll();
      return file;
    } catch (cause) {
      throw new ConfigError(`Cannot use ${flagOf(option)} ${JSON.stringify(name)}: ${(cause as Error).message}`, { cause });
    }
  };
  return {
    keys: await Promise.all(publicKey.map((name) => open("auth.jwt.public-key", name, readKeys))),
    revocations: revocationFile === undefined ? undefined : await open("auth.jwt.revocation-file", revocationFile, readRevocations),
  };
}

/** The keys of all files that are there; those of a missing one are kept for a moment, or where nothing else is left. */
function currentKeys(files: Files["keys"]): Map<string, VerificationKey> {
  const present = files.filter((file) => file.missing < MAX_MISSING_POLLS);
  const counting = present.length > 0 ? present : files;
  return new Map(counting.flatMap((file) => file.value).map((key) => [key.id, key]));
}

/** Whether any file has a new value. Never rejects: what cannot be used is logged. */
async function look(files: Files, log: Logger): Promise<boolean> {
  let changed = false;
  for (const file of [...files.keys, ...files.revocations ? [files.revocations] : []]) {
    try {
      if (!await file.poll()) continue;
      changed = true;
      if (file !== files.revocations) continue;
      log.info("revocation list reloaded", { file: file.name, revoked: files.revocations.value.size });
      warnOfForeign(files, log);
    } catch (error) {
      const message = file.missing > 0 ? "file of tokens is missing" : "token file is invalid; keeping the previous tokens";
      log.error(message, { file: file.name, reason: (error as Error).message });
    }
  }
  return changed;
}

/** Entries that revoke no token of this program may be of another issuer's tokens, or misspelt. */
function warnOfForeign({ revocations }: Files, log: Logger): void {
  const { foreign } = revocations?.value ?? {};
  if (revocations === undefined || foreign === undefined) return;
  const { count, firstLine: line } = foreign;
  log.warn("revocation file has ids that are no UUID: no token of auth jwt token has such a jti", { file: revocations.name, count, line });
}

/** Keys are small; what is larger is something else. */
const MAX_KEY_FILE = 1024 * 1024;

async function readKeys(file: string): Promise<VerificationKey[]> {
  return await parsePublicKeys(Buffer.from(await readBytes(file, MAX_KEY_FILE)).toString("utf8"));
}

function describeExpiry({ expiresAt }: Token): string {
  return `The token expired at ${new Date(expiresAt).toISOString()}`;
}

/** The token in an agent's frame; its file may have ended with a newline. */
function decode(credentials: Uint8Array): string {
  // bytes that are no ASCII are no token, and are refused as such
  return new TextDecoder("latin1").decode(credentials).trimEnd();
}

function tokenOf(credentials: ClientCredentials): string {
  return credentials.scheme === "basic" ? credentials.password : credentials.token;
}
