// The clients' side of proxy and load balancer: the limits, the listeners, and the frontend that serves them.
import { createAllowList, networksOf } from "../address/allow_list.ts";
import { CertificateIdentities, type MtlsOptions } from "../auth/certificate_identity.ts";
import { clientScheme } from "../auth/scheme.ts";
import { ClientLimits } from "../limits/client_limits.ts";
import type { ClientLimitValues } from "../limits/options.ts";
import type { ClientListener, HostTls, ServerTls, SessionListener, TcpListener, UdpListener } from "../net/types.ts";
import type { ServiceRuntime } from "../service/runtime.ts";
import type { Reloadable } from "../tls/reloadable_tls.ts";
import { TrustedProxies } from "./client_address.ts";
import type { ClientProtocol } from "./client_protocol.ts";
import { warnOfExposure } from "./exposure.ts";
import { type Frontend, type FrontendOptions, type ProtocolListener, startFrontend } from "./server.ts";
import { createSocks5Proxy } from "./socks5.ts";
import type { SocksUdpOptions } from "./socks5_udp.ts";

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

/** What the client side needs besides the options. */
export interface ServiceFrontendDeps {
  /** File descriptors per tunnel. */
  readonly descriptors: number;
  /** Whether an authenticator of the embedding program replaces the options' scheme. */
  readonly hasOwnAuthenticator: boolean;
}

/** Where clients connect, and what they speak there. */
export interface ListenOptions {
  /** As of the network's `listenTcp`. */
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

/** What the shared listeners speak. */
export interface ListenAllOptions extends Pick<ListenOptions, "tls" | "links"> {
  /** Of the listener for HTTP and SOCKS. */
  readonly http: ClientProtocol;
  /** Of the listener for HTTP/2. */
  readonly http2: ClientProtocol;
}

/** What a service decides about its frontend. */
export type ServeOptions = Pick<
  FrontendOptions,
  "upstreamRole" | "authenticator" | "allowList" | "policy" | "labelsOf" | "whenExpected" | "dial" | "audit" | "tracer"
>;

/** A listener, and what is needed to renew its certificate and to warn. */
type OpenListener = ProtocolListener & Pick<ListenOptions, "tls" | "option"> & Partial<Pick<TcpListener, "setTls">>;

/** Listens for clients; connections wait until {@link serve}. */
export class ServiceFrontend {
  readonly #runtime: ServiceRuntime;
  readonly #options: ServiceFrontendOptions;
  readonly #deps: ServiceFrontendDeps;
  readonly #listeners = new Set<OpenListener>();
  readonly limits: ClientLimits;
  #frontend?: Frontend;
  /** Certificates that answer challenges at all TLS ports. */
  #challenges: readonly HostTls[] = [];

