// The key that the members of a cluster share: it signs their entries in the store and the requests that they send each other. The key itself is
// never sent: who can write to the store, or listens, learns nothing that can be used elsewhere.
import { Buffer } from "node:buffer";
import { createHash, randomUUID } from "node:crypto";
import { errors, jwtVerify, type JWTVerifyOptions, SignJWT } from "jose";
import { ConfigError } from "../../config/option.ts";
import { PolledFile } from "../../files/polled_file.ts";
import { describeFileError } from "../../files/read.ts";
import { SecretFiles } from "../../files/secret_files.ts";
import { readSharedSecrets } from "../../files/shared_secrets.ts";
import { InflightCounts } from "../../limits/counters.ts";
import type { Logger } from "../../log/logger.ts";
import type { Operator } from "../api/tokens.ts";
import { ROLES } from "../api/types.ts";
import { differs } from "../change.ts";
import { type Entry, type Member, readMember } from "./member.ts";

const OPTION = "--admin.cluster.key-file";
const ALGORITHM = "HS256";
/** Types of signed texts: one is never taken for the other. */
const [ENTRY, REQUEST] = ["reverse-http-member", "reverse-http-request"];
/** Time in seconds for which a request is valid, and the difference between clocks that is tolerated. */
const VALID_S = 30;
const LEEWAY_S = 60;
/** Time in seconds for which an entry is valid, which bounds how long a copy of it is worth something, and after which it is signed again. */
const ENTRY_VALID_S = 6 * 3_600;
const ENTRY_RENEWAL_S = 3_600;
/** Requests that act and are remembered, so that none is served twice: those of one operator, and of all. */
const MAX_SEEN_OF_ONE = 10_000;
const MAX_SEEN = 100_000;

/** A request of one member to another, on behalf of an operator. */
export interface MemberRequest {
  /** Address of the receiving member: no other one accepts the request. */
  readonly to: string;
  /** Address of the member that asks. */
  readonly from: string;
  readonly operator: Operator;
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  readonly body: string;
}

/** A request of another member, on behalf of an operator. */
export interface VerifiedRequest {
  /** Address of the member that asks. */
  readonly from: string;
  readonly operator: Operator;
  /** Whether the key that has signed it is still one of the cluster. */
  isAccepted(): Promise<boolean>;
}

/** The request is not one of a member. The message says why. */
export class MemberRequestError extends Error {
  override readonly name = "MemberRequestError";
}

export class ClusterKey {
  readonly #file: PolledFile<readonly Uint8Array[]>;
  readonly #log: Logger;
  readonly #secrets: SecretFiles;
  /** By id, requests that have acted: for whom, and when they end, in milliseconds since 1970. */
  readonly #seen = new Map<string, { readonly by: string; readonly until: number }>();
  readonly #seenOf = new InflightCounts();

  private constructor(name: string, log: Logger) {
    this.#file = new PolledFile(name, readSharedSecrets);
    this.#log = log;
    this.#secrets = new SecretFiles(log);
  }

