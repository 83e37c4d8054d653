// The admin server for operators, on an address and a unix socket of its own. On the address it uses the network's listener, which bounds
// connections, time and header sections on every runtime. node:http would add 4 MiB of memory, and bypass a given network.
import type { AdminOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { isLoopback } from "../address/host_port.ts";
import type { Logger } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import { createAdminHandler } from "./admin_routes.ts";
import type { Operations } from "./api/operations.ts";
import { createApi } from "./api/routes.ts";
import { TokenFile } from "./api/tokens.ts";
import { Operators } from "./operators/operators.ts";
import type { OperatorOptions } from "./operators/options.ts";
import { BackChannelLogout } from "./backchannel_logout.ts";
import { type Connection, type Handler, serveRequest, serveTcp } from "./http_server.ts";
import type { Metrics } from "./metrics.ts";
import { listenUnix } from "./unix_socket.ts";

/** What the admin server shows and does. */
export interface AdminServices extends Operations {
  readonly metrics: Metrics;
}

export class Admin {
  readonly #hosts: readonly string[];
  readonly #operators?: Operators;
  private tcp?: TcpSocket;
  private unix?: AdminSocket;
  #logout?: BackChannelLogout;

  private constructor(hosts: readonly string[], operators: Operators | undefined) {
    this.#hosts = hosts;
    this.#operators = operators;
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
    const operators = await openOperators(options, log);
    if (!listenAddress && !socket) return undefined;
    const { login } = operators ?? {};
    const admin = new Admin(login === undefined ? hosts : [...hosts, login.url.host], operators);
    try {
      if (listenAddress) admin.tcp = previous?.tcp?.name === listenAddress ? previous.tcp : await openTcp(listenAddress, net, log);
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
    const logout = this.#logout = new BackChannelLogout(services);
    const login = operators?.login;
    const handle = createAdminHandler({ health, metrics, agents: () => services.agents(), api, login, hosts, logout, log });
    for (const socket of [this.tcp, this.unix]) socket?.serve(handle);
  }

  /** Closes the sockets but those that `next` uses. */
  async close(next?: Admin): Promise<void> {
    this.#operators?.close();
    this.#logout?.close();
    if (this.tcp !== next?.tcp) await this.tcp?.close();
    if (this.unix !== next?.unix) await this.unix?.close();
  }
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
}

/** @throws {NetError} as `listenTcp` of the network */
async function openTcp(name: string, net: Net, log: Logger): Promise<TcpSocket> {
  // reachable from other hosts only on request: 0.0.0.0:9090
  const listener = await net.listenTcp({ address: name.replace(/^:/, "127.0.0.1:"), maxPendingHeads: 64 });
  const { address } = listener;
  if (!isLoopback(address)) {
    log.warn("admin address is reachable from other machines, without TLS", {
      address,
      remedy: "use --admin.listen-address=127.0.0.1:PORT, or let a firewall protect it",
    });
  }
  let current: Handler;
  let running: Promise<void> | undefined;
  return {
    name,
    address,
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
