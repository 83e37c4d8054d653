// The addresses at which others reach the proxy, for invitations and advice: configured ones, or a guess.
import { networkInterfaces } from "node:os";
import ipaddr from "ipaddr.js";
import { formatHostPort, isEvery, splitHostPort } from "../shared/address/host_port.ts";
import type { ProxyOptions } from "./options.ts";

/** Addresses of the proxy. */
export interface PublicAddresses {
  /** `host:port`; at least one. */
  readonly addresses: readonly string[];
  /** Why others may not reach them. `undefined`: they are configured. */
  readonly doubt?: string;
}

/** The options that say where the proxy is. */
export interface AddressOptions {
  readonly agentServer: Pick<ProxyOptions["agentServer"], "listenAddress" | "publicAddress">;
  readonly httpProxy: Pick<ProxyOptions["httpProxy"], "listenAddress" | "publicAddress">;
  readonly acme?: Pick<ProxyOptions["acme"], "domain">;
}

/** Returns the addresses of this machine. */
export type ListAddresses = () => readonly string[];

/** Where agents connect to. `bound` is the address that is listened on, if it is known. */
export function agentAddresses(
  { agentServer: { publicAddress, listenAddress }, acme }: Pick<AddressOptions, "agentServer" | "acme">,
  { bound = listenAddress, list = listAddresses }: { bound?: string; list?: ListAddresses } = {},
): PublicAddresses {
  if (publicAddress.length > 0) return { addresses: publicAddress };
  return certified(bound, acme) ?? guess(bound, "agent-server.public-address", list);
}

/** Where clients connect to. By default a name that was configured for agents serves for clients too. */
export function clientAddresses(
  { agentServer, httpProxy: { publicAddress, listenAddress }, acme }: AddressOptions,
  { list = listAddresses }: { list?: ListAddresses } = {},
): PublicAddresses {
  if (publicAddress !== undefined) return { addresses: [publicAddress] };
  const [named] = agentServer.publicAddress;
  if (named !== undefined && isEvery(listenAddress)) {
    return { addresses: [formatHostPort({ host: splitHostPort(named).host, port: splitHostPort(listenAddress).port })] };
  }
  return certified(listenAddress, acme) ?? guess(listenAddress, "http-proxy.public-address", list);
}

/** The first name for which the proxy obtains a certificate. */
function certified(listen: string, { domain }: Pick<ProxyOptions["acme"], "domain"> = { domain: [] }): PublicAddresses | undefined {
  const name = domain.find((name) => !name.startsWith("*."));
  if (name === undefined || !isEvery(listen)) return undefined;
  return { addresses: [formatHostPort({ host: name, port: splitHostPort(listen).port })] };
}

function guess(listen: string, option: string, list: ListAddresses): PublicAddresses {
  const { host, port } = splitHostPort(listen);
  const remedy = `--${option} says how others reach it`;
  if (!isEvery(listen)) {
    const isLocal = host === "localhost" || (ipaddr.isValid(host) && rangeOf(host) === "loopback");
    return { addresses: [listen], doubt: isLocal ? `${listen} is reached from this machine alone` : undefined };
  }
  const [best] = list().map((address) => ({ address, rank: RANKS.indexOf(rangeOf(address)) })).filter(({ rank }) => rank >= 0)
    .toSorted((a, b) => a.rank - b.rank);
  if (best === undefined) {
    return { addresses: [formatHostPort({ host: "127.0.0.1", port })], doubt: `this machine has no other address; ${remedy}` };
  }
  const { address } = best;
  return { addresses: [formatHostPort({ host: address, port })], doubt: `${address} is a guess, an address of this machine; ${remedy}` };
}

/** Ranges (of ipaddr.js) that other machines may reach, the widest first. */
const RANKS = ["unicast", "carrierGradeNat", "private", "reserved", "uniqueLocal"];

function rangeOf(address: string): string {
  const parsed = ipaddr.parse(address);
  return parsed.range();
}

/** IPv4 first: more networks have it. */
function listAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses = []) => addresses.filter(({ internal }) => !internal));
  return all.toSorted((a, b) => a.family.localeCompare(b.family)).map(({ address }) => address.replace(/%.*/, ""));
}
