// The routes with which operators act. Each action is logged with the operator's name.
import type { Context, Hono } from "hono";
import { AuthenticationError, RevocationError, type SignedOut } from "../../auth/authenticator.ts";
import { MAX_TOKEN } from "../../auth/token.ts";
import { messageOf } from "../../log/error_message.ts";
import { LOG_LEVELS } from "../../log/logger.ts";
import { type ApiEnv, checkWrite, fail } from "./access.ts";
import { type ActionPart, actOnOthers, ownPart, proxiesOf, scopeOf, type Wide } from "./cluster.ts";
import { sumActions } from "./cluster_sums.ts";
import type { Operators } from "../operators/operators.ts";
import { ActionRefused, type Operations, recordAction } from "./operations.ts";
import type { Operator } from "./tokens.ts";
import type { ActionRecord, ActionResult } from "./types.ts";

/** A body that cannot be used. */
class BodyError extends Error {}

const NOT_REVOCABLE = "tokens are revoked where they are verified, with --auth.jwt.revocation-file";
/** Time in milliseconds for the response to a drain, which closes this server. */
const RESPONSE_MS = 100;
/** Longest time for which an agent is kept away, in seconds. */
const MAX_AWAY_S = 86_400;

/**
 * @param operators whose sessions at the dashboard may end. Default: there are none
 * @param changed called after an action: lists that were read before are old
 */
export function addActions(api: Hono<ApiEnv>, operations: Operations, operators: Operators | undefined, changed: () => void): void {
  api.use("*", async (c, next) => c.req.method === "POST" ? await checkWrite()(c, next) : await next());
  const endSession: Action = {
    path: "/sessions/end",
    name: "end-session",
    of: "tokens",
    act: (operations, body) => signOut({ operations, operators }, textIn(body, "logoutToken", MAX_TOKEN)),
  };
  for (const action of [...ACTIONS, endSession]) api.post(action.path, (c) => new ActionRequest(c, action, operations, changed).respond());
}

/** The request for an action: acts here, and has other members act if it is for them. */
class ActionRequest {
  readonly #c: Context<ApiEnv>;
  readonly #action: Action;
  readonly #operations: Operations;
  readonly #changed: () => void;

  constructor(c: Context<ApiEnv>, action: Action, operations: Operations, changed: () => void) {
    this.#c = c;
    this.#action = action;
    this.#operations = operations;
    this.#changed = changed;
  }

  async respond(): Promise<Response> {
    const c = this.#c;
    try {
      const { wide } = await scopeOf(c, this.#operations.cluster);
      const body = await readBody(c);
      if (wide !== undefined) return await this.#actWide(body, wide);
      const { affected, missing } = await this.#actHere(body);
      return missing !== undefined && affected === 0 ? fail(c, 404, missing) : this.#succeed({ affected });
    } catch (error) {
      if (error instanceof BodyError) return fail(c, 400, error.message);
      if (error instanceof ActionRefused) return fail(c, 409, error.message);
      if (error instanceof AuthenticationError) return fail(c, error.kind === "unavailable" ? 503 : 400, error.message);
      if (error instanceof RevocationError) return fail(c, 503, error.message);
      throw error;
    }
  }

  #succeed(result: ActionResult): Response {
    return this.#c.json<ActionResult>(result, this.#action.status ?? 200);
  }

