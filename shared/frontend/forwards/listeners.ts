// What forwards need besides their option: their tokens and certificates, and their listeners.
import { ConfigError } from "../../config/option.ts";
import { SecretFiles } from "../../files/secret_files.ts";
import type { Intermediary } from "../../http/proxy_status.ts";
import type { Logger } from "../../log/logger.ts";
import type { ClientListener } from "../../net/listener.ts";
import type { ServerTls } from "../../net/tls.ts";
import type { Change } from "../../service/change.ts";
import { type NamedPart, NamedTls } from "../../tls/named_tls.ts";
import { type CertifiedKey, openServerTls, type Reloadable, type TlsCheck, type TlsGroup } from "../../tls/reloadable_tls.ts";
import { warnOfOpenForward } from "../exposure.ts";
import { readToken } from "./credentials.ts";
import { acmeHosts, type Forward, type ForwardGroup, groupForwards } from "./forwards.ts";
import { type HostCertificates, tlsOfHost } from "./host_certificates.ts";
import { createVirtualHosts } from "../http/virtual_host.ts";
import type { ServiceFrontend } from "../service_frontend.ts";
import { normalizeName } from "./server_names.ts";
import { createStaticForward } from "./static_forward.ts";
import { VirtualHosts } from "./virtual_hosts.ts";

export interface CheckForwards {
  /** The scheme that verifies tokens; `undefined` if the embedding program brings its own. */
  readonly authType?: string;
  /** Whether the next hop asks for credentials, as proxies ask lb. */
  readonly isAuthenticatedAgain: boolean;
  /** Whether the next hop knows visitors by certificates that this one has verified. Default `false`. */
  readonly knowsCertificates?: boolean;
}

/**
 * Checks the files with the forwards' tokens, and that each forward has the token that it needs.
 * @throws {ConfigError}
 */
