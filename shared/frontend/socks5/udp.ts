// UDP for SOCKS 5 clients (RFC 1928 §7). An association has a UDP socket, as long as the client's TCP connection is open. Each destination is a
// flow that passes the pipeline as a tunnel does. The network reads and writes the datagrams.
import { parsePorts } from "../../address/allow_list.ts";
import { formatAuthority } from "../../address/authority.ts";
import { type ClientCredentials, endReason, type Identity } from "../../auth/authenticator.ts";
import { hostOf } from "../../limits/addresses.ts";
import { NetError } from "../../net/errors.ts";
import type { Net } from "../../net/net.ts";
import type { Duplex } from "../../net/stream.ts";
import type { SocksClient, UdpListener } from "../../net/udp.ts";
import { clientDisconnected, connectError, TunnelError } from "../../tunnel/errors.ts";
import type { ClientProtocol, ServeStreams } from "../client_protocol.ts";
import type { ClientSession } from "../pipeline.ts";
import { destinationOf, encodeReply, parseDatagramHeader, REPLY, type SocksRequest } from "./messages.ts";

/** Where the UDP sockets of associations are. */
export interface SocksUdpOptions {
  /** Their ports, `first-last`. Default: the system chooses. */
  readonly udpPorts?: string;
  /** The address in replies to clients. Default: the one that the client has connected to. */
  readonly udpAddress?: string;
}

/** An authenticated client that asks for an association. */
export interface AssociationRequest {
  readonly identity: Identity;
  readonly credentials: ClientCredentials | undefined;
  readonly request: SocksRequest;
  /** The address at which the client has reached the listener. */
  readonly local: string;
}

/** Flows of one association; the datagrams of more destinations are dropped. */
const MAX_FLOWS = 4_096;
/** Bytes that a client may send on its TCP connection, where none are expected. */
const MAX_UNEXPECTED = 64 << 10;

export class Associations {
  readonly #ports = new UdpPorts();
  #address: string | undefined;

  /** @param options checked */
  constructor(options: SocksUdpOptions = {}) {
    this.update(options);
  }

  /** Changes the options of new associations. */
  update({ udpPorts, udpAddress }: SocksUdpOptions): void {
    this.#ports.setRange(udpPorts);
    this.#address = udpAddress;
  }

