// Requests that were refused, tunnels that broke and agents that were refused in the last hour.
import type { JSX } from "preact";
import type { Failure } from "../shared/service/api/types.ts";
import { AgentLink, Choice, Filters, Text, TimeOfDay, TunnelLink } from "./fields.tsx";
import { words } from "./format.ts";
import type { Route } from "./route.ts";
import { type Column, Table } from "./table.tsx";

const COLUMNS: readonly Column<Failure>[] = [
  { title: "Time", width: "s", cell: ({ at }) => <TimeOfDay>{at}</TimeOfDay> },
  { title: "Error", width: "m", cell: ({ error }) => <Text>{words(error)}</Text> },
  { title: "Status", isNumber: true, width: "s", from: "wide", cell: ({ status }) => status },
  { title: "Reason", width: "l", from: "medium", cell: ({ reason }) => <Text>{reason}</Text> },
  {
    title: "Destination",
    width: "m",
    cell: ({ kind, id, destination }) => kind === "agent" ? <span class="none">–</span> : <TunnelLink id={id}>{destination}</TunnelLink>,
  },
  { title: "Client", width: "m", from: "medium", cell: ({ client }) => <Text>{client}</Text> },
  { title: "Agent", width: "m", from: "medium", cell: ({ agent }) => <AgentLink id={agent} /> },
];

const KINDS = [["all", "All"], ["refused", "Refused"], ["broken", "Broken"], ["agent", "Refused agents"]] as const;
const FILTERS = ["error", "agent", "client"] as const;

export function Failures({ route }: { route: Route }): JSX.Element {
  const kind = route.query.get("kind") ?? "all";
  const filters = {
    ...Object.fromEntries(FILTERS.map((name) => [name, route.query.get(name) ?? ""])),
    kind: kind === "all" ? "" : kind,
  };
  return (
    <Table
      name="failures"
      title="Failures"
      columns={COLUMNS}
      route={route}
      filters={filters}
      defaultSort=""
      keyOf={({ member = "", id, at }) => `${member} ${id} ${at}`}
    >
      <Choice route={route} label="Kind" name="kind" choices={KINDS} />
      <Filters route={route} names={FILTERS} />
    </Table>
  );
}
