// A table of any length that loads and draws only the rows in view: the server searches and sorts.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Page } from "../shared/service/api/types.ts";
import { type Query, useSession } from "./api.ts";
import { count } from "./format.ts";
import { Text } from "./fields.tsx";
import { usePolled } from "./poll.ts";
import { href, replaceRoute, type Route } from "./route.ts";
import { type Range, rowsAround, within } from "./rows.ts";
import { SearchBox } from "./search.tsx";

export interface Column<Row> {
  readonly title: string;
  /** The field to sort by, if one can. */
  readonly sort?: string;
  /** Numbers are aligned right, and the first click shows the largest first. */
  readonly isNumber?: boolean;
  /** The least width of the table with this column: it is left out of narrower ones. Default: always there. */
  readonly from?: "medium" | "wide";
  readonly width: "s" | "m" | "l";
  readonly cell: (row: Row) => ComponentChildren;
}

export interface TableProps<Row> {
  /** The path of the API, and the name of the rows. */
  readonly name: "agents" | "tunnels" | "failures";
  readonly title: string;
  /** Whether it is a part of a view, which has its own title. */
  readonly isPart?: boolean;
  readonly columns: readonly Column<Row>[];
  /** Its query has the search, the order, and filters. */
  readonly route: Route;
  /** Parameters for the API besides those of the table. */
  readonly filters: Query;
  /** A field, with `-` before it for the largest first; empty where one cannot sort. */
  readonly defaultSort: string;
  readonly keyOf: (row: Row) => string;
  /** More controls. */
  readonly children?: ComponentChildren;
}

/** In pixels, as in style.css. */
const ROW_HEIGHT = 36;
const INTERVAL_MS = 2_000;
/** While the user scrolls, rows are loaded at most this often in milliseconds. */
const SCROLL_MS = 100;

/** Of a row of the whole cluster: who has it. */
const MEMBER: Column<unknown> = {
  title: "Member",
  width: "m",
  from: "medium",
  cell: (row) => <Text>{(row as { readonly member?: string }).member}</Text>,
};

export function Table<Row>(props: TableProps<Row>): JSX.Element {
  const { name, title, isPart, route, filters, defaultSort, children } = props;
  const { api, isWide } = useSession();
  const columns = isWide ? [...props.columns, MEMBER] : props.columns;
  const q = route.query.get("q") ?? "";
  const sort = route.query.get("sort") ?? defaultSort;
  const box = useRef<HTMLDivElement>(null);
  const { drawn, loaded } = useRanges(box);
  const [isPaused, setPaused] = useState(false);

  const query: Query = {
    ...filters,
    q,
    ...sort === "" ? {} : { sort: sort.replace("-", ""), order: sort.startsWith("-") ? "desc" : "asc" },
  };
  const rows = JSON.stringify(query);
  // a list that is searched or sorted in another way replaces the one before when it is here
  const { value, error } = usePolled(
    async (signal) => {
      const page = await api.get<Page<Row>>(name, { ...query, offset: loaded.first, limit: loaded.end - loaded.first }, signal);
      return { rows, page };
    },
    { intervalMs: isPaused ? undefined : INTERVAL_MS, subject: name, part: `${isWide} ${rows} ${loaded.first}-${loaded.end}` },
  );
  useEffect(() => box.current!.scrollTo(0, 0), [rows]);
  const page = value?.page;
  const total = page?.total ?? 0;
  // for screen readers: once, and not whenever the number changes
  const announcement = useMemo(() => page && `${count(page.total)} ${title}`, [value?.rows]);

  const go = (q: string, sort: string) => {
    const rest = Object.fromEntries([...route.query].filter(([name]) => name !== "q" && name !== "sort"));
    replaceRoute(href(route.path, { ...rest, q, sort: sort === defaultSort ? "" : sort }));
  };
  return (
    <div class="list">
      <div class="bar">
        {isPart ? <h2>{title}</h2> : <h1>{title}</h1>}
        <span class="total">{page && count(total)}</span>
        <span role="status" class="hidden">{announcement}</span>
        <SearchBox value={q} label={`Search ${title.toLowerCase()}`} change={(q) => go(q, sort)} />
        {children}
        <button type="button" aria-pressed={isPaused} onClick={() => setPaused(!isPaused)}>Pause</button>
      </div>
      {error && <p role="alert" class="error">{error.message}</p>}
      <div ref={box} class="scroller" tabIndex={0} role="region" aria-label={title}>
        <table aria-rowcount={total + 1}>
          <thead>
            <tr aria-rowindex={1}>
              {columns.map((column) => <Head key={column.title} column={column} sort={sort} go={(sort) => go(q, sort)} />)}
            </tr>
          </thead>
          <Rows {...props} columns={columns} drawn={within(drawn, total)} page={page} />
        </table>
        {page?.total === 0 && <p class="empty">{q === "" ? "None." : "Nothing matches the search."}</p>}
      </div>
    </div>
  );
}

