// All limits on clients, in the order in which a request meets them: the door, the rate of its address, lock-outs, the rate of who it is,
// and the tunnels.
import { networksOf } from "../address/allow_list.ts";
import type { ClientCredentials, Identity } from "../auth/authenticator.ts";
import type { LogFields, Logger } from "../log/logger.ts";
import type { AddressLimit, Net } from "../net/types.ts";
import { ConnectionLimiter, type ConnectionPermit } from "./connection_limiter.ts";
import { type LimitName, LimitReached, type LimitReporter, unlimitedIfZero } from "./limit.ts";
import type { ClientLimitValues } from "./options.ts";
import { type Buffers, reportDescriptors, shareOf, withinDescriptors } from "./resources.ts";
import { TokenBuckets } from "./counters.ts";
import { type OpenTunnel, TunnelLimits } from "./tunnels.ts";

/** A client that is in. */
export class ClientPermit {
  readonly #limits: ClientLimits;
  readonly #permit: ConnectionPermit;

  constructor(limits: ClientLimits, permit: ConnectionPermit) {
    this.#limits = limits;
    this.#permit = permit;
  }

  /**
   * Its address has become known.
   * @throws {LimitReached}
   */
  setRemote(remote: string): void {
    this.#permit.setRemote(remote);
  }

  /**
   * It asks for a tunnel. To be called before its credentials are looked at.
   * @throws {LimitReached}
   */
  checkRate(): void {
    if (this.#permit.key !== undefined) this.#limits.checkAddressRate(this.#permit.key);
    this.#permit.checkLockout();
  }

  /** Its credentials were not accepted. */
  recordFailure(credentials: ClientCredentials): void {
    this.#permit.recordFailure(JSON.stringify(credentials));
  }

  /**
   * It may have one, which the caller closes.
   * @throws {LimitReached}
   */
  open(identity: Identity): OpenTunnel {
    return this.#limits.open(identity);
  }

  /** Its connection is gone. */
  release(): void {
    this.#permit.release();
  }
}

export interface ClientLimitsDeps {
  log: Logger;
  /** Flushed while it is open, and when it is closed. */
  reports: LimitReporter;
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
  readonly pendingRequests: number;
  /** And of one address. */
  readonly pendingRequestsPerAddress: AddressLimit;
  readonly #reports: LimitReporter;
  readonly #connections: ConnectionLimiter;
  readonly #tunnels: TunnelLimits;
  readonly #addressRate: TokenBuckets;
  readonly #clientRate: TokenBuckets;

  /** @param descriptors that a tunnel takes */
  constructor(values: ClientLimitValues, descriptors: number, deps: ClientLimitsDeps) {
    const { now, createRate, buffers, reports } = deps;
    const wanted = {
      connections: unlimitedIfZero(values.connections),
      pendingRequests: Math.min(unlimitedIfZero(values.pendingRequests), MAX_PENDING_REQUESTS),
    };
    const { connections, pendingRequests } = withinDescriptors(wanted, descriptors);
    const ofConnections = (limit: number, share: number) => shareOf(limit, share, wanted.connections, connections);
    const connectionsPerAddress = ofConnections(values.connectionsPerAddress, ADDRESS_SHARE);
    const tunnelsPerAgent = ofConnections(values.tunnelsPerAgent, CLIENT_SHARE);
    const tunnelsPerClient = ofConnections(values.tunnelsPerClient, CLIENT_SHARE);
    const pendingRequestsPerAddress = shareOf(values.pendingRequestsPerAddress, ADDRESS_SHARE, wanted.pendingRequests, pendingRequests);
    if (connections < wanted.connections) {
      reportDescriptors(deps.log, "connections", connections, {
        pendingRequests,
        connectionsPerAddress,
        tunnelsPerAgent,
        tunnelsPerClient,
      });
    }
    this.pendingRequests = pendingRequests;
    this.pendingRequestsPerAddress = {
      most: pendingRequestsPerAddress,
      exempt: [...networksOf(values.exemptAddresses), ...networksOf(deps.intermediaries ?? [])],
    };
    this.#reports = reports;
    this.#connections = new ConnectionLimiter({
      all: { limit: "connections", max: connections },
      perAddress: { limit: "connections-per-address", max: unlimitedIfZero(connectionsPerAddress) },
      addresses: values,
      failureRefillMs: 10_000,
      reports,
      now,
    });
    this.#tunnels = new TunnelLimits({ ...values, tunnelsPerAgent, tunnelsPerClient, createRate, buffers, reports, now });
    const burst = (rate: number) => unlimitedIfZero(rate) * values.tunnelBurst / 1_000;
    this.#addressRate = new TokenBuckets(unlimitedIfZero(values.tunnelRatePerAddress), burst(values.tunnelRatePerAddress), now);
    this.#clientRate = new TokenBuckets(unlimitedIfZero(values.tunnelRatePerClient), burst(values.tunnelRatePerClient), now);
  }

  /** Milliseconds of silence after which a tunnel is to end; 0 for never. */
  get idleMs(): number {
    return this.#tunnels.idleMs;
  }

  /**
   * Lets a client in.
   * @param remote missing where the address is not known yet: it is told by {@link ClientPermit.setRemote}
   * @throws {LimitReached}
   */
  acquire(remote?: string): ClientPermit {
    return new ClientPermit(this, this.#connections.acquire(remote));
  }

  /** @throws {LimitReached} */
  checkAddressRate(address: string): void {
    this.#checkRate(this.#addressRate, address, "tunnel-rate-per-address", { address });
  }

  /**
   * A tunnel of this client.
   * @throws {LimitReached}
   */
  open({ agentId, tokenId, signal }: Identity): OpenTunnel {
    const client = tokenId ?? agentId;
    this.#checkRate(this.#clientRate, client, "tunnel-rate-per-client", { agent: agentId, jti: tokenId });
    return this.#tunnels.open({ agentId, client, signal: signal });
  }

  /** The network has given up a head for others. */
  recordPendingHead(remote: string): void {
    this.#reports.record("pending-requests", { client: remote, most: this.pendingRequests });
  }

  /** It has given one up for others of the same address. */
  recordPendingHeadOfAddress(remote: string): void {
    this.#reports.record("pending-requests-per-address", { client: remote, most: this.pendingRequestsPerAddress.most });
  }

  /** The system has no local port left for a connection to the proxy at `address`. */
  recordNoPort(address: string): void {
    this.#reports.noPort(address);
  }

  #checkRate(rate: TokenBuckets, key: string, limit: LimitName, fields: LogFields): void {
    const waitMs = rate.take(key);
    if (waitMs === 0) return;
    this.#reports.record(limit, fields);
    throw new LimitReached(limit, "Too many tunnels are asked for in too short a time", Math.ceil(waitMs / 1_000));
  }

  close(): void {
    this.#tunnels.close();
  }
}

/** What the network can count to. */
const MAX_PENDING_REQUESTS = 1_000_000;
/** Where descriptors are few: what one address, and one client or agent, may have of all there may be. */
const ADDRESS_SHARE = 1 / 4;
const CLIENT_SHARE = 1 / 2;
