// Asks the admin API of a service over its unix socket or its URL. It uses plain sockets, because the runtimes' HTTP clients differ in sockets
// and in how they treat http_proxy.
import { Buffer } from "node:buffer";
import { existsSync } from "node:fs";
import { connect, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { parseResponseHead } from "../shared/http/head.ts";
import { isUnknownIssuer } from "../shared/tls/advice.ts";
import { readCertificates } from "../shared/tls/pem.ts";
import { readPemFile } from "../shared/tls/reloadable_tls.ts";
import type { OperatorOptions } from "./options.ts";

/** Timeout of a request in milliseconds, and longest response in bytes. */
const TIMEOUT_MS = 10_000;
const MAX_RESPONSE = 32 << 20;
const MAX_TOKEN = 4_096;
/** Where the services of the packages listen. */
const SOCKETS = ["proxy", "agent", "lb"].map((service) => `/run/reverse-http-${service}/admin.sock`);

/** The address of a service, and how to connect to it. */
interface Target {
  readonly socket?: string;
  readonly url?: URL;
  readonly token?: string;
  /** PEM. */
  readonly ca?: string;
}

/** The service has refused the request. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

export class AdminClient {
  /** The service as the user has named it. */
  readonly name: string;
  readonly #socket?: string;
  readonly #url?: URL;
  readonly #token?: string;
  readonly #ca?: string;
  readonly #isWide: boolean;

  private constructor(name: string, isWide: boolean, { socket, url, token, ca }: Target) {
    this.name = name;
    this.#isWide = isWide;
    this.#socket = socket;
    this.#url = url;
    this.#token = token;
    this.#ca = ca;
  }

  /**
   * @param options with `cluster`, each request is for all members of the service's cluster
   * @throws {ConfigError}
   */
  static async create(
    { admin = findSocket(), adminToken, adminRootCa, cluster = false }: Partial<OperatorOptions> & { cluster?: boolean },
  ): Promise<AdminClient> {
    const isUrl = /^[a-z]+:\/\//i.test(admin);
    if (!isUrl && (admin.includes("/") || !admin.includes(":"))) return new AdminClient(admin, cluster, { socket: admin });
    const text = isUrl ? admin : `http://${admin}`;
    const url = URL.canParse(text) ? new URL(text) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol)) {
      throw new ConfigError(`Cannot use --admin ${JSON.stringify(admin)}: it is neither a socket's path nor an http:// or https:// URL`);
    }
    const ca = adminRootCa && await readAuthorities(adminRootCa);
    return new AdminClient(admin, cluster, { url, token: adminToken && await readToken(adminToken), ca });
  }

  /** @throws {ApiError | Error} */
  async get<T>(path: string): Promise<T> {
    return await this.#ask("GET", path) as T;
  }

  /** @throws {ApiError | Error} */
  async post<T>(path: string, body: object): Promise<T> {
    return await this.#ask("POST", path, JSON.stringify(body)) as T;
  }

  async #ask(method: string, path: string, body?: string): Promise<unknown> {
    const base = this.#url?.pathname.replace(/\/$/, "") ?? "";
    const scope = this.#isWide ? `${path.includes("?") ? "&" : "?"}scope=cluster` : "";
    const content = Buffer.from(body ?? "");
    const head = [
      // HTTP/1.0: no chunked body, and the response ends with the connection
      `${method} ${base}/api/v1/${path}${scope} HTTP/1.0`,
      `Host: ${this.#url?.host ?? "localhost"}`,
      ...this.#token === undefined ? [] : [`Authorization: Bearer ${this.#token}`],
      ...body === undefined ? [] : ["Content-Type: application/json", `Content-Length: ${content.length}`],
    ];
    let status, text;
    try {
      ({ status, text } = await exchange(this.#connect(), Buffer.concat([Buffer.from(`${head.join("\r\n")}\r\n\r\n`), content])));
    } catch (cause) {
      throw new Error(`Cannot ask the service at ${this.name}: ${describe(cause)}`, { cause });
    }
    const value = parseJson(text);
    if (status >= 200 && status < 300 && value !== undefined) return value;
    const { error = `the response has the status ${status}` } = (value ?? {}) as { error?: string };
    const advice = status === 401 && this.#token === undefined ? "; pass the token with --admin-token=file:NAME" : "";
    throw new ApiError(status, `The service at ${this.name} refuses: ${error}${advice}`);
  }

  #connect(): Socket {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    if (this.#socket !== undefined) return connect({ path: this.#socket, signal });
    const { protocol, hostname, port } = this.#url!;
    const host = hostname.replace(/^\[|\]$/g, "");
    if (protocol === "http:") return connect({ host, port: Number(port || 80), signal });
    const socket = connectTls({ host, port: Number(port || 443), servername: isIP(host) > 0 ? undefined : host, ca: this.#ca });
    signal.addEventListener("abort", () => socket.destroy(new Error("no response in time")), { once: true });
    return socket;
  }
}

async function exchange(socket: Socket, request: Uint8Array): Promise<{ status: number; text: string }> {
  const parts: Buffer[] = [];
  let size = 0;
  try {
    socket.write(request);
    for await (const part of socket) {
      parts.push(part);
      size += part.length;
      if (size > MAX_RESPONSE) throw new Error(`the response has more than ${MAX_RESPONSE} bytes`);
    }
  } finally {
    socket.destroy();
  }
  const response = Buffer.concat(parts);
  const end = response.indexOf("\r\n\r\n") + 4;
  if (end < 4) throw new Error("the response is not HTTP");
  const { status } = parseResponseHead(response.toString("latin1", 0, end));
  return { status, text: response.toString("utf8", end) };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** @throws {ConfigError} */
async function readAuthorities(file: string): Promise<string> {
  const pem = await readPemFile("admin-root-ca", file);
  return readCertificates(pem, "authorities").text;
}

/** @throws {ConfigError} */
async function readToken(given: string): Promise<string> {
  if (!given.startsWith("file:")) return given;
  const file = given.slice("file:".length);
  try {
    const token = (await readText(file, MAX_TOKEN)).trim();
    if (/^[\x21-\x7e]+$/.test(token)) return token;
    throw new Error("it is not one token");
  } catch (cause) {
    throw new ConfigError(`Cannot use --admin-token ${JSON.stringify(given)}: ${describeFileError(cause)}`, { cause });
  }
}

/** @throws {ConfigError} */
function findSocket(): string {
  const [found, other] = SOCKETS.filter((path) => existsSync(path));
  if (found === undefined) {
    throw new ConfigError(
      "Cannot find a service: set --admin to the path of its --admin.socket, or to the URL of its --admin.listen-address",
    );
  }
  if (other !== undefined) throw new ConfigError(`Cannot choose a service: set --admin to ${found} or ${other}`);
  return found;
}

function describe(error: unknown): string {
  const { code, message, name } = error as NodeJS.ErrnoException;
  if (name === "AbortError" || name === "TimeoutError") return "no response in time";
  if (isUnknownIssuer(code)) return `${message}; set --admin-root-ca to a file with the certificate of its authority`;
  return REASONS[code ?? ""] ?? message;
}

const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "no service listens there",
  ENOENT: "there is no such socket; is the service running with --admin.socket?",
  EACCES: "only the user of the service and root may open the socket",
  EPERM: "only the user of the service and root may open the socket",
};
