// What forwards need besides their option: their tokens and certificates, and their listeners.
import { ConfigError } from "../config/option.ts";
import { SecretFiles } from "../files/secret_files.ts";
import type { Intermediary } from "../http/proxy_status.ts";
import type { Logger } from "../log/logger.ts";
import type { ClientListener, ServerTls } from "../net/types.ts";
import { type NamedPart, NamedTls } from "../tls/named_tls.ts";
import { openServerTls, type Reloadable, type TlsCheck, type TlsGroup } from "../tls/reloadable_tls.ts";
import { warnOfOpenForward } from "./exposure.ts";
import { readToken } from "./forward_credentials.ts";
import { type Forward, type ForwardGroup, groupForwards } from "./forwards.ts";
import type { HostCertificates } from "./host_certificates.ts";
import { createVirtualHosts } from "./http_virtual_host.ts";
import type { ServiceFrontend } from "./service_frontend.ts";
import { patternsOf } from "./server_names.ts";
import { createStaticForward } from "./static_forward.ts";
import { VirtualHosts } from "./virtual_hosts.ts";

export interface CheckForwards {
  /** The scheme that verifies tokens; `undefined` if the embedding program brings its own. */
  readonly authType?: string;
  /** Whether the next hop asks for credentials, as proxies ask lb. */
  readonly isAuthenticatedAgain: boolean;
}

/**
 * Checks the files with the forwards' tokens, and that each forward has the token that it needs.
 * @throws {ConfigError}
 */
export async function checkForwards(forwards: readonly Forward[], { authType, isAuthenticatedAgain }: CheckForwards): Promise<void> {
  for (const { listen, network, agent, auth, tokenFile } of forwards) {
    const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --forward listen=${listen}: ${why}`, { cause });
    if (auth === "token") {
      if (authType === "noauth") throw fail("auth=token: nothing is verified without --auth.type=jwt or --auth.clients");
      continue;
    }
    if (tokenFile === undefined) {
      const isHttp = network === "http" || network === "https";
      if (!isAuthenticatedAgain || authType !== "jwt") continue;
      throw fail(
        `with --auth.type=jwt it needs token-file, a file with a client's token for the agent ${agent}${isHttp ? ", or auth=token" : ""}`,
      );
    }
    if (authType === "noauth") throw fail("token-file: no token is verified without --auth.type=jwt");
    await readToken(tokenFile).catch((cause: Error) => {
      throw fail(`token-file: ${cause.message}`, cause);
    });
  }
}

/** The certificates of forwards. */
export interface ForwardTls {
  /** Of listeners whose records name one, by their address as configured. */
  readonly listeners: ReadonlyMap<string, Reloadable<ServerTls>>;
  /** That of the clients' port. */
  readonly clients?: Reloadable<ServerTls>;
}

/**
 * Reads the certificates of forwards that end TLS.
 * @param clients that of the clients' port, for records that name none
 * @throws {ConfigError}
 */
export async function openForwardTls(
  forwards: readonly Forward[],
  clients: Reloadable<ServerTls> | undefined,
  deps: { readonly log: Logger; readonly net: TlsCheck },
): Promise<ForwardTls> {
  const listeners = new Map<string, Reloadable<ServerTls>>();
  for (const group of groupForwards(forwards)) {
    if (group.network !== "https") continue;
    const { listen, certificates } = group;
    if (certificates.fallback.cert !== undefined) listeners.set(listen, await openHostTls(certificates, deps));
    else if (clients === undefined) {
      throw new ConfigError(
        `Cannot use --forward listen=${listen}: network=https needs cert-file and key-file, or --http-proxy.tls.enable`,
      );
    }
    const tls = listeners.get(listen) ?? clients;
    if (tls === undefined || group.forwards.every((forward) => asksForCertificate(forward, tls.current) || forward.auth !== "mtls")) {
      continue;
    }
    throw new ConfigError(`Cannot use --forward listen=${listen}: ${NO_CLIENT_CA}`);
  }
  return { listeners, clients };
}

/** The TLS of a listener whose records name files. */
async function openHostTls(
  { fallback, hosts }: HostCertificates,
  deps: { readonly log: Logger; readonly net: TlsCheck },
): Promise<Reloadable<ServerTls>> {
  const opened = await openServerTls(TLS_OPTIONS, { file: fallback }, deps);
  const named: NamedPart[] = [];
  for (const { names, files } of hosts) {
    named.push({ names, tls: files === fallback ? opened : await openServerTls(TLS_OPTIONS, { file: files }, deps) });
  }
  return named.length === 0 ? opened : new NamedTls(opened, named);
}

