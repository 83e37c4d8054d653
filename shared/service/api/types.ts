// Types of the admin API: the live state of a service, and the actions of operators. Texts may come from peers, so they are shown
// as text only. The routes are in routes.ts, and openapi.ts describes them.
import { OPERATOR_ROLES, type OperatorRole } from "../../auth/operator_token.ts";
import type { ChangedOption } from "../../config/plan.ts";
import type { LogLevel } from "../../log/logger.ts";
import type { DirectionState } from "../../net/relay.ts";
import type { SessionKind } from "../../net/session.ts";
import type { TunnelErrorType } from "../../tunnel/errors.ts";

/** Whether a service answers for itself or for all members of its cluster. */
export const SCOPES = ["local", "cluster"] as const;

/** What a token permits: to read, or to act as well. */
export const ROLES = OPERATOR_ROLES;
export type Role = OperatorRole;

export type ServiceName = "proxy" | "agent" | "lb";

/** A page of a list. */
export interface Page<T> {
  readonly items: readonly T[];
  /** Number of items on all pages, after filters. */
  readonly total: number;
  readonly offset: number;
  readonly limit: number;
  /** With scope=cluster: the queried members. */
  readonly members?: readonly MemberAnswer[];
}

/** A member of the cluster that was asked. */
export interface MemberAnswer {
  /** Its admin address, `host:port`, which identifies it. */
  readonly member: string;
  readonly service: ServiceName;
  readonly host: string;
  /** Why it did not answer; then its part is missing. */
  readonly error?: string;
}

/** {@link Status} of the whole cluster: that of the member that was asked, with the sums of all proxies and the failures of all members. */
export interface ClusterStatus extends Status {
  readonly members: readonly (MemberAnswer & { readonly status?: Status })[];
}

/** The service as a whole. Counters count from its start; rates are per second, over the last seconds. */
export interface Status {
  readonly service: ServiceName;
  readonly version: string;
  readonly host: string;
  /** Identifies the process. */
  readonly instance: string;
  /** ISO 8601, like all times. */
  readonly startedAt: string;
  readonly at: string;
  readonly ready: boolean;
  /** Reasons against readiness, by cause. */
  readonly problems: Readonly<Record<string, string>>;
  readonly draining: boolean;
  /** Ids of processes that have handed over to this one, and still have open tunnels. Missing if there are none. */
  readonly earlierProcesses?: readonly number[];
  /** Missing where an embedding program has its own log. */
  readonly logLevel?: LogLevel;
  /** The role of the caller. */
  readonly role: Role;
  /** The service's own address in the cluster; missing if it answers for itself alone. */
  readonly member?: string;
  readonly now: Sample;
  /** Of the last hour. */
  readonly failures: readonly FailureCount[];
}

/** What differs from the defaults in the options of a service. */
export interface Configuration {
  /** Of all values, without secrets, 12 hexadecimal digits. */
  readonly hash: string;
  /** Whether the last reload has succeeded. */
  readonly isReloaded: boolean;
  readonly changed: readonly ChangedOption[];
}

/** The options of all members of a cluster. */
export interface ClusterConfiguration {
  /** Without options where a program has embedded the service: they are its own. */
  readonly members: readonly (MemberAnswer & { readonly configuration?: Configuration })[];
}

/** What graphs show. One is taken every two seconds, and those of the last ten minutes are kept. */
export interface Sample {
  readonly at: string;
  /** Connected agent ids; at an agent, connections to proxies. */
  readonly agents: number;
  /** Clients, with a tunnel or without; at an agent, as `tunnels`. */
  readonly clients: number;
  /** Open tunnels. */
  readonly tunnels: number;
  /** Tunnels that were opened, requests that were refused, and tunnels that broke, since the start. */
  readonly opened: number;
  readonly refused: number;
  readonly broken: number;
  /** Bytes to destinations and from them since the start, those of open tunnels included. */
  readonly sent: number;
  readonly received: number;
  readonly sentRate: number;
  readonly receivedRate: number;
  readonly openRate: number;
  /** Time to the connection with the destination, of the tunnels opened since the last sample; missing if there were none. */
  readonly setupMs?: { readonly p50: number; readonly p99: number };
  readonly memory: number;
}

