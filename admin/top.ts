// What `reverse-http top` shows and which keys change it, without a terminal.
import { STYLES } from "../shared/cli/full_screen.ts";
import { quantity } from "../shared/log/quantity.ts";
import type { AgentState, ClusterStatus, Page, Status, TunnelState } from "../shared/service/api/types.ts";
import { agentColumns, tunnelColumns } from "./columns.ts";
import { escapeText, fit, pad, tableLines } from "./table.ts";
import { formatBytes, formatMs, formatRate } from "./units.ts";

export type View = "tunnels" | "agents";

/** The orders of each view, by key. */
const ORDERS: Readonly<Record<View, Readonly<Record<string, string>>>> = {
  tunnels: { a: "age", r: "rate", b: "bytes", c: "client", g: "agent", d: "destination", s: "setup" },
  agents: { i: "id", r: "rate", n: "tunnels", l: "loss", t: "rtt", e: "expires", h: "host" },
};

/** Orders in which the largest value is of interest. */
const DESCENDING = new Set(["rate", "bytes", "tunnels", "loss", "rtt", "setup"]);

/** The user's choices. */
export interface TopState {
  view: View;
  sort: Record<View, string>;
  /** The order is reversed. */
  reversed: boolean;
  search: string;
  /** The text of the search is being written. */
  isSearching: boolean;
  selected: number;
  /** An action that waits for `y`. */
  confirming?: Action;
  isHelp: boolean;
  /** The result of the last action, or an error. */
  message: string;
}

export interface Action {
  readonly kind: "close" | "disconnect";
  readonly id: string;
}

/** The action of a key, apart from a change of the state. */
export type Effect = "quit" | "refresh" | Action | undefined;

export function initialState(): TopState {
  return {
    view: "tunnels",
    sort: { tunnels: "rate", agents: "rate" },
    reversed: false,
    search: "",
    isSearching: false,
    selected: 0,
    isHelp: false,
    message: "",
  };
}

/** The last results. */
export interface TopData {
  readonly status: Status | ClusterStatus;
  readonly tunnels?: Page<TunnelState>;
  readonly agents?: Page<AgentState>;
}

/** Changes the state. `ids` are those of the lines that are shown. */
export function pressKey(state: TopState, key: string, ids: readonly string[]): Effect {
  if (key === "ctrl-c") return "quit";
  state.message = "";
  if (state.isHelp) return void (state.isHelp = false);
  if (state.confirming) {
    const action = state.confirming;
    state.confirming = undefined;
    return key === "y" ? action : undefined;
  }
  if (state.isSearching) return searchKey(state, key);
  const sort = ORDERS[state.view][key];
  if (sort !== undefined) {
    state.reversed = state.sort[state.view] === sort && !state.reversed;
    state.sort[state.view] = sort;
    return "refresh";
  }
  switch (key) {
    case "q":
      return "quit";
    case "?":
      state.isHelp = true;
      return undefined;
    case "1":
    case "2":
      state.view = key === "1" ? "tunnels" : "agents";
      state.selected = 0;
      state.reversed = false;
      return "refresh";
    case "/":
      state.isSearching = true;
      return undefined;
    case "up":
    case "down":
      state.selected = Math.max(0, Math.min(ids.length - 1, state.selected + (key === "up" ? -1 : 1)));
      return undefined;
    case "x": {
      const id = ids[state.selected];
      if (id !== undefined) state.confirming = { kind: state.view === "tunnels" ? "close" : "disconnect", id };
      return undefined;
    }
    default:
      return undefined;
  }
}

/** Longest text that is searched, in characters. */
const MAX_SEARCH = 64;

function searchKey(state: TopState, key: string): Effect {
  if (key === "escape") state.search = "";
  if (key === "escape" || key === "enter") state.isSearching = false;
  else if (key === "backspace") state.search = state.search.slice(0, -1);
  else if ([...key].length === 1 && state.search.length < MAX_SEARCH) state.search += key;
  state.selected = 0;
  return "refresh";
}

/** Lines that are not of the table. */
const OTHER_LINES = 5;

/** The query for the visible rows. */
export function queryOf({ view, sort, reversed, search }: TopState, rows: number): URLSearchParams {
  const by = sort[view];
  const descending = DESCENDING.has(by) !== reversed;
  const query = new URLSearchParams({ sort: by, order: descending ? "desc" : "asc", limit: String(Math.max(1, rows - OTHER_LINES)) });
  if (search !== "") query.set("q", search);
  return query;
}

