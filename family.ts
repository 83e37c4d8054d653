// The options of all services, for what knows them all: executables, documents, tests.
import { agentOptions } from "./agent/options.ts";
import { lbOptions } from "./lb/options.ts";
import { proxyOptions } from "./proxy/options.ts";

export const FAMILY = { proxy: proxyOptions, agent: agentOptions, lb: lbOptions };
