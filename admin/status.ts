// The text of `reverse-http status`.
import type { Status } from "../shared/service/api/types.ts";
import { escapeText, formatTable } from "./table.ts";
import { formatBytes, formatMs, formatRate, formatSince } from "./units.ts";

export function formatStatus(status: Status): string {
  const { service, version, host, startedAt, at, ready, problems, draining, logLevel, now, failures } = status;
  const reasons = Object.entries(problems).map(([cause, reason]) => cause === reason ? cause : `${cause}: ${reason}`);
  const lines: readonly (readonly [name: string, value: string | undefined])[] = [
    ["service", `${service} ${version} on ${host}, for ${formatSince(startedAt, Date.parse(at))}`],
    ["ready", ready ? "yes" : `no: ${reasons.join("; ")}`],
    ["draining", draining ? "yes" : undefined],
    [service === "agent" ? "proxies" : "agents", String(now.agents)],
    ["clients", service === "agent" ? undefined : String(now.clients)],
    ["tunnels", `${now.tunnels} open, ${now.openRate}/s; ${now.opened} opened, ${now.refused} refused, ${now.broken} broken`],
    ["to destinations", `${formatRate(now.sentRate)}, ${formatBytes(now.sent)} in all`],
    ["from destinations", `${formatRate(now.receivedRate)}, ${formatBytes(now.received)} in all`],
    ["setup", now.setupMs && `${formatMs(now.setupMs.p50)} at the median, ${formatMs(now.setupMs.p99)} at the 99th percentile`],
    ["memory", formatBytes(now.memory)],
    ["log level", logLevel],
  ];
  const shown = lines.filter(([, value]) => value !== undefined).map(([name, value]) => `${name.padEnd(18)} ${escapeText(value!)}\n`);
  if (failures.length === 0) return `${shown.join("")}${"failures".padEnd(18)} none in the last hour\n`;
  return `${shown.join("")}\nfailures of the last hour\n${
    formatTable(failures, [
      { title: "COUNT", text: ({ count }) => String(count), align: "right" },
      { title: "KIND", text: ({ kind }) => kind },
      { title: "ERROR", text: ({ error }) => error },
    ])
  }`;
}