/** The settings for the clients of a host; `undefined` for those that ask for no name. */
function hostTls({ hosts = [], ...others }: ServerTls, host: string | undefined): ServerTls {
  for (const pattern of host === undefined ? [] : patternsOf(host)) {
    const found = hosts.find(({ names }) => names.includes(pattern));
    if (found) return found.tls;
  }
  return others;
}

/** Whether the clients of a forward are asked for a certificate, whatever server name they send for its hosts. */
function asksForCertificate({ host }: Forward, tls: ServerTls): boolean {
  const names = host.length > 0 ? host : [undefined];
  return names.every((name) => hostTls(tls, name).clientCa !== undefined);
}

const NO_CLIENT_CA = "auth=mtls needs client-ca-file, or --http-proxy.tls.file.client-ca";

/** How messages name the options. */
const TLS_OPTIONS: TlsGroup = { name: "forward", optionOf: (file) => `forward ${file}-file` };

type Group = ForwardGroup | VirtualHosts;

export interface ForwardListenersOptions {
  readonly log: Logger;
  readonly tls: ForwardTls;
  /** Of the service in Proxy-Status. */
  readonly name: Intermediary;
}

/** A listener, and its forwards at the moment. */
interface OpenListener {
  group: Group;
  readonly listener: ClientListener;
}

/** The listeners of forwards. Those that agents ask for come and go; the clients' side closes the rest. */
export class ForwardListeners {
  readonly #clients: ServiceFrontend;
  readonly #options: ForwardListenersOptions;
  readonly #open = new Map<string, OpenListener>();
  /** The forwards of the options; agents may have asked for others. */
  #configured: readonly Forward[] = [];

  constructor(clients: ServiceFrontend, options: ForwardListenersOptions) {
    this.#clients = clients;
    this.#options = options;
  }

