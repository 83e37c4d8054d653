// The filters and sort keys of the API's lists.
import { hostOf } from "../../limits/addresses.ts";
import { type Failed, kindOf } from "../live/failures.ts";
import { type LiveTunnel, userOf } from "../live/tunnel.ts";
import type { Key, Listing } from "./query.ts";
import { type AgentState, FAILURE_KINDS, type TunnelState } from "./types.ts";

const seconds = (text: string) => /^[0-9]{1,9}$/.test(text) ? Number(text) : 0;

/** Whether a time is within the next seconds, or over. */
function isWithin(ms: number | undefined, text: string): boolean {
  return ms !== undefined && ms - Date.now() <= seconds(text) * 1_000;
}

export const AGENTS: Listing<AgentState> = {
  filters: {
    agent: ({ id }, value) => id === value,
    state: ({ state }, value) => state === value,
    label: ({ labels = {} }, value) => {
      const [name = "", ...rest] = value.split("=");
      return Object.hasOwn(labels, name) && labels[name] === rest.join("=");
    },
    token: ({ tokenId }, value) => tokenId === value,
    expires: ({ tokenExpiresAt }, value) => isWithin(tokenExpiresAt === undefined ? undefined : Date.parse(tokenExpiresAt), value),
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

type Named = Pick<LiveTunnel, "client" | "agent" | "destination" | "token" | "id" | "traceId" | "name" | "subject">;

function isClient({ client = "" }: Named, value: string): boolean {
  return client === value || hostOf(client) === value;
}

function textsOf(named: Named): (string | undefined)[] {
  return [named.client, named.agent, named.destination, named.token, userOf(named), named.id, named.traceId];
}

export const TUNNELS: Listing<LiveTunnel> = {
  filters: {
    agent: ({ agent }, value) => agent === value,
    client: isClient,
    token: ({ token }, value) => token === value,
    expires: ({ tokenExpiresAt }, value) => isWithin(tokenExpiresAt, value),
    user: (tunnel, value) => userOf(tunnel) === value,
    destination: ({ destination = "" }, value) => destination.includes(value),
    connection: ({ via }, value) => via?.connection === value,
    state: (tunnel, value) => stateOf(tunnel) === value,
  },
  defaults: { state: ["connecting", "open"] },
  values: { state: ["connecting", "open", "ended"] },
  texts: textsOf,
  orders: {
    age: ({ startedAt }) => -startedAt,
    rate: ({ measured }) => measured?.sentRate === undefined ? undefined : measured.sentRate + (measured.receivedRate ?? 0),
    bytes: ({ sent, received }) => sent + received,
    client: ({ client }) => client,
    agent: ({ agent }) => agent,
    destination: ({ destination }) => destination,
    setup: ({ startedAt, connectedAt }) => connectedAt === undefined ? undefined : connectedAt - startedAt,
    expires: ({ tokenExpiresAt }) => tokenExpiresAt,
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
  expires: ({ tokenExpiresAt }) => tokenExpiresAt,
};

export const FAILURES: Listing<Failed> = {
  filters: {
    kind: (failed, value) => kindOf(failed) === value,
    error: ({ proxyError }, value) => proxyError === value,
    agent: ({ agent }, value) => agent === value,
    client: (failed, value) => isClient(failed, value),
  },
  values: { kind: FAILURE_KINDS },
  texts: (failed) => [...textsOf(failed), failed.reason],
};
