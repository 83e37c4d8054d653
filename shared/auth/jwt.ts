// Authentication by tokens (JWT) and tickets. Closes connections and tunnels whose token expires, is revoked, or whose key is removed.
import { authOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import type { Logger } from "../log/logger.ts";
import {
  agentIdOf,
  AuthenticationError,
  type Authenticator,
  type ClientCredentials,
  type Identity,
  isLoggable,
  isToken,
  RevocationError,
} from "./authenticator.ts";
import type { AgentList } from "./agent_list.ts";
import { keyAlgorithm, parsePublicKeys, type VerificationKey } from "./keys.ts";
import { logFileError, RevocationFile } from "./revocation_file.ts";
import { everySecond, LiveCredentials } from "./live_credentials.ts";
import type { Fetch } from "./fetch.ts";
import { RemoteKeys } from "./remote_keys.ts";
import { isTicket, verifyTicket } from "./ticket.ts";
import { LEEWAY_S, readHeader, type Role, type Token, verifyToken } from "./token.ts";
import { VerifiedTokens } from "./verified_tokens.ts";
import { PolledFile } from "../files/polled_file.ts";

/** Which connections and tunnels an expired token closes. */
const ON_EXPIRY = ["close-agents", "close", "keep"] as const;
export type OnExpiry = (typeof ON_EXPIRY)[number];

export interface JwtOptions {
  /** Public key files, PEM or JWKS; reloaded when they change. */
  publicKey: readonly string[];
  /** Audience that tokens must have in aud; by default any. Default: not checked. */
  audience?: string;
  /** What an expired token closes: connections of agents (`close-agents`), tunnels of clients too (`close`), or nothing (`keep`). */
  onExpiry: OnExpiry;
  /** File with one revoked token (`jti`), `name:` or `sub:` per line; reloaded when it changes. Default: none. */
  revocationFile?: string;
}

export interface JwtDeps {
  log: Logger;
  /** Keys besides those of the files. Default: none. */
  jwks?: JwksOptions;
  /** Default: the runtime's. */
  fetch?: Fetch;
  /** Milliseconds since 1970. Default `Date.now`. */
  now?: () => number;
}

/** Keys of {@link JwtOptions} that are published at a URL. */
export interface JwksOptions {
  /** Default: none are. */
  readonly url?: string;
  /** Time in milliseconds after which they are fetched again. */
  readonly refresh: number;
  /** Time in milliseconds for which they serve after that, while they cannot be fetched. */
  readonly maxStale: number;
}

/** Polls, one per second, after which a missing key file counts as removed: a file being replaced may be missing for a moment. */
const MAX_MISSING_POLLS = 2;

/**
 * Creates an authenticator for tokens. Reads the files now and polls them every second until it is closed. If a file becomes invalid or
 * missing later, that is logged and its previous content stays in force.
 * @throws {ConfigError} for an invalid file
 */
export async function createJwtAuth(options: JwtOptions, deps: JwtDeps): Promise<Authenticator> {
  return new JwtAuth(options, deps, await openFiles(options, deps.jwks?.url !== undefined, deps.log));
}

class JwtAuth implements Authenticator {
  readonly #options: JwtOptions;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #files: Files;
  readonly #verified = new VerifiedTokens<Token>();
  readonly #live = new LiveCredentials<Token>();
  /** Those of the URL. */
  readonly #published?: RemoteKeys;
  readonly #stop: () => void;
  /** Those of the files, by their id. */
  #keys: Map<string, VerificationKey>;
  #reloading?: Promise<void>;

  constructor(options: JwtOptions, { log, jwks, fetch, now = Date.now }: JwtDeps, files: Files) {
    this.#options = options;
    this.#log = log;
    this.#now = now;
    this.#files = files;
    this.#keys = currentKeys(files.keys);
    this.#published = jwks?.url === undefined ? undefined : new RemoteKeys({
      source: { jwksUrl: jwks.url },
      refreshMs: jwks.refresh,
      maxStaleMs: jwks.maxStale,
      onRemoved: () => this.#onRemoved(),
      log,
      fetch,
    });
    this.#stop = everySecond(now, () => {
      this.#live.closeExpired(now());
      this.#published?.poll();
      void this.reload(); // never rejects
    });
  }

  async authenticateAgent(credentials: Uint8Array): Promise<Identity> {
    return await this.#admit(await this.#verifyJwt(decode(credentials), "agent"), "agent");
  }

  async authenticateClient(credentials: ClientCredentials): Promise<Identity> {
    const text = tokenOf(credentials);
    if (isTicket(text)) {
      if (credentials.scheme === "basic") return await this.#admit(await this.#verifyTicket(text, credentials.username), "client");
      throw new AuthenticationError(
        "denied",
        "The client sent a ticket without the agent id, as a Bearer token: it belongs in the password",
      );
    }
    const identity = await this.#admit(await this.#verifyJwt(text, "client"), "client");
    if (identity.agents) return { ...identity, agentId: agentNamedBy(credentials, identity.agents) };
    if (credentials.scheme === "basic" && !agentIdsOf(credentials.username).includes(identity.agentId)) {
      identity.release?.();
      const name = isLoggable(credentials.username) ? JSON.stringify(credentials.username) : "too long, or a token";
      const claim = JSON.stringify(identity.agentId);
      throw new AuthenticationError("denied", `The token is for the agent id ${claim}, and the user name is ${name}`, identity);
    }
    return identity;
  }

  /** A token is valid for one role only. */
  #verifyJwt(text: string, role: Role): Promise<Token> {
    return this.#verified.get(`${role} ${text}`, () => this.#verifyWithKeys(text, role));
  }

  async #verifyWithKeys(text: string, role: Role): Promise<Token> {
    const { algorithm, kid } = readHeader(text, role);
    let unavailable: AuthenticationError | undefined;
    const found = await this.#published?.find(kid, keyAlgorithm(algorithm)).catch((error) => {
      if (!(error instanceof AuthenticationError)) throw error;
      unavailable = error; // a key of the files may do
      return [];
    });
    const candidates = [...this.#keys.values(), ...found as readonly VerificationKey[] | undefined ?? []];
    const { audience } = this.#options;
    return await verifyToken(text, candidates, { role, audience, now: this.#now() }).catch((error) => {
      throw unavailable ?? error;
    });
  }

  /** A ticket is valid for one user name only. */
  #verifyTicket(text: string, username: string): Promise<Token> {
    const { audience } = this.#options;
    return this.#verified.get(
      `ticket ${text} ${username}`,
      () => verifyTicket(text, [...this.#keys.values()], { agentIds: agentIdsOf(username), audience }),
    );
  }

  /** Whom a verified token stands for, unless it has ended. */
  async #admit(token: Token, role: Role): Promise<Identity> {
    if (!this.#keys.has(token.keyId)) await this.#published?.ready();
    // a cached token may have been revoked or expired since
    const { onExpiry } = this.#options;
    const closes = onExpiry === "close" || (onExpiry === "close-agents" && role === "agent");
    // a token that closes connections at its expiry is not accepted within the leeway, or the agent would reconnect with it
    const expired = token.expiresAt + (closes ? 0 : LEEWAY_S * 1000) <= this.#now() ? describeExpiry(token) : undefined;
    const problem = this.#problemOf(token) ?? expired;
    if (problem !== undefined) {
      const { agentId, id: tokenId } = token;
      const claims = `${agentId === undefined ? "" : `agent_id ${JSON.stringify(agentId)}, `}jti ${JSON.stringify(tokenId)}`;
      throw new AuthenticationError("ended", `${problem} (${claims})`, { agentId, tokenId });
    }
    const { agentId = "", agents, id: tokenId, expiresAt, subject, name, allowList, publish } = token;
    const held = this.#live.add(token, closes ? expiresAt : Infinity);
    return { agentId, agents, tokenId, expiresAt, subject, name, allowList, publish, ...held };
  }

  #problemOf(token: Token): string | undefined {
    if (!this.#keys.has(token.keyId) && !this.#published?.has(token.keyId)) return "The public key of the token was removed";
    return this.#files.revocations?.revokes(token) ? "The token is revoked" : undefined;
  }

  /** Keys were removed. */
  #onRemoved(): void {
    this.#verified.clear();
    this.#closeInvalid();
  }

  #closeInvalid(): void {
    this.#live.closeIf((token) => this.#problemOf(token));
  }

  reload(): Promise<void> {
    return this.#reloading ??= this.#reloadFiles().finally(() => this.#reloading = undefined);
  }

  async #reloadFiles(): Promise<void> {
    const changed = await poll(this.#files, this.#log);
    const before = this.#keys;
    const keys = this.#keys = currentKeys(this.#files.keys);
    const removed = [...before.keys()].filter((id) => !keys.has(id)).length;
    const added = [...keys.keys()].filter((id) => !before.has(id)).length;
    if (removed + added > 0) this.#log.info("public keys reloaded", { keys: keys.size, added, removed });
    if (removed > 0) this.#onRemoved();
    else if (changed) this.#closeInvalid();
  }

  async revoke(tokenId: string, comment: string): Promise<number> {
    const { revocations } = this.#files;
    if (revocations === undefined) throw new RevocationError("there is no --auth.jwt.revocation-file");
    return await revocations.revoke(tokenId, comment, { live: this.#live, reload: () => this.reload() });
  }

  close(): void {
    this.#stop();
    this.#published?.close();
  }
}

interface Files {
  readonly keys: readonly PolledFile<VerificationKey[]>[];
  readonly revocations?: RevocationFile;
}

/** @param hasUrl whether keys come from a URL, so that the default file may be missing */
async function openFiles({ publicKey: given, revocationFile }: JwtOptions, hasUrl: boolean, log: Logger): Promise<Files> {
  const publicKey = hasUrl && given.join() === authOptions["auth.jwt.public-key"].default ? [] : given;
  if (!hasUrl && publicKey.length === 0) throw new ConfigError("Cannot start: --auth.jwt.public-key is needed");
  return {
    keys: await Promise.all(publicKey.map(openKeys)),
    revocations: revocationFile === undefined ? undefined : await RevocationFile.open(revocationFile, log),
  };
}

async function openKeys(name: string): Promise<PolledFile<VerificationKey[]>> {
  const file = new PolledFile(name, readKeys);
  try {
    await file.poll();
    return file;
  } catch (cause) {
    throw new ConfigError(`Cannot use --auth.jwt.public-key ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
  }
}

/** The keys of all files. A missing file's keys stay for a moment, or for good if no other file is left. */
function currentKeys(files: Files["keys"]): Map<string, VerificationKey> {
  const present = files.filter((file) => file.missing < MAX_MISSING_POLLS);
  const inForce = present.length > 0 ? present : files;
  return new Map(inForce.flatMap((file) => file.value).map((key) => [key.id, key]));
}

/** Returns whether any file has a new value. Never rejects: errors are logged. */
async function poll({ keys, revocations }: Files, log: Logger): Promise<boolean> {
  let changed = false;
  for (const file of keys) {
    try {
      if (await file.poll()) changed = true;
    } catch (error) {
      logFileError(log, file, error);
    }
  }
  return await revocations?.poll() || changed;
}

/** Limit on the size of a key file, in bytes. */
const MAX_KEY_FILE = 1024 * 1024;

async function readKeys(file: string): Promise<VerificationKey[]> {
  return await parsePublicKeys(await readText(file, MAX_KEY_FILE));
}

function describeExpiry({ expiresAt }: Token): string {
  return `The token expired at ${new Date(expiresAt).toISOString()}`;
}

/** Reads the token in an agent's frame; the agent's token file may have ended with a newline. */
function decode(credentials: Uint8Array): string {
  // non-ASCII bytes are rejected later: they are not part of a token
  return new TextDecoder("latin1").decode(credentials).trimEnd();
}

/** The agent that the user name stands for, if the token is for it. With such a token, the user name may be any other text. */
function agentNamedBy(credentials: ClientCredentials, agents: AgentList): string {
  if (credentials.scheme !== "basic" || isToken(credentials.username)) return ""; // a token must not be logged
  return agentIdsOf(credentials.username).find((id) => id !== "" && agents.allows(id)) ?? "";
}

/** The agent ids that a user name may stand for. */
function agentIdsOf(username: string): string[] {
  return [...new Set([username, agentIdOf(username)])];
}

function tokenOf(credentials: ClientCredentials): string {
  return credentials.scheme === "basic" ? credentials.password : credentials.token;
}
