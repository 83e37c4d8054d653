// The clients' side of proxy and load balancer: the limits, the listeners, and the frontend that serves them.
import { createAllowList, networksOf } from "../address/allow_list.ts";
import { CertificateIdentities, type MtlsOptions } from "../auth/certificate_identity.ts";
import { clientScheme } from "../auth/scheme.ts";
import { ClientLimits } from "../limits/client_limits.ts";
import type { SharedLimits } from "../limits/shared_limits.ts";
import type { ClientLimitValues } from "../limits/options.ts";
import { NetError } from "../net/errors.ts";
import type { ClientListener } from "../net/listener.ts";
import type { SessionListener } from "../net/session.ts";
import type { TcpListener, TcpSettings } from "../net/tcp.ts";
import type { HostTls, ServerTls } from "../net/tls.ts";
import type { UdpListener } from "../net/udp.ts";
import { type Change, differs } from "../service/change.ts";
import type { ServiceRuntime } from "../service/runtime.ts";
import type { Reloadable, ReloadableTls } from "../tls/reloadable_tls.ts";
import { TrustedProxies } from "./client_address.ts";
import type { ClientProtocol } from "./client_protocol.ts";
import { warnOfExposure } from "./exposure.ts";
import { tlsOfHost } from "./forwards/host_certificates.ts";
import { Frontend, type FrontendOptions, type ProtocolListener } from "./server.ts";
import { createSocks5Proxy } from "./socks5/socks5.ts";
import { Associations, type SocksUdpOptions } from "./socks5/udp.ts";

/** The options that proxy and load balancer share. */
export interface ServiceFrontendOptions {
  readonly auth: { readonly type: "noauth" | "jwt" | "oidc"; readonly clients: readonly string[]; readonly mtls: MtlsOptions };
  readonly httpProxy: {
    readonly listenAddress: string;
    readonly agentSuffix?: string;
    readonly http2ListenAddress?: string;
    readonly hostWhitelist: string[];
    readonly trustedProxies: string[];
    readonly proxyProtocol: string[];
    readonly tls: { readonly refresh: number };
  };
  readonly socks: SocksUdpOptions & { readonly listenAddress?: string };
  readonly limits: ClientLimitValues;
}

/** The dependencies of the client side. */
export interface ServiceFrontendDeps {
  /** File descriptors per tunnel. */
  readonly descriptors: number;
  /** Whether an authenticator of the embedding program replaces the options' scheme. */
  readonly hasOwnAuthenticator: boolean;
  /** The limits that other processes of the service have, too. Default: there are none. */
  readonly sharedLimits?: SharedLimits;
}

/** The addresses for clients, and their protocols. */
export interface ListenOptions {
  /** The address for the network's `listenTcp`. */
  readonly address: string;
  /** The option with the address, for a warning that everyone may connect. Missing: the protocol warns itself. */
  readonly option?: string;
  /** Missing for plain TCP. */
  readonly tls?: Reloadable<ServerTls>;
  readonly protocol: ClientProtocol;
  /** Clients may speak SOCKS 5 as well; `protocol` is HTTP then. */
  readonly socks?: ClientProtocol;
  /** Takes the TLS connections of agents, as of the network's `listenTcp`. */
  readonly links?: SessionListener;
}

/** The TCP addresses bound for clients. */
export interface ClientAddresses {
  readonly clientAddress: string;
  /** `undefined` without `socks.listenAddress`. */
  readonly socksAddress?: string;
  /** `undefined` without `httpProxy.http2ListenAddress`. */
  readonly http2Address?: string;
}

/** The protocols of the shared listeners. */
export interface ListenAllOptions extends Pick<ListenOptions, "tls" | "links"> {
  /** Protocol of the listener for HTTP and SOCKS. */
  readonly http: ClientProtocol;
  /** Protocol of the listener for HTTP/2. */
  readonly http2: ClientProtocol;
}

/** The options by which proxy and lb differ. */
export type ServeOptions = Pick<
  FrontendOptions,
  "upstreamRole" | "authenticator" | "policy" | "labelsOf" | "whenExpected" | "dial" | "audit" | "tracer"
>;

