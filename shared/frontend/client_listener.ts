// The client side of proxy and load balancer: the limits, the listener, and the frontend that serves it.
import { networksOf } from "../address/allow_list.ts";
import { ClientLimits } from "../limits/client_limits.ts";
import type { ClientLimitValues } from "../limits/options.ts";
import type { ServerTls, TcpListener } from "../net/types.ts";
import type { ServiceRuntime } from "../service/runtime.ts";
import type { ReloadableTls } from "../tls/files.ts";
import { TrustedProxies } from "./client_address.ts";
import { warnOfExposure } from "./exposure.ts";
import { type HttpFrontend, type HttpFrontendOptions, startHttpFrontend } from "./server.ts";

/** The options that proxy and load balancer share. */
export interface ClientSideOptions {
  readonly auth: { readonly type: string };
  readonly httpProxy: {
    readonly listenAddress: string;
    readonly hostWhitelist: string[];
    readonly trustedProxies: string[];
    readonly proxyProtocol: string[];
    readonly tls: { readonly refresh: number };
  };
  readonly limits: ClientLimitValues;
}

/** What the client side needs besides the options. */
export interface ClientSideDeps {
  /** Missing for plain HTTP. */
  readonly tls?: ReloadableTls<ServerTls>;
  /** File descriptors per tunnel. */
  readonly descriptors: number;
  /** Whether an authenticator of the embedding program replaces the options' scheme. */
  readonly hasOwnAuthenticator: boolean;
}

/** What a service decides about its frontend. */
export type ServeOptions = Pick<HttpFrontendOptions, "name" | "upstreamRole" | "authenticator" | "allowList" | "dial">;

/** Listens for clients; connections wait until {@link serve}. */
export class ClientListener {
  readonly #runtime: ServiceRuntime;
  readonly #options: ClientSideOptions;
  readonly #deps: ClientSideDeps;
  readonly #listener: TcpListener;
  readonly limits: ClientLimits;
  #frontend?: HttpFrontend;

  private constructor(
    runtime: ServiceRuntime,
    options: ClientSideOptions,
    deps: ClientSideDeps,
    limits: ClientLimits,
    listener: TcpListener,
  ) {
    this.#runtime = runtime;
    this.#options = options;
    this.#deps = deps;
    this.limits = limits;
    this.#listener = listener;
  }

  /** @throws {NetError} as `listenTcp` of the network */
  static async open(runtime: ServiceRuntime, options: ClientSideOptions, deps: ClientSideDeps): Promise<ClientListener> {
    const { net, log, limitReporter: reports } = runtime;
    const { listenAddress: address, trustedProxies, proxyProtocol } = options.httpProxy;
    const limits = runtime.adopt(
      new ClientLimits(options.limits, deps.descriptors, {
        log,
        reports,
        intermediaries: [...trustedProxies, ...proxyProtocol],
        createRate: (rate) => net.createRate(rate),
        buffers: net,
      }),
      (limits) => limits.close(),
    );
    const listener = await net.listenTcp({
      address,
      tls: deps.tls?.current,
      maxPendingHeads: limits.pendingRequests,
      pendingHeadsPerAddress: limits.pendingRequestsPerAddress,
      proxyProtocol: networksOf(proxyProtocol),
    });
    const clients = new ClientListener(runtime, options, deps, limits, listener);
    // what is opened later is closed before, and that ends the requests
    runtime.defer(async () => {
      listener.close();
      await clients.#frontend?.done;
    });
    return clients;
  }

  /** The TCP address bound. */
  get address(): string {
    return this.#listener.address;
  }

  /** Starts the frontend, which the runtime closes. */
  serve(options: ServeOptions): HttpFrontend {
    const { net, log, metrics } = this.#runtime;
    const { auth, httpProxy: { hostWhitelist, trustedProxies, proxyProtocol, tls: { refresh } } } = this.#options;
    const { tls, hasOwnAuthenticator } = this.#deps;
    const listener = this.#listener;
    const tunnels = metrics.tunnels(() => frontend.open);
    metrics.watchCertificate("clients", () => tls?.current.cert);
    const frontend: HttpFrontend = startHttpFrontend({
      ...options,
      net,
      listener,
      log,
      limits: this.limits,
      trusted: new TrustedProxies(trustedProxies, proxyProtocol),
      onEnd: (end) => tunnels.ended(end),
      onBadClient: metrics.clientFailures(),
    });
    this.#frontend = this.#runtime.adopt(frontend, ({ close }) => close());
    this.#runtime.refreshTls(tls, refresh, (renewed) => listener.setTls(renewed));
    warnOfExposure(log, {
      address: this.address,
      asksForSecret: hasOwnAuthenticator || auth.type !== "noauth" || !!tls?.current.clientCa,
      allowList: hostWhitelist,
    });
    return frontend;
  }
}
