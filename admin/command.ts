// The commands of operators: status, agents, tunnels and top.
import type { Subcommand, Terminal } from "../shared/cli/command.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../shared/config/option.ts";
import type {
  ActionResult,
  AgentState,
  ClusterConfiguration,
  ClusterStatus,
  Configuration,
  MemberAnswer,
  Page,
  Status,
  TunnelState,
} from "../shared/service/api/types.ts";
import { AdminClient } from "./client.ts";
import { agentColumns, tunnelColumns } from "./columns.ts";
import { type OperatorOptions, operatorOptions } from "./options.ts";
import { formatClusterConfiguration, formatClusterStatus, formatConfiguration, formatStatus } from "./status.ts";
import { type Column, escapeText, formatTable } from "./table.ts";
import { runTop } from "./top_screen.ts";

const json = { "json": { kind: "boolean", description: "Print the JSON of the API." } } as const;
const scope = {
  "cluster": {
    kind: "boolean",
    description: "Include all members of the cluster, which the service queries; see admin.cluster.key-file of the proxies.",
  },
} as const;
const list = {
  "limit": {
    kind: "integer",
    default: "100",
    description: "Maximum number of lines, 1 to 1000.",
    check: (limit: number) => limit >= 1 && limit <= 1_000 ? undefined : "it must be 1 to 1000",
  },
  "search": { kind: "string", description: "Only lines that contain this text." },
  "desc": { kind: "boolean", description: "Reverse the order." },
  ...scope,
} as const;

const statusOptions = defineOptions({
  ...scope,
  ...json,
  "configuration": { kind: "boolean", description: "Print the options of the service that differ from the defaults instead." },
});

export const statusCommand: Subcommand<OperatorOptions & ValuesOf<typeof statusOptions>> = {
  name: "status",
  description: "Print the state of a running service, and its failures of the last hour by cause.",
  options: statusOptions,
  profile: operatorOptions,
  async run(options, terminal) {
    const client = await AdminClient.create(options);
    if (options.configuration) {
      const configuration = await client.get<Configuration | ClusterConfiguration>("configuration");
      const text = "members" in configuration ? formatClusterConfiguration(configuration) : formatConfiguration(configuration);
      return terminal.write(options.json ? `${JSON.stringify(configuration, null, 2)}\n` : text);
    }
    const status = await client.get<Status | ClusterStatus>("status");
    const text = "members" in status ? formatClusterStatus(status) : formatStatus(status);
    terminal.write(options.json ? `${JSON.stringify(status, null, 2)}\n` : text);
  },
};

/** The longest time that filters by the expiry of tokens take. */
const MAX_EXPIRY_MS = 10 * 365 * 86_400_000;

const agentsOptions = defineOptions({
  "agent": { kind: "string", description: "Only the agent with this id." },
  "label": { kind: "list", description: "Only agents with one of these labels, name=value." },
  "token": { kind: "string", description: "Only connections with this token, by its jti." },
  "expires": { kind: "duration", description: "Only connections whose token expires within this time.", maxMs: MAX_EXPIRY_MS },
  "gone": { kind: "boolean", description: "List connections that have ended recently, with the reason." },
  "sort": {
    kind: "string",
    default: "id",
    choices: ["id", "since", "tunnels", "rtt", "rate", "host", "expires", "loss"],
    description: "The order.",
  },
  ...list,
  ...json,
  "disconnect": { kind: "string", description: "Close the connections of the agent with this id instead, and print their number." },
  "away": { kind: "duration", description: "With disconnect: refuse the agent for this time, at most 24h.", maxMs: 86_400_000 },
  "revoke": {
    kind: "string",
    description: "Revoke the token with this jti instead, and print how many connections and tunnels that ends.",
  },
});

export const agentsCommand: Subcommand<OperatorOptions & ValuesOf<typeof agentsOptions>> = {
  name: "agents",
  description: "List the agents of a running proxy, disconnect one, or revoke a token.",
  options: agentsOptions,
  profile: operatorOptions,
  async run(options, terminal) {
    const client = await AdminClient.create(options);
    const { agent, label, token, expires, gone, sort, disconnect, away, revoke } = options;
    if (away !== undefined && disconnect === undefined) throw new ConfigError("Cannot use --away: it is for --disconnect");
    if (disconnect !== undefined) {
      const awaySeconds = Math.round((away ?? 0) / 1_000);
      return printResult(terminal, await client.post("agents/disconnect", { agent: disconnect, awaySeconds }), "connection");
    }
    if (revoke !== undefined) {
      return printResult(
        terminal,
        await client.post("tokens/revoke", { tokenId: revoke }),
        "connection or tunnel",
        "connections and tunnels",
      );
    }
    const query = queryOf(options, { agent, token, sort, expires: secondsOf(expires) });
    for (const each of label) query.append("label", each);
    if (gone) query.append("state", "gone");
    printPage(terminal, options.json, await client.get<Page<AgentState>>(`agents?${query}`), agentColumns(Date.now()), "agents");
  },
};

