// The admin server for operators, on an address and a unix socket of its own. On the address it uses the network's listener, which bounds
// connections, time and header sections on every runtime. node:http would add 4 MiB of memory, and bypass a given network.
import type { AdminOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { isLoopback } from "../address/host_port.ts";
import type { Logger } from "../log/logger.ts";
import type { Net, TcpListener } from "../net/types.ts";
import { createAdminHandler } from "./admin_routes.ts";
import type { Operations } from "./api/operations.ts";
import { createApi } from "./api/routes.ts";
import { TokenFile } from "./api/tokens.ts";
import { Operators } from "./operators/operators.ts";
import type { OperatorOptions } from "./operators/options.ts";
import { type Connection, type Handler, serveRequest, serveTcp } from "./http_server.ts";
import type { Metrics } from "./metrics.ts";
import { listenUnix, type UnixListener } from "./unix_socket.ts";

/** What the admin server shows and does. */
export interface AdminServices extends Operations {
  readonly metrics: Metrics;
}

export class Admin {
  readonly #hosts: readonly string[];
  readonly #operators?: Operators;
  readonly #tcp?: TcpListener;
  #unix?: UnixListener;
  /** Requests on the socket wait for it. */
  readonly #handler = Promise.withResolvers<Handler>();
  #running?: Promise<void>;
  #services?: AdminServices;

  private constructor(hosts: readonly string[], operators: Operators | undefined, tcp: TcpListener | undefined) {
    this.#hosts = hosts;
    this.#operators = operators;
    this.#tcp = tcp;
  }

  /**
   * Listens where the options say; `undefined` if they name nothing. Without a host, an address is on loopback.
   * @param hasPredecessor whether another process has the socket, until {@link takeOver}
   * @throws {ConfigError}
   * @throws {NetError} as `listenTcp` of the network
   */
  static async open(
    options: AdminOptions & OperatorOptions,
    net: Net,
    log: Logger,
    hasPredecessor = false,
  ): Promise<Admin | undefined> {
    const { listenAddress, socket, hosts } = options;
    const operators = await openOperators(options, log);
    if (!listenAddress && !socket) return undefined;
    // reachable from other hosts only on request: 0.0.0.0:9090
    const tcp = listenAddress
      ? await net.listenTcp({ address: listenAddress.replace(/^:/, "127.0.0.1:"), maxPendingHeads: 64 })
      : undefined;
    const { login } = operators ?? {};
    const admin = new Admin(login === undefined ? hosts : [...hosts, login.url.host], operators, tcp);
    if (tcp && !isLoopback(tcp.address)) {
      log.warn("admin address is reachable from other machines, without TLS", {
        address: tcp.address,
        remedy: "use --admin.listen-address=127.0.0.1:PORT, or let a firewall protect it",
      });
    }
    try {
      const serveLocal = (connection: Connection) => void admin.#serveLocal(socket!, connection);
      if (socket) admin.#unix = await listenUnix(socket, "--admin.socket", serveLocal, hasPredecessor);
    } catch (error) {
      tcp?.close();
      throw error;
    }
    return admin;
  }

  /** Takes the socket over from a predecessor. */
  async takeOver(): Promise<void> {
    await this.#unix?.publish();
  }

  /** The TCP address bound. */
  get address(): string | undefined {
    return this.#tcp?.address;
  }

  /** Serves requests until {@link close}. */
  serve(services: AdminServices): void {
    const { health, metrics, activity } = services;
    this.#services = services;
    activity.start(() => services.population());
    const [hosts, operators] = [this.#hosts, this.#operators];
    const api = createApi({ operations: services, hosts, operators });
    const { log } = services;
    const handle = createAdminHandler({ health, metrics, agents: () => services.agents(), api, login: operators?.login, hosts, log });
    this.#handler.resolve(handle);
    if (this.#tcp) this.#running = serveTcp(this.#tcp, handle);
  }

  async #serveLocal(path: string, connection: Connection): Promise<void> {
    await serveRequest(connection, { isLocal: true, listening: path }, await this.#handler.promise);
  }

  async close(): Promise<void> {
    this.#services?.activity.close(); // ends streams of events
    this.#operators?.close();
    this.#tcp?.close();
    await this.#running;
    await this.#unix?.close();
  }
}

/**
 * Checks the options, and the files that they refer to.
 * @throws {ConfigError}
 */
export async function checkAdminOptions(options: AdminOptions & OperatorOptions, log: Logger): Promise<void> {
  (await openOperators(options, log))?.close();
}

/** @throws {ConfigError} */
async function openOperators(options: AdminOptions & OperatorOptions, log: Logger): Promise<Operators | undefined> {
  const { listenAddress, tokenFile, hosts, jwt, oidc } = options;
  const [given] = [
    ["token-file", tokenFile !== undefined],
    ["hosts", hosts.length > 0],
    ["jwt.public-key", jwt.publicKey.length > 0],
    ["oidc.issuer", oidc.issuer !== undefined],
  ].filter(([, isGiven]) => isGiven).map(([name]) => name);
  if (given !== undefined && !listenAddress) {
    throw new ConfigError(`Cannot use --admin.${given}: it is for --admin.listen-address, which is not set`);
  }
  return await Operators.open(options, tokenFile === undefined ? undefined : await TokenFile.open(tokenFile, log), log);
}