  /** @throws {ConfigError} if it cannot be read, or has no usable key */
  static async open(name: string, log: Logger): Promise<ClusterKey> {
    const key = new ClusterKey(name, log);
    try {
      await key.#file.poll();
    } catch (cause) {
      throw new ConfigError(`Cannot use ${OPTION} ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
    }
    await key.#secrets.check(OPTION, name);
    return key;
  }

  /** Reads the file again if it has changed. One that has become invalid is logged, and its previous content stays in force. Never rejects. */
  async poll(): Promise<void> {
    try {
      if (await this.#file.poll()) await this.#secrets.check(OPTION, this.#file.name);
    } catch (error) {
      this.#log.error("cluster key cannot be used; its previous content stays in force", {
        file: this.#file.name,
        reason: describeFileError(error),
      });
    }
  }

  /**
   * The entry of a member for the store.
   * @param previous returned if it says the same, is signed with the same key and is recent
   * @param now milliseconds since 1970
   */
  async signMember(member: Member & { readonly isLeaving?: true }, previous?: string, now = Date.now()): Promise<string> {
    const [key] = this.#file.value;
    const [header, seconds] = [{ alg: ALGORITHM, typ: ENTRY }, now / 1_000];
    if (previous !== undefined) {
      const known = await jwtVerify(previous, key!, { algorithms: [ALGORITHM], typ: ENTRY, currentDate: new Date(now) }).catch(() =>
        undefined
      );
      const { iat = Infinity, member: before } = known?.payload ?? {};
      if (iat <= seconds && seconds - iat < ENTRY_RENEWAL_S && !differs(before, member)) return previous;
    }
    return await new SignJWT({ member }).setProtectedHeader(header).setIssuedAt(seconds).setExpirationTime(seconds + ENTRY_VALID_S).sign(
      key!,
    );
  }

  /**
   * Reads an entry; `undefined` for what no member has written, or one has long ago.
   * @param now milliseconds since 1970
   */
  async readMember(text: string, now = Date.now()): Promise<Entry | undefined> {
    try {
      const { claims: { member, iat = 0 } } = await this.#verify(text, ENTRY, {
        requiredClaims: ["exp", "iat"],
        currentDate: new Date(now),
      });
      const entry = readMember(member);
      return entry && { ...entry, at: iat };
    } catch (error) {
      if (error instanceof errors.JOSEError) return undefined;
      throw error;
    }
  }

  async signRequest({ to, from, operator, method, target, body }: MemberRequest): Promise<string> {
    return await new SignJWT({
      name: operator.name,
      role: operator.role,
      sub: operator.subject,
      request: `${method} ${target}`,
      body: hashOf(body),
    })
      .setProtectedHeader({ alg: ALGORITHM, typ: REQUEST }).setIssuer(from).setAudience(to).setJti(randomUUID()).setIssuedAt()
      .setExpirationTime(`${VALID_S}s`).sign(this.#file.value[0]!);
  }

  /**
   * Who asks, and on behalf of which operator. A request that acts is accepted once.
   * @throws {MemberRequestError}
   */
  async verifyRequest(
    token: string,
    { to, method, target, body }: Pick<MemberRequest, "to" | "method" | "target" | "body">,
  ): Promise<VerifiedRequest> {
    await this.poll();
    let claims;
    let key: Uint8Array;
    try {
      ({ claims, key } = await this.#verify(token, REQUEST, { audience: to, requiredClaims: ["exp", "jti"] }));
    } catch (error) {
      if (!(error instanceof errors.JOSEError)) throw error;
      throw new MemberRequestError(reasonOf(error, to));
    }
    const { iss: from, name, role, sub: subject, jti, exp } = claims;
    const known = ROLES.find((known) => known === role);
    if (typeof from !== "string" || typeof name !== "string" || known === undefined || jti === undefined || exp === undefined) {
      throw new MemberRequestError("the request is signed, but names no operator");
    }
    if (claims.request !== `${method} ${target}` || claims.body !== hashOf(body)) {
      throw new MemberRequestError("the request is not the one that was signed");
    }
    if (method !== "GET") this.#see(jti, { by: JSON.stringify([name, subject]), until: (exp + LEEWAY_S) * 1_000 });
    const isAccepted = async () => {
      await this.poll();
      return this.#file.value.some((known) => Buffer.compare(known, key) === 0);
    };
    return { from, operator: { name, role: known, ...subject !== undefined && { subject } }, isAccepted };
  }

  async #verify(text: string, typ: string, expected: JWTVerifyOptions) {
    let failure: unknown;
    for (const key of this.#file.value) {
      try {
        const { payload: claims } = await jwtVerify(text, key, { algorithms: [ALGORITHM], typ, clockTolerance: LEEWAY_S, ...expected });
        return { claims, key };
      } catch (error) {
        if (!(error instanceof errors.JWSSignatureVerificationFailed)) throw error;
        failure = error;
      }
    }
    throw failure;
  }

  /** @throws {MemberRequestError} for one that was seen before, and while too many are remembered */
  #see(id: string, request: { readonly by: string; readonly until: number }): void {
    if (this.#seen.has(id)) throw new MemberRequestError("the request was served before");
    const now = Date.now();
    for (const [other, { by, until }] of this.#seen) {
      if (until > now) break; // the oldest is first
      this.#seen.delete(other);
      this.#seenOf.remove(by);
    }
    // to forget one that is still valid would let it be served again
    if (this.#seenOf.get(request.by) >= MAX_SEEN_OF_ONE) {
      throw new MemberRequestError("too many requests of this operator have acted recently");
    }
    if (this.#seen.size >= MAX_SEEN) throw new MemberRequestError("too many requests have acted recently");
    this.#seen.set(id, request);
    this.#seenOf.add(request.by);
  }
}

function reasonOf(error: InstanceType<typeof errors.JOSEError>, to: string): string {
  if (error instanceof errors.JWSSignatureVerificationFailed) return `the key of its ${OPTION} is another one`;
  if (error instanceof errors.JWTExpired) return `the clocks of the two machines differ by more than ${LEEWAY_S} s`;
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === "aud") {
    return `the request is for another member, and this one is ${to}: is its --admin.cluster.address right?`;
  }
  return "the request is not one of a member";
}

function hashOf(body: string): string {
  return createHash("sha256").update(body).digest("base64url");
}
