// Authentication of clients by a webhook: each client's credentials are sent to it, and its answers are cached.
import { createHmac, randomBytes } from "node:crypto";
import { createAllowList } from "../address/allow_list.ts";
import { Gate, GateFull } from "../async/gate.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { RecentKeys } from "../limits/counters.ts";
import { LogLimit } from "../log/limit.ts";
import type { Logger } from "../log/logger.ts";
import { messageOf } from "../log/error_message.ts";
import { printable } from "../net/printable.ts";
import { ALL_AGENTS, createAgentList } from "./agent_list.ts";
import { formatAuthority } from "../address/authority.ts";
import {
  AuthenticationError,
  type ClientCredentials,
  type ClientPeer,
  type Identity,
  isToken,
  type TunnelTarget,
} from "./authenticator.ts";
import { createConnectingFetch } from "./connecting_fetch.ts";
import { describeStatus, type Fetch, fetchText, parseObject } from "./fetch.ts";
import { agentNamedBy, type ClientProvider, splitUser } from "./providers.ts";

export interface WebhookOptions {
  /** Default: none. */
  readonly url?: string;
  /** File with a secret that is sent to the webhook as a Bearer token. Default: none is sent. */
  readonly tokenFile?: string;
  /** Time in milliseconds for a connection: name, TCP and TLS. */
  readonly connectTimeout: number;
  /** Time in milliseconds for one answer, with the connection, and the wait for a turn. */
  readonly timeout: number;
  /** Requests at once. */
  readonly concurrency: number;
  /** Time in milliseconds for which an old answer still counts while there is no new one. */
  readonly maxStale: number;
}

export interface WebhookDeps {
  readonly log: Logger;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
  /** Default: one of its own, with the timeout for a connection. */
  readonly fetch?: Fetch;
}

/** Largest answer, and largest secret, in bytes. */
const MAX_ANSWER = 64 * 1024;
const MAX_SECRET = 16 * 1024;
/** Requests that wait for their turn. */
const MAX_WAITING = 256;
/** Longest time in seconds that an answer may ask to be cached. */
const MAX_AGE_S = 86_400;
/** Most groups, agents and destinations in an answer, and the longest of them, in characters. */
const MAX_ITEMS = 1_000;
const MAX_ITEM = 256;

/** A cached answer: the client's identity, or the reason for the denial. */
interface Answer {
  readonly identity?: Omit<Identity, "signal" | "release">;
  readonly message?: string;
  /** Whether it wants to be asked about each tunnel. */
  readonly isPerTunnel: boolean;
  readonly askedAt: number;
  readonly maxAgeMs: number;
}

interface Question {
  /** Key of the cached answer. */
  readonly key: string;
  readonly body: string;
}

/**
 * Creates a provider that asks a webhook.
 * @throws {ConfigError} without a URL
 */
export function createWebhookProvider(options: WebhookOptions, deps: WebhookDeps): ClientProvider {
  const { log, now = () => performance.now() } = deps;
  const { url, tokenFile, connectTimeout: connectTimeoutMs, timeout, concurrency, maxStale } = options;
  if (url === undefined) throw new ConfigError("Cannot use --auth.clients: webhook needs --auth.webhook.url");
  const connecting = deps.fetch ? undefined : createConnectingFetch({ connectTimeoutMs, maxIdle: concurrency });
  const fetch = deps.fetch ?? connecting!.fetch;
  const warnings = new LogLimit({ log });
  const gate = new Gate(concurrency, MAX_WAITING);
  const answers = new RecentKeys<Answer>();
  const asking = new Map<string, Promise<Answer>>();
  const closing = new AbortController();
  const key = randomBytes(32);

  const request = async (body: string, deadline: number): Promise<Answer> => {
    const timeoutMs = deadline - now();
    if (timeoutMs <= 0) throw new Error(`no turn within ${timeout} ms: too many requests wait for it`);
    const secret = tokenFile === undefined ? undefined : await readSecret(tokenFile).catch((cause: Error) => {
      throw new Error(`the file of its token cannot be used: ${cause.message}`, { cause });
    });
    const headers = { "Content-Type": "application/json", ...secret !== undefined && { Authorization: `Bearer ${secret}` } };
    const { status, text } = await fetchText(fetch, url, { timeoutMs, maxBytes: MAX_ANSWER, signal: closing.signal, headers, body });
    if (status !== 200 && status !== 401 && status !== 403) throw new Error(`it responded with ${describeStatus(status)}`);
    return readAnswer(status, text, now());
  };

  /** Pending questions by key: concurrent clients with the same question share one request. */
  const ask = async ({ key, body }: Question): Promise<Answer> => {
    const deadline = now() + timeout;
    const pending = asking.get(key) ?? gate.run(() => request(body, deadline)).finally(() => asking.delete(key));
    asking.set(key, pending);
    const answer = await pending;
    answers.set(key, answer);
    return answer;
  };

  const answerTo = async (question: Question): Promise<Answer> => {
    const before = answers.get(question.key);
    const age = before === undefined ? Infinity : now() - before.askedAt;
    if (before !== undefined && age < before.maxAgeMs) return before;
    try {
      return await ask(question);
    } catch (error) {
      const reason = error instanceof GateFull ? "too many requests wait for it" : messageOf(error);
      if (before !== undefined && age < before.maxAgeMs + maxStale) {
        warnings.warn("webhook gives no answer; its last one still counts", { reason });
        return before;
      }
      throw new AuthenticationError("unavailable", `The webhook gives no answer: ${reason}`);
    }
  };

  /** @throws {AuthenticationError} if it denies, or gives no answer */
  const accepted = async (question: Question) => {
    const { identity, message, isPerTunnel } = await answerTo(question);
    if (identity !== undefined) return { identity, isPerTunnel };
    throw new AuthenticationError("denied", `The webhook denies it${message === undefined ? "" : `: ${message}`}`, {}, message);
  };

  return {
    name: "webhook",
    async authenticateClient(credentials, peer) {
      const { user, agentId, question } = questionOf(credentials, peer, key);
      const { identity, isPerTunnel } = await accepted(question());
      const authorize = isPerTunnel ? async (target: TunnelTarget) => void await accepted(question(target)) : undefined;
      const who = identity.subject ?? user;
      return { ...identity, agentId: agentId || identity.agentId, user, client: who === "" ? undefined : `webhook ${who}`, authorize };
    },
    close() {
      closing.abort();
      connecting?.close();
      warnings.close();
    },
  };
}