/** The lines of the screen. */
export function drawTop(state: TopState, data: TopData, { columns, rows }: { columns: number; rows: number }): string[] {
  if (state.isHelp) return HELP.map((line) => fit(line, columns));
  const { view, selected } = state;
  const page = data[view];
  const table = view === "tunnels"
    ? tableLines(data.tunnels?.items ?? [], tunnelColumns(Date.parse(data.status.at)).filter(({ title }) => title !== "ID"))
    : tableLines(data.agents?.items ?? [], agentColumns(Date.parse(data.status.at)));
  const [titles = "", ...lines] = table.map((line) => fit(line, columns));
  const shown = lines.slice(0, Math.max(0, rows - OTHER_LINES));
  return [
    ...header(data.status).map((line) => fit(escapeText(line), columns)),
    `${STYLES.inverse}${pad(titles, columns)}`,
    ...shown.map((line, i) => i === selected ? `${STYLES.bold}${STYLES.inverse}${pad(line, columns)}` : line),
    ...Array.from({ length: Math.max(0, rows - OTHER_LINES - shown.length) }, () => ""),
    fit(`${shown.length} of ${page?.total ?? 0} ${view}, by ${state.sort[view]}${state.reversed ? ", reversed" : ""}`, columns),
    footer(state, columns),
  ];
}

function header(status: Status | ClusterStatus): string[] {
  const { service, version, host, ready, draining, now } = status;
  const setup = now.setupMs ? `, setup ${formatMs(now.setupMs.p50)} (99 %: ${formatMs(now.setupMs.p99)})` : "";
  return [
    `${
      "members" in status ? clusterOf(status) : `${service} ${version} on ${host}${draining ? ", draining" : ready ? "" : ", not ready"}`
    }: ${service === "agent" ? quantity(now.agents, "proxy", "proxies") : quantity(now.agents, "agent")}, ${
      quantity(now.tunnels, "tunnel")
    }, ${formatBytes(now.memory)}`,
    `to destinations ${formatRate(now.sentRate)}, from them ${
      formatRate(now.receivedRate)
    }, ${now.openRate} tunnels/s${setup}, ${now.refused} refused, ${now.broken} broken`,
  ];
}

/** Who has not answered comes first: the line may be cut. */
function clusterOf({ members }: ClusterStatus): string {
  const silent = members.filter(({ error }) => error !== undefined);
  const unready = members.filter(({ status }) => status !== undefined && !status.ready).map(({ member }) => member);
  return [
    quantity(members.length, "member"),
    ...silent.map(({ member, error }) => `NO ANSWER of ${member}: ${error}`),
    ...unready.length === 0 ? [] : [`not ready: ${unready.join(", ")}`],
  ].join(", ");
}

function footer({ view, isSearching, search, confirming, message }: TopState, columns: number): string {
  if (confirming) {
    const what = confirming.kind === "close" ? "close the tunnel" : "disconnect the agent";
    return `${STYLES.red}${fit(`${what} ${escapeText(confirming.id)}? y confirms, any other key cancels`, columns)}`;
  }
  if (isSearching || search !== "") return fit(`/${escapeText(search)}${isSearching ? "_" : ""}  ${escapeText(message)}`, columns);
  if (message !== "") return fit(escapeText(message), columns);
  const orders = Object.entries(ORDERS[view]).map(([key, name]) => `${key} ${name}`).join(", ");
  return `${STYLES.dim}${
    fit(`? help, q quit, 1 tunnels, 2 agents, x ${view === "tunnels" ? "close" : "disconnect"}; by: ${orders}`, columns)
  }`;
}

const HELP = [
  "1 tunnels, 2 agents",
  "up, down   select a line",
  "x          close the selected tunnel, or disconnect the selected agent; y confirms",
  "/          search; enter keeps the text, escape drops it",
  ...(["tunnels", "agents"] as const).map((view) =>
    `order of ${view}: ${Object.entries(ORDERS[view]).map(([key, name]) => `${key} ${name}`).join(", ")}; the same key again reverses it`
  ),
  "q          quit",
  "",
  "any key goes back",
];
