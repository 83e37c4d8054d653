// The routes of the admin API for reading, below /api/v1. actions.ts has those for actions.
import { hostname } from "node:os";
import { type Context, Hono } from "hono";
import { VERSION } from "../../version.ts";
import { describeFailure } from "../live/failures.ts";
import { describeTunnel } from "../live/tunnel.ts";
import { type ApiEnv, checkAccess, fail } from "./access.ts";
import { addActions } from "./actions.ts";
import { ClusterEvents } from "./cluster_events.ts";
import { eventStream } from "./event_stream.ts";
import { AGENTS, FAILURES, TUNNEL_ORDERS, TUNNELS } from "./lists.ts";
import { gather, gatherPage, MAX_MERGED, type Part, proxiesOf, ScopeError, scopeOf } from "./cluster.ts";
import { sumFailureHistories, sumFailures, sumHistories, sumStatus } from "./cluster_sums.ts";
import { openApi } from "./openapi.ts";
import type { Operations } from "./operations.ts";
import { checkOneOf, QueryError, select } from "./query.ts";
import type {
  AgentState,
  ClusterConfiguration,
  ClusterStatus,
  Configuration,
  Failure,
  FailureHistory,
  FailurePage,
  Page,
  Role,
  Sample,
  Status,
  TunnelState,
} from "./types.ts";
import type { Operators } from "../operators/operators.ts";
import { type Topic, TOPICS } from "./types.ts";
import { ClusterBusyError } from "../cluster/members.ts";

export interface ApiOptions {
  readonly operations: Operations;
  /** See {@link checkAccess}. */
  readonly hosts: readonly string[];
  readonly operators?: Operators;
}

/** Age in milliseconds up to which the list of agents is cached: it costs a call for each connection. */
const AGENTS_MAX_AGE_MS = 1_000;

export function createApi({ operations, hosts, operators }: ApiOptions): Hono<ApiEnv> {
  const { cluster } = operations;
  const api = new Hono<ApiEnv>();
  api.use(checkAccess({ hosts, operators, cluster }));
  api.use(async (c, next) => {
    await next();
    c.res.headers.set("Cache-Control", "no-store");
  });
  api.onError((error, c) => {
    if (error instanceof QueryError) return fail(c, 400, error.message);
    if (error instanceof ScopeError) return fail(c, error.status, error.message);
    if (error instanceof ClusterBusyError) return fail(c, 503, error.message);
    throw error; // the admin server's
  });
  api.notFound((c) => fail(c, 404, "there is no such route; openapi.json lists them"));
  const agents = new AgentList(operations);
  addService(api, operations);
  addLists(api, operations, agents);
  addFailures(api, operations);
  addEvents(api, operations);
  addActions(api, operations, operators, () => agents.forget());
  return api;
}

/** The agents of this service, read again when the list is too old. */
class AgentList {
  readonly #operations: Operations;
  #last?: { readonly list: AgentState[]; readonly at: number };

  constructor(operations: Operations) {
    this.#operations = operations;
  }