/** A connection of an agent; at an agent, its connection to a proxy. */
export interface AgentState {
  readonly id: string;
  /** With scope=cluster: the member that has it. */
  readonly member?: string;
  /** Identifies the connection, for {@link DisconnectRequest}. */
  readonly connection: string;
  readonly state: "connected" | "draining" | "gone";
  /** The peer's address. At lb, that of the proxy. */
  readonly address: string;
  /** The transport; missing at lb. */
  readonly link?: SessionKind;
  /** Why the agent chose it; only the agent knows. */
  readonly linkReason?: string;
  /** The outbound proxy on the way; only the agent knows. */
  readonly via?: string;
  readonly version?: string;
  readonly host?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly tokenId?: string;
  readonly tokenExpiresAt?: string;
  readonly since?: string;
  /** Of a connection that is gone. */
  readonly until?: string;
  readonly reason?: string;
  readonly tunnels?: number;
  /** Bytes on the link, to the peer and from it. */
  readonly sent?: number;
  readonly received?: number;
  readonly sentRate?: number;
  readonly receivedRate?: number;
  readonly rttMs?: number;
  readonly sentPackets?: number;
  readonly lostPackets?: number;
  /** In bytes; over QUIC only. */
  readonly congestionWindow?: number;
  /** The last failure of a tunnel through it. */
  readonly lastError?: { readonly at: string; readonly error: TunnelErrorType; readonly reason: string };
}

/** A tunnel, or a request for one. */
export interface TunnelState {
  /** Unique among all tunnels of all processes. */
  readonly id: string;
  /** With scope=cluster: the member that has it. */
  readonly member?: string;
  /** As in the logs of every hop; the client may have chosen it. */
  readonly requestId: string;
  /** Of the trace that the request belongs to, if the service traces. */
  readonly traceId?: string;
  readonly state: "connecting" | "open" | "ended";
  /** The client's own address; missing at an agent. */
  readonly client?: string;
  /** The proxy in front through which it came. */
  readonly peer?: string;
  readonly agent?: string;
  readonly tokenId?: string;
  readonly tokenExpiresAt?: string;
  /** Who the client is, by its token or its identity provider: the name that people know, or else an id. */
  readonly user?: string;
  readonly destination?: string;
  /** `http`, `socks5`, `forward` and others. */
  readonly protocol: string;
  readonly network: "tcp" | "udp";
  /** The agent's connection. At lb: the proxy, without a link. */
  readonly via?: { readonly address: string; readonly connection?: string; readonly link?: SessionKind };
  readonly startedAt: string;
  readonly connectedAt?: string;
  readonly endedAt?: string;
  readonly setupMs?: number;
  readonly ageMs: number;
  /** Bytes to the destination, and back. */
  readonly sent: number;
  readonly received: number;
  /** Bytes per second; missing until it was measured twice. */
  readonly sentRate?: number;
  readonly receivedRate?: number;
  /** Directions to the destination, and back. Missing where this is not known. */
  readonly sending?: DirectionState;
  readonly receiving?: DirectionState;
  /** For ended tunnels: the status for the client, the error type (RFC 9209) if it failed, and the reason. */
  readonly status?: number;
  readonly error?: TunnelErrorType;
  readonly reason?: string;
}

/** `refused`: a client's request; `broken`: an open tunnel; `agent`: an agent's connection, which was refused. */
export const FAILURE_KINDS = ["refused", "broken", "agent"] as const;
export type FailureKind = (typeof FAILURE_KINDS)[number];

/** Why an agent was refused. `credentials_ended`: they have expired or are revoked; `credentials_unchecked`: they cannot be checked now. */
export type AgentRefusalError =
  | "agent_id_invalid"
  | "agent_id_conflict"
  | "agent_kept_away"
  | "credentials_denied"
  | "credentials_ended"
  | "credentials_unchecked"
  | "connection_terminated"
  | "limit_reached"
  | "protocol_violated"
  | "proxy_internal_error";

/** An error type of RFC 9209, or that of an agent. */
export type FailureError = TunnelErrorType | AgentRefusalError;

