// The routes with which operators act. Each action is logged with the operator's name.
import type { Context, Hono } from "hono";
import { AuthenticationError, RevocationError, type SignedOut } from "../../auth/authenticator.ts";
import { MAX_TOKEN } from "../../auth/token.ts";
import { messageOf } from "../../log/error_message.ts";
import { LOG_LEVELS } from "../../log/logger.ts";
import { type ApiEnv, checkWrite, fail } from "./access.ts";
import { type ActionPart, actOnOthers, ownPart, proxiesOf, scopeOf, type Wide } from "./cluster.ts";
import { sumActions } from "./cluster_sums.ts";
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

/** @param changed called after an action: lists that were read before are old */
export function addActions(api: Hono<ApiEnv>, operations: Operations, changed: () => void): void {
  const { activity, cluster } = operations;
  api.use("*", async (c, next) => c.req.method === "POST" ? await checkWrite()(c, next) : await next());

  const add = (path: string, action: ActionRecord["action"], act: Act, { of, status = 200 }: Route) => {
    /** @throws {BodyError | ActionRefused} */
    const actHere = async (c: Context<ApiEnv>, body: Body): Promise<Acted> => {
      const { name: by, subject } = c.get("operator");
      const acted = await act(body, by);
      if (acted.affected === 0 && acted.missing !== undefined) return acted;
      recordAction(operations, { by, subject, action, target: acted.target, through: c.get("through") }, c.env.remote);
      changed();
      return acted;
    };
    const actWide = async (c: Context<ApiEnv>, body: Body, wide: Wide): Promise<Response> => {
      if (of === "service" && !wide.isNamed) {
        return fail(c, 400, "with scope=cluster this needs member: the address of the one that is meant");
      }
      const members = of === "agents" ? proxiesOf(wide) : wide;
      const parts: ActionPart[] = [];
      if (members.includesSelf) {
        try {
          const { affected, missing } = await actHere(c, body);
          parts.push(ownPart(wide, affected === 0 && missing !== undefined ? { error: missing, status: 404 } : { affected }));
        } catch (error) {
          if (!(error instanceof ActionRefused)) throw error;
          parts.push(ownPart(wide, { error: error.message, status: 409 }));
        }
      }
      // only one has it
      const isDone = of === "tunnel" && parts.some(({ affected = 0 }) => affected > 0);
      if (!isDone) parts.push(...await actOnOthers(members, c, path.slice(1), body));
      const result = sumActions(parts);
      return "error" in result ? fail(c, result.status, result.error) : c.json<ActionResult>(result, status);
    };
    api.post(path, async (c) => {
      try {
        const { wide } = await scopeOf(c, cluster);
        const body = await readBody(c);
        if (wide !== undefined) return await actWide(c, body, wide);
        const { affected, missing } = await actHere(c, body);
        return missing !== undefined && affected === 0 ? fail(c, 404, missing) : c.json<ActionResult>({ affected }, status);
      } catch (error) {
        if (error instanceof BodyError) return fail(c, 400, error.message);
        if (error instanceof ActionRefused) return fail(c, 409, error.message);
        if (error instanceof AuthenticationError) return fail(c, error.kind === "unavailable" ? 503 : 400, error.message);
        if (error instanceof RevocationError) return fail(c, 503, error.message);
        throw error;
      }
    });
  };

  add("/tunnels/close", "close-tunnel", (body, by) => {
    const id = textIn(body, "id");
    return { affected: activity.closeTunnel(id, by) ? 1 : 0, target: id, missing: "there is no such tunnel" };
  }, { of: "tunnel" });
  add("/agents/disconnect", "disconnect-agent", (body, by) => {
    const [agent, connection] = [textIn(body, "agent"), body.connection === undefined ? undefined : textIn(body, "connection")];
    const { awaySeconds = 0 } = body;
    if (typeof awaySeconds !== "number" || !(awaySeconds >= 0 && awaySeconds <= MAX_AWAY_S)) {
      throw new BodyError(`awaySeconds is not a number from 0 to ${MAX_AWAY_S}`);
    }
    if (!operations.disconnect) throw new ActionRefused("this service holds no agents: ask the proxies");
    const affected = operations.disconnect({ agent, connection, awaySeconds }, by);
    return { affected, target: agent, missing: awaySeconds > 0 ? undefined : "no such agent is connected" };
  }, { of: "agents" });
  add("/tokens/revoke", "revoke-token", async (body, by) => {
    const tokenId = textIn(body, "tokenId");
    if (!operations.revoke) throw new ActionRefused(NOT_REVOCABLE);
    try {
      return { affected: await operations.revoke(tokenId, `by ${by}, ${new Date().toISOString()}`), target: tokenId };
    } catch (error) {
      if (error instanceof RevocationError) throw new ActionRefused(error.message);
      throw error;
    }
  }, { of: "tokens" });
  add("/sessions/end", "end-session", async (body) => {
    const { target, affected } = await signOut(operations, textIn(body, "logoutToken", MAX_TOKEN));
    return { affected, target };
  }, { of: "tokens" });
  add("/drain", "drain", () => {
    const affected = activity.tunnels.size;
    setTimeout(() => {
      operations.drain().catch((error) => operations.log.error("drain failed", { error: messageOf(error) }));
    }, RESPONSE_MS);
    return { affected };
  }, { of: "service", status: 202 });
  add("/reload", "reload", async () => {
    await operations.reload();
    return { affected: 0 };
  }, { of: "service" });
  add("/log-level", "log-level", (body) => {
    const level = LOG_LEVELS.find((known) => known === body.level);
    if (level === undefined) throw new BodyError(`level is not one of ${LOG_LEVELS.join(", ")}`);
    if (operations.logLevel === undefined) throw new ActionRefused("the log belongs to the program that embeds the service");
    operations.logLevel.level = level;
    return { affected: 1, target: level };
  }, { of: "service" });
}

/**
 * Ends a session by a logout token of the issuer, and records that.
 * @throws {ActionRefused} if no such tokens are accepted
 * @throws {AuthenticationError | RevocationError}
 */
export async function signOutHere(operations: Operations, logoutToken: string, { name: by }: Operator, remote: string): Promise<SignedOut> {
  const signedOut = await signOut(operations, logoutToken);
  recordAction(operations, { by, action: "end-session", target: signedOut.target }, remote);
  return signedOut;
}

/** @throws as {@link signOutHere} */
async function signOut({ signOut }: Operations, logoutToken: string): Promise<SignedOut> {
  if (!signOut) throw new ActionRefused("this service accepts no logout tokens: --auth.oidc.logout-audience is not set");
  return await signOut(logoutToken);
}

type Body = Readonly<Record<string, unknown>>;

/** Returns what was affected, and the target for the log. */
type Act = (body: Body, by: string) => Promise<Acted> | Acted;

interface Route {
  /** What it acts on, which says whom it is for with scope=cluster: the holder of the tunnel, all proxies, all members, or those that are named. */
  readonly of: "tunnel" | "agents" | "tokens" | "service";
  /** Of the response. Default 200. */
  readonly status?: 200 | 202;
}

interface Acted {
  readonly affected: number;
  readonly target?: string;
  /** The error if nothing was affected. Default: that is none. */
  readonly missing?: string;
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
