// A service with many agents and tunnels, as the admin API and the dashboard show it. Only what the dashboard asks for.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { AgentState, Failure, FailureCount, Page, Role, Sample, Status, TunnelState } from "../shared/service/api/types.ts";
import type { DashboardFile } from "../shared/service/dashboard/files.ts";
import { serveDashboard } from "../shared/service/dashboard/dashboard.ts";

/** Runs as a script where it is not text, and reorders text that follows. */
export const HOSTILE = `<img src=x onerror="document.title='owned'">\u202e<script>document.title='owned'</script>`;
export const OPERATOR = "the-token-of-an-operator-of-the-tests";
export const VIEWER = "the-token-of-a-viewer-of-the-tests";

export interface FakeAdminOptions {
  readonly agents: number;
  readonly tunnels: number;
  readonly files: Readonly<Record<DashboardFile, string>>;
  /** The path below which it is served. */
  readonly prefix?: string;
}

const SITES = ["warehouse", "clinic", "plant", "branch", "depot", "lab"];

/** A server on loopback; `await using` closes it. */
export class FakeAdmin implements AsyncDisposable {
  readonly agents: AgentState[];
  tunnels: TunnelState[];
  /** What was asked for, without the prefix: `GET api/v1/status?`. */
  readonly requests: string[] = [];
  /** The bodies of writes. */
  readonly actions: { path: string; body: unknown }[] = [];
  /** Bytes of all responses of the API, and of the largest. */
  bytes = 0;
  largest = 0;
  readonly #options: FakeAdminOptions;
  readonly #server = createServer((request, response) => void this.#serve(request, response));
  readonly #startedAt = new Date(Date.now() - 3_600_000 * 5);

  private constructor(options: FakeAdminOptions) {
    this.#options = options;
    this.agents = Array.from({ length: options.agents }, (_, i) => this.#agent(i));
    this.tunnels = Array.from({ length: options.tunnels }, (_, i) => this.#tunnel(i));
  }

  static async start(options: FakeAdminOptions): Promise<FakeAdmin> {
    const fake = new FakeAdmin(options);
    await new Promise<void>((resolve) => fake.#server.listen(0, "127.0.0.1", resolve));
    return fake;
  }

  /** The page's address. */
  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}${this.#options.prefix ?? ""}/`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #agent(i: number): AgentState {
    const id = i === 0 ? HOSTILE : `${SITES[i % SITES.length]}-${1000 + i}`;
    const sentPackets = 10_000 + i * 13;
    return {
      id,
      connection: `c${i}`,
      state: "connected",
      address: `203.0.${i >> 8}.${i & 255}:${40_000 + i % 20_000}`,
      link: i % 5 === 0 ? "tls" : "quic",
      version: "0.1.0",
      host: i === 0 ? HOSTILE : `gw.${SITES[i % SITES.length]}${i}.example`,
      labels: { region: ["eu", "us", "ap"][i % 3]!, site: i === 0 ? HOSTILE : SITES[i % SITES.length]! },
      tokenId: `token-${i % 100}`,
      tokenExpiresAt: new Date(Date.now() + 86_400_000 * (i % 90 + 1)).toISOString(),
      since: new Date(Date.now() - 60_000 * (i % 5_000)).toISOString(),
      tunnels: i % 7,
      sent: i * 1_000_003,
      received: i * 200_003,
      sentRate: (i * 7919) % 3_000_000,
      receivedRate: (i * 104_729) % 900_000,
      rttMs: 4 + (i * 31) % 180 + 0.25,
      sentPackets,
      lostPackets: Math.floor(sentPackets * (i % 40) / 2_000),
      congestionWindow: 120_000 + i * 10,
    };
  }

  #tunnel(i: number): TunnelState {
    const agent = this.agents[i % this.agents.length]!;
    const startedAt = Date.now() - 1_000 * (i % 7_000) - 500;
    return {
      id: `t${i}`,
      requestId: i === 1 ? HOSTILE : `7f3a${i.toString(16).padStart(8, "0")}`,
      state: "open",
      client: `198.51.100.${i % 250}:${50_000 + i % 10_000}`,
      ...i % 3 === 0 ? { peer: "192.0.2.10:443" } : {},
      agent: agent.id,
      tokenId: `client-${i % 40}`,
      tokenExpiresAt: new Date(Date.now() + 3_600_000 * (i % 200 + 1)).toISOString(),
      destination: i === 1 ? HOSTILE : `${["db", "ssh", "web", "git"][i % 4]}${i % 400}.internal:${[5432, 22, 443, 9418][i % 4]}`,
      protocol: ["http", "http", "socks5", "forward"][i % 4]!,
      network: "tcp",
      via: { address: agent.address, connection: agent.connection, link: agent.link },
      startedAt: new Date(startedAt).toISOString(),
      connectedAt: new Date(startedAt + 12).toISOString(),
      setupMs: 3 + (i * 17) % 60,
      ageMs: Date.now() - startedAt,
      sent: i * 90_001,
      received: i * 700_001,
      sentRate: (i * 271) % 100_000,
      receivedRate: (i * 7_919) % 2_000_000,
      sending: "open",
      receiving: i % 50 === 3 ? "blocked" : "open",
    };
  }

  #sample(at: number): Sample {
    const seconds = at / 1_000;
    const wave = (period: number, phase: number) => Math.sin(seconds * 2 * Math.PI / period + phase);
    return {
      at: new Date(at).toISOString(),
      agents: this.agents.length,
      clients: Math.round(this.tunnels.length * 1.1),
      tunnels: Math.round(this.tunnels.length * (0.95 + 0.05 * wave(300, 0))),
      opened: Math.floor(seconds) * 900,
      refused: Math.floor(seconds * 3 + 2 * wave(60, 1)),
      broken: Math.floor(seconds * 0.5),
      sent: Math.floor(seconds) * 40_000_000,
      received: Math.floor(seconds) * 300_000_000,
      sentRate: 4e7 + 1e7 * wave(90, 2) + 3e6 * wave(11, 0),
      receivedRate: 3e8 + 6e7 * wave(140, 1) + 2e7 * wave(17, 1),
      openRate: 900 + 100 * wave(80, 0),
      setupMs: { p50: 14 + 2 * wave(70, 0), p99: 90 + 30 * wave(50, 1) },
      memory: 410_000_000,
    };
  }

