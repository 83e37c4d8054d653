// Authentication of clients by a file of users and hashes of their passwords, and closing what was opened by a user who is removed, or whose
// password is changed.
import { createHmac, randomBytes } from "node:crypto";
import { Gate, GateFull } from "../async/gate.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { PolledFile } from "../files/polled_file.ts";
import { AuthLockout, RecentKeys } from "../limits/counters.ts";
import type { Logger } from "../log/logger.ts";
import { ALL_AGENTS } from "./agent_list.ts";
import { AuthenticationError, type ClientCredentials, type Identity } from "./authenticator.ts";
import { everySecond, LiveCredentials } from "./live_credentials.ts";
import { type PasswordChecker, startPasswordChecker } from "./passwords.ts";
import { AGENT_SEPARATOR, type ClientProvider, splitUser } from "./providers.ts";

/** Largest file in bytes. */
const MAX_FILE = 16 * 1024 * 1024;
/** Maximum number of concurrent checks, each of which occupies a core, and of queued ones. */
const MAX_CHECKS = 2;
const MAX_WAITING = 64;
/** Failures of one user without a lockout, from any addresses; a longer lockout would let a stranger lock a user out for long. */
const MAX_FAILURES = 10;
const MAX_LOCKOUT_MS = 30_000;
const FAILURE_REFILL_MS = 10_000;

export interface HtpasswdDeps {
  readonly log: Logger;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
  /** Default: one of this module's. */
  readonly checker?: PasswordChecker;
}

interface LiveUser {
  readonly user: string;
  readonly hash: string;
}

/**
 * Creates a provider for the users of a file. Reads it now, and polls it every second until it is closed. If it becomes invalid or missing
 * later, that is logged and its previous content stays in force.
 * @throws {ConfigError} for an invalid file
 */
