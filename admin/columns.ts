// The columns of the tables of agents and tunnels.
import type { AgentState, TunnelState } from "../shared/service/api/types.ts";
import type { Column } from "./table.ts";
import { formatBytes, formatDuration, formatMs, formatPercent, formatRate, formatSince, formatUntil } from "./units.ts";

/** @param now milliseconds since 1970 */
export function agentColumns(now: number): Column<AgentState>[] {
  return [
    { title: "AGENT", text: ({ id }) => id },
    { title: "MEMBER", text: ({ member }) => member, max: 48 },
    { title: "STATE", text: ({ state }) => state },
    { title: "ADDRESS", text: ({ address }) => address, max: 48 },
    { title: "LINK", text: ({ link }) => link },
    { title: "HOST", text: ({ host }) => host },
    { title: "LABELS", text: ({ labels = {} }) => Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(",") },
    { title: "FOR", text: ({ since, until }) => formatSince(since, until === undefined ? now : Date.parse(until)), align: "right" },
    { title: "TUNNELS", text: ({ tunnels }) => tunnels?.toString(), align: "right" },
    { title: "TO AGENT", text: ({ sentRate }) => formatRate(sentRate), align: "right" },
    { title: "FROM AGENT", text: ({ receivedRate }) => formatRate(receivedRate), align: "right" },
    { title: "RTT", text: ({ rttMs }) => formatMs(rttMs), align: "right" },
    {
      title: "LOSS",
      text: ({ sentPackets, lostPackets }) => sentPackets ? formatPercent((lostPackets ?? 0) / sentPackets) : "",
      align: "right",
    },
    { title: "TOKEN", text: ({ tokenId }) => tokenId },
    { title: "EXPIRES IN", text: ({ tokenExpiresAt }) => formatUntil(tokenExpiresAt, now), align: "right" },
    { title: "GONE FOR", text: ({ until }) => formatSince(until, now), align: "right" },
    { title: "LAST ERROR", text: ({ reason, lastError }) => reason ?? lastError?.reason, max: 60 },
  ];
}

/** @param now milliseconds since 1970 */
export function tunnelColumns(now: number): Column<TunnelState>[] {
  return [
    { title: "ID", text: ({ id }) => id },
    { title: "MEMBER", text: ({ member }) => member, max: 48 },
    { title: "CLIENT", text: ({ client }) => client, max: 48 },
    { title: "THROUGH", text: ({ peer }) => peer, max: 48 },
    { title: "USER", text: ({ user }) => user },
    { title: "TOKEN", text: ({ tokenId }) => tokenId },
    { title: "EXPIRES IN", text: ({ tokenExpiresAt }) => formatUntil(tokenExpiresAt, now), align: "right" },
    { title: "AGENT", text: ({ agent }) => agent },
    { title: "DESTINATION", text: ({ destination }) => destination },
    { title: "PROTOCOL", text: ({ protocol, network }) => network === "udp" ? `${protocol}/udp` : protocol },
    { title: "LINK", text: ({ via }) => via?.link },
    { title: "STATE", text: stateOf },
    { title: "AGE", text: ({ ageMs }) => formatDuration(ageMs), align: "right" },
    { title: "SENT", text: ({ sent }) => formatBytes(sent), align: "right" },
    { title: "RECEIVED", text: ({ received }) => formatBytes(received), align: "right" },
    { title: "SENDS", text: ({ sentRate }) => formatRate(sentRate), align: "right" },
    { title: "RECEIVES", text: ({ receivedRate }) => formatRate(receivedRate), align: "right" },
    { title: "REQUEST", text: ({ id, requestId }) => requestId === id ? "" : requestId },
    { title: "REASON", text: ({ reason }) => reason, max: 60 },
  ];
}

/** The state, and the state of a direction that has ended or is blocked. */
function stateOf({ state, sending, receiving }: TunnelState): string {
  const notes = [["sending", sending], ["receiving", receiving]] as const;
  const special = notes.filter(([, of]) => of === "ended" || of === "blocked").map(([name, of]) => `${name} ${of}`);
  return special.length === 0 ? state : `${state}, ${special.join(", ")}`;
}
