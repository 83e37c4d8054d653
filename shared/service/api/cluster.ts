// Requests for the whole cluster: selects the members and collects their answers. cluster_sums.ts merges these.
import type { Context } from "hono";
import { errorIn } from "../cluster/ask.ts";
import type { Member } from "../cluster/member.ts";
import type { Answer, Members } from "../cluster/members.ts";
import type { ApiEnv } from "./access.ts";
import { checkOneOf, type Key, QueryError, rangeOf, sortBy } from "./query.ts";
import { type ActionResult, type MemberAnswer, type Page, SCOPES } from "./types.ts";

/** Items of one member that are merged at most, which bounds how far lists of the whole cluster reach. */
export const MAX_MERGED = 10_000;

/** The request is for other members, and cannot be served; `status` is the response. */
export class ScopeError extends Error {
  override readonly name = "ScopeError";
  constructor(readonly status: 404 | 409, message: string) {
    super(message);
  }
}

/** The members that a request is for. */
export interface Wide {
  readonly cluster: Members;
  readonly includesSelf: boolean;
  readonly others: readonly Member[];
  /** Whether the request names its members. */
  readonly isNamed: boolean;
}

/** What a request is for. */
export interface Scope {
  /** Without the parameters of the scope. */
  readonly query: URLSearchParams;
  /** Missing: this service alone. */
  readonly wide?: Wide;
}

/** @throws {QueryError | ScopeError} */
export async function scopeOf(c: Context<ApiEnv>, cluster: Members | undefined): Promise<Scope> {
  const query = new URL(c.req.url).searchParams;
  const usual = cluster?.isOneService && c.get("through") === undefined ? "cluster" : "local";
  const [scope, named] = [query.get("scope") ?? usual, query.getAll("member")];
  checkOneOf("scope", scope, SCOPES);
  query.delete("scope");
  query.delete("member");
  if (scope === "local") {
    if (named.length > 0) throw new QueryError("member is for scope=cluster");
    return { query };
  }
  if (cluster === undefined) throw new ScopeError(409, "this service answers for itself alone: it has no --admin.cluster.key-file");
  if (c.get("through") !== undefined) throw new ScopeError(409, "members ask each other for their own part only");
  const [{ address: own }, others] = [cluster.self, await cluster.others()];
  if (named.length === 0) return { query, wide: { cluster, includesSelf: true, others, isNamed: false } };
  const known = [own, ...others.map(({ address }) => address)];
  const unknown = named.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new ScopeError(404, `there is no member ${JSON.stringify(unknown.slice(0, 300))}; there are ${known.join(", ")}`);
  }
  const chosen = others.filter(({ address }) => named.includes(address));
  return { query, wide: { cluster, includesSelf: named.includes(own), others: chosen, isNamed: true } };
}

/** Agents and tunnels are listed by proxies; a load balancer would list the same ones again. */
export function proxiesOf(wide: Wide): Wide {
  const { cluster, includesSelf, others, isNamed } = wide;
  if (isNamed) return wide;
  const isProxy = ({ service }: Member) => service === "proxy";
  return { ...wide, includesSelf: includesSelf && isProxy(cluster.self), others: others.filter(isProxy) };
}

/** What a member has answered. */
export interface Part<T> {
  readonly answer: MemberAnswer;
  /** Missing if it has not. */
  readonly value?: T;
  /** The status of its response, if that is an error. */
  readonly status?: number;
}

/** Asks members for what `own` returns for this service; `undefined` if it has nothing. */
export async function gather<T extends object>(
  { cluster, includesSelf, others }: Wide,
  c: Context<ApiEnv>,
  path: string,
  own: () => T | undefined,
): Promise<Part<T>[]> {
  const value = own(); // also checks the query
  const answers = await cluster.ask({ operator: c.get("operator"), method: "GET", path, to: others });
  const parts = answers.map((answer) => partOf<T>(answer));
  return includesSelf ? [{ answer: describe(cluster.self), value }, ...parts] : parts;
}

function partOf<T extends object>({ member, response, error }: Answer): Part<T> {
  if (response === undefined) return { answer: { ...describe(member), error } };
  const { status, value } = response;
  if (status === 200 && typeof value === "object" && value !== null) return { answer: describe(member), value: value as T };
  return { answer: { ...describe(member), error: errorIn(status, value) }, status };
}

/** A member for operators. */
export function describe({ address, service, host }: Member): MemberAnswer {
  return { member: address, service, host };
}

/**
 * One page of the lists of all members.
 * @param own the list of this service
 * @param orderOf the key of each order; missing if the list has an order, the newest first
 * @throws {QueryError}
 */
export async function gatherPage<T extends { readonly member?: string; readonly at?: string }, P extends Page<T>>(
  wide: Wide,
  c: Context<ApiEnv>,
  { name, query, own, orders }: {
    readonly name: string;
    readonly query: URLSearchParams;
    readonly own: (query: URLSearchParams, maxLimit: number) => P;
    readonly orders?: Readonly<Record<string, Key<T>>>;
  },
): Promise<{ page: Page<T>; parts: Part<P>[] }> {
  const { offset, limit } = rangeOf(query);
  if (offset + limit > MAX_MERGED) {
    throw new QueryError(`offset and limit lead beyond ${MAX_MERGED}, which is too far with scope=cluster: use filters`);
  }
  const inner = new URLSearchParams(query);
  inner.set("offset", "0");
  inner.set("limit", String(offset + limit));
  const parts = await gather(wide, c, `${name}?${inner}`, () => own(inner, MAX_MERGED));
  const items = parts.flatMap(({ answer: { member }, value }) => (value?.items ?? []).map((item) => ({ ...item, member })));
  const key: Key<T> = orders === undefined ? ({ at }) => at : orders[query.get("sort") ?? Object.keys(orders)[0]!]!;
  const sorted = sortBy(items, key, orders === undefined || query.get("order") === "desc");
  const page = {
    items: sorted.slice(offset, offset + limit),
    total: parts.reduce((sum, { value }) => sum + (value?.total ?? 0), 0),
    offset,
    limit,
    members: parts.map(({ answer }) => answer),
  };
  return { page, parts };
}

/** The result of an action at one member. */
export interface ActionPart extends MemberAnswer {
  readonly affected?: number;
  /** The status of its response, if that is an error. */
  readonly status?: number;
}

/** Has the others act. */
export async function actOnOthers({ cluster, others }: Wide, c: Context<ApiEnv>, path: string, body: object): Promise<ActionPart[]> {
  const answers = await cluster.ask({ operator: c.get("operator"), method: "POST", path, body, to: others });
  return answers.map(({ member, response, error }) => {
    if (response === undefined) return { ...describe(member), error };
    const { status, value } = response;
    const { affected } = (value ?? {}) as Partial<ActionResult>;
    if (status < 300 && typeof affected === "number") return { ...describe(member), affected };
    return { ...describe(member), error: errorIn(status, value), status };
  });
}

/** The result of this service. */
export function ownPart({ cluster }: Wide, done: Pick<ActionPart, "affected" | "error" | "status">): ActionPart {
  return { ...describe(cluster.self), ...done };
}
