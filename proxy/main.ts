// The command line of reverse-http-proxy.
import process from "node:process";
import { run } from "../shared/cli/run.ts";
import { createNativeNet } from "../shared/net/native.ts";
import { VERSION } from "../shared/version.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";
import { checkProxyOptions, startProxy } from "./proxy.ts";

await run<ProxyOptions>({
  name: "reverse-http-proxy",
  description: "Takes agents over QUIC and clients over HTTP, and brings clients to what the agents can reach.",
  version: VERSION,
  options: proxyOptions,
  check: async (options) => void await checkProxyOptions(options),
  start: (options, log) => startProxy(options, { log, net: createNativeNet({ warn: (message) => log.warn(message) }) }),
}, process);
