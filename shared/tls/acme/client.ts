// A client of certificate authorities: ACME (RFC 8555) with renewal information (RFC 9773) and profiles. Knows no files and answers no
// challenges itself.
import { Buffer } from "node:buffer";
import { createPublicKey } from "node:crypto";
import { isIP } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { calculateJwkThumbprint, FlattenedSign, type JWK } from "jose";
import type { SigningKey } from "../../auth/keys.ts";
import { printable } from "../../net/printable.ts";
import { isUnknownIssuer } from "../advice.ts";
import { type AcmeRequest, type AcmeResponse, send } from "./request.ts";

/** The authority has refused a request, or its answer is unusable. */
export class AcmeError extends Error {
  override readonly name = "AcmeError";
  /**
   * @param type the problem's type without `urn:ietf:params:acme:error:`, if there is one
   * @param retryAfterMs how long the authority wants no further request, in milliseconds
   */
  constructor(message: string, readonly type?: string, readonly retryAfterMs?: number, options?: ErrorOptions) {
    super(message, options);
  }
}

/** How control of a name is proved. */
export interface Solver {
  readonly type: "http-01" | "tls-alpn-01" | "dns-01";
  /**
   * Publishes what the authority looks for. `name` is without `*.`.
   * @throws {Error}
   */
  present(challenge: Challenge): Promise<void>;
  /** Takes it away. Never rejects. */
  remove(challenge: Challenge): Promise<void>;
}

export interface Challenge {
  readonly name: string;
  readonly token: string;
  /** What an HTTP server answers (RFC 8555 §8.1). */
  readonly keyAuthorization: string;
}

/** An account that the authority binds to one of its customers (RFC 8555 §7.3.4). */
export interface ExternalAccount {
  readonly keyId: string;
  /** In base64url. */
  readonly hmacKey: string;
}

export interface AcmeClientOptions {
  /** The URL of the authority's directory. */
  readonly directory: string;
  /** Authorities to trust for it, PEM. Default: the runtime's. */
  readonly ca?: string;
  /** ES256. */
  readonly accountKey: SigningKey;
  readonly signal: AbortSignal;
}

export interface OrderOptions {
  /** DNS names, possibly with `*.`, and addresses. */
  readonly names: readonly string[];
  /** A request for a certificate of these names (PKCS #10), in DER. */
  readonly csr: Uint8Array;
  readonly solver: Solver;
  /** Default: the authority's. */
  readonly profile?: string;
  /** The certificate that the new one replaces (RFC 9773 §5). */
  readonly replaces?: string;
}

/** When the authority wants a certificate to be renewed (RFC 9773 §4.2). */
export interface RenewalInfo {
  /** In milliseconds since 1970. */
  readonly start: number;
  readonly end: number;
  /** When to ask again, in milliseconds. */
  readonly retryAfterMs?: number;
}

type Json = Readonly<Record<string, unknown>>;

/** Attempts with a new nonce; pebble refuses some on purpose. */
const MAX_NONCES = 8;
/** Delays between questions for the state of an order, in milliseconds. The first one doubles until the last. */
const POLL_MS = { first: 250, last: 8_000 };
/** Time in milliseconds for one validation, or for issuing. */
const POLL_TIMEOUT_MS = 300_000;
/** Limit on `Retry-After`, in milliseconds. */
export const MAX_RETRY_AFTER_MS = 7 * 86_400_000;
const ROOT_CA_ADVICE =
  "; set --acme.file.root-ca (--acme.fallback.file.root-ca of the second authority) to the authority of its certificate";
const ERROR_PREFIX = "urn:ietf:params:acme:error:";

export class AcmeClient {
  readonly #options: AcmeClientOptions;
  readonly #publicKey: JWK;
  #directory?: Json;
  #nonce?: string;
  /** The account's URL. */
  #account?: string;

  constructor(options: AcmeClientOptions) {
    this.#options = options;
    const { kty, crv, x, y } = createPublicKey(options.accountKey.key).export({ format: "jwk" }) as JWK;
    this.#publicKey = { kty, crv, x, y };
  }

  /** The terms of service to which an account agrees; `undefined` for none. */
  async terms(): Promise<string | undefined> {
    const { meta } = await this.#getDirectory();
    const { termsOfService } = (meta ?? {}) as Json;
    return typeof termsOfService === "string" ? printable(termsOfService) : undefined;
  }