  get(): AgentState[] {
    const at = performance.now();
    if (this.#last === undefined || at - this.#last.at >= AGENTS_MAX_AGE_MS) this.#last = { list: this.#operations.agents(), at };
    return this.#last.list;
  }

  forget(): void {
    this.#last = undefined;
  }
}

/** What the service is, and how it does. */
function addService(api: Hono<ApiEnv>, operations: Operations): void {
  const { activity, cluster } = operations;
  const instance = crypto.randomUUID();
  api.get("/status", async (c) => {
    const { wide } = await scopeOf(c, cluster);
    const own = statusOf(operations, instance, c.get("operator").role);
    return c.json<Status | ClusterStatus>(wide === undefined ? own : sumStatus(own, await gather(wide, c, "status", () => own)));
  });
  api.get("/history", async (c) => {
    const { wide } = await scopeOf(c, cluster);
    if (wide === undefined) return c.json(activity.history());
    const parts = await gather<Sample[]>(proxiesOf(wide), c, "history", () => activity.history());
    return c.json(sumHistories(valuesOf(parts)));
  });
  api.get("/configuration", async (c) => {
    const { wide } = await scopeOf(c, cluster);
    const own = configurationOf(operations);
    if (wide !== undefined) {
      const parts = await gather(wide, c, "configuration", () => own);
      const members = parts.map(({ answer, value, status }) => ({
        ...answer,
        error: status === 404 ? undefined : answer.error,
        configuration: value,
      }));
      return c.json<ClusterConfiguration>({ members });
    }
    return own === undefined ? fail(c, 404, "the options belong to the program that embeds the service") : c.json<Configuration>(own);
  });
  api.get("/openapi.json", (c) => c.json(openApi(VERSION)));
}

function statusOf(operations: Operations, instance: string, role: Role): Status {
  const { health: { problems }, earlierProcesses: earlier, activity } = operations;
  return {
    service: operations.service,
    version: VERSION,
    host: hostname(),
    instance,
    startedAt: operations.startedAt.toISOString(),
    at: new Date().toISOString(),
    ready: problems.size === 0,
    problems: Object.fromEntries(problems),
    draining: operations.isDraining,
    earlierProcesses: earlier.length === 0 ? undefined : earlier,
    logLevel: operations.logLevel?.level,
    role,
    member: operations.cluster?.self.address,
    now: activity.current(operations.population()),
    failures: activity.failures.counts(performance.now()),
  };
}

/** Missing if a program embeds the service. */
function configurationOf({ configuration }: Operations): Configuration | undefined {
  if (configuration === undefined) return undefined;
  const { hash, isReloaded, changed } = configuration;
  return { hash, isReloaded, changed };
}

/** Agents and tunnels. */
function addLists(api: Hono<ApiEnv>, { activity, cluster }: Operations, agents: AgentList): void {
  const agentPage = (query: URLSearchParams, maxLimit?: number): Page<AgentState> => select(agents.get(), query, AGENTS, maxLimit);
  const tunnelPage = (query: URLSearchParams, maxLimit?: number): Page<TunnelState> => {
    const page = select(activity.list(), query, TUNNELS, maxLimit);
    const now = performance.now();
    return { ...page, items: page.items.map((tunnel) => describeTunnel(tunnel, now)) };
  };
  api.get("/agents", async (c) => {
    const { query, wide } = await scopeOf(c, cluster);
    if (wide === undefined) return c.json(agentPage(query, maxLimitOf(c)));
    const { page } = await gatherPage(proxiesOf(wide), c, { name: "agents", query, own: agentPage, orders: AGENTS.orders });
    return c.json(page);
  });
  api.get("/tunnels", async (c) => {
    const { query, wide } = await scopeOf(c, cluster);
    if (wide === undefined) return c.json(tunnelPage(query, maxLimitOf(c)));
    const { page } = await gatherPage(proxiesOf(wide), c, { name: "tunnels", query, own: tunnelPage, orders: TUNNEL_ORDERS });
    return c.json(page);
  });
  api.get("/tunnels/:id", async (c) => {
    const { wide } = await scopeOf(c, cluster);
    const id = c.req.param("id");
    const own = activity.list().find(({ key }) => key === id);
    if (own !== undefined) return c.json<TunnelState>({ ...describeTunnel(own, performance.now()), member: wide?.cluster.self.address });
    const parts = wide === undefined ? [] : await gather(wide, c, `tunnels/${encodeURIComponent(id)}`, () => ({} as TunnelState));
    const found = parts.find(({ value }) => value?.id === id);
    if (found !== undefined) return c.json<TunnelState>({ ...found.value!, member: found.answer.member });
    const silent = parts.filter(({ answer: { error }, status }) => error !== undefined && status !== 404);
    return silent.length === 0 ? fail(c, 404, "there is no such tunnel") : fail(
      c,
      503,
      `there is no such tunnel where members have answered; ${silent.map(({ answer }) => answer.member).join(", ")} did not`,
    );
  });
}

/** Requests that were refused or have failed. */
function addFailures(api: Hono<ApiEnv>, { activity: { failures }, cluster }: Operations): void {
  const failurePage = (query: URLSearchParams, maxLimit?: number): FailurePage => {
    const now = performance.now();
    const page = select(failures.last(now), query, FAILURES, maxLimit);
    return { ...page, items: page.items.map(describeFailure), counts: failures.counts(now) };
  };
  api.get("/failures", async (c) => {
    const { query, wide } = await scopeOf(c, cluster);
    if (wide === undefined) return c.json(failurePage(query, maxLimitOf(c)));
    const { page, parts } = await gatherPage<Failure, FailurePage>(wide, c, { name: "failures", query, own: failurePage });
    return c.json<FailurePage>({ ...page, counts: sumFailures(parts.map(({ value }) => value?.counts)) });
  });
  api.get("/failures/history", async (c) => {
    const { wide } = await scopeOf(c, cluster);
    const own = failures.history(performance.now());
    if (wide === undefined) return c.json<FailureHistory>(own);
    const parts = await gather<FailureHistory>(wide, c, "failures/history", () => own);
    return c.json<FailureHistory>(sumFailureHistories(own, valuesOf(parts)));
  });
}

/** Members ask for the first items of a list, of which the page of the whole is made. */
function maxLimitOf(c: Context<ApiEnv>): number | undefined {
  return c.get("through") === undefined ? undefined : MAX_MERGED;
}

/** What was answered. */
function valuesOf<T>(parts: readonly Part<T>[]): T[] {
  return parts.flatMap(({ value }) => value === undefined ? [] : [value]);
}

function addEvents(api: Hono<ApiEnv>, { activity, cluster }: Operations): void {
  const clusterEvents = cluster && new ClusterEvents(cluster, activity.events);
  api.get("/events", async (c) => {
    const { query, wide } = await scopeOf(c, cluster);
    const topics = topicsOf(query.get("topics"));
    if (wide?.isNamed) throw new QueryError("events are those of all members: leave member out, or ask that one for its own");
    const stream = wide === undefined
      ? eventStream(activity.events, topics, c.get("isAllowed"))
      : eventStream(clusterEvents!.hub, new Set([...topics, "members" as const]), c.get("isAllowed"));
    if (wide !== undefined) clusterEvents!.announce();
    return stream ?? fail(c, 503, "too many streams of events are open, or the service stops");
  });
}

/** @throws {QueryError} */
function topicsOf(text: string | null): ReadonlySet<Topic> {
  const names = text?.split(",") ?? TOPICS;
  for (const name of names) checkOneOf("topics", name, TOPICS);
  return new Set(names as Topic[]);
}
