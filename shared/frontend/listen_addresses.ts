// The addresses of a service's listeners, which must differ.
import { formatHostPort, splitHostPort } from "../address/host_port.ts";
import { ConfigError } from "../config/option.ts";
import type { Forward } from "./forwards/forwards.ts";

/** The options with addresses that proxy and load balancer share. */
export interface ListenAddressOptions {
  readonly httpProxy: { readonly listenAddress: string; readonly http2ListenAddress?: string };
  readonly socks: { readonly listenAddress?: string };
  readonly admin: { readonly listenAddress?: string };
  readonly forward: readonly Pick<Forward, "listen" | "network">[];
  /** Of lb: each has a listener of its own. Default: none. */
  readonly published?: readonly { readonly listen: string; readonly network: string }[];
}

/**
 * Checks that no two listeners need the same port of the same address. Forwards may share one with each other.
 * @throws {ConfigError} naming both
 */
export function checkListenAddresses({ httpProxy, socks, admin, forward, published = [] }: ListenAddressOptions): void {
  const own = Object.entries({
    "--http-proxy.listen-address": httpProxy.listenAddress,
    "--http-proxy.http2-listen-address": httpProxy.http2ListenAddress,
    "--socks.listen-address": socks.listenAddress,
    "--admin.listen-address": admin.listenAddress,
  }).filter((entry): entry is [string, string] => entry[1] !== undefined);
  const check = (what: string, address: string, others: readonly [string, string][]) => {
    const [option, other] = others.find(([, other]) => overlap(address, other)) ?? [];
    if (option === undefined) return;
    throw new ConfigError(`Cannot listen on ${address} for ${what}: ${option} is ${other}; give one of them another port`);
  };
  own.forEach(([option, address], i) => check(option, address, own.slice(0, i)));
  const taken = new Map<string, [string, string][]>();
  const others = (listen: string, network = "tcp") => {
    const key = `${network === "udp" ? "udp" : "tcp"} ${splitHostPort(listen).port}`;
    return taken.get(key) ?? taken.set(key, []).get(key)!;
  };
  for (const [option, address] of own) others(address).push([option, address]);
  for (const { listen, network } of forward) if (network !== "udp") check("--forward", listen, own);
  for (const { listen, network } of forward) others(listen, network).push(["--forward", listen]);
  for (const { listen, network } of published) {
    check("--published", listen, others(listen, network));
    others(listen, network).push(["--published", listen]);
  }
}

/** Whether one listener prevents the other. Without a host, and with that of every address, a listener takes the port of all of them. */
function overlap(one: string, other: string): boolean {
  const [a, b] = [splitHostPort(one), splitHostPort(other)];
  if (a.port === 0 || a.port !== b.port) return false;
  return [a, b].some(({ host }) => host === "" || /^(?:0\.0\.0\.0|[0:]+)$/.test(host)) || formatHostPort(a) === formatHostPort(b);
}
