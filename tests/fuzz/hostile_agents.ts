// A running proxy with a well-behaved agent, and hostile agents that use real QUIC. Whatever these send, the proxy survives, stays small,
// responds correctly to clients, serves the other agent, and releases everything at the end.
import process from "node:process";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { eventually, openDescriptors, Pair } from "../../testing/programs.ts";
import { connectHead, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { ANSWER } from "./heads.ts";
import { drain, endsWithin, play, tolerant, Watch, within } from "./link.ts";
import { type AgentScript, HOSTILE_IDS } from "./scripts.ts";

/** Time in milliseconds that a hostile agent stays connected after its last bytes. */
const LINGER_MS = 60;
/** Time that it waits for the proxy's response. */
const WELCOME_MS = 500;
/** The proxy waits 3 s for the credentials, and another 3 s for the hello. */
const PATIENCE_MS = 15_000;
const STATUSES = new Set([400, 403, 502, 503, 504]);

/** `await using` ends it. */
export class AttackedProxy implements AsyncDisposable {
  readonly counts = { connections: 0, tunnels: 0, refusals: 0 };
  readonly #net: Net = createNativeNet();
  readonly #watch: Watch;
  readonly #descriptors: number;
  /** Connections that the scripts did not close. */
  #left: AgentSession[] = [];

  private constructor(readonly pair: Pair, readonly origin: Origin) {
    this.#watch = new Watch(pair.proxy, "The proxy");
    this.#descriptors = descriptorsOf(pair);
  }

  static async start(): Promise<AttackedProxy> {
    const pair = await Pair.start({ proxy: ["--agent-server.agent.dial-timeout=1s", "--limits.tunnel-max-duration=3s"] });
    const attacked = new AttackedProxy(pair, await Origin.start(echo));
    await attacked.#checkNeighbour();
    return attacked;
  }

  /** Plays the scripts side by side, and throws for the first thing that should not be. */
  async check(scripts: readonly AgentScript[]): Promise<void> {
    await Promise.all([...scripts.map((script) => this.#play(script)), ...HOSTILE_IDS.map((id) => this.#ask(id))]);
    await this.#checkNeighbour();
    this.#watch.check();
  }

  async #play(script: AgentScript): Promise<void> {
    const { hostname: host, port } = new URL(`quic://${this.pair.addresses.agents}`);
    const options = { host, port: Number(port), tls: { insecureSkipVerify: true }, alpn: [...script.alpn], timeoutMs: PATIENCE_MS };
    const connection = await this.#net.connectQuic(options);
    this.counts.connections++;
    const serving = this.#serve(connection, script);
    let welcome: Promise<string> | undefined;
    for (const what of script.order) {
      const stream = await tolerant(connection.openStream());
      if (!stream) break;
      await play(stream, script[what]);
      if (what !== "credentials") continue;
      welcome = drain(stream, WELCOME_MS);
      if (script.patient) await welcome;
    }
    if ((await welcome)?.includes("authenticated")) await Promise.all(HOSTILE_IDS.map((id) => this.#ask(id)));
    await endsWithin(connection, LINGER_MS);
    if (script.close) connection.close(script.close.code, script.close.reason);
    else this.#left.push(connection);
    if (this.#left.length > 64) this.#left.shift()!.close(0, "");
    await Promise.race([serving, endsWithin(connection, 0)]); // what it has thrown
  }

  /** Answers requests as the script has it. */
  async #serve(connection: AgentSession, { answers }: AgentScript): Promise<void> {
    for (let i = 0, stream: Duplex | null; (stream = await connection.acceptStream()) !== null; i++) {
      void tolerant(stream.read()).then(() => play(stream!, answers[i % answers.length]!));
    }
  }

  /** A client that asks for a hostile agent: it is answered as the proxy answers, or gets a tunnel that ends. */
  async #ask(id: string): Promise<void> {
    using wire = await dial(this.pair.addresses.clients);
    await wire.write(connectHead("anywhere.example:1", id));
    wire.finish("early");
    const text = await within(readToEnd(wire), "a client of a hostile agent is never told an end", PATIENCE_MS);
    if (text.startsWith("HTTP/1.1 200 Connection established\r\n\r\n")) return void this.counts.tunnels++;
    const status = Number(ANSWER.exec(text)?.[1]);
    if (!STATUSES.has(status)) throw new Error(`A client of a hostile agent is answered ${JSON.stringify(text)}`);
    this.counts.refusals++;
  }

  async #checkNeighbour(): Promise<void> {
    using client = await openTunnel(this.pair.addresses.clients, this.origin.authority);
    client.finish("there and back");
    const text = (await client.readAll()).toString();
    if (text !== "there and back") throw new Error(`The other agent's tunnel brings ${JSON.stringify(text)}`);
  }

  /** Waits until the proxy has let go of all. */
  async settle(): Promise<void> {
    for (const connection of this.#left.splice(0)) connection.close(0, "");
    const { proxy } = this.pair;
    const held = () => proxy.logged("agent connected").length - proxy.logged("agent disconnected").length;
    await eventually(() => held() === 1, () => `The proxy holds ${held()} agents, and there is one`, PATIENCE_MS);
    const open = () => descriptorsOf(this.pair);
    await eventually(() => open() <= this.#descriptors + 2, () => `The proxy has ${open()} descriptors open, not ${this.#descriptors}`);
    await this.#checkNeighbour();
    this.#watch.check();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#net.close();
    await this.pair[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
  }
}

function descriptorsOf({ proxy }: Pair): number {
  return process.platform === "linux" ? openDescriptors(proxy.pid) : 0;
}

/** Resolves at the end of the connection, clean or not. */
async function readToEnd(wire: Wire): Promise<string> {
  let text = "";
  try {
    for (let data; (data = await wire.next()) !== null;) text += data.toString();
  } catch {
    // reset: what came before counts
  }
  return text;
}

/** Echoes received bytes. */
export async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}
