// Starts a service whose start fails at one step, and prints the error and the listeners left open as JSON. Ends by itself unless something
// keeps it alive. Arguments: `proxy` or `lb`, the step, the public key of tokens, and the port of a store.
import process from "node:process";
import { startLoadBalancer } from "../../lb/lb.ts";
import { lbOptions } from "../../lb/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { netWith } from "../../testing/network.ts";

const [service, step, publicKey, storePort] = process.argv.slice(2);

const memory = createMemoryNet();
/** Addresses on which the service listens. */
const open = new Set<string>();

/** Keeps `open` up to date; `close` may be called several times. */
function watched<L extends { readonly address: string; close(...args: never[]): unknown }>(name: string, listener: L): L {
  const { address } = listener;
  open.add(`${name} ${address}`);
  const close = listener.close.bind(listener);
  listener.close = ((...args: never[]) => {
    open.delete(`${name} ${address}`);
    return close(...args);
  }) as L["close"];
  return listener;
}

const net = netWith(memory, {
  listenTcp: async (options) => watched("tcp", await memory.listenTcp(options)),
  listenQuic: async (options) => watched("quic", await memory.listenQuic(options)),
  createRate: (options) => {
    if (step === "frontend") throw new Error("no rates");
    return memory.createRate(options);
  },
});
if (step === "agents") await memory.listenQuic({ address: "127.0.0.1:4242", tls: { cert: "", key: "" }, alpn: ["test"] });
if (step === "clients") await memory.listenTcp({ address: "127.0.0.1:3128" });
if (step === "admin") await memory.listenTcp({ address: "127.0.0.1:9090" });

const common = {
  auth: { type: "jwt" as const, jwt: { publicKey: [step === "authenticator" ? "/nonexistent" : publicKey!] } },
  httpProxy: { listenAddress: "127.0.0.1:3128" },
  admin: { listenAddress: "127.0.0.1:9090" },
};
const store = step === "store"
  ? { type: "redis" as const, redis: { url: "rediss://localhost", tls: { file: { rootCa: "/nonexistent" } } } }
  : { type: "redis" as const, redis: { url: `redis://127.0.0.1:${storePort}` } };

async function start(): Promise<{ close(): Promise<void> }> {
  const deps = { net, log: silentLogger };
  if (service === "lb") return await startLoadBalancer(withDefaults(lbOptions, { ...common, store }), deps);
  return await startProxy(withDefaults(proxyOptions, { ...common, store, agentServer: { listenAddress: "127.0.0.1:4242" } }), deps);
}

let error: string | undefined;
try {
  const running = await start();
  await running.close();
} catch (cause) {
  error = String(cause);
}
console.log(JSON.stringify({ error, open: [...open] }));
