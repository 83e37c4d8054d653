// The routes of the admin API, below /api/v1: what can be read. actions.ts has those that change something.
import { hostname } from "node:os";
import { Hono } from "hono";
import { VERSION } from "../../version.ts";
import { describeFailure } from "../live/failures.ts";
import { describeTunnel } from "../live/tunnel.ts";
import { type ApiEnv, checkAccess, fail } from "./access.ts";
import { addActions } from "./actions.ts";
import { eventStream } from "./event_stream.ts";
import { AGENTS, FAILURES, TUNNELS } from "./lists.ts";
import { openApi } from "./openapi.ts";
import type { Operations } from "./operations.ts";
import { checkOneOf, QueryError, select } from "./query.ts";
import type { TokenFile } from "./tokens.ts";
import type { AgentState, Failure, FailurePage, Page, Status, TunnelState } from "./types.ts";
import { type Topic, TOPICS } from "./types.ts";

export interface ApiOptions {
  readonly operations: Operations;
  /** See {@link checkAccess}. */
  readonly hosts: readonly string[];
  readonly tokens?: TokenFile;
}

/** Age in milliseconds up to which the list of agents is the same for all who ask: it costs a call for each connection. */
const AGENTS_MAX_AGE_MS = 1_000;

export function createApi({ operations, hosts, tokens }: ApiOptions): Hono<ApiEnv> {
  const { activity } = operations;
  const instance = crypto.randomUUID();
  const api = new Hono<ApiEnv>();
  let agents: { readonly list: AgentState[]; readonly at: number } | undefined;
  const listAgents = (now: number): AgentState[] => {
    if (agents === undefined || now - agents.at >= AGENTS_MAX_AGE_MS) agents = { list: operations.agents(), at: now };
    return agents.list;
  };
  api.use(checkAccess(hosts, tokens));
  api.use(async (c, next) => {
    await next();
    c.res.headers.set("Cache-Control", "no-store");
  });
  api.onError((error, c) => {
    if (error instanceof QueryError) return fail(c, 400, error.message);
    throw error; // the admin server's
  });
  api.notFound((c) => fail(c, 404, "there is no such route; openapi.json lists them"));

  api.get("/status", (c) => {
    const now = performance.now();
    const { problems } = operations.health;
    return c.json<Status>({
      service: operations.service,
      version: VERSION,
      host: hostname(),
      instance,
      startedAt: operations.startedAt.toISOString(),
      at: new Date().toISOString(),
      ready: problems.size === 0,
      problems: Object.fromEntries(problems),
      draining: operations.isDraining,
      logLevel: operations.logLevel?.level,
      role: c.get("operator").role,
      now: activity.current(operations.population()),
      failures: activity.failures.counts(now),
    });
  });
  api.get("/history", (c) => c.json(activity.history()));
  api.get("/agents", (c) => c.json<Page<AgentState>>(select(listAgents(performance.now()), queryOf(c.req.url), AGENTS)));
  api.get("/tunnels", (c) => {
    const page = select(activity.list(), queryOf(c.req.url), TUNNELS);
    const now = performance.now();
    return c.json<Page<TunnelState>>({ ...page, items: page.items.map((tunnel) => describeTunnel(tunnel, now)) });
  });
  api.get("/tunnels/:id", (c) => {
    const tunnel = activity.list().find(({ key }) => key === c.req.param("id"));
    return tunnel === undefined ? fail(c, 404, "there is no such tunnel") : c.json(describeTunnel(tunnel, performance.now()));
  });
  api.get("/failures", (c) => {
    const now = performance.now();
    const page: Page<Failure> = selectFailures(activity.failures.last(now), c.req.url);
    return c.json<FailurePage>({ ...page, counts: activity.failures.counts(now) });
  });
  api.get("/events", (c) => {
    const stream = eventStream(activity.events, topicsOf(c.req.query("topics")), c.get("isAllowed"));
    return stream ?? fail(c, 503, "too many streams of events are open, or the service stops");
  });
  api.get("/openapi.json", (c) => c.json(openApi(VERSION)));
  addActions(api, operations, () => agents = undefined);
  return api;
}

function queryOf(url: string): URLSearchParams {
  return new URL(url).searchParams;
}

function selectFailures(failures: Parameters<typeof describeFailure>[0][], url: string): Page<Failure> {
  const page = select(failures, queryOf(url), FAILURES);
  return { ...page, items: page.items.map(describeFailure) };
}

/** @throws {QueryError} */
function topicsOf(text: string | undefined): ReadonlySet<Topic> {
  const names = text?.split(",") ?? TOPICS;
  for (const name of names) checkOneOf("topics", name, TOPICS);
  return new Set(names as Topic[]);
}
