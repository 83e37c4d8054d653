// All limits on clients, in the order in which they apply to a request: connections, the rate per address, lockouts, the rate per client,
// and tunnels.
import { networksOf } from "../address/allow_list.ts";
import type { Network } from "../address/authority.ts";
import { type ClientCredentials, clientOf, type Identity } from "../auth/authenticator.ts";
import type { LogFields, Logger } from "../log/logger.ts";
import type { AddressLimit } from "../net/listener.ts";
import type { Net } from "../net/net.ts";
import type { Quota } from "../policy/policy.ts";
import type { SharedRate } from "./bandwidth.ts";
import { ConnectionLimiter, type ConnectionPermit } from "./connection_limiter.ts";
import { type LimitName, LimitReached, type LimitReporter, unlimitedIfZero } from "./limit.ts";
import type { ClientLimitValues } from "./options.ts";
import { type Buffers, reportDescriptors, shareOf, withinDescriptors } from "./resources.ts";
import { TokenBuckets } from "./counters.ts";
import type { SharedLimits } from "./shared_limits.ts";
import { type OpenTunnel, TunnelLimits } from "./tunnels.ts";

/** The permit of a client connection. */
export class ClientPermit {
  readonly #limits: ClientLimits;
  readonly #permit: ConnectionPermit;

  constructor(limits: ClientLimits, permit: ConnectionPermit) {
    this.#limits = limits;
    this.#permit = permit;
  }

  /**
   * Sets the client's address when it becomes known.
   * @throws {LimitReached}
   */
  setRemote(remote: string): void {
    this.#permit.setRemote(remote);
  }

  /**
   * Checks the request rate and lockout of the address. Called before the credentials are verified.
   * @throws {LimitReached}
   */
  checkRate(): void {
    if (this.#permit.key !== undefined) this.#limits.checkAddressRate(this.#permit.key);
    this.#permit.checkLockout();
  }

  /** Records a failed authentication. */
  recordFailure(credentials: ClientCredentials): void {
    this.#permit.recordFailure(JSON.stringify(credentials));
  }

  /**
   * Opens a tunnel, which the caller closes.
   * @param quotas limits of the policy. Default: none
   * @throws {LimitReached}
   */
  open(identity: Identity, network: Network, quotas?: readonly Quota[]): OpenTunnel {
    return this.#limits.open(identity, network, quotas);
  }

  /** Returns the permit when the connection ends. */
  release(): void {
    this.#permit.release();
  }
}

export interface ClientLimitsDeps {
  log: Logger;
  /** Flushed regularly, and on close. */
  reports: LimitReporter;
  createRate: Net["createRate"];
  /** As in {@link TunnelLimitsOptions}. */
  buffers?: Buffers;
  /** Addresses and networks of proxies and load balancers that report their clients' addresses; theirs are exempt. Default: none. */
  intermediaries?: readonly string[];
  /** The other processes of the service, for which the limits hold, too. Default: there are none. */
  shared?: SharedLimits;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/** Enforces the limits on clients until it is closed. */
export class ClientLimits {
  readonly #reports: LimitReporter;
  readonly #connections: ConnectionLimiter;
  readonly #tunnels: TunnelLimits;
  readonly #descriptors: number;
  readonly #processes: number;
  readonly #addressRate: TokenBuckets;
  readonly #clientRate: TokenBuckets;
  #pendingRequests!: number;
  #pendingRequestsPerAddress!: AddressLimit;

  /** @param descriptors file descriptors per tunnel */
  constructor(values: ClientLimitValues, descriptors: number, deps: ClientLimitsDeps) {
    const { now, createRate, buffers, reports, shared } = deps;
    this.#descriptors = descriptors;
    this.#processes = shared?.processes ?? 1;
    const { connections, connectionsPerAddress, pendingRequests, pendingRequestsPerAddress, ...tunnels } = this.#withinDescriptors(values);
    if (connections.all < unlimitedIfZero(values.connections)) {
      reportDescriptors(deps.log, "connections", connections.own, { pendingRequests, connectionsPerAddress, ...tunnels });
    }
    this.#setPending(pendingRequests, pendingRequestsPerAddress, values, deps.intermediaries);
    this.#reports = reports;
    this.#connections = new ConnectionLimiter({
      all: { limit: "connections", max: connections.all, ownMax: connections.own },
      perAddress: { limit: "connections-per-address", max: connectionsPerAddress },
      addresses: values,
      failureRefillMs: 10_000,
      reports,
      shared,
      now,
    });
    this.#tunnels = new TunnelLimits({ ...values, ...tunnels, createRate, buffers, reports, shared, now });
    const rateOf = (limit: LimitName, perSecond: number) => {
      const onTaken = shared?.rate(limit, (key, count) => rate.takenByOthers(key, count));
      const rate = new TokenBuckets(...ratesOf(values, perSecond), now, onTaken);
      return rate;
    };
    this.#addressRate = rateOf("tunnel-rate-per-address", values.tunnelRatePerAddress);
    this.#clientRate = rateOf("tunnel-rate-per-client", values.tunnelRatePerClient);
  }

