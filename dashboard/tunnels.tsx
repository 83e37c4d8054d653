// The list of tunnels.
import type { JSX } from "preact";
import type { TunnelState } from "../shared/service/api/types.ts";
import { AgentLink, Badge, Choice, ExpiryChoice, Filters, Text, TunnelLink } from "./fields.tsx";
import { bytes, duration, milliseconds, rate, timeLeft } from "./format.ts";
import type { Route } from "./route.ts";
import { type Column, Table } from "./table.tsx";

/** The sum of both directions, which the server sorts by. */
export function bothRates(row: { readonly sentRate?: number; readonly receivedRate?: number }): number | undefined {
  const { sentRate, receivedRate } = row;
  return sentRate === undefined && receivedRate === undefined ? undefined : (sentRate ?? 0) + (receivedRate ?? 0);
}

/** The state in a word; `undefined` for the usual one. */
function unusual({ state, error, sending, receiving }: TunnelState): string | undefined {
  if (state === "ended") return error === undefined ? "ended" : "failed";
  if (state === "connecting") return state;
  return sending === "blocked" || receiving === "blocked" ? "blocked" : undefined;
}

const COLUMNS: readonly Column<TunnelState>[] = [
  {
    title: "Destination",
    sort: "destination",
    width: "l",
    cell: (row) => (
      <>
        <TunnelLink id={row.id}>{row.destination}</TunnelLink> {unusual(row) && <Badge state={unusual(row)!} />}
      </>
    ),
  },
  { title: "Client", sort: "client", width: "m", from: "medium", cell: (row) => <Text>{row.client}</Text> },
  { title: "Agent", sort: "agent", width: "m", cell: (row) => <AgentLink id={row.agent} /> },
  {
    title: "Protocol",
    width: "s",
    from: "wide",
    cell: (row) => <Text>{row.network === "udp" ? `${row.protocol}, UDP` : row.protocol}</Text>,
  },
  { title: "Rate", sort: "rate", isNumber: true, width: "s", cell: (row) => rate(bothRates(row)) },
  { title: "Bytes", sort: "bytes", isNumber: true, width: "s", from: "medium", cell: (row) => bytes(row.sent + row.received) },
  { title: "Set-up", sort: "setup", isNumber: true, width: "s", from: "wide", cell: (row) => milliseconds(row.setupMs) },
  { title: "Token ends", sort: "expires", isNumber: true, width: "s", from: "wide", cell: (row) => timeLeft(row.tokenExpiresAt) },
  { title: "Age", sort: "age", isNumber: true, width: "s", from: "medium", cell: (row) => duration(row.ageMs) },
];

const STATES = [["open", "Open"], ["ended", "Ended"], ["all", "All"]] as const;

/** Parameters of the API that links to this list may have. */
const FILTERS = ["agent", "client", "token", "destination", "connection"] as const;

/** @param isPart whether it belongs to the view of an agent */
export function Tunnels({ route, agent, isPart }: { route: Route; agent?: string; isPart?: boolean }): JSX.Element {
  const state = route.query.get("state") ?? "open";
  const filters = {
    ...Object.fromEntries([...FILTERS, "expires"].map((name) => [name, route.query.get(name) ?? ""])),
    ...agent === undefined ? {} : { agent },
    state: { open: ["connecting", "open"], ended: ["ended"], all: ["connecting", "open", "ended"] }[state],
  };
  return (
    <Table
      name="tunnels"
      title="Tunnels"
      isPart={isPart}
      columns={agent === undefined ? COLUMNS : COLUMNS.filter(({ title }) => title !== "Agent")}
      route={route}
      filters={filters}
      defaultSort="age"
      keyOf={({ member = "", id }) => `${member} ${id}`}
    >
      <Choice route={route} label="State" name="state" choices={STATES} />
      <ExpiryChoice route={route} />
      <Filters route={route} names={FILTERS} />
    </Table>
  );
}
