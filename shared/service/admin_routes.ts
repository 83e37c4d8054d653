// What the admin server serves: liveness, readiness, metrics, agents and the dashboard's files to everyone, and the API to operators.
import { type Context, Hono } from "hono";
import { type ApiEnv, isExpectedHost, isSameOrigin } from "./api/access.ts";
import { MAX_MERGED } from "./api/cluster.ts";
import type { Operator } from "./api/tokens.ts";
import type { AgentState, Page } from "./api/types.ts";
import type { Member } from "./cluster/member.ts";
import type { Members } from "./cluster/members.ts";
import { serveDashboard } from "./dashboard/dashboard.ts";
import type { BackChannelLogout } from "./backchannel_logout.ts";
import type { Health } from "./health.ts";
import type { Handler, RequestOrigin } from "./http_server.ts";
import type { Logger } from "../log/logger.ts";
import type { Metrics } from "./metrics.ts";
import { type Metric, OPEN_METRICS_TYPE, prefersOpenMetrics } from "./open_metrics.ts";
import { LoginError, type OidcLogin } from "./operators/oidc_login.ts";

export interface AdminRoutesOptions {
  readonly health: Health;
  readonly metrics: Metrics;
  /** Those that are connected are listed. */
  readonly agents: () => Iterable<AgentState>;
  /** The other workers of the service, whose metrics and agents are shown, too. Default: there are none. */
  readonly workers?: Members;
  /** Served below {@link API_PATH}. */
  readonly api: Hono<ApiEnv>;
  /** Sign-in of people. Default: there is none. */
  readonly login?: OidcLogin;
  /** See {@link AccessOptions.hosts}. */
  readonly hosts: readonly string[];
  /** Sign-out by an identity provider. */
  readonly logout: BackChannelLogout;
  readonly log: Logger;
}

const API_PATH = "/api/v1";
/** Where an identity provider says that a session has ended. Its token says who it is, so any Host will do. */
const LOGOUT_PATH = "/backchannel-logout";

export function createAdminHandler(
  { health, metrics, agents, workers, api, login, hosts, logout, log }: AdminRoutesOptions,
): Handler {
  const app = new Hono<{ Bindings: RequestOrigin }>();
  app.use(async (c, next) => {
    if (c.req.method !== "GET" && c.req.path !== "/logout" && c.req.path !== LOGOUT_PATH && !isOfApi(c.req.path)) {
      return c.json({ error: "only GET and HEAD are served" }, 405, { "Allow": "GET, HEAD" });
    }
    await next();
    c.res.headers.set("Cache-Control", "no-store");
  });
  const json = (value: unknown, status = 200) =>
    new Response(`${JSON.stringify(value)}\n`, { status, headers: { "Content-Type": "application/json" } });
  app.get("/healthz", () => json({ status: "ok" }));
  app.get("/readyz", (c) => {
    const { ready, problems } = readiness(health, c.req.queries("exclude") ?? []);
    return json({ ready, problems }, ready ? 200 : 503);
  });
  app.get("/metrics", async (c) => {
    const isOpen = prefersOpenMetrics(c.req.header("Accept"));
    const [type, version] = isOpen ? [OPEN_METRICS_TYPE, "1.0.0"] : ["text/plain", "0.0.4"];
    const others = workers?.isOneService ? await askWorkers<readonly Metric[]>(workers, "/metrics") : undefined;
    const text =
      await (others ? metrics.formatWith(indexOf(workers!.self), others, isOpen) : isOpen ? metrics.formatOpen() : metrics.format());
    return new Response(text, { headers: { "Content-Type": `${type}; version=${version}; charset=utf-8`, "Vary": "Accept" } });
  });
  app.get("/agents", async () => {
    const others = workers?.isOneService ? await askWorkers<Page<AgentState>>(workers, `agents?limit=${MAX_MERGED}`) : undefined;
    const all = [...agents(), ...[...others?.values() ?? []].flatMap(({ items }) => items)];
    return json(all.filter(({ state }) => state !== "gone").map(reportOf));
  });
  // without a token: how one gets in, for the page
  app.get("/login/methods", (c) => json({ issuer: login?.issuer, isSession: login?.find(c.req.header("cookie")) !== undefined }));
  if (login !== undefined) addLogin(app, login, hosts);
  app.post(LOGOUT_PATH, async (c) => await logout.serve(await c.req.text(), c.env.remote));
  app.onError((error, c) => {
    log.error("admin request failed", { error: error.stack ?? error.message });
    return c.json({ error: "internal error" }, 500);
  });
  app.route(API_PATH, api);
  app.notFound((c) => {
    const file = serveDashboard(c.req.path);
    if (file !== undefined) return file;
    const error = isOfApi(c.req.path)
      ? `there is no such route; ${API_PATH}/openapi.json lists them`
      : `there are /healthz, /readyz, /metrics, /agents and ${API_PATH}`;
    return c.json({ error }, 404);
  });
  return (request, origin) => app.fetch(request, origin);
}

/** Sign-in with an identity provider. The browser must have come under the name that it will get cookies for. */
function addLogin(app: Hono<{ Bindings: RequestOrigin }>, login: OidcLogin, hosts: readonly string[]): void {
  const serve = async (c: Context<{ Bindings: RequestOrigin }>, act: () => Promise<Response>) => {
    if (!isExpectedHost(c.env, hosts)) return c.text("This Host is not served: use the address of --admin.oidc.url\n", 403);
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof LoginError)) throw error;
      return c.text(`You are not signed in. ${error.message}\n`, error.status);
    }
  };
  app.get("/login", (c) => serve(c, () => login.begin()));
  app.get("/login/callback", (c) => serve(c, () => login.finish(new URL(c.req.url).search, c.req.header("cookie"))));
  app.post("/logout", (c) =>
    serve(c, () => {
      // a form of another site sends no cookie, and the browser would still remove it as the response says
      if (!isSameOrigin(c.env)) return Promise.resolve(c.text("Requests of other sites are not served\n", 403));
      const headers = { "Set-Cookie": login.end(c.req.header("cookie")) };
      return Promise.resolve(new Response("{}", { headers: { ...headers, "Content-Type": "application/json" } }));
    }));
}

/** Whom workers ask for what everyone may see. */
const EVERYONE: Operator = { name: "everyone", role: "viewer" };

/** What the other workers answer, by their index. Those that do not answer are left out. */
async function askWorkers<T>(workers: Members, path: string): Promise<Map<string, T>> {
  const answers = await workers.ask({ operator: EVERYONE, method: "GET", path, to: await workers.others() });
  return new Map(
    answers.flatMap(({ member, response }) => response?.status === 200 ? [[indexOf(member), response.value as T] as const] : []),
  );
}

function indexOf({ address }: Member): string {
  return address.replace(/^.*:/, "");
}

function isOfApi(path: string): boolean {
  return path.startsWith(`${API_PATH}/`);
}

/** `?exclude=store` ignores a cause, as in Kubernetes' own servers: a shared store that fails would take all instances out at once. */
function readiness({ problems }: Health, excluded: readonly string[]): { ready: boolean; problems: Readonly<Record<string, string>> } {
  const left = [...problems].filter(([cause]) => !excluded.includes(cause));
  return { ready: left.length === 0, problems: Object.fromEntries(problems) };
}

/** The form of /agents, which is older than the API. */
function reportOf(agent: AgentState): object {
  const { id, address, link, linkReason, via, version, host, labels, since, tunnels, sent, received, rttMs } = agent;
  return { id, address, link, linkReason, via, version, host, labels, since, tunnels, sentBytes: sent, receivedBytes: received, rttMs };
}