export async function checkForwards(
  forwards: readonly Forward[],
  { authType, isAuthenticatedAgain, knowsCertificates = false }: CheckForwards,
): Promise<void> {
  for (const { listen, network, agent, auth, tokenFile } of forwards) {
    const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --forward listen=${listen}: ${why}`, { cause });
    if (auth === "token") {
      if (authType === "noauth") throw fail("auth=token: nothing is verified without --auth.type=jwt or --auth.clients");
      continue;
    }
    if (tokenFile === undefined) {
      const isHttp = network === "http" || network === "https";
      if (!isAuthenticatedAgain || authType !== "jwt" || (auth === "mtls" && knowsCertificates)) continue;
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
  /** Certificates of listeners whose records name one, by their address as configured. */
  readonly listeners: Map<string, Reloadable<ServerTls>>;
  /** That of the clients' port. */
  clients?: Reloadable<ServerTls>;
}

/**
 * Reads the certificates of forwards that end TLS.
 * @param clients that of the clients' port, for records that name none
 * @param deps with what other names get of listeners whose certificates are ordered, or in a directory
 * @throws {ConfigError}
 */
export async function openForwardTls(
  forwards: readonly Forward[],
  clients: Reloadable<ServerTls> | undefined,
  deps: { readonly log: Logger; readonly net: TlsCheck; readonly selfSigned?: CertifiedKey; readonly hasDirectory?: boolean },
): Promise<ForwardTls> {
  const listeners = new Map<string, Reloadable<ServerTls>>();
  for (const group of groupForwards(forwards)) {
    if (group.network !== "https") continue;
    const { listen, certificates } = group;
    if (certificates.fallback.cert !== undefined) listeners.set(listen, await openHostTls(certificates, deps));
    else if (clients === undefined && deps.selfSigned && (deps.hasDirectory || group.forwards.some(({ acme }) => acme))) {
      listeners.set(listen, await openServerTls(TLS_OPTIONS, { file: {} }, deps)); // names get their own, all others this
    } else if (clients === undefined) {
      throw new ConfigError(
        `Cannot use --forward listen=${listen}: network=https needs cert-file and key-file, acme, --http-proxy.tls.cert-dir, or --http-proxy.tls.enable`,
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

/** The options of a forward that decide about its certificate. */
export function certificateOptionsOf({ listen, network, acme, certFile, keyFile, clientCaFile }: Forward): unknown {
  return [listen, network, acme, certFile, keyFile, clientCaFile];
}

/**
 * Checks that certificates are ordered if forwards need that.
 * @throws {ConfigError}
 */
export function checkOrdered(forwards: readonly Forward[], isOrdering: boolean): void {
  if (isOrdering || acmeHosts(forwards).length === 0) return;
  throw new ConfigError("Cannot use acme of a --forward without a restart: nothing is ordered yet");
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

/** Whether the clients of a forward must present a certificate for every server name of its hosts. */
function asksForCertificate({ host }: Forward, tls: ServerTls): boolean {
  const names = host.length > 0 ? host : [undefined];
  return names.every((name) => (tlsOfHost(tls.hosts, name) ?? tls).clientCa !== undefined);
}

const NO_CLIENT_CA = "auth=mtls needs client-ca-file, or --http-proxy.tls.file.client-ca";

/** How messages name the options. */
const TLS_OPTIONS: TlsGroup = { name: "forward", optionOf: (file) => `forward ${file}-file` };

type Group = ForwardGroup | VirtualHosts;

export interface ForwardListenersOptions {
  readonly log: Logger;
  readonly tls: ForwardTls;
  /** The name of the service in Proxy-Status. */
  readonly name: Intermediary;
  /** Called with the hosts that need certificates by ACME when they may have changed. Default: none are ordered. */
  readonly onHosts?: (configured: readonly string[], published: readonly string[]) => void;
}

/** A listener, and its forwards at the moment. */
interface OpenListener {
  group: Group;
  readonly listener: ClientListener;
  /** Whether a reload has removed its forwards. */
  isRemoved?: boolean;
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
   * Opens the listeners of `forwards`.
   * @throws {NetError} as `listenTcp` and `listenUdp` of the network
   */
  async open(forwards: readonly Forward[]): Promise<void> {
    const secrets = new SecretFiles(this.#options.log);
    for (const group of groupForwards(forwards)) {
      const address = await this.#listen(group);
      for (const forward of group.forwards) {
        this.#announce(forward, address);
        if (forward.tokenFile !== undefined) await secrets.check("the token of a forward", forward.tokenFile);
      }
    }
    this.#configured = forwards;
    this.#reportHosts();
  }

  #reportHosts(): void {
    const configured = new Set(this.#configured);
    const all = [...this.#open.values()].flatMap(({ group: { network, forwards } }) => network === "https" ? forwards : []);
    const published = all.filter((forward) => !configured.has(forward));
    this.#options.onHosts?.(acmeHosts(all), [...new Set(published.flatMap(({ host }) => host.map(normalizeName)))]);
  }

  /** The bound addresses of the forwards of the options, in their order. */
  get addresses(): string[] {
    return this.#configured.map((forward) => this.#open.get(keyOf(forward))!.listener.address);
  }

  /**
   * Prepares new forwards after {@link open}: opens listeners beside those that stay. Not while another call is pending.
   * @param tls the certificates, as of {@link openForwardTls}
   * @throws {RangeError} as {@link add}
   * @throws {ConfigError} without a certificate for a listener
   * @throws {NetError} as {@link open}
   */
  async prepare(change: Change, forwards: readonly Forward[], tls: ForwardTls): Promise<void> {
    const known = new Map(this.#configured.map((forward) => [JSON.stringify(forward), forward]));
    const wanted = forwards.map((forward) => known.get(JSON.stringify(forward)) ?? forward);
    const [kept, before] = [new Set(wanted), new Set(this.#configured)];
    const added = wanted.filter((forward) => !before.has(forward));
    const removed = this.#configured.filter((forward) => !kept.has(forward));
    const [gone, byListener] = [new Set(removed), Map.groupBy(added, keyOf)];
    const groups = new Map<string, Group | undefined>();
    for (const key of new Set([...removed.map(keyOf), ...byListener.keys()])) {
      const staying = (this.#open.get(key)?.group.forwards ?? []).filter((forward) => !gone.has(forward));
      groups.set(key, (groupForwards([...staying, ...byListener.get(key) ?? []]) as [Group?])[0]);
    }
    this.#prepareTls(change, tls);
    for (const [key, group] of groups) {
      const open = this.#open.get(key);
      if (group !== undefined && (open === undefined || kindOf(open.group) !== kindOf(group))) await this.#reopen(change, key, group, open);
      else if (group === undefined) change.onCommit(() => this.#remove(key));
      else change.onCommit(() => this.#regroup(open!, group));
    }
    change.onCommit(() => {
      this.#configured = wanted;
      this.#reportHosts();
      for (const forward of added) this.#announce(forward, this.#open.get(keyOf(forward))!.listener.address);
    });
  }

  #regroup(open: OpenListener, group: Group): void {
    open.group = group;
    if (group.network === "https") this.#clients.replaceTls(open.listener, this.#tlsOf(group.listen));
  }

  /** Opens a listener, after one of another kind at the same address was closed. */
  async #reopen(change: Change, key: string, group: Group, open: OpenListener | undefined): Promise<void> {
    if (open) {
      this.#open.delete(key);
      this.#clients.close(open.listener);
      change.onRevert(async () => void await this.#listen(open.group));
    }
    await this.#listen(group);
    const { listener } = this.#open.get(key)!;
    change.onRevert(() => {
      this.#open.delete(key);
      this.#clients.close(listener);
    });
    change.onCommit(() => {
      if (open) this.#closed(open);
    });
  }

  /** Replaces the certificates. */
  #prepareTls(change: Change, next: ForwardTls): void {
    const { tls } = this.#options;
    const [before, clients] = [new Map(tls.listeners), tls.clients];
    tls.clients = next.clients;
    change.onRevert(() => {
      tls.clients = clients;
      tls.listeners.clear();
      for (const [listen, own] of before) tls.listeners.set(listen, own);
    });
    for (const [listen, own] of next.listeners) if (!before.has(listen)) tls.listeners.set(listen, own);
    change.onCommit(() => {
      for (const [listen, own] of before) {
        const replacement = next.listeners.get(listen);
        if (replacement === undefined) tls.listeners.delete(listen);
        else if (replacement !== own) {
          tls.listeners.set(listen, replacement);
          const open = this.#open.get(`tcp ${listen}`);
          if (open) this.#clients.replaceTls(open.listener, replacement);
        }
      }
    });
  }

  #remove(key: string): void {
    const open = this.#open.get(key)!;
    this.#open.delete(key);
    if (key.startsWith("udp")) this.#clients.close(open.listener);
    else this.#clients.retire(open.listener);
    this.#closed(open);
  }

  /** Its tunnels are no longer offered. */
  #closed(open: OpenListener): void {
    open.isRemoved = true;
    this.#options.log.info("forward closed", { clients: open.listener.address });
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
    if (open === undefined) {
      this.#announce(forward, await this.#listen(group));
      return this.#reportHosts();
    }
    // the preamble of a listener is fixed when it is opened
    if (preambleOf(group) !== preambleOf(open.group)) {
      throw new RangeError(`only some of the records that listen on ${forward.listen} have sni`);
    }
    this.#checkCertificates(forward);
    open.group = group;
    this.#announce(forward, open.listener.address);
    this.#reportHosts();
  }

  /** @throws {ConfigError} if the forward identifies clients by certificates, but its listener requests none */
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
    if (rest.length > 0) [open.group] = groupForwards(rest) as [Group];
    else {
      this.#open.delete(keyOf(forward));
      this.#clients.close(open.listener);
    }
    this.#reportHosts();
  }

  async #listen(group: Group): Promise<string> {
    const { listen: address, network, forwards: [first] } = group;
    for (const forward of group.forwards) this.#checkCertificates(forward);
    const state: Pick<OpenListener, "group" | "isRemoved"> = { group };
    const current = () => state.isRemoved ? undefined : state.group;
    const protocol = group instanceof VirtualHosts
      ? createVirtualHosts(() => current() as VirtualHosts | undefined, this.#options.name)
      : createStaticForward(() => current() as ForwardGroup | undefined);
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
