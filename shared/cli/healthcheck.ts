// The command `healthcheck`: asks a running service (another process) for its health, for container engines and supervisors.
import { Buffer } from "node:buffer";
import { connect } from "node:net";
import { connect as connectTls } from "node:tls";
import { parseResponseHead } from "../http/head.ts";
import { formatHostPort, type HostPort, splitHostPort } from "../address/host_port.ts";
import type { Subcommand } from "./command.ts";
import { adminOptions } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";

/** A healthy service responds within milliseconds. */
const TIMEOUT_MS = 5_000;
/** Bounds the response of any other program at that address, in bytes. */
const MAX_RESPONSE = 10_000;

const service = defineOptions({
  "admin.listen-address": adminOptions["admin.listen-address"],
  "admin.tls.file.cert": adminOptions["admin.tls.file.cert"],
});

const options = defineOptions({
  "ready": { kind: "boolean", description: "Check readiness (may it receive traffic?) instead of health." },
});

export const healthcheckCommand: Subcommand<ValuesOf<typeof service & typeof options>> = {
  name: "healthcheck",
  description: "Check the health of the service at --admin.listen-address: exit code 0 if it is healthy, 1 if not.",
  options,
  service,
  async run({ admin: { listenAddress, tls }, ready }, { write }) {
    if (!listenAddress) throw new ConfigError("Cannot check health: --admin.listen-address is required; use the value of the service");
    const address = dialable(listenAddress);
    const path = ready ? "/readyz" : "/healthz";
    const url = `${tls.file.cert ? "https" : "http"}://${formatHostPort(address)}${path}`;
    const { status, text } = await ask(address, url);
    if (status !== 200) throw new Error(`${url} returned ${status}: ${text}`);
    write(`${text}\n`);
  },
};

/** The address at which a service with this listen address is reachable from the same machine. */
function dialable(address: string): HostPort {
  const { host, port } = splitHostPort(address);
  return { host: host === "" || host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host, port };
}

/**
 * Uses a plain socket, because the runtimes' HTTP clients differ in how they treat http_proxy, and that proxy cannot reach this service.
 */
async function ask(address: HostPort, url: string): Promise<{ status: number; text: string }> {
  const { protocol, host, pathname } = new URL(url);
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  // it asks this machine, sends no secret, and the certificate need not name the address
  const socket = protocol === "https:" ? connectTls({ ...address, rejectUnauthorized: false }) : connect(address);
  signal.addEventListener("abort", () => socket.destroy(new Error("no response in time")), { once: true });
  try {
    // HTTP/1.0: no chunked body, and the response ends with the connection
    socket.write(`GET ${pathname} HTTP/1.0\r\nHost: ${host}\r\n\r\n`);
    let response = "";
    socket.setEncoding("latin1");
    for await (const part of socket) {
      response += part;
      if (response.length > MAX_RESPONSE) throw new Error(`the response has more than ${MAX_RESPONSE} bytes`);
    }
    const end = response.indexOf("\r\n\r\n") + 4;
    if (end < 4) throw new Error("the response is not HTTP");
    const { status } = parseResponseHead(response.slice(0, end));
    return { status, text: Buffer.from(response.slice(end), "latin1").toString("utf8").trim() };
  } catch (error) {
    throw new Error(`Cannot check ${url}: ${error instanceof Error ? error.message : error}`, { cause: error });
  } finally {
    socket.destroy();
  }
}