  /**
   * Serves the association to its end.
   * @throws {TunnelError} while the client waits for the reply
   */
  async serve(session: ClientSession, asked: AssociationRequest, serveStreams: ServeStreams): Promise<void> {
    const { context: { net, log, now }, stream, record } = session;
    const { identity, request, local } = asked;
    const host = hostOf(local);
    using counted = session.countAssociation(identity);
    using _held = session.holdAssociation(asked);
    using socket = await this.#ports.open(net, host, clientOf(request, hostOf(record.client)));
    const { listener } = socket;
    const flows = new AssociationFlows(asked, () => session.identity ?? identity);
    try {
      const bound = { host: this.#address ?? host.replace(/%.*/, ""), port: Number(listener.address.replace(/.*:/, "")) };
      await stream.write(encodeReply(REPLY.succeeded, bound));
    } catch (error) {
      throw error instanceof NetError ? clientDisconnected(error) : error;
    }
    const startedAt = now();
    const { id, client, agent, token: jti } = record;
    log.debug("association opened", { id, client, agent, address: listener.address });
    counted.endWhenIdle(() => flows.isIdle);
    const served = serveStreams(listener, flows.protocol);
    const reason = await endOf(stream, counted.signal);
    stream.close();
    listener.close();
    await served;
    const { count } = flows;
    const totalMs = Math.round(now() - startedAt);
    log.info("association", {
      id,
      client,
      agent,
      jti,
      protocol: record.protocol,
      flows: count,
      datagramsDropped: listener.dropped,
      reason,
      totalMs,
    });
  }
}

/** Who may send. A client that announces its own address, which no NAT has changed, is held to its port as well. */
function clientOf({ host, port }: SocksRequest, client: string): SocksClient {
  return { host: client, port: port > 0 && host === client ? port : undefined };
}

/** Resolves when the TCP connection ends (RFC 1928 §7), or with the reason when `signal` is aborted or the client sends too much. */
async function endOf(stream: Duplex, signal: AbortSignal | undefined): Promise<string | undefined> {
  const stop = () => stream.stopRead(0); // the pending read rejects
  signal?.addEventListener("abort", stop, { once: true });
  if (signal?.aborted) stop();
  try {
    let left = MAX_UNEXPECTED;
    for (let data; (data = await stream.read()) !== null;) {
      left -= data.length;
      if (left < 0) return "client: it sends data on the TCP connection of its association";
    }
    return undefined;
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    return signal?.aborted ? endReason(signal) : undefined; // a reset is an end, too
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}

/** The flows of one association. */
class AssociationFlows {
  readonly #asked: AssociationRequest;
  #open = 0;
  /** Flows so far. */
  count = 0;

  /** @param identity returns that of the client, as verified last */
  constructor(asked: AssociationRequest, readonly identity: () => Identity) {
    this.#asked = asked;
  }

  get isIdle(): boolean {
    return this.#open === 0;
  }

  /** A client is a destination here. Without a response, one that is refused is ignored for a moment. */
  readonly protocol: ClientProtocol = {
    preamble: "none",
    open: (session) => ({
      serve: async ({ head = "" }) => {
        this.count++;
        this.#open++;
        try {
          await this.#connect(session, head);
        } finally {
          this.#open--;
        }
      },
      refuse: () => Promise.resolve(session.stream.reset(1)),
    }),
  };

  /** @throws {TunnelError} */
  async #connect(session: ClientSession, header: string): Promise<void> {
    const { record } = session;
    const { credentials, request: { method } } = this.#asked;
    const identity = this.identity();
    record.protocol = "socks5";
    record.method = method;
    record.network = "udp";
    session.startTrace();
    session.adopt(identity);
    session.checkRate();
    const destination = destinationOf(parseDatagramHeader(header));
    record.destination = formatAuthority(destination);
    await session.connect({ identity, credentials, destination, network: "udp" });
  }
}

/** Attempts to bind a port that is free as far as is known. */
const MAX_ATTEMPTS = 16;

/** A socket whose port is in use until it is disposed of. */
interface AssociationSocket extends Disposable {
  readonly listener: UdpListener;
}

/** The ports of associations. */
class UdpPorts {
  #range: readonly [first: number, last: number] = [0, 0];
  readonly #used = new Set<number>();
  #last = 0;

  /** @param range `first-last`; `undefined` if the system chooses */
  setRange(range: string | undefined): void {
    this.#range = (range === undefined ? undefined : parsePorts(range)) ?? [0, 0];
    this.#last = this.#range[1];
  }

  /** @throws {TunnelError} */
  async open(net: Net, host: string, socks5: SocksClient): Promise<AssociationSocket> {
    for (let attempts = 0, port; attempts < MAX_ATTEMPTS && (port = this.#take()) !== undefined; attempts++) {
      try {
        const listener = await net.listenUdp({ address: formatAuthority({ host, port }), maxPeers: MAX_FLOWS, socks5 });
        return { listener, [Symbol.dispose]: () => this.#release(listener, port) };
      } catch (error) {
        this.#used.delete(port);
        if (!(error instanceof NetError)) throw error;
        if (error.code === "address-in-use" && port !== 0) continue;
        throw connectError(error, "The UDP socket of the association", "this proxy") ?? error;
      }
    }
    throw new TunnelError("connection_limit_reached", "No port of --socks.udp-ports is free");
  }

  /** The next free port of the range; 0 if the system chooses; `undefined` if none is free. */
  #take(): number | undefined {
    const [first, last] = this.#range;
    if (last === 0) return 0;
    for (let n = first; n <= last; n++) {
      this.#last = this.#last < last ? this.#last + 1 : first;
      if (this.#used.has(this.#last)) continue;
      this.#used.add(this.#last);
      return this.#last;
    }
    return undefined;
  }

  #release(listener: UdpListener, port: number): void {
    listener.close();
    this.#used.delete(port);
  }
}
