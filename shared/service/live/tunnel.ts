// The state of a tunnel in its service, while it is open and for a while after. Reports for operators are created only on request.
import type { Net } from "../../net/net.ts";
import { printable } from "../../net/printable.ts";
import type { Duplex } from "../../net/stream.ts";
import type { TunnelErrorType } from "../../tunnel/errors.ts";
import type { TunnelVia } from "../../tunnel/request.ts";
import type { TunnelState } from "../api/types.ts";

/** Filled in while the tunnel, or the request for one, is served. Times are of the monotonic clock, in milliseconds. */
export interface LiveTunnel {
  /** Generated here, and unique among all processes. */
  readonly key: string;
  /** Id of the request: the key, or the `X-Request-Id` under which a proxy in front has logged it. */
  id: string;
  /** Id of the trace that it belongs to. */
  traceId?: string;
  startedAt: number;
  /** When the connection to the destination was open. */
  connectedAt?: number;
  endedAt?: number;
  /** The client's own address. */
  client?: string;
  /** The connection's address if it is a trusted proxy's. */
  peer?: string;
  agent?: string;
  /** The `jti` of the client's token. */
  token?: string;
  /** When that expires, in milliseconds since 1970. */
  tokenExpiresAt?: number;
  /** See {@link Identity.subject} and {@link Identity.name}. */
  subject?: string;
  name?: string;
  /** `host:port` or `[host]:port`. */
  destination?: string;
  /** What the client speaks if it is not HTTP: `socks5`. */
  protocol?: string;
  /** Missing for TCP. */
  network?: "udp";
  via?: TunnelVia;
  /**
   * Bytes read from the client, as last measured while a relay runs. With UDP they are those of capsules. In plain HTTP they include what follows
   * the request and is dropped.
   */
  sent: number;
  /** Bytes from the destination. */
  received: number;
  measured?: Measured;
  /** Status of the HTTP response; in another protocol, the corresponding status. */
  status?: number;
  proxyError?: TunnelErrorType;
  /** The cause in words. */
  reason?: string;
  /** The operator who has closed it. */
  closedBy?: string;
  /** Why it was cut: the rules no longer permit it. */
  cutBecause?: string;
}

/** A measurement of a relay. Rates are in bytes per second, since the measurement before. */
type Measured = Pick<TunnelState, "sent" | "received" | "sentRate" | "receivedRate" | "sending" | "receiving"> & { readonly at: number };

/** Time in milliseconds between the measurements that a rate is computed of. */
const RATE_MS = 1_000;

/** Measures the relays of tunnels that are open. */
export function measureTunnels(net: Pick<Net, "relayed">, open: ReadonlyMap<Duplex, LiveTunnel>, now: number): void {
  const connected = [...open].filter(([, { connectedAt }]) => connectedAt !== undefined);
  const relays = net.relayed(connected.map(([stream]) => stream));
  connected.forEach(([, tunnel], i) => {
    const relay = relays[i];
    if (relay !== undefined) [tunnel.sent, tunnel.received] = [relay.aToB, relay.bToA];
    const { measured: before, sent, received } = tunnel;
    const states = { sending: relay?.toB, receiving: relay?.toA };
    const sinceMs = now - (before?.at ?? tunnel.connectedAt!);
    if (before !== undefined && sinceMs < RATE_MS) tunnel.measured = { ...before, ...states };
    else {
      const rate = (bytes: number, earlier = 0) => sinceMs > 0 ? Math.round((bytes - earlier) / sinceMs * 1_000) : undefined;
      const rates = { sentRate: rate(sent, before?.sent), receivedRate: rate(received, before?.received) };
      tunnel.measured = { at: now, sent, received, ...rates, ...states };
    }
  });
}

/** Formats a time of the monotonic clock. */
export function isoTime(at: number): string {
  return new Date(Date.now() - performance.now() + at).toISOString();
}

/** Who the client is: the name that people know, or else the id. */
export function userOf({ name, subject, agent }: Pick<LiveTunnel, "name" | "subject" | "agent">): string | undefined {
  const user = name ?? subject;
  return user === undefined || user === agent ? undefined : printable(user);
}

/** Longest text of a peer in a report, in characters. */
const MAX_TEXT = 300;

/** Describes a tunnel. Control characters of peers do not get into a report. */
export function describeTunnel(tunnel: LiveTunnel, now: number): TunnelState {
  const { key, id, client, peer, agent, token, destination, protocol = "http", network = "tcp", via } = tunnel;
  const { traceId, startedAt, connectedAt, endedAt, measured, sent, received } = tunnel;
  const isOpen = endedAt === undefined;
  const { sentRate, receivedRate, sending, receiving } = isOpen ? measured ?? {} : {};
  return {
    id: key,
    requestId: id,
    traceId,
    state: isOpen ? connectedAt === undefined ? "connecting" : "open" : "ended",
    client,
    peer,
    agent,
    tokenId: token,
    tokenExpiresAt: tunnel.tokenExpiresAt === undefined ? undefined : new Date(tunnel.tokenExpiresAt).toISOString(),
    user: userOf(tunnel),
    destination: destination && printable(destination, MAX_TEXT),
    protocol,
    network,
    via,
    startedAt: isoTime(startedAt),
    connectedAt: connectedAt === undefined ? undefined : isoTime(connectedAt),
    endedAt: endedAt === undefined ? undefined : isoTime(endedAt),
    setupMs: connectedAt === undefined ? undefined : Math.round((connectedAt - startedAt) * 100) / 100,
    ageMs: Math.round((endedAt ?? now) - startedAt),
    sent,
    received,
    sentRate,
    receivedRate,
    sending,
    receiving,
    status: tunnel.status,
    error: tunnel.proxyError,
    reason: tunnel.reason && printable(tunnel.reason, MAX_TEXT),
  };
}
