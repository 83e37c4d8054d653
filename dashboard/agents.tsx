// The list of agents; at an agent, of its connections to proxies.
import type { JSX } from "preact";
import type { AgentState } from "../shared/service/api/types.ts";
import { useSession } from "./api.ts";
import { AgentLink, Badge, Choice, ExpiryChoice, Filters, Text, Time } from "./fields.tsx";
import { count, milliseconds, percent, rate, timeLeft } from "./format.ts";
import type { Route } from "./route.ts";
import { type Column, Table } from "./table.tsx";
import { bothRates } from "./tunnels.tsx";

/** The share of packets that were lost; `undefined` where they are not counted. */
export function loss({ sentPackets, lostPackets }: AgentState): number | undefined {
  return sentPackets ? (lostPackets ?? 0) / sentPackets : undefined;
}

function labelsOf(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(", ");
}

const COLUMNS: readonly Column<AgentState>[] = [
  {
    title: "Agent",
    sort: "id",
    width: "m",
    cell: ({ id, state }) => (
      <>
        <AgentLink id={id} /> {state !== "connected" && <Badge state={state} />}
      </>
    ),
  },
  { title: "Host", sort: "host", width: "m", from: "medium", cell: ({ host }) => <Text>{host}</Text> },
  { title: "Link", width: "s", from: "wide", cell: ({ link }) => <Text>{link?.toUpperCase()}</Text> },
  { title: "Round trip", sort: "rtt", isNumber: true, width: "s", cell: ({ rttMs }) => milliseconds(rttMs) },
  { title: "Loss", sort: "loss", isNumber: true, width: "s", from: "medium", cell: (row) => percent(loss(row)) },
  {
    title: "Tunnels",
    sort: "tunnels",
    isNumber: true,
    width: "s",
    from: "medium",
    cell: ({ tunnels }) => tunnels === undefined ? "–" : count(tunnels),
  },
  { title: "Rate", sort: "rate", isNumber: true, width: "s", cell: (row) => rate(bothRates(row)) },
  { title: "Labels", width: "m", from: "wide", cell: ({ labels = {} }) => <Text>{labelsOf(labels)}</Text> },
  {
    title: "Token ends",
    sort: "expires",
    isNumber: true,
    width: "s",
    from: "wide",
    cell: ({ tokenExpiresAt }) => timeLeft(tokenExpiresAt),
  },
  { title: "Since", sort: "since", width: "m", from: "wide", cell: ({ since, until }) => <Time>{until ?? since}</Time> },
];

const STATES = [["connected", "Connected"], ["gone", "Gone"], ["all", "All"]] as const;
const FILTERS = ["label", "token"] as const;

export function Agents({ route }: { route: Route }): JSX.Element {
  const { status } = useSession();
  const state = route.query.get("state") ?? "connected";
  const filters = {
    ...Object.fromEntries([...FILTERS, "expires"].map((name) => [name, route.query.get(name) ?? ""])),
    state: { connected: ["connected", "draining"], gone: ["gone"], all: ["connected", "draining", "gone"] }[state],
  };
  return (
    <Table
      name="agents"
      title={status.service === "agent" ? "Connections to proxies" : "Agents"}
      columns={COLUMNS}
      route={route}
      filters={filters}
      defaultSort="id"
      keyOf={({ member = "", connection }) => `${member} ${connection}`}
    >
      <Choice route={route} label="State" name="state" choices={STATES} />
      <ExpiryChoice route={route} />
      <Filters route={route} names={FILTERS} />
    </Table>
  );
}