/** The rows to draw, and those to load, which follow a little later. */
function useRanges(box: { readonly current: HTMLElement | null }): { drawn: Range; loaded: Range } {
  const [drawn, setDrawn] = useState<Range>({ first: 0, end: 40 });
  const [loaded, setLoaded] = useState(drawn);
  useLayoutEffect(() => {
    const element = box.current!;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const update = (set: typeof setDrawn) => {
      const range = rowsAround(element.scrollTop, element.clientHeight, ROW_HEIGHT);
      set((before) => before.first === range.first && before.end === range.end ? before : range);
    };
    const moved = () => {
      update(setDrawn);
      timer ??= setTimeout(() => {
        timer = undefined;
        update(setLoaded);
      }, SCROLL_MS);
    };
    const observer = new ResizeObserver(moved);
    observer.observe(element);
    element.addEventListener("scroll", moved, { passive: true });
    return () => {
      clearTimeout(timer);
      observer.disconnect();
      element.removeEventListener("scroll", moved);
    };
  }, []);
  return { drawn, loaded };
}

interface RowsProps<Row> extends TableProps<Row> {
  readonly drawn: Range;
  readonly page: Page<Row> | undefined;
}

function Rows<Row>({ columns, keyOf, drawn, page }: RowsProps<Row>): JSX.Element {
  const indices = Array.from({ length: drawn.end - drawn.first }, (_, i) => drawn.first + i);
  return (
    <tbody>
      <Spacer rows={drawn.first} />
      {indices.map((index) => {
        const row = page?.items[index - page.offset];
        return (
          <tr key={row === undefined ? index : keyOf(row)} aria-rowindex={index + 2}>
            {columns.map((column) => <td key={column.title} class={classOf(column)}>{row === undefined ? "" : column.cell(row)}</td>)}
          </tr>
        );
      })}
      <Spacer rows={(page?.total ?? 0) - drawn.end} />
    </tbody>
  );
}

/** Takes the height of rows that are not drawn. */
function Spacer({ rows }: { rows: number }): JSX.Element | null {
  if (rows <= 0) return null;
  return (
    <tr class="spacer" aria-hidden="true">
      <td style={{ height: `${rows * ROW_HEIGHT}px` }} />
    </tr>
  );
}

function classOf<Row>({ width, from, isNumber }: Column<Row>): string {
  return [`width-${width}`, from && `from-${from}`, isNumber && "number"].filter(Boolean).join(" ");
}

function Head<Row>({ column, sort, go }: { column: Column<Row>; sort: string; go: (sort: string) => void }): JSX.Element {
  const { title, sort: field, isNumber } = column;
  if (field === undefined) return <th scope="col" class={classOf(column)}>{title}</th>;
  const [up, down] = [field, `-${field}`];
  const direction = sort === up ? "ascending" : sort === down ? "descending" : undefined;
  const next = direction === undefined ? (isNumber ? down : up) : direction === "ascending" ? down : up;
  return (
    <th scope="col" class={classOf(column)} aria-sort={direction}>
      <button type="button" onClick={() => go(next)}>
        {title}
        {direction && <span aria-hidden="true">{direction === "ascending" ? " ▲" : " ▼"}</span>}
      </button>
    </th>
  );
}