/** A listener, with the settings that are needed to change it, to renew its certificate and to warn. */
interface OpenListener extends ProtocolListener, Pick<ListenOptions, "option"> {
  tls?: Reloadable<ServerTls>;
  links?: SessionListener;
  /** `undefined` for UDP. */
  readonly tcp?: TcpListener;
}

/** A listener that proxy and load balancer share, and its address as configured. */
interface SharedListener {
  readonly given: ListenOptions;
  readonly open: OpenListener;
}

/** Listens for clients; connections wait until {@link serve}. */
export class ServiceFrontend {
  readonly #runtime: ServiceRuntime;
  #options: ServiceFrontendOptions;
  readonly #deps: ServiceFrontendDeps;
  readonly #listeners = new Set<OpenListener>();
  /** By option. */
  readonly #shared = new Map<string, SharedListener>();
  readonly #associations: Associations;
  readonly #socks: ClientProtocol;
  /** How to stop renewing the certificates in use. */
  readonly #renewals = new Map<Reloadable<ServerTls>, () => void>();
  readonly limits: ClientLimits;
  #frontend?: Frontend;
  /** Certificates that answer challenges at all TLS ports. */
  #challenges: readonly HostTls[] = [];
  /** Certificates of names, at all TLS ports: those of published names, and of a directory. */
  #hosts: readonly HostTls[] = [];
  #directory: readonly HostTls[] = [];

  constructor(runtime: ServiceRuntime, options: ServiceFrontendOptions, deps: ServiceFrontendDeps) {
    const { net, log, limitReporter: reports } = runtime;
    this.#runtime = runtime;
    this.#options = options;
    this.#deps = deps;
    this.#associations = new Associations(options.socks);
    this.#socks = createSocks5Proxy({ associations: this.#associations });
    this.limits = runtime.adopt(
      new ClientLimits(options.limits, deps.descriptors, {
        log,
        reports,
        intermediaries: intermediariesOf(options),
        createRate: (rate) => net.createRate(rate),
        buffers: net,
        shared: deps.sharedLimits,
      }),
      (limits) => limits.close(),
    );
    // resources are closed in reverse order: those opened later are closed first, which ends the requests
    runtime.defer(async () => {
      for (const { listener } of this.#listeners) listener.close();
      await this.#frontend?.done;
    });
  }

  /**
   * Opens a listener. Its connections wait until {@link serve}.
   * @throws {NetError} as `listenTcp` of the network
   */
  async listen(options: ListenOptions): Promise<TcpListener> {
    const open = await this.#open(options);
    this.#add(open);
    return open.tcp;
  }

  async #open({ address, option, tls, protocol, socks, links }: ListenOptions): Promise<OpenListener & { readonly tcp: TcpListener }> {
    const preamble = socks === undefined ? protocol.preamble : "http-or-socks5";
    const listener = await this.#runtime.net.listenTcp({ address, preamble, ...this.#settingsOf({ tls, links }) });
    return { listener, tcp: listener, option, tls, links, protocol, socks };
  }

  #settingsOf({ tls, links }: Pick<ListenOptions, "tls" | "links">): TcpSettings {
    return {
      tls: tls && this.#complete(tls.current),
      links,
      maxPendingHeads: this.limits.pendingRequests,
      pendingHeadsPerAddress: this.limits.pendingRequestsPerAddress,
      proxyProtocol: networksOf(this.#options.httpProxy.proxyProtocol),
    };
  }

  /**
   * The same for UDP peers. The protocol itself says who may connect.
   * @throws {NetError} as `listenUdp` of the network
   */
  async listenUdp({ address, protocol }: Pick<ListenOptions, "address" | "protocol">): Promise<UdpListener> {
    const listener = await this.#runtime.net.listenUdp({ address });
    this.#add({ listener, protocol });
    return listener;
  }

  #add(added: OpenListener): void {
    this.#listeners.add(added);
    if (this.#frontend === undefined) return;
    this.#frontend.add(added);
    this.#renewCertificates();
  }

  /** Sets the certificates with which all TLS ports answer the challenges of an ACME authority. */
  setChallenges(challenges: readonly HostTls[]): void {
    this.#challenges = challenges;
    this.#completeAll();
  }

