// All limits on clients, in the order in which a request meets them: the door, the rate of its address, lock-outs, the rate of who it is,
// and the tunnels.
import { networksOf } from "../allow_list.ts";
import type { ClientCredentials, Identity } from "../auth/authenticator.ts";
import type { LogFields, Logger } from "../log.ts";
import type { AddressLimit, Net } from "../net/types.ts";
import { Door, type Visit } from "./door.ts";
import { type LimitName, LimitReached, type LimitReports, orNone } from "./limit.ts";
import type { ClientLimitValues } from "./options.ts";
import { type Buffers, reportDescriptors, shareOf, withinDescriptors } from "./resources.ts";
import { Buckets } from "./tables.ts";
import { type OpenTunnel, TunnelLimits } from "./tunnels.ts";

/** A client that is in. */
export class ClientVisit {
  readonly #limits: ClientLimits;
  readonly #visit: Visit;

  constructor(limits: ClientLimits, visit: Visit) {
    this.#limits = limits;
    this.#visit = visit;
  }

  /**
   * Its address has become known.
   * @throws {LimitReached}
   */
  comesFrom(remote: string): void {
    this.#visit.comesFrom(remote);
  }

  /**
   * It asks for a tunnel. To be called before its credentials are looked at.
   * @throws {LimitReached}
   */
  knock(): void {
    if (this.#visit.key !== undefined) this.#limits.checkAddressRate(this.#visit.key);
    this.#visit.checkLockOut();
  }

  /** Its credentials were not accepted. */
  failed(credentials: ClientCredentials): void {
    this.#visit.failed(JSON.stringify(credentials));
  }

  /**
   * It may have one, which the caller closes.
   * @throws {LimitReached}
   */
  open(identity: Identity): OpenTunnel {
    return this.#limits.open(identity);
  }

  /** Its connection is gone. */
  leave(): void {
    this.#visit.leave();
  }
}

export interface ClientLimitsDeps {
  log: Logger;
  /** Flushed while it is open, and when it is closed. */
  reports: LimitReports;
  createRate: Net["createRate"];
  /** As of {@link TunnelLimitsOptions}. */
  buffers?: Buffers;
  /** Addresses and networks of proxies and load balancers that tell their clients' addresses: their own count for nothing. Default none. */
  intermediaries?: readonly string[];
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** Holds clients to their limits, until it is closed. */
export class ClientLimits {
  /** Heads of clients that may be read at a time. */
  readonly heads: number;
  /** And of one address. */
  readonly headsPerAddress: AddressLimit;
  readonly #reports: LimitReports;
  readonly #door: Door;
  readonly #tunnels: TunnelLimits;
  readonly #addressRate: Buckets;
  readonly #clientRate: Buckets;

  /** @param descriptors that a tunnel takes */
  constructor(values: ClientLimitValues, descriptors: number, deps: ClientLimitsDeps) {
    const { now, createRate, buffers, reports } = deps;
    const wanted = { connections: orNone(values.connections), heads: Math.min(orNone(values.heads), MOST_HEADS) };
    const { connections, heads } = withinDescriptors(wanted, descriptors);
    const ofConnections = (limit: number, share: number) => shareOf(limit, share, wanted.connections, connections);
    const connectionsPerAddress = ofConnections(values.connectionsPerAddress, OF_ADDRESS);
    const tunnelsPerAgent = ofConnections(values.tunnelsPerAgent, OF_CLIENT);
    const tunnelsPerClient = ofConnections(values.tunnelsPerClient, OF_CLIENT);
    const headsPerAddress = shareOf(values.headsPerAddress, OF_ADDRESS, wanted.heads, heads);
    if (connections < wanted.connections) {
      reportDescriptors(deps.log, "connections", connections, { heads, connectionsPerAddress, tunnelsPerAgent, tunnelsPerClient });
    }
    this.heads = heads;
    this.headsPerAddress = { most: headsPerAddress, exempt: [...networksOf(values.exempt), ...networksOf(deps.intermediaries ?? [])] };
    this.#reports = reports;
    this.#door = new Door({
      all: { limit: "connections", most: connections },
      perAddress: { limit: "connections-per-address", most: orNone(connectionsPerAddress) },
      addresses: values,
      forgivenMs: 10_000,
      reports,
      now,
    });
    this.#tunnels = new TunnelLimits({ ...values, tunnelsPerAgent, tunnelsPerClient, createRate, buffers, reports, now });
    const burst = (rate: number) => orNone(rate) * values.tunnelBurst / 1_000;
    this.#addressRate = new Buckets(orNone(values.tunnelRatePerAddress), burst(values.tunnelRatePerAddress), now);
    this.#clientRate = new Buckets(orNone(values.tunnelRatePerClient), burst(values.tunnelRatePerClient), now);
  }

  /** Milliseconds of silence after which a tunnel is to end; 0 for never. */
  get idleMs(): number {
    return this.#tunnels.idleMs;
  }

  /**
   * Lets a client in.
   * @param remote missing where the address is not known yet: it is told by {@link ClientVisit.comesFrom}
   * @throws {LimitReached}
   */
  enter(remote?: string): ClientVisit {
    return new ClientVisit(this, this.#door.enter(remote));
  }

  /** @throws {LimitReached} */
  checkAddressRate(address: string): void {
    this.#checkRate(this.#addressRate, address, "tunnel-rate-per-address", { address });
  }

  /**
   * A tunnel of this client.
   * @throws {LimitReached}
   */
  open({ agentId, tokenId, ends }: Identity): OpenTunnel {
    const client = tokenId ?? agentId;
    this.#checkRate(this.#clientRate, client, "tunnel-rate-per-client", { agent: agentId, jti: tokenId });
    return this.#tunnels.open({ agentId, client, ends });
  }

  /** The network has given up a head for others. */
  headRefused(remote: string): void {
    this.#reports.hit("heads", { client: remote, most: this.heads });
  }

  /** It has given one up for others of the same address. */
  headOfAddressRefused(remote: string): void {
    this.#reports.hit("heads-per-address", { client: remote, most: this.headsPerAddress.most });
  }

  /** The system has no local port left for a connection to the proxy at `address`. */
  noPort(address: string): void {
    this.#reports.noPort(address);
  }

  #checkRate(rate: Buckets, key: string, limit: LimitName, fields: LogFields): void {
    const waitMs = rate.take(key);
    if (waitMs === 0) return;
    this.#reports.hit(limit, fields);
    throw new LimitReached(limit, "Too many tunnels are asked for in too short a time", Math.ceil(waitMs / 1_000));
  }

  close(): void {
    this.#tunnels.close();
  }
}

/** What the network can count to. */
const MOST_HEADS = 1_000_000;
/** Where descriptors are few: what one address, and one client or agent, may have of all there may be. */
const OF_ADDRESS = 1 / 4;
const OF_CLIENT = 1 / 2;
