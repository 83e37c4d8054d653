// The command that asks a running service whether it is well, for container engines and supervisors. The service is another process.
import { Buffer } from "node:buffer";
import { connect } from "node:net";
import { parseResponseHead } from "../http/head.ts";
import { formatHostPort, type HostPort, splitHostPort } from "../address/host_port.ts";
import type { Subcommand } from "./command.ts";
import { adminOptions } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";

/** A service that is well answers within milliseconds. */
const PATIENCE_MS = 5_000;
/** Whatever listens there may answer without end. */
const MAX_ANSWER = 10_000;

const options = defineOptions({
  ...adminOptions,
  "ready": { kind: "boolean", description: "Ask for readiness instead: may it get traffic?" },
});

export const healthcheckCommand: Subcommand<ValuesOf<typeof options>> = {
  name: "healthcheck",
  description: "Ask the service at --admin.listen-address whether it is well: exit code 0, or 1 where it is not.",
  options,
  asService: true,
  async run({ admin: { listenAddress }, ready }, { write }) {
    if (!listenAddress) throw new ConfigError("Cannot ask: --admin.listen-address is not set, neither for the service nor here");
    const address = dialable(listenAddress);
    const path = ready ? "/readyz" : "/healthz";
    const { status, text } = await ask(address, path);
    if (status !== 200) throw new Error(`http://${formatHostPort(address)}${path} says ${status}: ${text}`);
    write(`${text}\n`);
  },
};

/** Where a service that listens there is reached from its own machine. */
function dialable(address: string): HostPort {
  const { host, port } = splitHostPort(address);
  return { host: host === "" || host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host, port };
}

/**
 * Over a connection of its own: the proxy that http_proxy and the like name for other programs knows nothing of this service, and the runtimes'
 * clients differ in what they make of these variables.
 */
async function ask(address: HostPort, path: string): Promise<{ status: number; text: string }> {
  const host = formatHostPort(address);
  const socket = connect({ ...address, signal: AbortSignal.timeout(PATIENCE_MS) });
  try {
    // of HTTP/1.0, so that the answer comes in one piece and ends with the connection
    socket.write(`GET ${path} HTTP/1.0\r\nHost: ${host}\r\n\r\n`);
    let answer = "";
    socket.setEncoding("latin1");
    for await (const part of socket) {
      answer += part;
      if (answer.length > MAX_ANSWER) throw new Error(`its answer has more than ${MAX_ANSWER} bytes`);
    }
    const end = answer.indexOf("\r\n\r\n") + 4;
    if (end < 4) throw new Error("it does not answer as an HTTP server does");
    const { status } = parseResponseHead(answer.slice(0, end));
    return { status, text: Buffer.from(answer.slice(end), "latin1").toString("utf8").trim() };
  } catch (error) {
    throw new Error(`Cannot ask http://${host}${path}: ${error instanceof Error ? error.message : error}`, { cause: error });
  } finally {
    socket.destroy();
  }
}
