// The text of `reverse-http status`.
import type { ClusterConfiguration, ClusterStatus, Configuration, FailureCount, Status } from "../shared/service/api/types.ts";
import { escapeText, formatTable } from "./table.ts";
import { formatBytes, formatMs, formatRate, formatSince } from "./units.ts";

export function formatStatus(status: Status): string {
  const { service, version, host, startedAt, at, ready, problems, draining, earlierProcesses: earlier, logLevel, now, failures } = status;
  const reasons = Object.entries(problems).map(([cause, reason]) => cause === reason ? cause : `${cause}: ${reason}`);
  const lines: readonly (readonly [name: string, value: string | undefined])[] = [
    ["service", `${service} ${version} on ${host}, for ${formatSince(startedAt, Date.parse(at))}`],
    ["ready", ready ? "yes" : `no: ${reasons.join("; ")}`],
    ["draining", draining ? "yes" : undefined],
    ["handed over", earlier && `by processes that finish what is open: ${earlier.join(", ")}`],
    [service === "agent" ? "proxies" : "agents", String(now.agents)],
    ["clients", service === "agent" ? undefined : String(now.clients)],
    ["tunnels", `${now.tunnels} open, ${now.openRate}/s; ${now.opened} opened, ${now.refused} refused, ${now.broken} broken`],
    ["to destinations", `${formatRate(now.sentRate)}, ${formatBytes(now.sent)} in all`],
    ["from destinations", `${formatRate(now.receivedRate)}, ${formatBytes(now.received)} in all`],
    ["setup", now.setupMs && `${formatMs(now.setupMs.p50)} at the median, ${formatMs(now.setupMs.p99)} at the 99th percentile`],
    ["memory", formatBytes(now.memory)],
    ["log level", logLevel],
  ];
  return `${linesOf(lines)}${failuresOf(failures)}`;
}

/** The text of `reverse-http status --configuration`. */
export function formatConfiguration({ hash, isReloaded, changed }: Configuration): string {
  const table = changed.length === 0 ? "all options have their defaults\n" : formatTable(changed, [
    { title: "OPTION", text: ({ name }) => name, max: 60 },
    { title: "VALUE", text: ({ value }) => value, max: 80 },
    { title: "DEFAULT", text: (option) => option.default, max: 40 },
    { title: "SET BY", text: ({ origin }) => origin, max: 80 },
  ]);
  return `${table}\n${
    linesOf([["hash", hash], ["last reload", isReloaded ? undefined : "failed: the configuration before it is in force"]])
  }`;
}

/** The text of `reverse-http status --configuration --cluster`: members with the same configuration have one table. */
export function formatClusterConfiguration({ members }: ClusterConfiguration): string {
  const groups = Map.groupBy(members, ({ configuration, error }) => JSON.stringify([configuration, error]));
  return [...groups.values()].map((group) => {
    const { configuration, error } = group[0]!;
    const text = configuration ? formatConfiguration(configuration) : `${escapeText(error ?? "the options are those of a program")}\n`;
    return `${escapeText(group.map(({ member, service }) => `${service} ${member}`).join(", "))}\n${text}`;
  }).join("\n");
}

/** The text of `reverse-http status --cluster`. */
export function formatClusterStatus({ members, now, at, failures }: ClusterStatus): string {
  const table = formatTable(members, [
    { title: "MEMBER", text: ({ member }) => member, max: 48 },
    { title: "SERVICE", text: ({ service }) => service },
    { title: "HOST", text: ({ host }) => host },
    { title: "VERSION", text: ({ status }) => status?.version },
    { title: "FOR", text: ({ status }) => status && formatSince(status.startedAt, Date.parse(status.at)), align: "right" },
    { title: "STATE", text: ({ status, error }) => error ?? stateOf(status), max: 80 },
    { title: "AGENTS", text: ({ status }) => status?.now.agents.toString(), align: "right" },
    { title: "TUNNELS", text: ({ status }) => status?.now.tunnels.toString(), align: "right" },
    { title: "SENDS", text: ({ status }) => formatRate(status?.now.sentRate), align: "right" },
    { title: "RECEIVES", text: ({ status }) => formatRate(status?.now.receivedRate), align: "right" },
    { title: "MEMORY", text: ({ status }) => formatBytes(status?.now.memory), align: "right" },
  ]);
  const silent = members.filter(({ error }) => error !== undefined).length;
  const lines = [
    ["members", `${members.length}${silent === 0 ? "" : `, of which ${silent} did not answer: the sums lack them`}; at ${at}`],
    ["agents", String(now.agents)],
    ["tunnels", `${now.tunnels} open, ${now.openRate}/s; ${now.opened} opened, ${now.refused} refused, ${now.broken} broken`],
    ["to destinations", `${formatRate(now.sentRate)}, ${formatBytes(now.sent)} in all`],
    ["from destinations", `${formatRate(now.receivedRate)}, ${formatBytes(now.received)} in all`],
  ] as const;
  return `${table}\n${linesOf(lines)}${failuresOf(failures)}`;
}

function stateOf(status: Status | undefined): string {
  if (status === undefined) return "";
  const { ready, draining, problems } = status;
  return draining ? "draining" : ready ? "ready" : `not ready: ${Object.values(problems).join("; ")}`;
}

function linesOf(lines: readonly (readonly [name: string, value: string | undefined])[]): string {
  return lines.filter(([, value]) => value !== undefined).map(([name, value]) => `${name.padEnd(18)} ${escapeText(value!)}\n`).join("");
}

function failuresOf(failures: readonly FailureCount[]): string {
  if (failures.length === 0) return `${"failures".padEnd(18)} none in the last hour\n`;
  return `\nfailures of the last hour\n${
    formatTable(failures, [
      { title: "COUNT", text: ({ count }) => String(count), align: "right" },
      { title: "KIND", text: ({ kind }) => kind === "agent" ? "agent refused" : kind },
      { title: "ERROR", text: ({ error }) => error },
    ])
  }`;
}
