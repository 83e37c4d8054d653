// The lists of the API: what they can be filtered and sorted by.
import { hostOf } from "../../limits/addresses.ts";
import { type LiveTunnel, userOf } from "../live/tunnel.ts";
import type { Key, Listing } from "./query.ts";
import type { AgentState, TunnelState } from "./types.ts";

const seconds = (text: string) => /^[0-9]{1,9}$/.test(text) ? Number(text) : 0;

export const AGENTS: Listing<AgentState> = {
  filters: {
    agent: ({ id }, value) => id === value,
    state: ({ state }, value) => state === value,
    label: ({ labels = {} }, value) => {
      const [name = "", ...rest] = value.split("=");
      return Object.hasOwn(labels, name) && labels[name] === rest.join("=");
    },
    token: ({ tokenId }, value) => tokenId === value,
    expires: ({ tokenExpiresAt }, value) =>
      tokenExpiresAt !== undefined && Date.parse(tokenExpiresAt) - Date.now() <= seconds(value) * 1_000,
  },
  defaults: { state: ["connected", "draining"] },
  values: { state: ["connected", "draining", "gone"] },
  texts: ({ id, address, host, version, tokenId, labels = {} }) => [
    id,
    address,
    host,
    version,
    tokenId,
    ...Object.entries(labels).map(([name, value]) => `${name}=${value}`),
  ],
  orders: {
    id: ({ id }) => id,
    since: ({ since }) => since,
    tunnels: ({ tunnels }) => tunnels,
    rtt: ({ rttMs }) => rttMs,
    rate: ({ sentRate, receivedRate }) => sentRate === undefined ? undefined : sentRate + (receivedRate ?? 0),
    host: ({ host }) => host,
    expires: ({ tokenExpiresAt }) => tokenExpiresAt,
    loss: ({ sentPackets = 0, lostPackets = 0 }) => sentPackets === 0 ? undefined : lostPackets / sentPackets,
  },
};

const stateOf = ({ endedAt, connectedAt }: LiveTunnel) =>
  endedAt !== undefined ? "ended" : connectedAt === undefined ? "connecting" : "open";

export const TUNNELS: Listing<LiveTunnel> = {
  filters: {
    agent: ({ agent }, value) => agent === value,
    client: ({ client = "" }, value) => client === value || hostOf(client) === value,
    token: ({ token }, value) => token === value,
    user: (tunnel, value) => userOf(tunnel) === value,
    destination: ({ destination = "" }, value) => destination.includes(value),
    connection: ({ via }, value) => via?.connection === value,
    state: (tunnel, value) => stateOf(tunnel) === value,
  },
  defaults: { state: ["connecting", "open"] },
  values: { state: ["connecting", "open", "ended"] },
  texts: (tunnel) => [tunnel.client, tunnel.agent, tunnel.destination, tunnel.token, userOf(tunnel), tunnel.id],
  orders: {
    age: ({ startedAt }) => -startedAt,
    rate: ({ measured }) => measured?.sentRate === undefined ? undefined : measured.sentRate + (measured.receivedRate ?? 0),
    bytes: ({ sent, received }) => sent + received,
    client: ({ client }) => client,
    agent: ({ agent }) => agent,
    destination: ({ destination }) => destination,
    setup: ({ startedAt, connectedAt }) => connectedAt === undefined ? undefined : connectedAt - startedAt,
  },
};

/** The orders of {@link TUNNELS} by what other members tell of a tunnel. */
export const TUNNEL_ORDERS: Readonly<Record<string, Key<TunnelState>>> = {
  age: ({ startedAt }) => -Date.parse(startedAt),
  rate: ({ sentRate, receivedRate }) => sentRate === undefined ? undefined : sentRate + (receivedRate ?? 0),
  bytes: ({ sent, received }) => sent + received,
  client: ({ client }) => client,
  agent: ({ agent }) => agent,
  destination: ({ destination }) => destination,
  setup: ({ setupMs }) => setupMs,
};

export const FAILURES: Listing<LiveTunnel> = {
  filters: {
    kind: ({ connectedAt }, value) => (connectedAt === undefined ? "refused" : "broken") === value,
    error: ({ proxyError }, value) => proxyError === value,
    agent: ({ agent }, value) => agent === value,
    client: TUNNELS.filters.client!,
  },
  values: { kind: ["refused", "broken"] },
  texts: (tunnel) => [...TUNNELS.texts(tunnel), tunnel.reason],
};