const tunnelsOptions = defineOptions({
  "agent": { kind: "string", description: "Only tunnels through the agent with this id." },
  "client": { kind: "string", description: "Only tunnels of the client with this address." },
  "token": { kind: "string", description: "Only tunnels of clients with this token, by its jti." },
  "expires": { kind: "duration", description: "Only tunnels of clients whose token expires within this time.", maxMs: MAX_EXPIRY_MS },
  "user": { kind: "string", description: "Only tunnels of clients with this name." },
  "destination": { kind: "string", description: "Only tunnels whose destination contains this text." },
  "ended": { kind: "boolean", description: "List tunnels that have ended recently, with the reason." },
  "sort": {
    kind: "string",
    default: "age",
    choices: ["age", "rate", "bytes", "client", "agent", "destination", "setup", "expires"],
    description: "The order.",
  },
  ...list,
  ...json,
  "close": { kind: "string", description: "Reset the tunnel with this id instead." },
});

export const tunnelsCommand: Subcommand<OperatorOptions & ValuesOf<typeof tunnelsOptions>> = {
  name: "tunnels",
  description: "List the tunnels of a running service, or close one.",
  options: tunnelsOptions,
  profile: operatorOptions,
  async run(options, terminal) {
    const client = await AdminClient.create(options);
    const { agent, client: address, token, expires, user, destination, ended, sort, close } = options;
    if (close !== undefined) return printResult(terminal, await client.post("tunnels/close", { id: close }), "tunnel");
    const own = { agent, client: address, token, expires: secondsOf(expires), user, destination, sort, state: ended ? "ended" : undefined };
    const page = await client.get<Page<TunnelState>>(`tunnels?${queryOf(options, own)}`);
    printPage(terminal, options.json, page, tunnelColumns(Date.now()), "tunnels");
  },
};

const topOptions = defineOptions({
  "interval": {
    kind: "duration",
    default: "2s",
    description: "Interval of updates, 500ms or more.",
    check: (ms) => ms >= 500 ? undefined : "it must be 500ms or more",
  },
  ...scope,
});

export const topCommand: Subcommand<OperatorOptions & ValuesOf<typeof topOptions>> = {
  name: "top",
  description:
    "Show the tunnels and agents of a running service live in the terminal, close tunnels, and disconnect agents; ? lists the keys.",
  options: topOptions,
  profile: operatorOptions,
  async run({ interval, ...options }, terminal) {
    const client = await AdminClient.create(options);
    await client.get("status"); // fails before the screen changes
    await runTop(client, terminal.openFullScreen(), interval);
  },
};

/** As the API takes a time. */
function secondsOf(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : String(Math.ceil(ms / 1_000));
}

function queryOf(
  { limit, search, desc }: { limit: number; search: string | undefined; desc: boolean },
  own: Readonly<Record<string, string | undefined>>,
): URLSearchParams {
  const query = new URLSearchParams({ limit: String(limit) });
  if (search !== undefined) query.set("q", search);
  if (desc) query.set("order", "desc");
  for (const [name, value] of Object.entries(own)) if (value !== undefined) query.set(name, value);
  return query;
}

/** @param what the items are, for a page without any */
function printPage<T>(terminal: Terminal, json: boolean, page: Page<T>, columns: readonly Column<T>[], what: string): void {
  const { items, total, members = [] } = page;
  const text = items.length === 0 ? `no ${what} to list\n` : formatTable(items, columns);
  terminal.write(json ? `${JSON.stringify(page, null, 2)}\n` : text);
  if (!json && items.length < total) terminal.report(`${items.length} of ${total}: --limit and filters show others`);
  for (const { member, error } of silentOf(members)) terminal.report(`${escapeText(member)} did not answer: ${escapeText(error!)}`);
}

function silentOf<T extends MemberAnswer>(members: readonly T[]): T[] {
  return members.filter(({ error }) => error !== undefined);
}

/** @throws {Error} if some members have not done it */
function printResult(terminal: Terminal, { affected, members = [] }: ActionResult, what: string, plural = `${what}s`): void {
  terminal.write(`${escapeText(String(affected))} ${affected === 1 ? what : plural} closed\n`);
  const failed = silentOf(members).map(({ member, error }) => `${member}: ${error}`);
  if (failed.length > 0) {
    throw new Error(`${failed.length} of ${members.length} members have not done it: ${escapeText(failed.join("; "))}`);
  }
}