export async function createHtpasswdProvider({ file: name }: { readonly file?: string }, deps: HtpasswdDeps): Promise<ClientProvider> {
  if (name === undefined) throw new ConfigError("Cannot use --auth.clients: htpasswd needs --auth.htpasswd.file");
  const file = new PolledFile(name, readUsers);
  try {
    await file.poll();
  } catch (cause) {
    throw new ConfigError(`Cannot use --auth.htpasswd.file ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
  }
  return new HtpasswdProvider(file, deps);
}

class HtpasswdProvider implements ClientProvider {
  readonly name = "htpasswd";
  readonly #file: PolledFile<ReadonlyMap<string, string>>;
  readonly #log: Logger;
  readonly #checker: PasswordChecker;
  readonly #live = new LiveCredentials<LiveUser>();
  readonly #gate = new Gate(MAX_CHECKS, MAX_WAITING);
  readonly #lockout = new AuthLockout(MAX_FAILURES, MAX_LOCKOUT_MS, FAILURE_REFILL_MS);
  /** Passwords that were right, by a keyed digest: a client sends its password with each request. */
  readonly #known = new RecentKeys<true>();
  readonly #key = randomBytes(32);
  readonly #stop: () => void;
  #reloading?: Promise<void>;

  constructor(
    file: PolledFile<ReadonlyMap<string, string>>,
    { log, now = Date.now, checker = startPasswordChecker() }: HtpasswdDeps,
  ) {
    this.#file = file;
    this.#log = log;
    this.#checker = checker;
    this.#stop = everySecond(now, () => void this.reload()); // never rejects
  }

  async authenticateClient(credentials: ClientCredentials): Promise<Identity> {
    if (credentials.scheme !== "basic") {
      throw new AuthenticationError("denied", "The client sent a token, and no user name with a password");
    }
    const { user, agentId } = splitUser(credentials.username);
    if (user === "" || credentials.password === "") throw new AuthenticationError("denied", "The user name or the password is empty");
    const hash = await this.#verify(user, credentials.password);
    // the file may have changed meanwhile
    if (this.#file.value.get(user) !== hash) throw new AuthenticationError("ended", "The user was removed, or the password was changed");
    return {
      agentId,
      agents: ALL_AGENTS,
      subject: user,
      name: user,
      user,
      client: `htpasswd ${user}`,
      ...this.#live.add({ user, hash }, Infinity),
    };
  }

  /** Returns the hash in the file. */
  async #verify(user: string, password: string): Promise<string> {
    const deny = (why: string) => new AuthenticationError("denied", why);
    const users = this.#file.value;
    const hash = users.get(user);
    const digest = hash === undefined ? undefined : this.#digestOf(hash, password);
    if (digest !== undefined && this.#known.get(digest)) return hash!;
    const lockedMs = this.#lockout.lockedMs(user);
    if (lockedMs > 0) {
      throw deny(`Too many passwords of the user ${JSON.stringify(user)} were wrong: none is checked for ${lockedMs / 1000} s`);
    }
    // a check for an unknown user takes the same time, which does not tell that there is none
    const compared = hash ?? users.values().next().value;
    const isRight = compared !== undefined && await this.#check(password, compared);
    if (hash !== undefined && isRight) {
      this.#known.set(digest!, true);
      return hash;
    }
    this.#lockout.recordFailure(user);
    throw deny(hash === undefined ? "There is no such user" : `The password of the user ${JSON.stringify(user)} is wrong`);
  }

  async #check(password: string, hash: string): Promise<boolean> {
    return await this.#gate.run(() => this.#checker.check(password, hash)).catch((cause) => {
      if (!(cause instanceof GateFull)) throw cause;
      throw new AuthenticationError("unavailable", "Too many passwords are being checked");
    });
  }

  #digestOf(hash: string, password: string): string {
    return createHmac("sha256", this.#key).update(`${hash}\n${password}`).digest("base64");
  }

  reload(): Promise<void> {
    return this.#reloading ??= this.#reloadFile().finally(() => this.#reloading = undefined);
  }

  async #reloadFile(): Promise<void> {
    const file = this.#file;
    try {
      if (!await file.poll()) return;
      this.#log.info("user file reloaded", { file: file.name, users: file.value.size });
      this.#live.closeIf(({ user, hash }) =>
        file.value.get(user) === hash ? undefined : "The user was removed, or the password was changed"
      );
    } catch (error) {
      this.#log.error("user file is missing or invalid; its previous content stays in force", {
        file: file.name,
        reason: describeFileError(error),
      });
    }
  }

  close(): void {
    this.#stop();
    this.#checker.close();
  }
}

/** Hashes whose check takes long enough: bcrypt, and argon2 in the PHC string format. */
const BCRYPT = /^\$2[aby]\$(0[4-9]|1[0-6])\$[./0-9A-Za-z]{53}$/;
const ARGON2 = /^\$argon2(?:id|i|d)\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=([0-9]{1,2})\$[+/0-9A-Za-z]{11,88}\$[+/0-9A-Za-z]{22,172}$/;
/** Largest memory of an argon2 hash, in KiB. */
const MAX_ARGON2_KIB = 1024 * 1024;

/**
 * Reads a file with one `user:hash` per line, as `htpasswd -B` writes it.
 * @throws {Error} naming the first invalid line
 */
async function readUsers(file: string): Promise<ReadonlyMap<string, string>> {
  const users = new Map<string, string>();
  for (const [index, raw] of (await readText(file, MAX_FILE)).split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    const fail = (why: string) => new Error(`line ${index + 1}: ${why}`);
    const [, user, hash] = /^([^:]*):(.*)$/.exec(line) ?? [];
    if (user === undefined || hash === undefined) throw fail("it is not user:hash");
    // deno-lint-ignore no-control-regex -- what must not be in a log or in Basic credentials
    if (user === "" || user.includes(AGENT_SEPARATOR) || /[\s\x00-\x1f\x7f-\x9f]/.test(user)) {
      throw fail(`the user name is empty, or has white space or ${AGENT_SEPARATOR}`);
    }
    if (users.has(user)) throw fail(`the user ${JSON.stringify(user)} has a line already`);
    users.set(user, checkHash(hash, fail));
  }
  return users;
}

function checkHash(hash: string, fail: (why: string) => Error): string {
  if (BCRYPT.test(hash)) return hash;
  const [, kib] = ARGON2.exec(hash) ?? [];
  if (kib !== undefined && Number(kib) <= MAX_ARGON2_KIB) return hash;
  throw fail("its hash is not of bcrypt with a cost of 4 to 16, or of argon2 with at most 1 GiB; htpasswd -B writes such lines");
}
