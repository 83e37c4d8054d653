// A bad network between agents and a proxy: a UDP relay that loses, delays, duplicates, reorders, corrupts and truncates datagrams, drops
// large ones, changes the port that the proxy sees, and can be cut in one or both directions. A seed determines what it does. It knows
// nothing of QUIC.
//
// As a separate process, outside the event loop of the measuring one, it prints its address and relays until it is killed:
//
//     bun testing/udp_relay.ts --server=127.0.0.1:4242 --delay=25 --loss=0.01
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import process from "node:process";
import { parseArgs } from "node:util";

/** The conditions in one direction. Rates are from 0 to 1, times in milliseconds. */
export interface Weather {
  loss: number;
  /** Arrives twice. */
  duplicate: number;
  /** One bit is inverted. */
  corrupt: number;
  /** Is truncated. */
  truncate: number;
  /** Is delayed by up to {@link reorderMs}, behind later ones. */
  reorder: number;
  reorderMs: number;
  /** Delay of each, one way. */
  delay: number;
  /** Maximum of a random additional delay. The order is kept. */
  jitter: number;
  /** Bytes of payload; larger datagrams are lost. */
  mtu: number;
  /** Everything is lost. */
  blocked: boolean;
}

export const FAIR: Readonly<Weather> = {
  loss: 0,
  duplicate: 0,
  corrupt: 0,
  truncate: 0,
  reorder: 0,
  reorderMs: 20,
  delay: 0,
  jitter: 0,
  mtu: 65_535,
  blocked: false,
};

/** Counts of datagrams in one direction. */
export interface Counts {
  received: number;
  sent: number;
  lost: number;
  duplicated: number;
  corrupted: number;
  truncated: number;
  reordered: number;
  tooLarge: number;
  blocked: number;
}

/** One address of an agent, and the socket that represents it towards the proxy. */
interface Client {
  readonly remote: RemoteInfo;
  upstream: Socket;
  usedAt: number;
  /** What the proxy sends to it is lost. */
  isForgotten: boolean;
}

/** Time of silence in milliseconds after which an address is forgotten. */
const FORGET_MS = 60_000;
const BUFFER = 8 << 20;

export interface UdpRelayOptions {
  /** `host:port` of the proxy's port for agents. */
  server: string;
  seed?: number;
  /** The conditions in both directions. Default {@link FAIR}. */
  weather?: Partial<Weather>;
  /** `host:port` to listen on for agents. Default: a free port of 127.0.0.1. */
  listen?: string;
}

/** `await using` ends it. */
export class UdpRelay implements AsyncDisposable {
  readonly toServer: Direction;
  readonly toClient: Direction;
  /** How often {@link rebind} changed a port that was in use. */
  rebound = 0;
  readonly #clients = new Map<string, Client>();
  readonly #host: string;
  readonly #port: number;