/** A request that was refused, a tunnel that broke, or an agent that was refused. */
export interface Failure {
  /** With scope=cluster: the member that has refused it, or where it failed. */
  readonly member?: string;
  readonly kind: FailureKind;
  readonly at: string;
  readonly id: string;
  readonly requestId: string;
  readonly traceId?: string;
  /** The peer's address, also of an agent. */
  readonly client?: string;
  /** If an agent was refused: the id in its token, if the token is genuine. */
  readonly agent?: string;
  readonly tokenId?: string;
  /** As of {@link TunnelState}. */
  readonly user?: string;
  readonly destination?: string;
  /** Of an agent: the transport of its connection. */
  readonly protocol: string;
  /** Of an agent: the code with which its connection was closed. */
  readonly status: number;
  readonly error: FailureError;
  readonly reason: string;
}

/** Number of failures by cause. */
export interface FailureCount {
  readonly kind: FailureKind;
  readonly error: FailureError;
  readonly count: number;
}

/** The last hour by cause, minute by minute. */
export interface FailureHistory {
  /** When each minute has begun, the oldest first; the last one is not over yet. */
  readonly minutes: readonly string[];
  /** The most frequent first, with a number for each minute. */
  readonly causes: readonly (Pick<FailureCount, "kind" | "error"> & { readonly counts: readonly number[] })[];
}

export interface FailurePage extends Page<Failure> {
  /** Of the last hour, including failures that are no longer in the list. */
  readonly counts: readonly FailureCount[];
}

/** An action of an operator. */
export interface ActionRecord {
  readonly at: string;
  /** The name in the token file, or `local` for the socket. */
  readonly by: string;
  readonly action: "close-tunnel" | "disconnect-agent" | "revoke-token" | "end-session" | "drain" | "reload" | "log-level";
  /** The person's id at the identity provider. */
  readonly subject?: string;
  /** What it was applied to. */
  readonly target?: string;
  /** The member of the cluster through which it came. */
  readonly through?: string;
  /** In events of the whole cluster: the member that has done it. */
  readonly member?: string;
}

/** Events of the stream, by name. Each is sent at most once a second, with all changes since the last one. */
export interface Events {
  /** Sent every two seconds; of the whole cluster by each proxy. */
  readonly sample: Sample & { readonly member?: string };
  readonly agents: Batch<AgentState>;
  /** Tunnels that were opened and that have ended: see their `state`. Bytes are not reported here. */
  readonly tunnels: Batch<TunnelState>;
  readonly failures: Batch<Failure>;
  readonly actions: Batch<ActionRecord>;
  /** With scope=cluster: the members whose events are in the stream, and an error for those without. Sent first, and when it changes. */
  readonly members: { readonly members: readonly MemberAnswer[] };
}

export const TOPICS = ["sample", "agents", "tunnels", "failures", "actions"] as const;
export type Topic = (typeof TOPICS)[number];

/** At most 100 events; `omitted` counts those beyond. */
export interface Batch<T> {
  readonly events: readonly T[];
  readonly omitted: number;
}

/** Body of `POST tunnels/close`. */
export interface CloseTunnelRequest {
  /** {@link TunnelState.id} */
  readonly id: string;
}

/** Body of `POST agents/disconnect`. */
export interface DisconnectRequest {
  readonly agent: string;
  /** Only this connection. Default: all of the agent. */
  readonly connection?: string;
  /** Seconds for which the agent is refused, 0 to 86400. Default 0. */
  readonly awaySeconds?: number;
}

/** Body of `POST tokens/revoke`: a `jti`. */
export interface RevokeRequest {
  readonly tokenId: string;
}

/** Body of `POST sessions/end`: a logout token (OpenID Connect Back-Channel Logout 1.0). */
export interface EndSessionRequest {
  readonly logoutToken: string;
}

/** Body of `POST log-level`. */
export interface LogLevelRequest {
  readonly level: LogLevel;
}

/** The result of an action: the number of tunnels, connections or tokens that it has affected. */
export interface ActionResult {
  readonly affected: number;
  /** With scope=cluster: the queried members. If one has not answered, its result is unknown. */
  readonly members?: readonly (MemberAnswer & { readonly affected?: number })[];
}

/** The body of every response with a status of 400 or more. */
export interface ErrorBody {
  readonly error: string;
}