  /**
   * Changes the limits. Open connections and tunnels stay, and still count.
   * @param intermediaries as of {@link ClientLimitsDeps}
   */
  update(values: ClientLimitValues, intermediaries?: readonly string[]): void {
    const { connections, connectionsPerAddress, pendingRequests, pendingRequestsPerAddress, ...tunnels } = this.#withinDescriptors(values);
    this.#connections.update({ all: connections.all, own: connections.own, perAddress: connectionsPerAddress }, values);
    this.#tunnels.update({ ...values, ...tunnels });
    this.#setPending(pendingRequests, pendingRequestsPerAddress, values, intermediaries);
    this.#addressRate.update(...ratesOf(values, values.tunnelRatePerAddress));
    this.#clientRate.update(...ratesOf(values, values.tunnelRatePerClient));
  }

  #setPending(all: number, perAddress: number, { exemptAddresses }: ClientLimitValues, intermediaries: readonly string[] = []): void {
    this.#pendingRequests = all;
    this.#pendingRequestsPerAddress = { max: perAddress, exempt: [...networksOf(exemptAddresses), ...networksOf(intermediaries)] };
  }

  /** Limit on request heads being read concurrently. */
  get pendingRequests(): number {
    return this.#pendingRequests;
  }

  /** The limit on pending requests per address. */
  get pendingRequestsPerAddress(): AddressLimit {
    return this.#pendingRequestsPerAddress;
  }

  /** The limits that the file descriptors permit, of which each process of the service has as many. Pending requests are those of this one. */
  #withinDescriptors(values: ClientLimitValues) {
    const configured = {
      connections: unlimitedIfZero(values.connections),
      pendingRequests: Math.min(unlimitedIfZero(values.pendingRequests), MAX_PENDING_REQUESTS),
    };
    const { connections: own, pendingRequests } = withinDescriptors(configured, this.#descriptors);
    const all = Math.min(configured.connections, own * this.#processes);
    const ofConnections = (limit: number, share: number) => shareOf(limit, share, configured.connections, all);
    const shares = {
      connectionsPerAddress: ofConnections(values.connectionsPerAddress, ADDRESS_SHARE),
      tunnelsPerAgent: ofConnections(values.tunnelsPerAgent, CLIENT_SHARE),
      tunnelsPerClient: ofConnections(values.tunnelsPerClient, CLIENT_SHARE),
    };
    return {
      ...shares,
      connections: { all, own },
      pendingRequests,
      pendingRequestsPerAddress: shareOf(values.pendingRequestsPerAddress, ADDRESS_SHARE, configured.pendingRequests, pendingRequests),
    };
  }

  /** Idle timeout of tunnels in milliseconds; 0: none. */
  get idleMs(): number {
    return this.#tunnels.idleMs;
  }

  /**
   * Admits a client connection.
   * @param remote its address; if that is unknown yet, {@link ClientPermit.setRemote} sets it later
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
   * Opens a tunnel of this client.
   * @throws {LimitReached}
   */
  open(identity: Identity, network: Network, quotas?: readonly Quota[]): OpenTunnel {
    const { agentId, tokenId, signal } = identity;
    const client = clientOf(identity);
    this.#checkRate(this.#clientRate, client, "tunnel-rate-per-client", { agent: agentId, jti: tokenId });
    return this.#tunnels.open({ agentId, client, tokenId, network, quotas, signal });
  }

  /** The rate that all tunnels through an agent share, which the caller releases; `undefined` if there is none. */
  rateOfAgent(agentId: string): SharedRate | undefined {
    return this.#tunnels.rateOfAgent(agentId);
  }

  /** The network has dropped the oldest pending request for a new one. */
  recordPendingHead(remote: string): void {
    this.#reports.record("pending-requests", { client: remote, max: this.pendingRequests });
  }

  /** Records a pending request that was refused at the limit of its address. */
  recordPendingHeadOfAddress(remote: string): void {
    this.#reports.record("pending-requests-per-address", { client: remote, max: this.pendingRequestsPerAddress.max });
  }

  /** No local port is left for a connection to the proxy at `address`. */
  recordNoPort(address: string): void {
    this.#reports.noPort(address);
  }

  #checkRate(rate: TokenBuckets, key: string, limit: LimitName, fields: LogFields): void {
    const waitMs = rate.take(key);
    if (waitMs === 0) return;
    this.#reports.record(limit, fields);
    throw new LimitReached(limit, "Too many tunnels are requested in a short time", waitMs);
  }

  close(): void {
    this.#tunnels.close();
  }
}

/** Rate and burst of buckets. */
function ratesOf({ tunnelBurst }: ClientLimitValues, rate: number): [rate: number, burst: number] {
  return [unlimitedIfZero(rate), unlimitedIfZero(rate) * tunnelBurst / 1_000];
}

/** Upper bound of the network's counter. */
const MAX_PENDING_REQUESTS = 1_000_000;
/** With few descriptors, the share of one address, and of one client or agent. */
const ADDRESS_SHARE = 1 / 4;
const CLIENT_SHARE = 1 / 2;
