// The scenarios by name.
import type { Scenario } from "./scenario.ts";
import { agents, idle, memory, tunnels } from "./state.ts";
import { bulk, coldRate, isolation, lossy, rate, rateBeside, rtt, udp } from "./traffic.ts";

const MEMORY = { unit: "MiB", digits: 1 };

const BEFORE_AND_AFTER = {
  proxyBeforeMiB: { title: "proxy memory before", ...MEMORY },
  proxyAfterMiB: { title: "proxy memory after", ...MEMORY },
  agentBeforeMiB: { title: "agent memory before", ...MEMORY },
  agentAfterMiB: { title: "agent memory after", ...MEMORY },
  proxyAfterToBefore: { title: "proxy memory, after to before", unit: "", digits: 2 },
  agentAfterToBefore: { title: "agent memory, after to before", unit: "", digits: 2 },
};

export const SCENARIOS: readonly Scenario[] = [
  {
    name: "idle",
    title: "start-up and idle cost",
    metrics: {
      listeningMs: { title: "proxy start to listening", unit: "ms" },
      connectedMs: { title: "agent start to first tunnel", unit: "ms" },
      proxyRssMiB: { title: "proxy memory (RSS)", ...MEMORY },
      agentRssMiB: { title: "agent memory (RSS)", ...MEMORY },
      proxyPssMiB: { title: "proxy memory (PSS)", ...MEMORY },
      agentPssMiB: { title: "agent memory (PSS)", ...MEMORY },
      proxyCpuPercent: { title: "proxy CPU, of a core", unit: "%", digits: 2 },
      agentCpuPercent: { title: "agent CPU, of a core", unit: "%", digits: 2 },
    },
    run: idle,
  },
  bulk("down", "download, one tunnel", "down", 1),
  bulk("up", "upload, one tunnel", "up", 1),
  bulk("both", "both directions at once, one tunnel", "both", 1),
  bulk("down8", "download, 8 tunnels", "down", 8),
  bulk("up8", "upload, 8 tunnels", "up", 8),
  ...[1, 50, 90, 500].map((clients) => rate(clients)),
  coldRate(50),
  ...[4, 8, 16, 64].map((downloads) => rateBeside(downloads)),
  rtt("rtt", "round trip in an open tunnel"),
  rtt("rtt-beside", "round trip beside a download in another tunnel", { beside: true }),
  ...[5_000, 10_000, 30_000].map((perSecond) => udp(perSecond)),
  {
    name: "tunnels",
    title: "idle tunnels",
    metrics: {
      open: { title: "open", unit: "" },
      alive: { title: "alive at the end", unit: "" },
      openSeconds: { title: "time to open them", unit: "s", digits: 2 },
      proxyKiBEach: { title: "proxy memory each", unit: "KiB", digits: 1 },
      agentKiBEach: { title: "agent memory each", unit: "KiB", digits: 1 },
      proxyFilesKept: { title: "proxy descriptors kept after", unit: "" },
      agentFilesKept: { title: "agent descriptors kept after", unit: "" },
      ...BEFORE_AND_AFTER,
    },
    run: tunnels,
  },
  {
    name: "agents",
    title: "idle agents beside one active agent",
    metrics: {
      connected: { title: "connected", unit: "" },
      alive: { title: "connected at the end", unit: "" },
      connectSeconds: { title: "time to connect them", unit: "s", digits: 2 },
      proxyKiBEach: { title: "proxy memory each", unit: "KiB", digits: 1 },
      proxyCpuPercent: { title: "proxy CPU while they are idle, of a core", unit: "%", digits: 2 },
      swarmCpuPercent: { title: "CPU of the idle agents, of a core", unit: "%", digits: 2 },
      aloneMbPerSecond: { title: "the active agent's download without them", unit: "MB/s" },
      besideMbPerSecond: { title: "the same beside them", unit: "MB/s" },
      slowdownPercent: { title: "slowdown beside them", unit: "%", digits: 1 },
    },
    run: agents,
  },
  lossy("lossy", "100 ms round trip and 1 % loss, `cubic-loss-tolerant`", { delayMs: 50, loss: 0.01 }),
  isolation("isolation", "one client beside the load of another agent on other machines", { yields: true }),
  isolation("isolation-limits", "one client beside the load of another agent on the same processors, with limits", {
    proxyOptions: ["--limits.tunnel-rate-per-client=200", "--limits.bandwidth-per-agent=50MiB", "--limits.exempt-addresses=none"],
  }),
  bulk("lb-down", "through lb: download, one tunnel", "down", 1, { lb: true }),
  bulk("lb-up", "through lb: upload, one tunnel", "up", 1, { lb: true }),
  rate(50, { lb: true }),
  rateBeside(8, { lb: true }),
  rtt("lb-rtt", "through lb: round trip in an open tunnel", { lb: true }),
  {
    name: "memory",
    title: "memory after downloads, uploads and 90 clients",
    metrics: {
      ...BEFORE_AND_AFTER,
      proxyPeakMiB: { title: "proxy memory, peak", ...MEMORY },
      agentPeakMiB: { title: "agent memory, peak", ...MEMORY },
    },
    run: memory,
  },
];
