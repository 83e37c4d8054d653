// The options of limits, and their values.
import { checkNetworks } from "../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";
import { checkBandwidth } from "./bandwidth.ts";
import { checkWatermark } from "./resources.ts";

/** Of whoever copies tunnels. */
export const tunnelLimitOptions = defineOptions({
  "limits.tunnel-idle-timeout": {
    kind: "duration",
    default: "24h",
    description: "A tunnel that has been silent for so long is reset; 0s never.",
  },
  "limits.tunnel-max-duration": { kind: "duration", default: "0s", description: "A tunnel that is so old is reset; 0s never." },
  "limits.bandwidth-per-tunnel": {
    kind: "string",
    default: "0",
    description: "Bytes a second of one tunnel, both directions together, like 512KiB or 10MiB; 0 no limit.",
    check: checkBandwidth,
  },
  "limits.memory-watermark": {
    kind: "string",
    default: "85%",
    description:
      "Memory of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of what the machine or the process' " +
      "control group has; 0 no limit. On Linux only.",
    check: checkWatermark,
  },
  "limits.buffer-memory": {
    kind: "string",
    default: "25%",
    description:
      "Memory for what tunnels buffer, of all of them together: from half of it on their windows do not grow, from three quarters on new " +
      "tunnels are refused, from nine tenths on those that hold most are reset. 512MiB, 2GiB, or a share of what the machine or the " +
      "process' control group has; 0 no limit.",
    check: checkWatermark,
  },
});

/** Of the agent. */
export const agentTunnelLimitOptions = defineOptions({
  "limits.tunnels": {
    kind: "integer",
    default: "16384",
    description: "Tunnels at a time, fewer where there are not descriptors enough; 0 no limit but that.",
  },
  "limits.bandwidth": {
    kind: "string",
    default: "0",
    description: "Bytes a second of all tunnels together, both directions, like 512KiB or 10MiB; 0 no limit.",
    check: checkBandwidth,
  },
  ...tunnelLimitOptions,
});

/** Of the clients of proxy and lb. */
export const clientLimitOptions = defineOptions({
  "limits.connections": {
    kind: "integer",
    default: "32768",
    description: "Client connections served at a time, fewer where there are not descriptors enough; 0 no limit but that.",
  },
  "limits.connections-per-address": {
    kind: "integer",
    default: "4096",
    description: "Client connections served at a time from one address, of IPv6 from one /64; 0 no limit.",
  },
  "limits.pending-requests": {
    kind: "integer",
    default: "4096",
    description: "TLS handshakes and request heads of clients being read at a time: one more, and the oldest is refused; 0 no limit.",
  },
  "limits.pending-requests-per-address": {
    kind: "integer",
    default: "1024",
    description: "The same of clients of one address, of IPv6 of one /64: one more, and the oldest of these is refused; 0 no limit.",
  },
  "limits.tunnels": { kind: "integer", default: "32768", description: "Tunnels and plain HTTP requests at a time; 0 no limit." },
  "limits.tunnels-per-agent": { kind: "integer", default: "16384", description: "The same through one agent; 0 no limit." },
  "limits.tunnels-per-client": {
    kind: "integer",
    default: "16384",
    description: "The same of one client: of one token, or where there are none, of one agent id; 0 no limit.",
  },
  "limits.tunnel-rate-per-address": {
    kind: "integer",
    default: "1000",
    description: "New tunnels a second from one address, of IPv6 from one /64; 0 no limit.",
  },
  "limits.tunnel-rate-per-client": { kind: "integer", default: "10000", description: "New tunnels a second of one client; 0 no limit." },
  "limits.tunnel-burst": {
    kind: "duration",
    default: "2s",
    description: "The new tunnels of so long a time may come at once.",
  },
  "limits.bandwidth-per-agent": {
    kind: "string",
    default: "0",
    description: "Bytes a second of all tunnels through one agent, both directions together, like 512KiB or 10MiB; 0 no limit.",
    check: checkBandwidth,
  },
  "limits.bandwidth-per-client": {
    kind: "string",
    default: "0",
    description: "The same of one client: of one token, or where there are none, of one agent id; 0 no limit.",
    check: checkBandwidth,
  },
  ...tunnelLimitOptions,
});

/** Of addresses from which agents and clients come. */
export const addressLimitOptions = defineOptions({
  "limits.auth-failures": {
    kind: "integer",
    default: "10",
    description:
      "Failed authentications that are forgiven an address, of IPv6 a /64, and one more every 10 s (agents: every second); then it is locked out for 1 s, " +
      "and with every further one for twice as long. One wrong credential counts once a minute, however often it is repeated. 0 no limit.",
  },
  "limits.auth-lockout-max": {
    kind: "duration",
    default: "5m",
    description: "The longest lock-out.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero; --limits.auth-failures 0 locks nobody out",
  },
  "limits.exempt-addresses": {
    guards: "write none, or addresses and networks",
    kind: "list",
    default: "127.0.0.0/8,::1",
    description:
      "Addresses and networks to which no limit by address applies: those that stand for many and cannot say for whom, as a NAT; or none, or all.",
    check: checkNetworks({ words: true }),
  },
});

/** Of the agents of the proxy. */
export const agentLimitOptions = defineOptions({
  "limits.agents": { kind: "integer", default: "32768", description: "Connections of agents at a time; 0 no limit." },
  "limits.agents-per-address": {
    kind: "integer",
    default: "4096",
    description: "Connections of agents at a time from one address, of IPv6 from one /64; 0 no limit.",
  },
  "limits.handshakes": {
    kind: "integer",
    default: "4096",
    description: "Handshakes of agents under way at a time: more are refused; 0 no limit.",
  },
  "limits.handshakes-per-address": {
    kind: "integer",
    default: "1024",
    description:
      "The same of one address, of IPv6 of one /64: from so many on an address must prove that it is one; of those that have, more are refused; 0 no limit.",
  },
  "limits.retry-threshold": {
    kind: "integer",
    default: "256",
    description: "Handshakes under way from which on an address must prove that it is one (RFC 9000 §8.1.2); 0 always.",
  },
});

export type TunnelLimitValues = ValuesOf<typeof tunnelLimitOptions>["limits"];
export type AddressLimitValues = ValuesOf<typeof addressLimitOptions>["limits"];
export type ClientLimitValues = ValuesOf<typeof clientLimitOptions>["limits"] & AddressLimitValues;
export type AgentLimitValues = ValuesOf<typeof agentLimitOptions>["limits"] & AddressLimitValues;
