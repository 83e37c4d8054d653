// Query parameters of lists: filters, order and page.

/** A parameter that cannot be used. */
export class QueryError extends Error {
  override readonly name = "QueryError";
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 1_000;

/** What items are sorted by: a number, or a text. Items without one come last. */
export type Key<T> = (item: T) => number | string | undefined;

/** How a list may be asked for. */
export interface Listing<T> {
  /** Filters by parameter. An item must match one value of each parameter that is given. */
  readonly filters: Readonly<Record<string, (item: T, value: string) => boolean>>;
  /** Filters that apply if their parameter is not given. */
  readonly defaults?: Readonly<Record<string, readonly string[]>>;
  /** Texts in which `q` searches, regardless of case. */
  readonly texts: (item: T) => readonly (string | undefined)[];
  /** Orders by name, the default one first. Missing: the list has an order. */
  readonly orders?: Readonly<Record<string, Key<T>>>;
  /** Values that a parameter may have. Default: any. */
  readonly values?: Readonly<Record<string, readonly string[]>>;
}

/** One page of a list, and the number of items on all. */
export interface Selected<T> {
  readonly items: T[];
  readonly total: number;
  readonly offset: number;
  readonly limit: number;
}

/**
 * Selects a page.
 * @param maxLimit items on a page at most. Default 1000
 * @throws {QueryError}
 */
export function select<T>(items: readonly T[], query: URLSearchParams, listing: Listing<T>, maxLimit = MAX_LIMIT): Selected<T> {
  const { filters, defaults = {}, texts, orders, values = {} } = listing;
  const known = [...Object.keys(filters), "q", "offset", "limit", ...orders ? ["sort", "order"] : []];
  const unknown = [...query.keys()].find((name) => !known.includes(name));
  if (unknown !== undefined) throw new QueryError(`unknown parameter ${JSON.stringify(unknown)}; there are ${known.join(", ")}`);
  let found = [...items];
  for (const [name, matches] of Object.entries(filters)) {
    const given = query.getAll(name);
    for (const value of given) checkOneOf(name, value, values[name]);
    const wanted = given.length > 0 ? given : defaults[name] ?? [];
    if (wanted.length > 0) found = found.filter((item) => wanted.some((value) => matches(item, value)));
  }
  const text = query.get("q")?.toLowerCase() ?? "";
  if (text !== "") found = found.filter((item) => texts(item).some((of) => of?.toLowerCase().includes(text)));
  if (orders) {
    const names = Object.keys(orders);
    const sort = query.get("sort") ?? names[0]!;
    checkOneOf("sort", sort, names);
    const order = query.get("order") ?? "asc";
    checkOneOf("order", order, ["asc", "desc"]);
    found = sortBy(found, orders[sort]!, order === "desc");
  }
  const { offset, limit } = rangeOf(query, maxLimit);
  return { items: found.slice(offset, offset + limit), total: found.length, offset, limit };
}

/** @throws {QueryError} */
export function rangeOf(query: URLSearchParams, maxLimit = MAX_LIMIT): { offset: number; limit: number } {
  return { offset: numberOf(query, "offset", 0, 0, Infinity), limit: numberOf(query, "limit", DEFAULT_LIMIT, 1, maxLimit) };
}

/** @throws {QueryError} */
export function checkOneOf(name: string, value: string, values: readonly string[] | undefined): void {
  if (values === undefined || values.includes(value)) return;
  throw new QueryError(`${name} is ${JSON.stringify(value)}; it must be one of ${values.join(", ")}`);
}

export function sortBy<T>(items: readonly T[], key: Key<T>, descending: boolean): T[] {
  const keyed = items.map((item) => ({ item, key: key(item) }));
  const sign = descending ? -1 : 1;
  keyed.sort(({ key: a }, { key: b }) => {
    if (a === undefined || b === undefined) return Number(a === undefined) - Number(b === undefined);
    return a < b ? -sign : a > b ? sign : 0;
  });
  return keyed.map(({ item }) => item);
}

function numberOf(query: URLSearchParams, name: string, missing: number, min: number, max: number): number {
  const text = query.get(name);
  if (text === null) return missing;
  const value = /^[0-9]{1,9}$/.test(text) ? Number(text) : NaN;
  if (value >= min && value <= max) return value;
  throw new QueryError(`${name} is ${JSON.stringify(text)}; it must be a number from ${min}${max === Infinity ? "" : ` to ${max}`}`);
}
