// The admin server for operators, on an address and a unix socket of its own. On the address it uses the network's listener, which bounds
// connections, time and header sections on every runtime. node:http would add 4 MiB of memory, and bypass a given network.
import { Hono } from "hono";
import type { AdminOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { isLoopback } from "../address/host_port.ts";
import { type Logger, silentLogger } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import type { ServerTls } from "../net/tls.ts";
import { openServerTls, type ReloadableTls, type TlsCheck } from "../tls/reloadable_tls.ts";
import { keyPinOfChain } from "../tls/trust.ts";
import { createAdminHandler } from "./admin_routes.ts";
import type { ApiEnv } from "./api/access.ts";
import type { Operations } from "./api/operations.ts";
import { createApi } from "./api/routes.ts";
import { readAskingWorker } from "./cluster/workers.ts";
import { TokenFile } from "./api/tokens.ts";
import { Operators } from "./operators/operators.ts";
import type { OperatorOptions } from "./operators/options.ts";
import { BackChannelLogout } from "./backchannel_logout.ts";
import { type Connection, type Handler, serveRequest, serveTcp } from "./http_server.ts";
import type { Metrics } from "./metrics.ts";
import { listenUnix } from "./unix_socket.ts";

/** The data and actions of the admin server. */
export interface AdminServices extends Operations {
  readonly metrics: Metrics;
}

export class Admin {
  readonly #hosts: readonly string[];
  readonly #operators?: Operators;
  /** The certificate of the TCP address; `undefined` for plain HTTP. */
  readonly tls?: ReloadableTls<ServerTls>;
  #pin?: string;
  private tcp?: TcpSocket;
  private unix?: AdminSocket;
  #logout?: BackChannelLogout;

  private constructor(hosts: readonly string[], { operators, tls }: Opened) {
    this.#hosts = hosts;
    this.#operators = operators;
    this.tls = tls;
    this.#pin = tls && keyPinOfChain(tls.current.cert);
  }

  /**
   * Listens where the options say; `undefined` if they name nothing. Without a host, an address is on loopback.
   * @param previous whose sockets are used if they have the same names
   * @param hasPredecessor whether another process has the socket, until {@link takeOver}
   * @throws {ConfigError}
   * @throws {NetError} as `listenTcp` of the network
   */
  static async open(
    options: AdminOptions & OperatorOptions,
    net: Net,
    log: Logger,
    { previous, hasPredecessor = false }: { readonly previous?: Admin; readonly hasPredecessor?: boolean } = {},
  ): Promise<Admin | undefined> {
    const { listenAddress, socket, hosts } = options;
    const opened = await openFiles(options, { log, net });
    if (!listenAddress && !socket) return undefined;
    const { login } = opened.operators ?? {};
    const admin = new Admin(login === undefined ? hosts : [...hosts, login.url.host], opened);
    try {
      const tls = opened.tls?.current;
      if (listenAddress) admin.tcp = previous?.tcp?.name === listenAddress ? previous.tcp : await openTcp(listenAddress, tls, net, log);
      if (socket) admin.unix = previous?.unix?.name === socket ? previous.unix : await openUnix(socket, hasPredecessor);
    } catch (error) {
      await admin.close(previous);
      throw error;
    }
    return admin;
  }

  /** Takes the socket over from a predecessor. */
  async takeOver(): Promise<void> {
    await this.unix?.publish?.();
  }

  /** The TCP address bound. */
  get address(): string | undefined {
    return this.tcp?.address;
  }

  /** The pin of the key with which the TCP address speaks TLS. */
  get pin(): string | undefined {
    return this.#pin;
  }

  /**
   * Uses another certificate from now on.
   * @throws {NetError} `tls`
   */
  useTls(tls: ServerTls): void {
    this.tcp?.use(tls);
    this.#pin = keyPinOfChain(tls.cert);
  }

  /** Whether the TCP address is the one of the option. */
  listensAt(name: string | undefined): boolean {
    return this.tcp?.name === name;
  }

  /** Serves requests until {@link close}. */
  serve(services: AdminServices): void {
    const { health, metrics, activity } = services;
    activity.start(() => services.population());
    const [hosts, operators] = [this.#hosts, this.#operators];
    const api = createApi({ operations: services, hosts, operators });
    const { log } = services;
    this.#logout?.close();
    const logout = this.#logout = new BackChannelLogout({ operations: services, operators });
    const login = operators?.login;
    const handle = createAdminHandler({
      health,
      metrics,
      agents: () => services.agents(),
      workers: services.cluster,
      api,
      login,
      hosts,
      logout,
      log,
    });
    this.tcp?.use(this.tls?.current);
    for (const socket of [this.tcp, this.unix]) socket?.serve(handle);
  }

  /** Closes all sockets that `next` does not use. */
  async close(next?: Admin): Promise<void> {
    this.#operators?.close();
    this.#logout?.close();
    if (this.tcp !== next?.tcp) await this.tcp?.close();
    if (this.unix !== next?.unix) await this.unix?.close();
  }
}

/** What a worker answers others: its part of the API, and its metrics as JSON. */
export function createWorkerHandler(services: AdminServices): Handler {
  const { activity, metrics } = services;
  activity.start(() => services.population());
  const app = new Hono<ApiEnv>();
  app.get("/metrics", async (c) => c.body(await metrics.toJson(), 200, { "Content-Type": "application/json" }));
  app.route("/api/v1", createApi({ operations: services, hosts: [] }));
  return (request, origin) => app.fetch(request, { ...origin, worker: readAskingWorker(request.headers.get("authorization")) });
}

/** A socket that requests arrive at. They wait until it is served. */
interface AdminSocket {
  /** As the option has it. */
  readonly name: string;
  /** Serves requests by `handle`, from now on instead of an earlier one. */
  serve(handle: Handler): void;
  /** Takes its name over from a predecessor. */
  publish?(): Promise<void>;
  close(): Promise<void>;
}

interface TcpSocket extends AdminSocket {
  readonly address: string;
  /**
   * Speaks TLS with these settings from now on; without any plain HTTP.
   * @throws {NetError} `tls`
   */
  use(tls: ServerTls | undefined): void;
}

/** @throws {NetError} as `listenTcp` of the network */
async function openTcp(name: string, tls: ServerTls | undefined, net: Net, log: Logger): Promise<TcpSocket> {
  const settings = { maxPendingHeads: 64 };
  // reachable from other hosts only on request: 0.0.0.0:9090
  const listener = await net.listenTcp({ ...settings, address: name.replace(/^:/, "127.0.0.1:"), tls });
  const { address } = listener;
  if (!isLoopback(address) && tls === undefined) {
    log.warn("admin address is reachable from other machines, without TLS", {
      address,
      remedy: "use --admin.tls.file.cert and --admin.tls.file.key, or --admin.listen-address=127.0.0.1:PORT",
    });
  }
  let used = tls;
  let current: Handler;
  let running: Promise<void> | undefined;
  return {
    name,
    address,
    use(tls) {
      if (tls !== used) listener.configure({ ...settings, tls });
      used = tls;
    },
    serve(handle) {
      current = handle;
      running ??= serveTcp(listener, (request, origin) => current(request, origin));
    },
    async close() {
      listener.close();
      await running;
    },
  };
}

/**
 * @throws {ConfigError}
 * @throws {NetError} `address-in-use`
 */
async function openUnix(name: string, hasPredecessor: boolean): Promise<AdminSocket> {
  const first = Promise.withResolvers<void>();
  let current: Handler;
  const serve = async (connection: Connection): Promise<void> => {
    await first.promise;
    await serveRequest(connection, { isLocal: true, listening: name }, (request, origin) => current(request, origin));
  };
  const listener = await listenUnix(name, "--admin.socket", (connection) => void serve(connection), hasPredecessor);
  return {
    name,
    serve(handle) {
      current = handle;
      first.resolve();
    },
    publish: () => listener.publish(),
    close: () => listener.close(),
  };
}

/**
 * Checks the options, and the files that they refer to.
 * @throws {ConfigError}
 */
export async function checkAdminOptions(options: AdminOptions & OperatorOptions, net: TlsCheck): Promise<void> {
  (await openFiles(options, { log: silentLogger, net })).operators?.close();
}

/** The settings of the options besides addresses. */
interface Opened {
  readonly operators?: Operators;
  readonly tls?: ReloadableTls<ServerTls>;
}

/** @throws {ConfigError} */
async function openFiles(options: AdminOptions & OperatorOptions, { log, net }: { log: Logger; net: TlsCheck }): Promise<Opened> {
  const { listenAddress, tokenFile, hosts, jwt, oidc, tls } = options;
  const { file: { key, cert }, keyPassword } = tls;
  const [given] = [
    ["token-file", tokenFile !== undefined],
    ["hosts", hosts.length > 0],
    ["jwt.public-key", jwt.publicKey.length > 0],
    ["oidc.issuer", oidc.issuer !== undefined],
    ["tls.file.key", Boolean(key)],
    ["tls.file.cert", Boolean(cert)],
    ["tls.key-password", keyPassword !== undefined],
  ].filter(([, isGiven]) => isGiven).map(([name]) => name);
  if (given !== undefined && !listenAddress) {
    throw new ConfigError(`Cannot use --admin.${given}: it is for --admin.listen-address, which is not set`);
  }
  const isTls = key || cert || keyPassword !== undefined;
  return {
    tls: isTls ? await openServerTls("admin.tls", tls, { log, net }) : undefined,
    operators: await Operators.open(options, tokenFile === undefined ? undefined : await TokenFile.open(tokenFile, log), log),
  };
}