  /** @throws {BodyError | ActionRefused} */
  async #actHere(body: Body): Promise<Acted> {
    const { name: by, subject } = this.#c.get("operator");
    const acted = await this.#action.act(this.#operations, body, by);
    if (acted.affected === 0 && acted.missing !== undefined) return acted;
    const record = { by, subject, action: this.#action.name, target: acted.target, through: this.#c.get("through") };
    recordAction(this.#operations, record, this.#c.env.remote);
    this.#changed();
    return acted;
  }

  async #actWide(body: Body, wide: Wide): Promise<Response> {
    const { of, path } = this.#action;
    const { isOneService } = wide.cluster;
    if (of === "service" && !wide.isNamed && !isOneService) {
      return fail(this.#c, 400, "with scope=cluster this needs member: the address of the one that is meant");
    }
    // the supervising process passes these on to all workers
    const isPassedOn = isOneService && (path === "/drain" || path === "/reload");
    const members = isPassedOn ? { ...wide, includesSelf: true, others: [] } : of === "agents" ? proxiesOf(wide) : wide;
    const parts: ActionPart[] = members.includesSelf ? [ownPart(wide, await this.#tryHere(body))] : [];
    // only one has it
    const isDone = of === "tunnel" && parts.some(({ affected = 0 }) => affected > 0);
    if (!isDone) parts.push(...await actOnOthers(members, this.#c, path.slice(1), body));
    const result = sumActions(parts);
    return "error" in result ? fail(this.#c, result.status, result.error) : this.#succeed(result);
  }

  async #tryHere(body: Body): Promise<Pick<ActionPart, "affected" | "error" | "status">> {
    try {
      const { affected, missing } = await this.#actHere(body);
      return affected === 0 && missing !== undefined ? { error: missing, status: 404 } : { affected };
    } catch (error) {
      if (!(error instanceof ActionRefused)) throw error;
      return { error: error.message, status: 409 };
    }
  }
}

type Body = Readonly<Record<string, unknown>>;

interface Acted {
  readonly affected: number;
  readonly target?: string;
  /** The error if nothing was affected. Default: that is none. */
  readonly missing?: string;
}

interface Action {
  readonly path: string;
  readonly name: ActionRecord["action"];
  /** The kind of target. It selects the members with scope=cluster: the one with the tunnel, all proxies, all members, or the named ones. */
  readonly of: "tunnel" | "agents" | "tokens" | "service";
  /** Status of the response. Default 200. */
  readonly status?: 200 | 202;
  /** @throws {BodyError | ActionRefused | AuthenticationError | RevocationError} */
  readonly act: (operations: Operations, body: Body, by: string) => Promise<Acted> | Acted;
}

const ACTIONS: readonly Action[] = [
  { path: "/tunnels/close", name: "close-tunnel", of: "tunnel", act: closeTunnel },
  { path: "/agents/disconnect", name: "disconnect-agent", of: "agents", act: disconnectAgent },
  { path: "/tokens/revoke", name: "revoke-token", of: "tokens", act: revokeToken },
  { path: "/drain", name: "drain", of: "service", status: 202, act: drain },
  { path: "/reload", name: "reload", of: "service", act: reload },
  { path: "/log-level", name: "log-level", of: "service", act: setLogLevel },
];

function closeTunnel({ activity }: Operations, body: Body, by: string): Acted {
  const id = textIn(body, "id");
  return { affected: activity.closeTunnel(id, by) ? 1 : 0, target: id, missing: "there is no such tunnel" };
}

function disconnectAgent(operations: Operations, body: Body, by: string): Acted {
  const [agent, connection] = [textIn(body, "agent"), body.connection === undefined ? undefined : textIn(body, "connection")];
  const { awaySeconds = 0 } = body;
  if (typeof awaySeconds !== "number" || !(awaySeconds >= 0 && awaySeconds <= MAX_AWAY_S)) {
    throw new BodyError(`awaySeconds is not a number from 0 to ${MAX_AWAY_S}`);
  }
  if (!operations.disconnect) throw new ActionRefused("this service holds no agents: ask the proxies");
  const affected = operations.disconnect({ agent, connection, awaySeconds }, by);
  return { affected, target: agent, missing: awaySeconds > 0 ? undefined : "no such agent is connected" };
}

async function revokeToken(operations: Operations, body: Body, by: string): Promise<Acted> {
  const tokenId = textIn(body, "tokenId");
  if (!operations.revoke) throw new ActionRefused(NOT_REVOCABLE);
  try {
    return { affected: await operations.revoke(tokenId, `by ${by}, ${new Date().toISOString()}`), target: tokenId };
  } catch (error) {
    if (error instanceof RevocationError) throw new ActionRefused(error.message);
    throw error;
  }
}

function drain(operations: Operations): Acted {
  const affected = operations.activity.tunnels.size;
  setTimeout(() => {
    operations.drain().catch((error) => operations.log.error("drain failed", { error: messageOf(error) }));
  }, RESPONSE_MS);
  return { affected };
}

async function reload(operations: Operations): Promise<Acted> {
  await operations.reload();
  return { affected: 0 };
}

function setLogLevel({ logLevel }: Operations, body: Body): Acted {
  const level = LOG_LEVELS.find((known) => known === body.level);
  if (level === undefined) throw new BodyError(`level is not one of ${LOG_LEVELS.join(", ")}`);
  if (logLevel === undefined) throw new ActionRefused("the log belongs to the program that embeds the service");
  logLevel.level = level;
  return { affected: 1, target: level };
}

/** Whose sessions a logout token may end: clients and agents, and operators at the dashboard. */
export interface SignOutParts {
  readonly operations: Operations;
  readonly operators?: Operators;
}

/**
 * Ends a session by a logout token of the issuer, and records that.
 * @throws {ActionRefused} if no such tokens are accepted
 * @throws {AuthenticationError | RevocationError}
 */
export async function signOutHere(parts: SignOutParts, logoutToken: string, { name: by }: Operator, remote: string): Promise<SignedOut> {
  const signedOut = await signOut(parts, logoutToken);
  recordAction(parts.operations, { by, action: "end-session", target: signedOut.target }, remote);
  return signedOut;
}

/** @throws as {@link signOutHere} */
async function signOut({ operations, operators }: SignOutParts, logoutToken: string): Promise<SignedOut> {
  // both, whether or not one fails: the issuer may have one client for people at the dashboard and for tunnels
  const results = await Promise.allSettled([operations.signOut?.(logoutToken), operators?.signOut(logoutToken)]);
  const done: SignedOut[] = [];
  for (const result of results) {
    if (result.status === "rejected") throw result.reason;
    if (result.value !== undefined) done.push(result.value);
  }
  const [first, second] = done;
  if (first === undefined) {
    throw new ActionRefused(
      operations.signOut === undefined && operators?.login === undefined
        ? "this service accepts no logout tokens: neither --auth.oidc.logout-audience nor --admin.oidc.url is set"
        : "the logout token is of another issuer, or for none of --auth.oidc.logout-audience and --admin.oidc.client-id",
    );
  }
  return { ...first, affected: first.affected + (second?.affected ?? 0) };
}

/** @throws {BodyError} */
async function readBody(c: Context<ApiEnv>): Promise<Body> {
  let body: unknown;
  try {
    body = JSON.parse(await c.req.text());
  } catch {
    throw new BodyError("the body is not JSON");
  }
  if (typeof body !== "object" || body === null || Array.isArray(body)) throw new BodyError("the body is not a JSON object");
  return body as Body;
}

/** Longest text in a body, in characters. */
const MAX_TEXT = 1_024;

/** @throws {BodyError} */
function textIn(body: Body, name: string, maxLength = MAX_TEXT): string {
  const value = body[name];
  if (typeof value !== "string" || value === "" || value.length > maxLength) throw new BodyError(`${name} is not a text`);
  return value;
}