  constructor(runtime: ServiceRuntime, options: ServiceFrontendOptions, deps: ServiceFrontendDeps) {
    const { net, log, limitReporter: reports } = runtime;
    const { trustedProxies, proxyProtocol } = options.httpProxy;
    this.#runtime = runtime;
    this.#options = options;
    this.#deps = deps;
    this.limits = runtime.adopt(
      new ClientLimits(options.limits, deps.descriptors, {
        log,
        reports,
        intermediaries: [...trustedProxies, ...proxyProtocol],
        createRate: (rate) => net.createRate(rate),
        buffers: net,
      }),
      (limits) => limits.close(),
    );
    // what is opened later is closed before, and that ends the requests
    runtime.defer(async () => {
      for (const { listener } of this.#listeners) listener.close();
      await this.#frontend?.done;
    });
  }

  /**
   * Opens a listener. Its connections wait until {@link serve}.
   * @throws {NetError} as `listenTcp` of the network
   */
  async listen({ address, option, tls, protocol, socks, links }: ListenOptions): Promise<TcpListener> {
    const listener = await this.#runtime.net.listenTcp({
      address,
      tls: tls && { ...tls.current, challenges: this.#challenges },
      preamble: socks === undefined ? protocol.preamble : "http-or-socks5",
      links,
      maxPendingHeads: this.limits.pendingRequests,
      pendingHeadsPerAddress: this.limits.pendingRequestsPerAddress,
      proxyProtocol: networksOf(this.#options.httpProxy.proxyProtocol),
    });
    this.#add({
      listener,
      option,
      tls,
      protocol,
      socks,
      setTls: (renewed) => listener.setTls({ ...renewed, challenges: this.#challenges }),
    });
    return listener;
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
    this.#frontend?.add(added);
  }

  /** Applies changed limits and the allow-list to new connections and tunnels. */
  update({ limits, httpProxy: { hostWhitelist } }: Pick<ServiceFrontendOptions, "limits" | "httpProxy">): void {
    this.limits.update(limits);
    this.#frontend?.allow(createAllowList(hostWhitelist));
  }

  /** Sets the certificates with which all TLS ports answer the challenges of an ACME authority. */
  setChallenges(challenges: readonly HostTls[]): void {
    this.#challenges = challenges;
    for (const { tls, setTls } of this.#listeners) if (tls) setTls?.(tls.current);
  }

  /** Closes a listener and frees its address. Its clients are served to their end. */
  close(listener: ClientListener): void {
    for (const open of this.#listeners) if (open.listener === listener) this.#listeners.delete(open);
    listener.close();
  }

  /**
   * Opens the listeners that proxy and load balancer share: for HTTP and SOCKS, and for SOCKS and HTTP/2 alone if the options name addresses.
   * @throws {NetError} as {@link listen}
   */
  async listenAll({ http, http2, tls, links }: ListenAllOptions): Promise<ClientAddresses> {
    const { httpProxy: { listenAddress, http2ListenAddress }, socks: { listenAddress: socksListenAddress, ...udp } } = this.#options;
    const socks = createSocks5Proxy({ udp });
    const listen = async (option: string, address: string | undefined, options: Omit<ListenOptions, "option" | "address">) =>
      address === undefined ? undefined : (await this.listen({ option, address, ...options })).address;
    return {
      clientAddress:
        (await this.listen({ option: "http-proxy.listen-address", address: listenAddress, tls, links, protocol: http, socks })).address,
      socksAddress: await listen("socks.listen-address", socksListenAddress, { protocol: socks }),
      http2Address: await listen("http-proxy.http2-listen-address", http2ListenAddress, { tls, protocol: http2 }),
    };
  }

  /** Starts the frontend on all listeners. The runtime closes it. */
  serve(options: ServeOptions): Frontend {
    const { net, log, metrics } = this.#runtime;
    const { auth, httpProxy: { agentSuffix, hostWhitelist, trustedProxies, proxyProtocol, tls: { refresh } } } = this.#options;
    metrics.gauge("reverse_http_client_connections_active", "Connections of clients, with a tunnel or without.", () => frontend.open);
    const tunnels = metrics.tunnels(() => frontend.tunnels, () => frontend.datagramsDropped);
    const frontend: Frontend = startFrontend({
      ...options,
      net,
      agentSuffix,
      certificates: new CertificateIdentities(auth.mtls),
      listeners: [...this.#listeners],
      log,
      limits: this.limits,
      trusted: new TrustedProxies(trustedProxies, proxyProtocol),
      activity: this.#runtime.activity,
      onEnd: (end) => tunnels.ended(end),
      onBadClient: metrics.clientFailures(),
    });
    this.#frontend = this.#runtime.adopt(frontend, ({ close }) => close());
    // a change of the files is reported once, to all listeners that use them
    for (const tls of new Set([...this.#listeners].map(({ tls }) => tls))) {
      this.#runtime.watchCertificate("clients", () => tls?.current.cert);
      for (const [i, { names: [name] }] of (tls?.current.hosts ?? []).entries()) {
        this.#runtime.watchCertificate(name!, () => tls?.current.hosts?.[i]?.tls.cert);
      }
      this.#runtime.refreshTls(tls, refresh, (renewed) => {
        for (const sharing of this.#listeners) if (sharing.tls === tls) sharing.setTls?.(renewed);
      });
    }
    for (const { listener, option, tls } of this.#listeners) {
      if (option === undefined) continue;
      warnOfExposure(log, {
        address: listener.address,
        option,
        asksForSecret: this.#deps.hasOwnAuthenticator || clientScheme(auth) !== "noauth" ||
          (!!tls?.current.clientCa && !tls.current.isClientOptional),
        allowList: hostWhitelist,
      });
    }
    return frontend;
  }
}
