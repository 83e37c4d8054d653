// Who may use the API: checks Host and Origin against DNS rebinding and other sites, and the token. The unix socket needs none.
import { isIP } from "node:net";
import type { Context, MiddlewareHandler } from "hono";
import { splitHostPort } from "../../address/host_port.ts";
import type { RequestOrigin } from "../http_server.ts";
import type { Operator, TokenFile } from "./tokens.ts";
import type { ErrorBody } from "./types.ts";

/** What the routes know of a request. */
export interface ApiEnv {
  Bindings: RequestOrigin;
  Variables: {
    operator: Operator;
    /** Whether the token is still valid. */
    isAllowed: () => Promise<boolean>;
  };
}

/** One who uses the unix socket. */
const LOCAL: Operator = { name: "local", role: "operator" };

/** An error response. */
export function fail(c: Context, status: 400 | 401 | 403 | 404 | 405 | 409 | 413 | 415 | 503, error: string): Response {
  return c.json({ error } satisfies ErrorBody, status);
}

/**
 * @param hosts names in Host, as browsers send them, besides addresses and localhost with the port that is listened on
 * @param tokens missing: only the unix socket is served
 */
export function checkAccess(hosts: readonly string[], tokens: TokenFile | undefined): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const { isLocal, origin } = c.env;
    if (!isLocal && !isExpectedHost(c.env, hosts)) {
      return fail(c, 403, "this Host is not served: use an address, localhost, or a name that --admin.hosts lists");
    }
    if (origin !== undefined && !isSameOrigin(c.env)) return fail(c, 403, "requests of other sites are not served");
    if (isLocal) {
      c.set("operator", LOCAL);
      c.set("isAllowed", () => Promise.resolve(true));
      return await next();
    }
    if (tokens === undefined) return fail(c, 401, "the API is served on --admin.socket; over TCP it needs --admin.token-file");
    const [, token = ""] = /^Bearer +(\S+)$/i.exec(c.req.header("authorization") ?? "") ?? [];
    const operator = token === "" ? undefined : await tokens.find(token);
    if (operator === undefined) {
      c.header("WWW-Authenticate", "Bearer");
      return fail(c, 401, "a token of --admin.token-file is needed, as Authorization: Bearer TOKEN");
    }
    c.set("operator", operator);
    c.set("isAllowed", async () => await tokens.find(token) !== undefined);
    await next();
  };
}

/** Only operators may act, and only with JSON: forms and simple requests of other sites have other types. */
export function checkWrite(): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const type = c.req.header("content-type") ?? "";
    if (!/^application\/json(?: *; *charset=utf-8)?$/i.test(type)) return fail(c, 415, "the Content-Type is not application/json");
    if (c.get("operator").role !== "operator") return fail(c, 403, "the token has the role viewer, and this needs the role operator");
    await next();
  };
}

/** A name of another site that resolves to this machine (DNS rebinding) is no address and not listed. */
function isExpectedHost({ host, listening }: RequestOrigin, hosts: readonly string[]): boolean {
  if (host === undefined) return false;
  if (hosts.some((name) => name.toLowerCase() === host.toLowerCase())) return true;
  try {
    const { host: name, port } = splitHostPort(host, 80);
    return port === splitHostPort(listening).port && (name.toLowerCase() === "localhost" || isIP(name) > 0);
  } catch {
    return false;
  }
}

/** The page of a browser was served under the same host. */
function isSameOrigin({ host, origin }: RequestOrigin): boolean {
  return host !== undefined && (origin === `http://${host}` || origin === `https://${host}`);
}