  private constructor(private readonly socket: Socket, { server, seed = 1, weather = {} }: UdpRelayOptions) {
    const { hostname, port } = new URL(`udp://${server}`);
    [this.#host, this.#port] = [hostname, Number(port)];
    this.toServer = new Direction(generate(seed));
    this.toClient = new Direction(generate(seed + 1));
    this.change(weather);
    socket.on("message", (data, remote) => void this.#take(data, remote));
    socket.on("error", () => {}); // of a datagram: it is lost
  }

  static async start(options: UdpRelayOptions): Promise<UdpRelay> {
    const { hostname, port } = new URL(`udp://${options.listen ?? "127.0.0.1:0"}`);
    const socket = openSocket();
    socket.bind(Number(port), hostname);
    await once(socket, "listening");
    return new UdpRelay(socket, options);
  }

  /** The address for agents. */
  get address(): string {
    const { address, port } = this.socket.address();
    return `${address}:${port}`;
  }

  /** Changes the conditions in both directions. */
  change(weather: Partial<Weather>): void {
    Object.assign(this.toServer.weather, weather);
    Object.assign(this.toClient.weather, weather);
  }

  /** Restores a perfect network in both directions. */
  clear(): void {
    this.change(FAIR);
  }

  /** Forgets its bindings as a NAT does: the proxy sees other ports, and datagrams to the old ones are lost. */
  rebind(): void {
    for (const client of this.#clients.values()) {
      client.upstream.close();
      client.upstream = this.#openUpstream(client);
      this.rebound++;
    }
  }

  /** Loses what the proxy sends to the agents' present ports, as a balancer does with a broken session. New ports work. */
  forgetPorts(): void {
    for (const client of this.#clients.values()) client.isForgotten = true;
  }

  #take(data: Uint8Array, remote: RemoteInfo): void {
    const key = `${remote.address}:${remote.port}`;
    let client = this.#clients.get(key);
    if (!client) {
      this.#forgetSilent();
      client = { remote, upstream: undefined as unknown as Socket, usedAt: 0, isForgotten: false };
      client.upstream = this.#openUpstream(client);
      this.#clients.set(key, client);
    }
    client.usedAt = performance.now();
    const { upstream } = client;
    this.toServer.pass(data, (passed) => send(upstream, passed, this.#port, this.#host));
  }

  #openUpstream(client: Client): Socket {
    const upstream = openSocket();
    const { remote } = client;
    upstream.on("message", (data) => {
      client.usedAt = performance.now();
      if (client.isForgotten) return;
      this.toClient.pass(data, (passed) => send(this.socket, passed, remote.port, remote.address));
    });
    upstream.on("error", () => {}); // no program listens there: the datagram is lost
    return upstream;
  }

  #forgetSilent(): void {
    const before = performance.now() - FORGET_MS;
    for (const [key, { usedAt, upstream }] of this.#clients) {
      if (usedAt > before) continue;
      upstream.close();
      this.#clients.delete(key);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.toServer.close();
    this.toClient.close();
    for (const { upstream } of this.#clients.values()) upstream.close();
    await new Promise<void>((resolve) => this.socket.close(() => resolve()));
  }
}

/** The datagrams under way in one direction. */
export class Direction {
  readonly weather: Weather = { ...FAIR };
  readonly counts: Counts = {
    received: 0,
    sent: 0,
    lost: 0,
    duplicated: 0,
    corrupted: 0,
    truncated: 0,
    reordered: 0,
    tooLarge: 0,
    blocked: 0,
  };
  /** Sorted by the time at which they are due. */
  readonly #waiting: { at: number; send: () => void }[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** When the last datagram is due that was not reordered. */
  #latest = 0;

  constructor(private readonly random: () => number) {}

  pass(data: Uint8Array, send: (data: Uint8Array) => void): void {
    const { weather, counts, random } = this;
    counts.received++;
    if (weather.blocked) return void counts.blocked++;
    if (data.length > weather.mtu) return void counts.tooLarge++;
    if (random() < weather.loss) return void counts.lost++;
    if (random() < weather.corrupt) {
      data = Uint8Array.from(data);
      data[Math.floor(random() * data.length)]! ^= 1 << Math.floor(random() * 8);
      counts.corrupted++;
    }
    if (random() < weather.truncate) {
      data = data.subarray(0, Math.floor(random() * data.length));
      counts.truncated++;
    }
    const copies = random() < weather.duplicate ? 2 : 1;
    counts.duplicated += copies - 1;
    for (let copy = 0; copy < copies; copy++) {
      counts.sent++;
      this.#schedule(() => send(data));
    }
  }

  #schedule(send: () => void): void {
    const { weather, random } = this;
    const now = performance.now();
    let at = Math.max(this.#latest, now + weather.delay + (weather.jitter > 0 ? random() * weather.jitter : 0));
    if (random() < weather.reorder) {
      at += random() * weather.reorderMs;
      this.counts.reordered++;
    } else this.#latest = at;
    if (at <= now && this.#waiting.length === 0) return send();
    let index = this.#waiting.length;
    while (index > 0 && this.#waiting[index - 1]!.at > at) index--;
    this.#waiting.splice(index, 0, { at, send });
    if (index === 0) this.#wake(now);
  }

  #wake(now: number): void {
    clearTimeout(this.#timer);
    const next = this.#waiting[0];
    if (next) this.#timer = setTimeout(() => this.#deliver(), Math.max(0, next.at - now));
  }

  #deliver(): void {
    const now = performance.now();
    const due = this.#waiting.findIndex(({ at }) => at > now);
    for (const { send } of this.#waiting.splice(0, due < 0 ? Infinity : due)) send();
    this.#wake(now);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#waiting.length = 0;
  }
}

function openSocket(): Socket {
  return createSocket({ type: "udp4", recvBufferSize: BUFFER, sendBufferSize: BUFFER });
}

function send(socket: Socket, data: Uint8Array, port: number, host: string): void {
  try {
    socket.send(data, port, host);
  } catch {
    // closed meanwhile, as by rebind: it is lost
  }
}

/** Random numbers in [0, 1), the same for the same seed (mulberry32). */
export function generate(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

async function main(): Promise<void> {
  const numbers = ["loss", "duplicate", "corrupt", "truncate", "reorder", "reorderMs", "delay", "jitter", "mtu"] as const;
  const { values } = parseArgs({
    options: {
      server: { type: "string" },
      listen: { type: "string" },
      seed: { type: "string" },
      ...Object.fromEntries(numbers.map((name) => [name, { type: "string" as const }])),
    },
  }) as { values: Record<string, string | undefined> };
  if (values.server === undefined) throw new Error("Cannot relay: --server=HOST:PORT is needed");
  const number = (name: string): number => {
    const value = Number(values[name]);
    if (!(value >= 0)) throw new Error(`Cannot use --${name}: ${JSON.stringify(values[name])} is not a number`);
    return value;
  };
  const weather = Object.fromEntries(numbers.filter((name) => values[name] !== undefined).map((name) => [name, number(name)]));
  const seed = values.seed === undefined ? undefined : number("seed");
  const relay = await UdpRelay.start({ server: values.server, listen: values.listen, seed, weather });
  console.log(relay.address);
}

if (import.meta.main) {
  await main().catch((error: Error) => {
    console.error(error.message);
    process.exit(2);
  });
}