  /**
   * Creates the account of the key, or finds it. The account agrees to the terms.
   * @throws {AcmeError}
   */
  async register({ email, external }: { email?: string; external?: ExternalAccount }): Promise<void> {
    const url = textOf(await this.#getDirectory(), "newAccount");
    const { headers } = await this.#post(url, {
      termsOfServiceAgreed: true,
      ...email === undefined ? {} : { contact: [`mailto:${email}`] },
      ...external === undefined ? {} : { externalAccountBinding: await this.#bind(external, url) },
    });
    if (headers.location === undefined) throw new AcmeError("the authority names no account");
    this.#account = headers.location;
  }

  /**
   * Orders a certificate, after {@link register}, and returns its chain, PEM.
   * @throws {AcmeError}
   */
  async order({ names, csr, solver, profile, replaces }: OrderOptions): Promise<string> {
    const created = await this.#post(textOf(await this.#getDirectory(), "newOrder"), {
      identifiers: names.map((value) => ({ type: isIP(value) ? "ip" : "dns", value })),
      ...profile === undefined ? {} : { profile },
      ...replaces === undefined ? {} : { replaces },
    });
    const url = created.headers.location;
    if (url === undefined) throw new AcmeError("the authority names no order");
    const order = jsonOf(created);
    // one after the other: a command for DNS may not expect to run twice at once
    for (const authorization of listOf(order, "authorizations")) await this.#authorize(authorization, solver);
    await this.#poll(url, "the order", ["pending"]);
    await this.#post(textOf(order, "finalize"), { csr: base64url(csr) });
    const issued = await this.#poll(url, "the order", ["pending", "ready", "processing"]);
    return (await this.#post(textOf(issued, "certificate"), undefined)).text;
  }

  /**
   * When the certificate with this id should be renewed; `undefined` if the authority does not say.
   * @throws {AcmeError}
   */
  async renewalInfo(id: string): Promise<RenewalInfo | undefined> {
    const { renewalInfo } = await this.#getDirectory();
    if (typeof renewalInfo !== "string") return undefined;
    const response = await this.#send(`${renewalInfo}/${id}`, { method: "GET" });
    if (response.status >= 400) throw errorOf(response);
    const { start, end } = (jsonOf(response).suggestedWindow ?? {}) as Json;
    const [from, to] = [Date.parse(String(start)), Date.parse(String(end))];
    if (!(from <= to)) throw new AcmeError("the authority's renewal window is invalid");
    return { start: from, end: to, retryAfterMs: retryAfterOf(response) };
  }

  async #authorize(url: string, solver: Solver): Promise<void> {
    const authorization = jsonOf(await this.#post(url, undefined));
    if (authorization.status === "valid") return;
    const name = textOf(authorization.identifier as Json, "value");
    const offered = (authorization.challenges as Json[] | undefined ?? []).find(({ type }) => type === solver.type);
    if (offered === undefined) throw new AcmeError(`the authority does not offer ${solver.type} for ${printable(name)}`);
    const token = textOf(offered, "token");
    if (!/^[\w-]{1,256}$/.test(token)) throw new AcmeError("the authority's challenge is invalid");
    const challenge = { name, token, keyAuthorization: `${token}.${await calculateJwkThumbprint(this.#publicKey)}` };
    try {
      await solver.present(challenge);
      await this.#post(textOf(offered, "url"), {});
      await this.#poll(url, `the validation of ${printable(name)} by ${solver.type}`, ["pending", "processing"]);
    } finally {
      await solver.remove(challenge);
    }
  }

  /** Asks until the state is none of `pending`. */
  async #poll(url: string, what: string, pending: readonly string[]): Promise<Json> {
    const startedAt = performance.now();
    for (let delayMs = POLL_MS.first;; delayMs = Math.min(2 * delayMs, POLL_MS.last)) {
      const response = await this.#post(url, undefined);
      const value = jsonOf(response);
      const status = textOf(value, "status");
      if (!pending.includes(status)) {
        if (status === "valid" || status === "ready") return value;
        throw new AcmeError(`${what} is ${printable(status)}${describe(problemOf(value))}`, problemOf(value)?.type);
      }
      const waitMs = Math.max(delayMs, Math.min(retryAfterOf(response) ?? 0, POLL_MS.last));
      if (performance.now() - startedAt + waitMs > POLL_TIMEOUT_MS) throw new AcmeError(`${what} takes longer than ${POLL_TIMEOUT_MS} ms`);
      await sleep(waitMs, undefined, { signal: this.#options.signal });
    }
  }

  async #getDirectory(): Promise<Json> {
    if (this.#directory) return this.#directory;
    const response = await this.#send(this.#options.directory, { method: "GET" });
    if (response.status !== 200) throw errorOf(response);
    return this.#directory = jsonOf(response);
  }

  /** Sends a signed request; without a payload it is a POST-as-GET (RFC 8555 §6.3). */
  async #post(url: string, payload: object | undefined): Promise<AcmeResponse> {
    const content = new TextEncoder().encode(payload === undefined ? "" : JSON.stringify(payload));
    for (let attempts = 1;; attempts++) {
      const signer = new FlattenedSign(content).setProtectedHeader({
        alg: "ES256",
        nonce: await this.#takeNonce(),
        url,
        ...this.#account === undefined ? { jwk: this.#publicKey } : { kid: this.#account },
      });
      const response = await this.#send(url, { method: "POST", body: JSON.stringify(await signer.sign(this.#options.accountKey.key)) });
      if (response.status < 400) return response;
      const error = errorOf(response);
      if (error.type !== "badNonce" || attempts >= MAX_NONCES) throw error;
    }
  }

  async #takeNonce(): Promise<string> {
    if (this.#nonce === undefined) await this.#send(textOf(await this.#getDirectory(), "newNonce"), { method: "HEAD" });
    const nonce = this.#nonce;
    if (nonce === undefined) throw new AcmeError("the authority sends no nonce");
    this.#nonce = undefined;
    return nonce;
  }

  async #send(url: string, request: Pick<AcmeRequest, "method" | "body">): Promise<AcmeResponse> {
    const { ca, signal } = this.#options;
    let response;
    try {
      response = await send(url, { ...request, ca, signal });
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      const advice = isUnknownIssuer(code) ? ROOT_CA_ADVICE : "";
      const host = printable(URL.parse(url)?.host ?? url);
      throw new AcmeError(`${host} cannot be reached: ${message}${advice}`, undefined, undefined, { cause });
    }
    const nonce = response.headers["replay-nonce"];
    if (typeof nonce === "string") this.#nonce = nonce;
    return response;
  }

  async #bind({ keyId, hmacKey }: ExternalAccount, url: string): Promise<object> {
    return await new FlattenedSign(new TextEncoder().encode(JSON.stringify(this.#publicKey)))
      .setProtectedHeader({ alg: "HS256", kid: keyId, url })
      .sign(Buffer.from(hmacKey, "base64url"));
  }
}

/** What the TXT record at `_acme-challenge` contains (RFC 8555 §8.4). */
export async function dnsValueOf({ keyAuthorization }: Challenge): Promise<string> {
  return base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(keyAuthorization))));
}