/**
 * Checks the file with the secret, which is read again for each question.
 * @throws {ConfigError}
 */
export async function checkWebhookSecret({ tokenFile }: Pick<WebhookOptions, "tokenFile">): Promise<void> {
  if (tokenFile === undefined) return;
  await readSecret(tokenFile).catch((cause: Error) => {
    throw new ConfigError(`Cannot use --auth.webhook.token-file ${JSON.stringify(tokenFile)}: ${cause.message}`, { cause });
  });
}

/** A password that looks like a token is one: the user name beside it is the agent. */
function questionOf(credentials: ClientCredentials, peer: ClientPeer, key: Uint8Array) {
  const { address: client } = peer;
  const { user, agentId, shown } = shownBy(credentials);
  const question = (target?: TunnelTarget): Question => {
    const about = target && { agent: target.agentId, destination: formatAuthority(target.destination), network: target.network };
    const digest = createHmac("sha256", key).update(JSON.stringify([client, shown, about])).digest("base64");
    return { key: digest, body: JSON.stringify({ ...shown, client, requestId: peer.requestId, ...about }) };
  };
  return { user, agentId, question };
}

function shownBy(credentials: ClientCredentials): { user: string; agentId: string; shown: Readonly<Record<string, string>> } {
  if (credentials.scheme === "bearer") return { user: "", agentId: "", shown: { token: credentials.token } };
  const { username, password } = credentials;
  const { user, agentId } = splitUser(username);
  if (user === "") return { user, agentId, shown: { token: password } };
  if (isToken(password)) return { user: "", agentId: agentNamedBy(credentials), shown: { token: password } };
  return { user, agentId, shown: { user, password } };
}

/** @throws {Error} which quotes no part of it, as an error of `fetch` about the header would */
async function readSecret(file: string): Promise<string> {
  const text = await readText(file, MAX_SECRET).catch((cause) => {
    throw new Error(describeFileError(cause), { cause });
  });
  const secret = text.trim();
  if (!/^[!-~]+$/.test(secret)) throw new Error("it is not a secret of ASCII characters without spaces in one line");
  return secret;
}

/** @throws {Error} if it is no answer */
function readAnswer(status: number, text: string, askedAt: number): Answer {
  const answer = status === 200 || text.trimStart().startsWith("{") ? parseObject(text) : {};
  const { maxAge = 0, message, perTunnel = false } = answer;
  if (typeof perTunnel !== "boolean") throw new Error("the perTunnel of its answer is not true or false");
  if (typeof maxAge !== "number" || !(maxAge >= 0)) throw new Error("the maxAge of its answer is not a number of seconds");
  const maxAgeMs = Math.min(maxAge, MAX_AGE_S) * 1_000;
  const common = { isPerTunnel: perTunnel, askedAt, maxAgeMs };
  if (status !== 200) return { message: typeof message === "string" ? printable(message) : undefined, ...common };
  const [subject, name, agent] = ["subject", "name", "agent"].map((key) => readItem(answer, key));
  const [groups, agents, allow] = ["groups", "agents", "allow"].map((key) => readItems(answer, key));
  return {
    identity: {
      agentId: agent ?? "",
      agents: agents === undefined ? ALL_AGENTS : createAgentList(agents),
      // an empty list would allow everything
      allowList: allow === undefined ? undefined : createAllowList(allow.length === 0 ? ["none"] : allow),
      subject,
      name,
      groups,
    },
    ...common,
  };
}

function readItem(answer: Readonly<Record<string, unknown>>, key: string): string | undefined {
  const value = answer[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "string" || value === "" || value.length > MAX_ITEM) throw new Error(`the ${key} of its answer is not a text`);
  return value;
}

function readItems(answer: Readonly<Record<string, unknown>>, key: string): string[] | undefined {
  const value = answer[key];
  if (value === undefined || value === null) return undefined;
  const isList = Array.isArray(value) && value.length <= MAX_ITEMS &&
    value.every((item) => typeof item === "string" && item.length <= MAX_ITEM);
  if (!isList) throw new Error(`the ${key} of its answer is not a list of texts`);
  return value;
}
