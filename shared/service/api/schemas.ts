// JSON Schemas of the values of the API, by the names of their types in types.ts.
import { LOG_LEVELS } from "../../log/logger.ts";
import { FAILURE_KINDS, ROLES } from "./types.ts";

export type Schema = Readonly<Record<string, unknown>>;

const text: Schema = { type: "string" };
const count: Schema = { type: "integer", minimum: 0 };
const number: Schema = { type: "number", minimum: 0 };
const flag: Schema = { type: "boolean" };
const time: Schema = { type: "string", format: "date-time" };
const oneOf = (...values: readonly string[]): Schema => ({ type: "string", enum: values });
const listOf = (items: Schema): Schema => ({ type: "array", items });
const mapOf = (values: Schema): Schema => ({ type: "object", additionalProperties: values });
export const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` });

/** @param required in each value @param optional in some */
function object(required: Readonly<Record<string, Schema>>, optional: Readonly<Record<string, Schema>> = {}): Schema {
  return {
    type: "object",
    properties: { ...required, ...optional },
    required: Object.keys(required),
    additionalProperties: false,
  };
}

const pageOf = (name: string, more: Readonly<Record<string, Schema>> = {}): Schema =>
  object({ items: listOf(ref(name)), total: count, offset: count, limit: count, ...more }, { members: listOf(ref("MemberAnswer")) });

const service = oneOf("proxy", "agent", "lb");
/** @param optional of a kind of answer */
const memberWith = (optional: Readonly<Record<string, Schema>> = {}): Schema =>
  object({ member: text, service, host: text }, { error: text, ...optional });

const link = oneOf("quic", "tls", "websocket");
const direction = oneOf("open", "blocked", "ended");
/** RFC 9209 §2.3. */
const errorType: Schema = { type: "string", pattern: "^[a-z_]+$" };
const failureKind = oneOf(...FAILURE_KINDS);
const percentiles = object({ p50: number, p99: number });

export const SCHEMAS: Readonly<Record<string, Schema>> = {
  Status: object({
    service,
    version: text,
    host: text,
    instance: text,
    startedAt: time,
    at: time,
    ready: flag,
    problems: mapOf(text),
    draining: flag,
    role: oneOf(...ROLES),
    now: ref("Sample"),
    failures: listOf(ref("FailureCount")),
  }, {
    earlierProcesses: listOf(count),
    logLevel: oneOf(...LOG_LEVELS),
    member: text,
    members: listOf(memberWith({ status: ref("Status") })),
  }),
  Configuration: object({
    hash: text,
    isReloaded: flag,
    changed: listOf(object({ name: text, value: text, origin: text }, { default: text })),
  }),
  AnyConfiguration: { oneOf: [ref("Configuration"), ref("ClusterConfiguration")] },
  ClusterConfiguration: object({ members: listOf(memberWith({ configuration: ref("Configuration") })) }),
  MemberAnswer: memberWith(),
  Sample: object({
    at: time,
    agents: count,
    clients: count,
    tunnels: count,
    opened: count,
    refused: count,
    broken: count,
    sent: count,
    received: count,
    sentRate: count,
    receivedRate: count,
    openRate: count,
    memory: count,
  }, { setupMs: percentiles }),
  AgentState: object({ id: text, connection: text, state: oneOf("connected", "draining", "gone"), address: text }, {
    member: text,
    link,
    linkReason: text,
    via: text,
    version: text,
    host: text,
    labels: mapOf(text),
    tokenId: text,
    tokenExpiresAt: time,
    since: time,
    until: time,
    reason: text,
    tunnels: count,
    sent: count,
    received: count,
    sentRate: count,
    receivedRate: count,
    rttMs: number,
    sentPackets: count,
    lostPackets: count,
    congestionWindow: count,
    lastError: object({ at: time, error: errorType, reason: text }),
  }),
  AgentPage: pageOf("AgentState"),
  TunnelState: object({
    id: text,
    requestId: text,
    state: oneOf("connecting", "open", "ended"),
    protocol: text,
    network: oneOf("tcp", "udp"),
    startedAt: time,
    ageMs: count,
    sent: count,
    received: count,
  }, {
    traceId: text,
    member: text,
    client: text,
    peer: text,
    agent: text,
    tokenId: text,
    tokenExpiresAt: time,
    user: text,
    destination: text,
    via: object({ address: text }, { connection: text, link }),
    connectedAt: time,
    endedAt: time,
    setupMs: number,
    sentRate: count,
    receivedRate: count,
    sending: direction,
    receiving: direction,
    status: count,
    error: errorType,
    reason: text,
  }),
  TunnelPage: pageOf("TunnelState"),
  Failure: object(
    { kind: failureKind, at: time, id: text, requestId: text, protocol: text, status: count, error: errorType, reason: text },
    {
      traceId: text,
      member: text,
      client: text,
      agent: text,
      tokenId: text,
      user: text,
      destination: text,
    },
  ),
  FailureCount: object({ kind: failureKind, error: errorType, count }),
  FailureHistory: object({
    minutes: listOf(time),
    causes: listOf(object({ kind: failureKind, error: errorType, counts: listOf(count) })),
  }),
  FailurePage: pageOf("Failure", { counts: listOf(ref("FailureCount")) }),
  ActionResult: object({ affected: count }, { members: listOf(memberWith({ affected: count })) }),
  ErrorBody: object({ error: text }),
  CloseTunnelRequest: object({ id: text }),
  DisconnectRequest: object({ agent: text }, { connection: text, awaySeconds: { type: "number", minimum: 0, maximum: 86_400 } }),
  RevokeRequest: object({ tokenId: text }),
  EndSessionRequest: object({ logoutToken: text }),
  LogLevelRequest: object({ level: oneOf(...LOG_LEVELS) }),
  Empty: object({}),
};
