// The options of the limits, and their values.
import { checkBandwidth } from "../config/bandwidth.ts";
import { checkNetworks } from "../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";
import { checkWatermark } from "./resources.ts";

/** Limits of every service that relays tunnels. */
const tunnelLimitOptions = defineOptions({
  "limits.tunnel-idle-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "24h",
    description: "Idle time after which a tunnel is reset; 0s: never.",
  },
  "limits.tunnel-max-duration": {
    reload: "new tunnels",
    kind: "duration",
    default: "0s",
    description: "Age at which a tunnel is reset; 0s: never.",
  },
  "limits.bandwidth-per-tunnel": {
    reload: "new tunnels",
    kind: "string",
    default: "0",
    description: "Bytes per second of one tunnel, both directions together, such as 512KiB or 10MiB; 0: no limit.",
    check: checkBandwidth,
  },
  "limits.memory-watermark": {
    reload: "at once",
    kind: "string",
    default: "85%",
    description:
      "Memory use of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of the memory of the machine or the " +
      "control group; 0: no limit. Linux only.",
    check: checkWatermark,
  },
  "limits.buffer-memory": {
    reload: "at once",
    kind: "string",
    default: "25%",
    description:
      "Memory for the buffers of all tunnels. From half of it on, flow control windows stop growing; from two thirds, new tunnels are " +
      "refused; from nine tenths, the tunnels that buffer most are reset. 512MiB, 2GiB, or a share of the memory of the machine or the " +
      "control group; 0: no limit.",
    check: checkWatermark,
  },
});

/** Limits of the agent. */
export const agentTunnelLimitOptions = defineOptions({
  "limits.tunnels": {
    reload: "new tunnels",
    kind: "integer",
    default: "16384",
    description: "Concurrent tunnels, lowered to what the file descriptor limit permits; 0: limited by that alone.",
  },
  "limits.bandwidth": {
    reload: "new tunnels",
    kind: "string",
    default: "0",
    description: "Bytes per second of all tunnels, both directions together, such as 512KiB or 10MiB; 0: no limit.",
    check: checkBandwidth,
  },
  "limits.udp-idle-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "2m",
    description: "Time without a datagram in either direction after which a UDP flow ends; 0s: never.",
  },
  "limits.dns-idle-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "10s",
    description:
      "The same for flows to port 53 (DNS), of which clients open one for each query; the shorter time applies. 0s: that of all flows.",
  },
  ...tunnelLimitOptions,
});

/** Limits on the clients of proxy and lb. */
export const clientLimitOptions = defineOptions({
  "limits.connections": {
    reload: "new tunnels",
    kind: "integer",
    default: "32768",
    description: "Concurrent client connections, lowered to what the file descriptor limit permits; 0: limited by that alone.",
  },
  "limits.connections-per-address": {
    reload: "new tunnels",
    kind: "integer",
    default: "4096",
    description: "Concurrent client connections per address (IPv6: per /64); 0: no limit.",
  },
  "limits.pending-requests": {
    reload: "new connections",
    kind: "integer",
    default: "4096",
    description: "Concurrent TLS handshakes and request heads of clients; above it the oldest is refused; 0: no limit.",
  },
  "limits.pending-requests-per-address": {
    reload: "new connections",
    kind: "integer",
    default: "1024",
    description: "The same per address (IPv6: per /64); above it the oldest of that address is refused; 0: no limit.",
  },
  "limits.tunnels": {
    reload: "new tunnels",
    kind: "integer",
    default: "32768",
    description: "Concurrent tunnels and plain HTTP requests; 0: no limit.",
  },
  "limits.tunnels-per-agent": { reload: "new tunnels", kind: "integer", default: "16384", description: "The same per agent; 0: no limit." },
  "limits.tunnels-per-client": {
    reload: "new tunnels",
    kind: "integer",
    default: "16384",
    description: "The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit.",
  },
  "limits.udp-flows-per-client": {
    reload: "new tunnels",
    kind: "integer",
    default: "1024",
    description: "Concurrent UDP flows per client, and SOCKS associations, which have flows; they count as tunnels too. 0: no limit.",
  },
  "limits.tunnel-rate-per-address": {
    reload: "new tunnels",
    kind: "integer",
    default: "1000",
    description: "New tunnels per second and address (IPv6: per /64); 0: no limit.",
  },
  "limits.tunnel-rate-per-client": {
    reload: "new tunnels",
    kind: "integer",
    default: "10000",
    description: "New tunnels per second and client; 0: no limit.",
  },
  "limits.tunnel-burst": {
    reload: "new tunnels",
    kind: "duration",
    default: "2s",
    description: "Burst of new tunnels, as a time at the permitted rate: with 2s and 1000 a second, 2000 at once; 0s: one.",
  },
  "limits.bandwidth-per-agent": {
    reload: "new tunnels",
    kind: "string",
    default: "0",
    description: "Bytes per second of all tunnels through one agent, both directions together, such as 512KiB or 10MiB; 0: no limit.",
    check: checkBandwidth,
  },
  "limits.bandwidth-per-client": {
    reload: "new tunnels",
    kind: "string",
    default: "0",
    description: "The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit.",
    check: checkBandwidth,
  },
  ...tunnelLimitOptions,
});

/** Limits per address of agents and clients. */
export const addressLimitOptions = defineOptions({
  "limits.auth-failures": {
    reload: "at once",
    kind: "integer",
    default: "10",
    description:
      "Failed authentications permitted to an address (IPv6: /64); each further one locks it out, for 1 s at first and twice as long each " +
      "time. One is forgiven every 10 s (agents: every second); a repeated wrong credential counts once a minute. 0: no limit.",
  },
  "limits.auth-lockout-max": {
    reload: "at once",
    kind: "duration",
    default: "5m",
    description: "Longest lockout of an address.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero; --limits.auth-failures=0 disables lockouts",
  },
  "limits.exempt-addresses": {
    reload: "new connections",
    guards: "write none, or addresses and networks",
    kind: "list",
    default: "127.0.0.0/8,::1",
    description: "Addresses and networks without limits per address, such as NAT gateways, which stand for many clients; or none, or all.",
    check: checkNetworks({ words: true }),
  },
});

/** Limits on the agents of the proxy. */
export const agentLimitOptions = defineOptions({
  "limits.agents": {
    reload: "new connections",
    kind: "integer",
    default: "32768",
    description: "Concurrent agent connections; 0: no limit.",
  },
  "limits.agents-per-address": {
    reload: "new connections",
    kind: "integer",
    default: "4096",
    description: "Concurrent agent connections per address (IPv6: per /64); 0: no limit.",
  },
  "limits.handshakes": {
    reload: "new connections",
    kind: "integer",
    default: "4096",
    description: "Concurrent handshakes of agents; more are refused; 0: no limit.",
  },
  "limits.handshakes-per-address": {
    reload: "new connections",
    kind: "integer",
    default: "1024",
    description:
      "The same per address (IPv6: per /64): above it, addresses that are not validated get a Retry and validated ones are refused; 0: no limit.",
  },
  "limits.retry-threshold": {
    reload: "new connections",
    kind: "integer",
    default: "256",
    description: "Concurrent handshakes from which on addresses are validated by Retry (RFC 9000 §8.1.2); 0: always.",
  },
});

export type TunnelLimitValues = ValuesOf<typeof tunnelLimitOptions>["limits"];
export type AddressLimitValues = ValuesOf<typeof addressLimitOptions>["limits"];
export type ClientLimitValues = ValuesOf<typeof clientLimitOptions>["limits"] & AddressLimitValues;
