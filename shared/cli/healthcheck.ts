// The command that asks a running service whether it is well, for container engines and supervisors. The service is another process.
import type { Action } from "./command.ts";
import { adminOptions } from "./common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "./option.ts";

/** A service that is well answers within milliseconds. */
const PATIENCE_MS = 5_000;

const options = defineOptions({
  ...adminOptions,
  "ready": { kind: "boolean", description: "Ask for readiness instead: may it get traffic?" },
});

export const healthcheckCommand: Action<ValuesOf<typeof options>> = {
  name: "healthcheck",
  description: "Ask the service at --admin.listen-address whether it is well: exit code 0, or 1 where it is not.",
  options,
  asService: true,
  async act({ admin: { listenAddress }, ready }, { write }) {
    if (!listenAddress) throw new ConfigError("Cannot ask: --admin.listen-address is not set, neither for the service nor here");
    const url = `http://${dialable(listenAddress)}${ready ? "/readyz" : "/healthz"}`;
    const { status, text } = await ask(url);
    if (status !== 200) throw new Error(`${url} says ${status}: ${text}`);
    write(`${text}\n`);
  },
};

/** Where a service that listens there is reached from its own machine. */
function dialable(address: string): string {
  return address.replace(/^(0\.0\.0\.0|\[::\])?:(\d+)$/, (_, host, port) => `${host === "[::]" ? "[::1]" : "127.0.0.1"}:${port}`);
}

async function ask(url: string): Promise<{ status: number; text: string }> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_MS), redirect: "manual" });
    return { status: response.status, text: (await response.text()).trim().slice(0, 1_000) };
  } catch (error) {
    throw new Error(`Cannot ask ${url}: ${error instanceof Error ? error.message : error}`, { cause: error });
  }
}
