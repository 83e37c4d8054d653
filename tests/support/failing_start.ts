// Starts a service whose start fails at one step, and prints the error, the listeners and the networks left open as JSON. Ends by itself
// unless something keeps it alive. Arguments: the service, the step, the public key of tokens, and the port of a store. With the step `check`
// it only checks the configuration, which is invalid.
import process from "node:process";
import { agentCommand } from "../../agent/command.ts";
import { agentOptions } from "../../agent/options.ts";
import { lbCommand } from "../../lb/command.ts";
import { lbOptions } from "../../lb/options.ts";
import { proxyCommand } from "../../proxy/command.ts";
import { proxyOptions } from "../../proxy/options.ts";
import type { Service } from "../../shared/cli/command.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import type { Net } from "../../shared/net/net.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { netWith } from "../../testing/network.ts";

const [service, step, publicKey, storePort] = process.argv.slice(2);

const memory = createMemoryNet();
/** The service's networks, and the addresses on which it listens. */
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

let nets = 0;
const createNet = (): Net => {
  const name = `net ${++nets}`;
  open.add(name);
  return netWith(memory, { ...methods, close: () => void open.delete(name) });
};
const methods: Partial<Net> = {
  listenTcp: async (options) => watched("tcp", await memory.listenTcp(options)),
  listenQuic: async (options) => watched("quic", await memory.listenQuic(options)),
  listenTlsLink: async (options) => watched("tls", await memory.listenTlsLink(options)),
  createRate: (options) => {
    if (step === "frontend") throw new Error("no rates");
    return memory.createRate(options);
  },
};
if (step === "agents") await memory.listenQuic({ address: "127.0.0.1:4242", tls: { cert: "", key: "" }, alpn: ["test"] });
if (step === "clients") await memory.listenTcp({ address: "127.0.0.1:3128" });
if (step === "admin") await memory.listenTcp({ address: "127.0.0.1:9090" });

const hasBadCredentials = step === "authenticator" || step === "check";
const common = {
  auth: { type: "jwt" as const, jwt: { publicKey: [hasBadCredentials ? "/nonexistent" : publicKey!] } },
  httpProxy: { listenAddress: "127.0.0.1:3128" },
  admin: { listenAddress: "127.0.0.1:9090" },
};
const store = step === "store"
  ? { type: "redis" as const, redis: { url: "rediss://localhost", tls: { file: { rootCa: "/nonexistent" } } } }
  : { type: "redis" as const, redis: { url: `redis://127.0.0.1:${storePort}` } };

/** Starts and stops the service, or checks its options. */
async function use<T extends object>({ check, start }: Service<T>, options: T): Promise<void> {
  if (step === "check") return await check(options);
  const running = await start(options, silentLogger, { configuration: { hash: "", changed: [], isReloaded: true } });
  await running.close();
}

async function run(): Promise<void> {
  if (service === "lb") return await use(lbCommand(createNet, undefined), withDefaults(lbOptions, { ...common, store }));
  if (service === "proxy") {
    const agentServer = { listenAddress: "127.0.0.1:4242" };
    return await use(proxyCommand(createNet, undefined), withDefaults(proxyOptions, { ...common, store, agentServer }));
  }
  const auth = { noauth: { agentId: hasBadCredentials ? "not an id" : "4711" } };
  await use(agentCommand(createNet), withDefaults(agentOptions, { auth, admin: common.admin }));
}

let error: string | undefined;
try {
  await run();
} catch (cause) {
  error = String(cause);
}
console.log(JSON.stringify({ error, open: [...open] }));
