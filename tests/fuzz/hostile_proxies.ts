// A running agent that is connected to a well-behaved proxy, and to hostile ones that use real QUIC. Whatever these send, the agent
// survives, stays small, responds correctly, serves the other proxy, connects only to allowed destinations, and stops cleanly.
import assert from "node:assert/strict";
import { encodeHead, parseResponseHead } from "../../shared/http/head.ts";
import { agentTransport, ALPN } from "../../shared/link/link.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, SessionListener } from "../../shared/net/session.ts";
import { Pair } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { echo } from "./hostile_agents.ts";
import { drain, endsWithin, play, tolerant, Watch, within } from "./link.ts";
import type { ProxyScript } from "./scripts.ts";

const VICTIM = "victim";
/** Number of concurrent hostile proxies. */
const PROXIES = 12;
const PATIENCE_MS = 30_000;
const LINGER_MS = 60;
const STATUSES = new Set([200, 400, 403, 405, 431, 502, 503, 504, 505]);

/** `await using` ends it. */
export class AttackingProxies implements AsyncDisposable {
  readonly counts = { connections: 0, requests: 0, tunnels: 0, refused: 0, wellBehaved: 0 };
  readonly #net: Net = createNativeNet();
  readonly #listeners: SessionListener[] = [];
  #scripts: ProxyScript[] = [];
  #playing = 0;
  #settled = Promise.withResolvers<void>();

  private constructor(readonly pair: Pair, readonly origin: Origin) {}

  static async start(): Promise<AttackingProxies> {
    const all = new AttackingProxies(await Pair.start(), await Origin.start(echo));
    const { issue } = all.pair.site.authority;
    const { cert, key } = await issue({ names: ["127.0.0.1"] });
    for (let i = 0; i < PROXIES; i++) {
      const listener = await all.#net.listenQuic({ address: "127.0.0.1:0", tls: { cert, key }, alpn: ALPN, transport: agentTransport(0) });
      all.#listeners.push(listener);
      void all.#accept(listener);
    }
    return all;
  }

  /** Where requests may lead. */
  get authority(): string {
    return this.origin.authority;
  }

  /** Plays the scripts at an agent of its own, and throws for the first thing that should not be. */
  async check(scripts: readonly ProxyScript[]): Promise<void> {
    const { site, proxy, addresses } = this.pair;
    const connected = proxy.logged("agent connected", { agent: VICTIM }).length;
    this.#settled = Promise.withResolvers<void>();
    this.#scripts = [...scripts];
    const servers = this.#listeners.map(({ address }) => `--agent-client.server-address=${address}`);
    const agent = await site.startAgent(
      addresses,
      [...servers, `--agent-client.connections=${PROXIES + 1}`, `--agent-client.host-whitelist=${this.authority}`, "--drain.timeout=2s"],
      VICTIM,
    );
    const watch = new Watch(agent, "The agent");
    await proxy.waitFor("agent connected", { agent: VICTIM }, connected + 1);
    await within(this.#settled.promise, "the agent does not come back to be attacked", PATIENCE_MS);
    using client = await openTunnel(addresses.clients, this.authority, { id: VICTIM });
    client.finish("there and back");
    assert.equal((await client.readAll()).toString(), "there and back");
    watch.check();
    const { exitCode, stderr } = await agent.stop();
    assert.equal(exitCode, 0, stderr.slice(-4_000));
  }

  async #accept(listener: SessionListener): Promise<void> {
    for (let connection; (connection = await listener.accept()) !== null;) {
      const script = this.#scripts.shift();
      // there are none left: the agent may wait for its turn as long as it likes
      if (!script) continue;
      this.#playing++;
      this.counts.connections++;
      void this.#play(connection, script).then(() => {
        if (--this.#playing === 0 && this.#scripts.length === 0) this.#settled.resolve();
      }, this.#settled.reject);
    }
  }

  async #play(connection: AgentSession, script: ProxyScript): Promise<void> {
    const stream = await connection.acceptStream();
    if (!stream) return;
    await play(stream, script.answer);
    if (connection.alpn === ALPN[0]) {
      const control = await connection.acceptStream();
      if (control) await play(control, script.control);
    }
    await Promise.all(script.requests.map((_, i) => this.#request(connection, script, i)));
    if (!await endsWithin(connection, 0)) await this.#behave(connection);
    connection.close(script.close?.code ?? 0, script.close?.reason ?? "");
  }

  async #request(connection: AgentSession, { requests }: ProxyScript, i: number): Promise<void> {
    const stream = await tolerant(connection.openStream());
    if (!stream) return;
    this.counts.requests++;
    await play(stream, requests[i]!);
    const text = await drain(stream, LINGER_MS);
    if (text !== "") this.#judge(text);
    stream.close();
  }

  #judge(text: string): void {
    const { status, fields } = parseResponseHead(text.slice(0, text.indexOf("\r\n\r\n") + 4));
    if (!STATUSES.has(status)) throw new Error(`The agent answers ${JSON.stringify(text)}`);
    if (status !== 200 && !fields.some(([name]) => name === "Proxy-Status")) throw new Error(`The agent does not say why: ${text}`);
    if (status === 200) this.counts.tunnels++;
    else this.counts.refused++;
  }

  /** A request as it should be, on the connection that was abused: it is served, or the connection has an end. */
  async #behave(connection: AgentSession): Promise<void> {
    const head = encodeHead(`CONNECT ${this.authority} HTTP/1.1`, [["Host", this.authority]]);
    const answer = await tolerant(connection.request(head, { timeoutMs: 2_000 }));
    if (!answer) return;
    assert.equal(parseResponseHead(answer.head).status, 200);
    await tolerant(answer.stream.write(new TextEncoder().encode("x")));
    answer.stream.closeWrite();
    const text = await drain(answer.stream, 10_000);
    if (text === "x") this.counts.wellBehaved++;
    else if (!await endsWithin(connection, 5_000)) throw new Error(`A tunnel brings ${JSON.stringify(text)} on a connection that goes on`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#net.close();
    await this.pair[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
  }
}
