// Who may use the API: checks Host and Origin against DNS rebinding and other sites, and the token. The unix socket needs none.
import { isIP } from "node:net";
import type { Context, MiddlewareHandler } from "hono";
import { splitHostPort } from "../../address/host_port.ts";
import { Cluster, CLUSTER_SCHEME } from "../cluster/cluster.ts";
import { MemberRequestError } from "../cluster/key.ts";
import type { Members } from "../cluster/members.ts";
import type { RequestOrigin } from "../http_server.ts";
import type { Operators } from "../operators/operators.ts";
import type { Operator } from "./tokens.ts";
import type { ErrorBody } from "./types.ts";

/** The context of a request, for the routes. */
export interface ApiEnv {
  Bindings: RequestOrigin;
  Variables: {
    operator: Operator;
    /** The member of the cluster that asks on behalf of the operator; `undefined` if the operator asks. */
    through: string | undefined;
    /** Whether the token is still valid. */
    isAllowed: () => Promise<boolean>;
  };
}

/** A user of the Unix socket. */
const LOCAL: Operator = { name: "local", role: "operator" };

/** An error response. */
export function fail(c: Context, status: 400 | 401 | 403 | 404 | 405 | 409 | 413 | 415 | 503, error: string): Response {
  return c.json({ error } satisfies ErrorBody, status);
}

export interface AccessOptions {
  /** Names in Host, as browsers send them, besides addresses and localhost with the port that is listened on. */
  readonly hosts: readonly string[];
  /** Missing: only the unix socket and members of the cluster are served. */
  readonly operators?: Operators;
  readonly cluster?: Members;
}

export function checkAccess({ hosts, operators, cluster }: AccessOptions): MiddlewareHandler<ApiEnv> {
  return async (c, next) => {
    const { isLocal, origin, worker } = c.env;
    if (worker !== undefined) {
      c.set("operator", worker.operator);
      c.set("through", worker.from);
      c.set("isAllowed", () => Promise.resolve(true));
      return await next();
    }
    const [, scheme, credentials = ""] = /^(\S+) +(\S+)$/.exec(c.req.header("authorization") ?? "") ?? [];
    if (scheme?.toLowerCase() === CLUSTER_SCHEME.toLowerCase()) {
      // no browser can sign a request, so its Host and Origin say nothing
      const refusal = await identifyMember(c, cluster, credentials);
      if (refusal !== undefined) return fail(c, 401, refusal);
      return await next();
    }
    if (!isLocal && !isExpectedHost(c.env, hosts)) {
      return fail(c, 403, "this Host is not served: use an address, localhost, or a name that --admin.hosts lists");
    }
    if (origin !== undefined && !isSameOrigin(c.env)) return fail(c, 403, "requests of other sites are not served");
    if (isLocal) {
      c.set("operator", LOCAL);
      c.set("isAllowed", () => Promise.resolve(true));
      return await next();
    }
    if (operators === undefined) {
      return fail(
        c,
        401,
        "the API is served on --admin.socket; over TCP it needs --admin.token-file, --admin.jwt.public-key or --admin.oidc.issuer",
      );
    }
    const cookies = c.req.header("cookie");
    if (scheme === undefined && operators.login !== undefined && cookies !== undefined) {
      // browsers send cookies unasked: what acts must come from the page itself
      const operator = operators.login.find(cookies);
      if (operator !== undefined && c.req.method !== "GET" && origin === undefined) {
        return fail(c, 403, "a request that acts needs the field Origin with a session of the dashboard");
      }
      if (operator !== undefined) {
        c.set("operator", operator);
        c.set("isAllowed", () => Promise.resolve(operators.login?.find(cookies) !== undefined));
        return await next();
      }
    }
    const token = scheme?.toLowerCase() === "bearer" ? credentials : "";
    const operator = token === "" ? undefined : await operators.find(token);
    if (operator === undefined) {
      c.header("WWW-Authenticate", "Bearer");
      return fail(c, 401, "a token of an operator is needed, as Authorization: Bearer TOKEN");
    }
    c.set("operator", operator);
    c.set("isAllowed", async () => await operators.find(token) !== undefined);
    await next();
  };
}

/** Reads on whose behalf a member asks. Returns why it is refused, or `undefined`. */
async function identifyMember(c: Context<ApiEnv>, cluster: Members | undefined, token: string): Promise<string | undefined> {
  if (!(cluster instanceof Cluster)) return "this service has no --admin.cluster.key-file";
  const { method, url } = c.req;
  const { pathname, search } = new URL(url);
  try {
    const { from, operator, isAccepted } = await cluster.verify(token, {
      method,
      target: `${pathname}${search}`,
      body: await c.req.text(),
    });
    c.set("operator", operator);
    c.set("through", from);
    c.set("isAllowed", isAccepted);
    return undefined;
  } catch (error) {
    if (!(error instanceof MemberRequestError)) throw error;
    return error.message;
  }
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
export function isExpectedHost({ host, listening }: RequestOrigin, hosts: readonly string[]): boolean {
  if (host === undefined) return false;
  if (hosts.some((name) => name.toLowerCase() === host.toLowerCase())) return true;
  try {
    const { port: own } = splitHostPort(listening);
    const { host: name, port } = splitHostPort(host, own === 443 ? 443 : 80);
    return port === own && (name.toLowerCase() === "localhost" || isIP(name) > 0);
  } catch {
    return false;
  }
}

/** The page of a browser was served under the same host. */
export function isSameOrigin({ host, origin }: RequestOrigin): boolean {
  return host !== undefined && (origin === `http://${host}` || origin === `https://${host}`);
}
