// The options of all services, for executables, documentation and tests.
import { agentOptions } from "./agent/options.ts";
import { lbOptions } from "./lb/options.ts";
import { proxyOptions } from "./proxy/options.ts";

export const SERVICES = { proxy: proxyOptions, agent: agentOptions, lb: lbOptions };
