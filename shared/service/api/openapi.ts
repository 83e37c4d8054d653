// The description of the API in the form of OpenAPI 3.1. A test compares it with the server.
import { EVENT_STREAM } from "../http_server.ts";
import { AGENTS, FAILURES, TUNNELS } from "./lists.ts";
import type { Listing } from "./query.ts";
import { ref, type Schema, SCHEMAS } from "./schemas.ts";
import { SCOPES, TOPICS } from "./types.ts";

const json = (schema: Schema) => ({ "application/json": { schema } });
const errors = { default: { description: "An error", content: json(ref("ErrorBody")) } };

const scope = [
  {
    name: "scope",
    in: "query",
    schema: { enum: SCOPES, default: "local" },
    description: "This service alone, or all members of its cluster",
  },
  {
    name: "member",
    in: "query",
    schema: { type: "array", items: { type: "string" } },
    description: "With scope=cluster: only members with these admin addresses. Default: all; for agents and tunnels all proxies",
  },
];

function read(summary: string, schema: Schema, own: readonly object[] = [], isWide = true): object {
  const parameters = [...own, ...isWide ? scope : []];
  return { get: { summary, parameters, responses: { 200: { description: "Success", content: json(schema) }, ...errors } } };
}

function act(summary: string, body: string, status: 200 | 202 = 200): object {
  return {
    post: {
      summary,
      parameters: scope,
      requestBody: { required: true, content: json(ref(body)) },
      responses: { [status]: { description: "Success", content: json(ref("ActionResult")) }, ...errors },
    },
  };
}

/** The parameters of a list. */
// deno-lint-ignore no-explicit-any -- it lists names only
function parametersOf({ filters, orders, values = {} }: Listing<any>): object[] {
  const inQuery = (name: string, schema: Schema) => ({ name, in: "query", schema });
  return [
    ...Object.keys(filters).map((name) =>
      inQuery(name, { type: "array", items: { type: "string", ...values[name] ? { enum: values[name] } : {} } })
    ),
    inQuery("q", { type: "string", description: "Text that an item contains" }),
    ...orders ? [inQuery("sort", { enum: Object.keys(orders) }), inQuery("order", { enum: ["asc", "desc"] })] : [],
    inQuery("offset", { type: "integer", minimum: 0, default: 0 }),
    inQuery("limit", { type: "integer", minimum: 1, maximum: 1_000, default: 100 }),
  ];
}

const id = { name: "id", in: "path", required: true, schema: { type: "string" } };
const topics = { name: "topics", in: "query", explode: false, schema: { type: "array", items: { enum: TOPICS } } };

export function openApi(version: string): object {
  return {
    openapi: "3.1.0",
    info: { title: "reverse-http admin API", version },
    servers: [{ url: "/api/v1" }],
    security: [{ token: [] }],
    paths: {
      "/status": read("The service as a whole", ref("Status")),
      "/history": read("Samples of the last ten minutes, the oldest first", { type: "array", items: ref("Sample") }),
      "/agents": read("Agents and their connections", ref("AgentPage"), parametersOf(AGENTS)),
      "/tunnels": read("Tunnels, and requests for them", ref("TunnelPage"), parametersOf(TUNNELS)),
      "/tunnels/{id}": read("One tunnel, also for a while after its end", ref("TunnelState"), [id]),
      "/failures": read("Refused requests, broken tunnels and refused agents of the last hour", ref("FailurePage"), parametersOf(FAILURES)),
      "/failures/history": read("The failures of the last hour by cause, minute by minute", ref("FailureHistory")),
      "/events": {
        get: {
          summary: "What happens, as server-sent events",
          parameters: [topics, scope[0]!],
          responses: { 200: { description: "Success", content: { [EVENT_STREAM]: { schema: { type: "string" } } } }, ...errors },
        },
      },
      "/configuration": read("The options that differ from the defaults", ref("AnyConfiguration")),
      "/openapi.json": read("This document", { type: "object" }, [], false),
      "/tunnels/close": act("Reset a tunnel", "CloseTunnelRequest"),
      "/agents/disconnect": act("Close connections of an agent, and refuse it for a time", "DisconnectRequest"),
      "/tokens/revoke": act("Add a token to the revocation file, which ends what was opened with it", "RevokeRequest"),
      "/sessions/end": act("End what was opened in a session at the identity provider, by its logout token", "EndSessionRequest"),
      "/drain": act("Stop gracefully", "Empty", 202),
      "/reload": act("Read certificates, keys and the files of the authenticator again", "Empty"),
      "/log-level": act("Change the level of the log", "LogLevelRequest"),
    },
    components: {
      securitySchemes: { token: { type: "http", scheme: "bearer", description: "Not needed on the unix socket" } },
      schemas: SCHEMAS,
    },
  };
}