  /**
   * Opens the listeners of `forwards`. Returns the bound addresses, in their order.
   * @throws {NetError} as `listenTcp` and `listenUdp` of the network
   */
  async open(forwards: readonly Forward[]): Promise<string[]> {
    const [bound, secrets] = [new Map<Forward, string>(), new SecretFiles(this.#options.log)];
    for (const group of groupForwards(forwards)) {
      const address = await this.#listen(group);
      for (const forward of group.forwards) {
        bound.set(forward, address);
        this.#announce(forward, address);
        if (forward.tokenFile !== undefined) await secrets.check("the token of a forward", forward.tokenFile);
      }
    }
    this.#configured = forwards;
    return forwards.map((forward) => bound.get(forward)!);
  }

  /**
   * Replaces the forwards of {@link open}: opens and closes listeners beside those that stay, and changes where new connections go. Returns the
   * bound addresses. Not while another call is pending.
   * @throws {RangeError} as {@link add}
   * @throws {ConfigError} if a forward needs other certificate files
   * @throws {NetError} as {@link open}; in each case nothing has changed, except for listeners that had to be closed first
   */
  async update(forwards: readonly Forward[]): Promise<string[]> {
    const known = new Map(this.#configured.map((forward) => [JSON.stringify(forward), forward]));
    const wanted = forwards.map((forward) => known.get(JSON.stringify(forward)) ?? forward);
    const added = wanted.filter((forward) => !this.#configured.includes(forward));
    const removed = this.#configured.filter((forward) => !wanted.includes(forward));
    const groups = new Map<string, Group | undefined>();
    for (const key of new Set([...removed, ...added].map(keyOf))) {
      const kept = (this.#open.get(key)?.group.forwards ?? []).filter((forward) => !removed.includes(forward));
      const [group] = groupForwards([...kept, ...added.filter((forward) => keyOf(forward) === key)]) as [Group?];
      groups.set(key, group);
    }
    for (const { listen, certFile } of added) {
      if (certFile === undefined) continue;
      throw new ConfigError(`Cannot use --forward listen=${listen}: a record with cert-file needs a restart`);
    }
    for (const forward of added) if (this.#open.has(keyOf(forward))) this.#checkCertificates(forward);
    const opened: string[] = [];
    try {
      for (const [key, group] of groups) {
        const open = this.#open.get(key);
        if (open && group && kindOf(open.group) !== kindOf(group)) this.#close(key);
        if (group === undefined || this.#open.has(key)) continue;
        await this.#listen(group);
        opened.push(key);
      }
    } catch (error) {
      for (const key of opened) this.#close(key);
      throw error;
    }
    for (const [key, group] of groups) {
      if (group === undefined) this.#close(key);
      else this.#open.get(key)!.group = group;
    }
    this.#configured = wanted;
    const addressOf = (forward: Forward) => this.#open.get(keyOf(forward))!.listener.address;
    for (const forward of added) this.#announce(forward, addressOf(forward));
    return wanted.map(addressOf);
  }

  #close(key: string): void {
    const { listener } = this.#open.get(key)!;
    this.#open.delete(key);
    this.#clients.close(listener);
    this.#options.log.info("forward closed", { clients: listener.address });
  }

  /**
   * Adds a forward, to the listener of its address if there is one. Not while another call is pending.
   * @throws {RangeError} if it conflicts with another one
   * @throws {ConfigError} without a certificate for it
   * @throws {NetError} as {@link open}
   */
  async add(forward: Forward): Promise<void> {
    const open = this.#open.get(keyOf(forward));
    const [group] = groupForwards([...open?.group.forwards ?? [], forward]) as [Group];
    if (open === undefined) return this.#announce(forward, await this.#listen(group));
    // what is read of a connection first is decided when the listener is opened
    if (preambleOf(group) !== preambleOf(open.group)) {
      throw new RangeError(`only some of the records that listen on ${forward.listen} have sni`);
    }
    this.#checkCertificates(forward);
    open.group = group;
    this.#announce(forward, open.listener.address);
  }

  /** @throws {ConfigError} if the forward knows clients by certificates, and its listener asks for none */
  #checkCertificates(forward: Forward): void {
    const { listen, auth } = forward;
    if (auth !== "mtls" || asksForCertificate(forward, this.#tlsOf(listen).current)) return;
    throw new ConfigError(`Cannot use --forward listen=${listen}: ${NO_CLIENT_CA}`);
  }

  /** Removes a forward that was added; the last one closes the listener. Its clients are served to their end. */
  remove(forward: Forward): void {
    const open = this.#open.get(keyOf(forward));
    if (open === undefined) return;
    const rest = open.group.forwards.filter((other) => other !== forward);
    if (rest.length > 0) return void ([open.group] = groupForwards(rest) as [Group]);
    this.#open.delete(keyOf(forward));
    this.#clients.close(open.listener);
  }

  async #listen(group: Group): Promise<string> {
    const { listen: address, network, forwards: [first] } = group;
    for (const forward of group.forwards) this.#checkCertificates(forward);
    const state = { group };
    const protocol = group instanceof VirtualHosts
      ? createVirtualHosts(() => state.group as VirtualHosts, this.#options.name)
      : createStaticForward(() => state.group as ForwardGroup);
    const listener = network === "udp"
      ? await this.#clients.listenUdp({ address, protocol })
      : await this.#clients.listen({ address, protocol, tls: network === "https" ? this.#tlsOf(address) : undefined });
    this.#open.set(keyOf(first!), Object.assign(state, { listener }));
    return listener.address;
  }

  /** @throws {ConfigError} */
  #tlsOf(address: string): Reloadable<ServerTls> {
    const { listeners, clients } = this.#options.tls;
    const tls = listeners.get(address) ?? clients;
    if (tls === undefined) throw new ConfigError(`there is no certificate for network=https: --http-proxy.tls.enable is not set`);
    return tls;
  }

  #announce(forward: Forward, address: string): void {
    const { agent, network, to, sni, host, path, auth, allow } = forward;
    const { log } = this.#options;
    log.info("forwarding", {
      clients: address,
      network: network === "tcp" ? undefined : network,
      servers: [...sni, ...host].join(",") || undefined,
      paths: path.join(",") || undefined,
      agent,
      destination: to,
    });
    const tls = network === "https" ? this.#tlsOf(forward.listen).current : undefined;
    const asksForSecret = auth !== "none" || (tls !== undefined && asksForCertificate(forward, tls) && !tls.isClientOptional);
    if (allow.length === 0 && !asksForSecret) warnOfOpenForward(log, address, forward);
  }
}

/** Listeners of TCP and UDP are apart. */
function keyOf({ network, listen }: Forward): string {
  return `${network === "udp" ? "udp" : "tcp"} ${listen}`;
}

/** What cannot change while a listener is open. */
function kindOf(group: Group): string {
  return `${preambleOf(group)} ${group.network}`;
}

function preambleOf(group: Group): string {
  return group instanceof VirtualHosts ? "http" : group.isByName ? "client-hello" : "none";
}