  /** Sets the certificates of published names, at all TLS ports. Names with files of their own keep them. */
  setHosts(hosts: readonly HostTls[]): void {
    this.#hosts = hosts;
    this.#completeAll();
  }

  /** Uses the certificates of a directory, and those that it gets later: as {@link setHosts}, which they precede. */
  useDirectory(directory: Reloadable<readonly HostTls[]>): void {
    const { certificates } = this.#runtime;
    const watched = new Map<string, () => void>();
    let byName: ReadonlyMap<string, string> = new Map();
    const use = (hosts: readonly HostTls[]) => {
      this.#directory = hosts;
      byName = new Map(hosts.map(({ names: [name], tls: { cert } }) => [name!, cert]));
      for (const [name, unwatch] of watched) if (!byName.has(name) && watched.delete(name)) unwatch();
      for (const name of byName.keys()) {
        if (!watched.has(name)) watched.set(name, certificates.watch(name, () => byName.get(name), false));
      }
      this.#completeAll();
    };
    use(directory.current);
    certificates.refresh(directory, () => this.#options.httpProxy.tls.refresh, use);
  }

  #completeAll(): void {
    for (const { tls, tcp } of this.#listeners) if (tls) tcp?.setTls(this.#complete(tls.current));
  }

  #complete(tls: ServerTls): ServerTls {
    const { hosts = [], ...others } = tls;
    // the later of two for a name counts; everything else is as a record says for its zone
    const named = [...this.#hosts, ...this.#directory].flatMap(({ names, tls: { cert, key } }) =>
      Array.from(
        Map.groupBy(names, (name) => tlsOfHost(hosts, name)),
        ([zone = others, names]) => ({ names, tls: { ...zone, cert, key } }),
      )
    );
    return { ...others, hosts: [...named, ...hosts], challenges: this.#challenges };
  }

  /** Closes a listener and frees its address at once. Its clients are served to their end. */
  close(listener: ClientListener): void {
    this.#forget(listener);
    listener.close();
  }

  /** As {@link close}, but serves clients that have connected already; the address is free soon. */
  retire(listener: ClientListener): void {
    this.#forget(listener);
    listener.stopAccepting();
  }

  #forget(listener: ClientListener): void {
    for (const open of this.#listeners) if (open.listener === listener) this.#listeners.delete(open);
    if (this.#frontend !== undefined) this.#renewCertificates();
  }

  /**
   * Opens the listeners that proxy and load balancer share: for HTTP and SOCKS, and for SOCKS and HTTP/2 alone if the options name addresses.
   * @throws {NetError} as {@link listen}
   */
  async listenAll(options: ListenAllOptions): Promise<void> {
    for (const given of this.#wanted(this.#options, options)) {
      const open = await this.#open(given);
      this.#shared.set(given.option!, { given, open });
      this.#add(open);
    }
  }

  /** The addresses bound by {@link listenAll}, or later. */
  get addresses(): ClientAddresses {
    const bound = (option: string) => this.#shared.get(option)?.open.listener.address;
    return { clientAddress: bound(CLIENTS)!, socksAddress: bound(SOCKS), http2Address: bound(HTTP2) };
  }

  #wanted({ httpProxy, socks }: ServiceFrontendOptions, { http, http2, tls, links }: ListenAllOptions): ListenOptions[] {
    const wanted: ListenOptions[] = [
      { option: CLIENTS, address: httpProxy.listenAddress, tls, links, protocol: http, socks: this.#socks },
    ];
    if (socks.listenAddress !== undefined) wanted.push({ option: SOCKS, address: socks.listenAddress, protocol: this.#socks });
    if (httpProxy.http2ListenAddress !== undefined) {
      wanted.push({ option: HTTP2, address: httpProxy.http2ListenAddress, tls, protocol: http2 });
    }
    return wanted;
  }

  /**
   * Prepares other options: opens listeners at new addresses beside those that are open. The protocols of {@link listenAll} stay.
   * @throws {NetError} as {@link listen}
   */
  async prepare(change: Change, next: ServiceFrontendOptions, options: ListenAllOptions): Promise<void> {
    const before = this.#options;
    const apply = (values: ServiceFrontendOptions) => {
      this.#options = values;
      this.limits.update(values.limits, intermediariesOf(values));
    };
    apply(next); // new listeners have the new limits
    change.onRevert(() => apply(before));
    const wanted = new Map(this.#wanted(next, options).map((given) => [given.option!, given]));
    for (const [option, given] of wanted) {
      const shared = this.#shared.get(option);
      if (shared?.given.address === given.address) change.onCommit(() => this.#configure(option, given));
      else await this.#move(change, given, shared);
    }
    for (const [option, { open }] of this.#shared) {
      if (!wanted.has(option)) change.onCommit(() => this.#retireShared(option, open));
    }
    change.onCommit(() => {
      this.#configureAll(before);
      this.#associations.update(next.socks);
      const { hostWhitelist, agentSuffix } = next.httpProxy;
      this.#frontend?.update({
        allowList: createAllowList(hostWhitelist),
        agentSuffix,
        trusted: trustedProxiesOf(next),
      });
      if (differs(before.auth.mtls, next.auth.mtls)) this.#frontend?.update({ certificates: new CertificateIdentities(next.auth.mtls) });
    });
  }

  /** Opens a shared listener at another address. If that needs the port of the one that is open, that is closed first. */
  async #move(change: Change, given: ListenOptions, shared: SharedListener | undefined): Promise<void> {
    let open;
    try {
      open = await this.#open(given);
    } catch (error) {
      if (shared === undefined || !(error instanceof NetError) || error.code !== "address-in-use") throw error;
      this.close(shared.open.listener);
      change.onRevert(async () => {
        const again = await this.#open({ ...shared.given, address: shared.open.listener.address });
        this.#shared.set(given.option!, { given: shared.given, open: again });
        this.#add(again);
      });
      open = await this.#open(given);
    }
    const opened = open;
    change.onRevert(() => opened.listener.close());
    change.onCommit(() => {
      if (shared) this.#retireShared(given.option!, shared.open);
      this.#shared.set(given.option!, { given, open: opened });
      this.#add(opened);
      this.#runtime.log.info("listener opened", { option: given.option, address: opened.listener.address });
      this.#warnOfExposure(opened);
    });
  }

  #retireShared(option: string, { listener }: OpenListener): void {
    this.#shared.delete(option);
    this.retire(listener);
    this.#runtime.log.info("listener closed", { option, address: listener.address });
  }

  #configure(option: string, given: ListenOptions): void {
    const { open } = this.#shared.get(option)!;
    this.#shared.set(option, { given, open });
    const { tls, links } = given;
    if (open.tls === tls && open.links === links) return;
    Object.assign(open, { tls, links });
    this.#reconfigure(open);
  }

  /** Applies changed settings that all listeners share. */
  #configureAll({ limits, httpProxy }: ServiceFrontendOptions): void {
    const shared = (limits: ClientLimitValues, { trustedProxies, proxyProtocol }: ServiceFrontendOptions["httpProxy"]) => {
      const { connections, pendingRequests, pendingRequestsPerAddress, exemptAddresses } = limits;
      return [connections, pendingRequests, pendingRequestsPerAddress, exemptAddresses, trustedProxies, proxyProtocol];
    };
    if (!differs(shared(limits, httpProxy), shared(this.#options.limits, this.#options.httpProxy))) return;
    for (const open of this.#listeners) this.#reconfigure(open);
  }

  #reconfigure(open: OpenListener): void {
    try {
      open.tcp?.configure(this.#settingsOf(open));
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      this.#runtime.log.error("settings of a listener cannot be changed; the previous ones stay in force", {
        address: open.listener.address,
        reason: error.message,
      });
    }
    this.#renewCertificates();
  }

  /** Starts the frontend on all listeners. The runtime closes it. */
  serve(options: ServeOptions): Frontend {
    const { net, log, metrics } = this.#runtime;
    const { auth, httpProxy: { hostWhitelist, agentSuffix } } = this.#options;
    metrics.gauge("reverse_http_client_connections_active", "Connections of clients, with a tunnel or without.", () => frontend.open);
    const tunnels = metrics.tunnels(() => frontend.tunnels, () => frontend.datagramsDropped);
    const frontend = new Frontend({
      ...options,
      net,
      allowList: createAllowList(hostWhitelist),
      agentSuffix,
      certificates: new CertificateIdentities(auth.mtls),
      listeners: [...this.#listeners],
      log,
      limits: this.limits,
      trusted: trustedProxiesOf(this.#options),
      activity: this.#runtime.activity,
      onEnd: (end) => tunnels.ended(end),
      onBadClient: metrics.clientFailures(),
    });
    this.#frontend = this.#runtime.adopt(frontend, () => frontend.close());
    this.#renewCertificates();
    for (const open of this.#listeners) this.#warnOfExposure(open);
    return frontend;
  }

  /** Renews the certificates of the listeners that are open, and no others. A change of files is reported once, to all that use them. */
  #renewCertificates(): void {
    const used = new Set([...this.#listeners].map(({ tls }) => tls).filter((tls) => tls !== undefined));
    for (const [tls, stop] of this.#renewals) {
      if (used.has(tls)) continue;
      stop();
      this.#renewals.delete(tls);
    }
    for (const tls of used) {
      if (this.#renewals.has(tls)) continue;
      const unwatch = [
        this.#runtime.certificates.watch("clients", () => tls.current.cert),
        ...(tls.current.hosts ?? []).map(({ names: [name] }, i) =>
          this.#runtime.certificates.watch(name!, () => tls.current.hosts?.[i]?.tls.cert)
        ),
      ];
      const stop = this.#runtime.certificates.refresh(
        tls,
        () => this.#options.httpProxy.tls.refresh,
        (renewed) => this.#useTls(tls, renewed),
      );
      this.#renewals.set(tls, () => {
        for (const each of [...unwatch, stop]) each();
      });
    }
  }

  /** Gives a listener other certificates, which are renewed from now on. */
  replaceTls(listener: ClientListener, tls: Reloadable<ServerTls>): void {
    for (const open of this.#listeners) {
      if (open.listener !== listener || open.tls === tls) continue;
      open.tls = tls;
      this.#reconfigure(open);
    }
  }

  /** Prepares the certificates of clients in `opened` to replace those in `tls`. Returns the `clients` that `tls` will have. */
  prepareTls(
    change: Change,
    tls: { clients?: ReloadableTls<ServerTls> },
    opened: { readonly clients?: ReloadableTls<ServerTls> },
  ): ReloadableTls<ServerTls> | undefined {
    const next = opened.clients && (tls.clients ?? opened.clients);
    change.onCommit(() => {
      if (tls.clients && opened.clients) void tls.clients.replaceBy(opened.clients, (renewed) => this.#useTls(next!, renewed));
      tls.clients = next;
    });
    return next;
  }

  /** Applies settings of `tls` to the listeners that use it. */
  #useTls(tls: Reloadable<ServerTls>, settings: ServerTls): void {
    for (const open of this.#listeners) if (open.tls === tls) open.tcp?.setTls(this.#complete(settings));
  }

  #warnOfExposure({ listener, option, tls }: OpenListener): void {
    if (option === undefined) return;
    const { auth, httpProxy: { hostWhitelist } } = this.#options;
    warnOfExposure(this.#runtime.log, {
      address: listener.address,
      option,
      asksForSecret: this.#deps.hasOwnAuthenticator || clientScheme(auth) !== "noauth" ||
        (!!tls?.current.clientCa && !tls.current.isClientOptional),
      allowList: hostWhitelist,
    });
  }
}

const CLIENTS = "http-proxy.listen-address";
const SOCKS = "socks.listen-address";
const HTTP2 = "http-proxy.http2-listen-address";

function trustedProxiesOf({ auth, httpProxy: { trustedProxies, proxyProtocol } }: ServiceFrontendOptions): TrustedProxies {
  return new TrustedProxies(trustedProxies, proxyProtocol, auth.mtls.trustClientCert);
}

/** Those that stand for many clients. */
function intermediariesOf({ httpProxy: { trustedProxies, proxyProtocol } }: ServiceFrontendOptions): string[] {
  return [...trustedProxies, ...proxyProtocol];
}