function base64url(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64url");
}

function jsonOf({ text }: AcmeResponse): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new AcmeError("the authority's answer is not JSON", undefined, undefined, { cause });
  }
  if (typeof value !== "object" || value === null) throw new AcmeError("the authority's answer is not a JSON object");
  return value as Json;
}

function textOf(value: Json | undefined, key: string): string {
  const text = value?.[key];
  if (typeof text !== "string") throw new AcmeError(`the authority's answer has no ${key}`);
  return text;
}

function listOf(value: Json, key: string): string[] {
  const list = value[key];
  if (!Array.isArray(list) || !list.every((item) => typeof item === "string")) throw new AcmeError(`the authority's answer has no ${key}`);
  return list;
}

interface Problem {
  readonly type?: string;
  readonly detail?: string;
}

function errorOf(response: AcmeResponse): AcmeError {
  let problem: Problem | undefined;
  try {
    problem = readProblem(jsonOf(response));
  } catch {
    // a proxy's page of HTML, for example
  }
  return new AcmeError(`the authority answers ${response.status}${describe(problem)}`, problem?.type, retryAfterOf(response));
}

/** The problem of an order or an authorization: its own, or that of its challenge (RFC 8555 §7.1). */
function problemOf({ error, challenges }: Json): Problem | undefined {
  const all = [error, ...Array.isArray(challenges) ? challenges.map((challenge: Json) => challenge?.error) : []];
  const found = all.find((problem) => typeof problem === "object" && problem !== null);
  return found && readProblem(found as Json);
}

/** The problem of a request or a challenge (RFC 7807). */
function readProblem({ type, detail }: Json): Problem {
  return {
    type: typeof type === "string" ? printable(type.replace(ERROR_PREFIX, "")) : undefined,
    detail: typeof detail === "string" ? printable(detail) : undefined,
  };
}

function describe({ type, detail }: Problem = {}): string {
  const said = [type, detail].filter((text) => text !== undefined);
  return said.length === 0 ? "" : `: ${said.join(": ")}`;
}

/** `Retry-After` in milliseconds: seconds or a date. */
function retryAfterOf({ headers }: AcmeResponse): number | undefined {
  const text = headers["retry-after"];
  if (text === undefined) return undefined;
  const ms = /^[0-9]+$/.test(text) ? Number(text) * 1_000 : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.min(Math.max(0, ms), MAX_RETRY_AFTER_MS);
}
