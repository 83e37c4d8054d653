// What options mean for several workers: what does not go together, and what each of them has.
import { availableParallelism, platform } from "node:os";
import { splitHostPort } from "../../shared/address/host_port.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { acmeHosts } from "../../shared/frontend/forwards/forwards.ts";
import type { BoundAddresses, Worker } from "../../shared/service/worker.ts";
import type { ProxyOptions } from "../options.ts";

/**
 * Checks options that several workers cannot have.
 * @throws {ConfigError}
 */
export function checkWorkers(options: ProxyOptions): void {
  const { workers, handover, admin, acme, forward } = options;
  if (workers === 1) return;
  const fail = (why: string) => new ConfigError(`Cannot use --workers ${workers}: ${why}`);
  if (platform() !== "linux") throw fail(`${platform()} does not distribute connections over processes; start several proxies instead`);
  if (handover.socket !== undefined) throw fail("several processes cannot hand over; remove --handover.socket");
  if (admin.cluster.keyFile !== undefined) throw fail("members of a cluster are single processes; remove --admin.cluster.key-file");
  if (acme.published || acmeHosts(forward).length > 0) {
    throw fail("only one worker knows the certificates of published names; remove acme of them");
  }
  if (acme.domain.length > 0 && acme.challenge === "tls-alpn-01") {
    throw fail("the authority may ask any worker, and one knows the answer; use another --acme.challenge");
  }
}

/** The options of one of several workers. */
export function optionsOfWorker(options: ProxyOptions, { count, addresses }: Worker): ProxyOptions {
  const { limits, threads } = options;
  const share = (limit: number) => Math.ceil(limit / count);
  return {
    ...addresses === undefined ? options : withPorts(options, addresses),
    limits: {
      ...limits,
      memoryWatermark: shareOfMemory(limits.memoryWatermark, count),
      bufferMemory: shareOfMemory(limits.bufferMemory, count),
      // the kernel distributes connections evenly
      pendingRequests: share(limits.pendingRequests),
      pendingRequestsPerAddress: share(limits.pendingRequestsPerAddress),
      handshakes: share(limits.handshakes),
      handshakesPerAddress: share(limits.handshakesPerAddress),
      retryThreshold: share(limits.retryThreshold),
    },
    threads: threads || Math.max(1, Math.floor(availableParallelism() / 2 / count)),
  };
}

/** A part of a size or percentage, as {@link checkWatermark} has it. */
function shareOfMemory(text: string, count: number): string {
  const [, number = "0", unit = ""] = /^([0-9]+)(.*)$/.exec(text) ?? [];
  if (Number(number) === 0) return text;
  const [size, small] = unit === "GiB" ? [Number(number) * 1_024, "MiB"] : [Number(number), unit];
  return `${Math.max(1, Math.floor(size / count))}${small}`;
}

/** The options with the ports that the first worker has got where the system chooses them. */
function withPorts(options: ProxyOptions, bound: BoundAddresses): ProxyOptions {
  const { agentServer, httpProxy, socks, forward } = options;
  const { listenAddress, tcpListenAddress } = agentServer;
  return {
    ...options,
    agentServer: {
      ...agentServer,
      listenAddress: withPort(listenAddress, bound.agents),
      tcpListenAddress: tcpListenAddress && tcpListenAddress !== "none" ? withPort(tcpListenAddress, bound.agentsTcp) : tcpListenAddress,
    },
    httpProxy: {
      ...httpProxy,
      listenAddress: withPort(httpProxy.listenAddress, bound.clients),
      http2ListenAddress: httpProxy.http2ListenAddress && withPort(httpProxy.http2ListenAddress, bound.http2),
    },
    socks: { ...socks, listenAddress: socks.listenAddress && withPort(socks.listenAddress, bound.socks) },
    forward: forward.map((record, i) => ({ ...record, listen: withPort(record.listen, bound.forwards[i]) })),
  };
}

function withPort(address: string, bound: string | undefined): string {
  if (bound === undefined || splitHostPort(address).port !== 0) return address;
  return address.replace(/[0-9]+$/, String(splitHostPort(bound).port));
}
