// Where the agent connects to: what the allow-list has and the deny-list has not, by name and by address. It knows no tunnels.
import { isIP } from "node:net";
import { createAllowList } from "../shared/allow_list.ts";
import { type Authority, formatAuthority } from "../shared/http/head.ts";
import { Refusal } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Duplex, Net } from "../shared/net/types.ts";
import type { Resolve } from "./targets.ts";

export interface DestinationsOptions {
  net: Net;
  /** Patterns; none allow all. */
  allow: readonly string[];
  /** Patterns of what is refused all the same. */
  deny: readonly string[];
  /** Every address of a name. */
  resolve: Resolve;
}

/** What the agent may reach. */
export interface Destinations {
  /**
   * Connects in `timeoutMs` at most.
   * @throws {Refusal} 403
   * @throws {NetError} as `connectTcp` of the network
   */
  connect(destination: Authority, timeoutMs: number): Promise<Duplex>;
}

/** As RFC 8305 §5 recommends, in milliseconds. */
const STAGGER_MS = 250;
/** More addresses of a name are not tried. */
const MAX_ADDRESSES = 16;

/** What is looked up is what is connected to: whoever answers for a name cannot answer otherwise in between. */
export function createDestinations({ net, allow, deny, resolve }: DestinationsOptions): Destinations {
  const allowed = createAllowList(allow);
  const denied = deny.length > 0 ? createAllowList(deny) : undefined;
  return {
    async connect(destination, timeoutMs) {
      const authority = formatAuthority(destination);
      if (!allowed.allows(destination)) throw new Refusal(403, "http_request_denied", `${authority} is not on the allow-list of the agent`);
      if (!denied) return await net.connectTcp({ ...destination, timeoutMs });
      if (denied.allows(destination)) throw prohibited(`${authority} is on the deny-list of the agent`);
      const { host, port } = destination;
      if (isIP(host)) return await net.connectTcp({ host, port, timeoutMs });
      const deadline = AbortSignal.timeout(timeoutMs);
      const addresses = (await lookUp(resolve, host, deadline)).slice(0, MAX_ADDRESSES);
      const left = addresses.filter((address) => !denied.allows({ host: address, port }));
      if (left.length === 0) throw prohibited(`${authority} has an address that is on the deny-list of the agent`);
      return await race(net, left, port, timeoutMs, deadline);
    },
  };
}

function prohibited(message: string): Refusal {
  return new Refusal(403, "destination_ip_prohibited", message);
}

async function lookUp(resolve: Resolve, host: string, deadline: AbortSignal): Promise<readonly string[]> {
  const late = new Promise<never>((_, reject) => {
    const fail = () => reject(new NetError("timed-out", `Cannot connect to ${host}: its name was not looked up in time`));
    deadline.addEventListener("abort", fail, { once: true });
  });
  late.catch(() => {}); // when nobody waits any more
  const found = await Promise.race([late, resolve(host)]).catch((cause) => {
    if (cause instanceof NetError) throw cause;
    throw new NetError("unknown-host", `Cannot connect to ${host}: the name is unknown (${(cause as Error).message})`, { cause });
  });
  if (found.length === 0) throw new NetError("unknown-host", `Cannot connect to ${host}: the name has no address`);
  return found;
}

/** To the first address that takes a connection, with a staggered start. */
async function race(net: Net, addresses: readonly string[], port: number, timeoutMs: number, deadline: AbortSignal): Promise<Duplex> {
  const won = new AbortController();
  const signal = AbortSignal.any([won.signal, deadline]);
  let [winner, failure]: [Duplex | undefined, unknown] = [undefined, undefined];
  let wake = () => {};
  let running = 0;
  const attempt = async (host: string): Promise<void> => {
    running++;
    try {
      const stream = await net.connectTcp({ host, port, timeoutMs, signal });
      if (won.signal.aborted || winner) stream.close(); // too late by a moment
      else winner = stream;
    } catch (error) {
      failure ??= error;
    }
    running--;
    wake();
  };
  const waiting = [...addresses];
  while (!winner && (waiting.length > 0 || running > 0) && !deadline.aborted) {
    const next = waiting.shift();
    if (next !== undefined) void attempt(next); // never rejects
    let timer: ReturnType<typeof setTimeout> | undefined;
    await new Promise<void>((resolve) => {
      wake = resolve;
      if (waiting.length > 0) timer = setTimeout(resolve, STAGGER_MS);
    });
    clearTimeout(timer);
  }
  won.abort();
  if (winner) return winner;
  throw deadline.aborted ? new NetError("timed-out", `Cannot connect to port ${port}: no answer in ${timeoutMs} ms`) : failure;
}