  #status(role: Role): Status {
    const at = Date.now() - Date.now() % 2_000;
    return {
      service: "proxy",
      version: "0.1.0",
      host: "edge-1.example",
      instance: "b1946ac9",
      startedAt: this.#startedAt.toISOString(),
      at: new Date().toISOString(),
      ready: true,
      problems: {},
      draining: false,
      earlierProcesses: [1_713],
      logLevel: "info",
      role,
      now: this.#sample(at),
      failures: [...CAUSES],
    };
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const prefix = this.#options.prefix ?? "";
    const url = new URL(request.url!, "http://localhost");
    if (!url.pathname.startsWith(`${prefix}/`)) return void response.writeHead(404).end();
    const path = url.pathname.slice(prefix.length);
    this.requests.push(`${request.method} ${path}${url.search}`);
    if (path === "/login/methods") return void response.writeHead(200, { "Content-Type": "application/json" }).end(`{"isSession":false}`);
    if (!path.startsWith("/api/v1/")) {
      const file = serveDashboard(path, (name) => this.#options.files[name]);
      if (file === undefined) return void response.writeHead(404).end();
      const content = await file.text();
      return void response.writeHead(200, Object.fromEntries(file.headers)).end(content);
    }
    const token = request.headers.authorization?.replace("Bearer ", "");
    if (token !== OPERATOR && token !== VIEWER) return this.#send(response, 401, { error: "The token is not accepted" });
    const role: Role = token === OPERATOR ? "operator" : "viewer";
    const resource = path.slice("/api/v1/".length);
    if (request.method === "POST") return await this.#act(request, response, resource, role);
    const [status, value] = this.#get(resource, url.searchParams, role);
    this.#send(response, status, value);
  }

