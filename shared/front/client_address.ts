// Whose request is it? The address of the connection, or where that is a proxy's which is trusted, what it says in Forwarded.
import { createAllowList } from "../allow_list.ts";
import { checkNetworks } from "../cli/common_options.ts";
import { defineOptions } from "../cli/option.ts";
import { parseForwarded, parseNode } from "../http/forwarded.ts";
import { type Fields, values } from "../http/head.ts";
import { hostOf } from "../limits/addresses.ts";

export const trustedProxyOptions = defineOptions({
  "http-proxy.trusted-proxies": {
    kind: "list",
    description:
      "Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) tells the client's address; of all others " +
      "it is ignored. By default none.",
    check: checkNetworks({ words: false }),
  },
  "http-proxy.proxy-protocol": {
    kind: "list",
    description:
      "Addresses and networks of TCP load balancers, whose connections begin with a header of the PROXY protocol, version 1 or 2, which tells " +
      "the client's address; one without it is refused, and one from elsewhere with it. By default none.",
    check: checkNetworks({ words: false }),
  },
});

/** Knows which proxies are believed. */
export class TrustedProxies {
  readonly #trusts: (host: string) => boolean;

  /** @param patterns addresses and networks; none where it is empty */
  constructor(patterns: readonly string[]) {
    const list = createAllowList(patterns);
    this.#trusts = patterns.length === 0 ? () => false : (host) => list.allows({ host, port: 1 });
  }

  /** @param remote `host:port` or `[host]:port` */
  trusts(remote: string): boolean {
    return this.#trusts(hostOf(remote));
  }

  /**
   * The client's address as a trusted proxy at `remote` tells it: the nearest that is not itself a trusted proxy. The port may be missing.
   * Where the nearest is not told, it is the proxy before that.
   * @throws {HeadError}
   */
  clientOf(remote: string, fields: Fields): string {
    let client = remote;
    for (const text of parseForwarded(values(fields, "forwarded")).reverse()) {
      const node = text === undefined ? undefined : parseNode(text);
      if (!node) break;
      const host = node.host.includes(":") ? `[${node.host}]` : node.host;
      client = node.port === undefined ? host : `${host}:${node.port}`;
      if (!this.#trusts(node.host)) break;
    }
    return client;
  }
}
