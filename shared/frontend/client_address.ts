// Who a client is where a trusted proxy is in front: its address by Forwarded, and its certificate by Client-Cert.
import { createAllowList } from "../address/allow_list.ts";
import { checkNetworks } from "../config/common_options.ts";
import { defineOptions } from "../config/option.ts";
import { parseClientCert } from "../http/client_cert.ts";
import { parseForwarded, parseNode } from "../http/forwarded.ts";
import { type Fields, values } from "../http/head.ts";
import { hostOf } from "../limits/addresses.ts";
import { RecentKeys } from "../limits/counters.ts";
import type { LogLimit } from "../log/limit.ts";

export const trustedProxyOptions = defineOptions({
  "http-proxy.trusted-proxies": {
    reload: "new tunnels",
    kind: "list",
    description:
      "Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) is trusted for the client's address; from " +
      "others it is ignored. By default none.",
    check: checkNetworks({ words: false }),
  },
  "http-proxy.proxy-protocol": {
    reload: "new connections",
    kind: "list",
    description:
      "Addresses and networks of TCP load balancers that send the client's address in a header of the PROXY protocol, version 1 or 2. " +
      "Connections from them without the header, and from others with it, are refused. By default none.",
    check: checkNetworks({ words: false }),
  },
});

/** The configured proxies in front. Each speaks for many clients, so its own address is never a client's. */
export class TrustedProxies {
  readonly #trusts: Contains | undefined;
  readonly #isIntermediary: Contains | undefined;
  /** Whether Client-Cert of the proxies whose Forwarded field is trusted is trusted, too. */
  readonly trustsCertificates: boolean;

  /**
   * @param patterns addresses and networks whose Forwarded field is trusted
   * @param proxyProtocol addresses and networks whose connections begin with a header of the PROXY protocol
   * @param trustsCertificates whether Client-Cert of `patterns` is trusted, too
   */
  constructor(patterns: readonly string[], proxyProtocol: readonly string[] = [], trustsCertificates = false) {
    this.trustsCertificates = trustsCertificates;
    this.#trusts = containedIn(patterns);
    this.#isIntermediary = containedIn([...patterns, ...proxyProtocol]);
  }

  /** @param remote `host:port` or `[host]:port` */
  trusts(remote: string): boolean {
    return this.#trusts?.(hostOf(remote)) ?? false;
  }

  /**
   * Whether `remote` is a configured proxy's own address: the proxy reports no client, or another proxy that reports none.
   * @param remote `host:port` or `[host]:port`; the port may be missing
   */
  isIntermediary(remote: string): boolean {
    return this.#isIntermediary?.(hostOf(remote)) ?? false;
  }

  /**
   * The client's address as the trusted proxy at `remote` reports it: the nearest that is not itself a trusted proxy. The port may be
   * missing. If the chain breaks, it is the last trusted proxy.
   * @throws {HeadError}
   */
  clientOf(remote: string, fields: Fields): string {
    let client = remote;
    for (const text of parseForwarded(values(fields, "forwarded")).reverse()) {
      const node = text === undefined ? undefined : parseNode(text);
      if (!node) break;
      const host = node.host.includes(":") ? `[${node.host}]` : node.host;
      client = node.port === undefined ? host : `${host}:${node.port}`;
      if (!this.#trusts?.(node.host)) break;
    }
    return client;
  }

  /**
   * The certificate that the client has presented to a trusted proxy, DER; `undefined` if it has presented none, or the proxy is not trusted to
   * say so.
   * @throws {HeadError}
   */
  certificateOf(fields: Fields): Uint8Array | undefined {
    return this.trustsCertificates ? parseClientCert(fields) : undefined;
  }
}

type Contains = (host: string) => boolean;

/** `undefined` if there are no patterns, and thus no host is contained. */
function containedIn(patterns: readonly string[]): Contains | undefined {
  if (patterns.length === 0) return undefined;
  const list = createAllowList(patterns);
  return (host) => list.allows({ host, port: 1 });
}

/** Interval in milliseconds between warnings about one proxy. */
const WARNING_INTERVAL_MS = 3_600_000;

/** Warns, once an hour each, about configured proxies that report no client. */
export class MissingClientWarnings {
  readonly #warnedAt = new RecentKeys<number>();
  readonly #logLimit: LogLimit;
  readonly #now: () => number;

  /** @param now milliseconds from any fixed point */
  constructor(logLimit: LogLimit, now: () => number) {
    this.#logLimit = logLimit;
    this.#now = now;
  }

  /** @param proxy its address, `host:port` or `[host]:port`; the port may be missing */
  warn(proxy: string): void {
    const [host, now] = [hostOf(proxy), this.#now()];
    const warnedAt = this.#warnedAt.get(host);
    if (warnedAt !== undefined && now - warnedAt < WARNING_INTERVAL_MS) return;
    this.#warnedAt.set(host, now);
    this.#logLimit.warn("listed proxy names no client: limits by address do not apply to its clients", {
      proxy: host,
      remedy: "let it send the client's address, as Forwarded: for=ADDRESS or in a header of the PROXY protocol, or take it from " +
        "--http-proxy.trusted-proxies and --http-proxy.proxy-protocol",
    });
  }
}