  #send(response: ServerResponse, status: number, value: unknown): void {
    const body = JSON.stringify(value);
    this.bytes += body.length;
    if (!Array.isArray(value)) this.largest = Math.max(this.largest, body.length); // the history is asked for once
    response.writeHead(status, { "Content-Type": "application/json", "Cache-Control": "no-store" }).end(body);
  }

  async #act(request: IncomingMessage, response: ServerResponse, path: string, role: Role): Promise<void> {
    let text = "";
    for await (const chunk of request) text += chunk;
    if (role !== "operator") return this.#send(response, 403, { error: "The token's role is viewer" });
    if (request.headers["content-type"] !== "application/json") return this.#send(response, 415, { error: "The body must be JSON" });
    const body = JSON.parse(text) as { id?: string };
    this.actions.push({ path, body });
    if (path === "tunnels/close") {
      this.tunnels = this.tunnels.map((tunnel) =>
        tunnel.id === body.id
          ? {
            ...tunnel,
            state: "ended",
            endedAt: new Date().toISOString(),
            status: 200,
            error: "connection_terminated",
            reason: "closed by an operator",
          }
          : tunnel
      );
    }
    this.#send(response, 200, { affected: 1 });
  }

  #get(path: string, query: URLSearchParams, role: Role): [status: number, value: unknown] {
    if (path === "status") return [200, this.#status(role)];
    if (path === "configuration") {
      const changed = [{ name: "log.level", value: "debug", default: "info", origin: "/etc/reverse-http/config.yaml:3" }];
      return [200, { hash: "0123456789ab", isReloaded: true, changed }];
    }
    if (path === "history") {
      const end = Date.now() - Date.now() % 2_000;
      return [200, Array.from({ length: 300 }, (_, i) => this.#sample(end - (299 - i) * 2_000))];
    }
    if (path === "agents") return [200, page(this.agents, query, ["id", "host", "address"], { agent: "id", token: "tokenId" })];
    if (path === "tunnels") {
      return [200, page(this.tunnels, query, ["destination", "client", "agent", "requestId"], { agent: "agent", token: "tokenId" })];
    }
    if (path === "failures") return [200, { ...page(this.#failures(), query, ["reason"], { error: "error", kind: "kind" }), counts: [] }];
    if (path === "failures/history") {
      const minutes = Array.from({ length: 60 }, (_, i) => new Date(Date.now() - (59 - i) * 60_000).toISOString());
      const counts = (count: number, shift: number) => minutes.map((_, i) => Math.round(count / 60 * (1 + Math.sin(i / 6 + shift))));
      return [200, { minutes, causes: CAUSES.map(({ count, ...cause }, i) => ({ ...cause, counts: counts(count, i) })) }];
    }
    const tunnel = this.tunnels.find(({ id }) => path === `tunnels/${id}`);
    return tunnel ? [200, tunnel] : [404, { error: "There is no such tunnel" }];
  }

  #failures(): Failure[] {
    return this.tunnels.slice(0, 200).map(({ id, requestId, client, agent, destination, protocol }, i) => ({
      kind: i % 9 === 0 ? "broken" : "refused",
      at: new Date(Date.now() - i * 9_000).toISOString(),
      id,
      requestId,
      client,
      agent,
      destination,
      protocol,
      status: 502,
      error: i % 9 === 0 ? "connection_terminated" : "connection_refused",
      reason: i === 1 ? HOSTILE : `the destination refused the connection`,
    }));
  }
}

/** The failures of the last hour by cause. */
const CAUSES: readonly FailureCount[] = [
  { kind: "refused", error: "destination_ip_prohibited", count: 1_204 },
  { kind: "refused", error: "connection_refused", count: 371 },
  { kind: "agent", error: "credentials_ended", count: 140 },
  { kind: "broken", error: "connection_terminated", count: 58 },
  { kind: "refused", error: "connection_timeout", count: 12 },
  { kind: "refused", error: "dns_error", count: 4 },
  { kind: "refused", error: "dns_timeout", count: 3 },
];

/** What each `sort` compares. */
const SORTS: Readonly<Record<string, (row: Partial<Omit<AgentState, "state"> & Omit<TunnelState, "state">>) => string | number>> = {
  rtt: (row) => row.rttMs ?? 0,
  rate: (row) => (row.sentRate ?? 0) + (row.receivedRate ?? 0),
  bytes: (row) => (row.sent ?? 0) + (row.received ?? 0),
  loss: (row) => (row.lostPackets ?? 0) / (row.sentPackets ?? 1),
  age: (row) => row.ageMs ?? 0,
  setup: (row) => row.setupMs ?? 0,
};

function page<T extends AgentState | TunnelState | Failure>(
  rows: readonly T[],
  query: URLSearchParams,
  searched: readonly (keyof T & string)[],
  filters: Readonly<Record<string, keyof T & string>>,
): Page<T> {
  const q = query.get("q")?.toLowerCase();
  const states = query.getAll("state");
  let found = rows.filter((row) =>
    (!("state" in row) || states.length === 0 || states.includes(row.state)) &&
    Object.entries(filters).every(([name, field]) => !query.has(name) || String(row[field]) === query.get(name)) &&
    (!q || searched.some((field) => String(row[field]).toLowerCase().includes(q)))
  );
  const sort = query.get("sort");
  if (sort) {
    const value = (row: T) => SORTS[sort]?.(row as never) ?? String(row[sort as keyof T] ?? "");
    const sign = query.get("order") === "desc" ? -1 : 1;
    const keyed = found.map((row) => ({ row, key: value(row) }));
    found = keyed.sort((a, b) => a.key < b.key ? -sign : a.key > b.key ? sign : 0).map(({ row }) => row);
  }
  const [offset, limit] = [Number(query.get("offset") ?? 0), Number(query.get("limit") ?? 100)];
  return { items: found.slice(offset, offset + limit), total: found.length, offset, limit };
}
