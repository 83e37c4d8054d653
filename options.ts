// The options of the command line for programs, nested by the dots. Written by `deno task docs`: their definitions are elsewhere.

/** What a program may tell a proxy. */
export interface ProxyOptions {
  /** `--agent-server.*` */
  agentServer?: {
    /** `--agent-server.listen-address`: UDP address that agents dial. Default: `":4242"`. */
    listenAddress?: string;
    /** `--agent-server.tcp-listen-address`: TCP address that agents dial over TLS where UDP is blocked; by default listen-address; none: agents connect over QUIC only. */
    tcpListenAddress?: string;
    /** `--agent-server.share-client-port`: Accept agents over TLS on http-proxy.listen-address too, by ALPN; needs --http-proxy.tls.enable. Default: `false`. */
    shareClientPort?: boolean;
    /** `--agent-server.websocket-path`: Path, such as /reverse-http, at which http-proxy.listen-address accepts agents within WebSockets; by default none. */
    websocketPath?: string;
    /** `--agent-server.public-address`: Addresses, host:port, at which agents reach the proxy, for invitations and advice; by default an address of this machine, which is a guess. */
    publicAddress?: string[];
    /** `--agent-server.tls.*` */
    tls?: {
      /** `--agent-server.tls.file.*` */
      file?: {
        /** `--agent-server.tls.file.key`: The server's private key, PEM; without key and certificate the proxy obtains them as acme.domain says, or makes its own and keeps them. */
        key?: string;
        /** `--agent-server.tls.file.cert`: The server's certificate chain, PEM. */
        cert?: string;
        /** `--agent-server.tls.file.next-cert`: Certificate, PEM, that will replace cert: its public key's pin is sent to agents that trust the proxy by a pin, which store it. */
        nextCert?: string;
        /** `--agent-server.tls.file.client-ca`: Require certificates of these authorities from agents, PEM. */
        clientCa?: string;
        /** `--agent-server.tls.file.client-crl`: Reject certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
      /** `--agent-server.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
      /** `--agent-server.tls.refresh`: Interval at which these files are checked for changes and reloaded; 0s: every 5 s. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--agent-server.tls.agent-id-from`: Name in an agent's certificate that must be its id: a subject alternative name (DNS, URI or e-mail), the common name, or none. Default: `"none"`. */
      agentIdFrom?: "none" | "san" | "cn";
    };
    /** `--agent-server.congestion-control`: Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down on every loss; cubic-loss-tolerant ignores up to 2 % of losses while no queue builds up, which is unfair to other traffic on the link; bbr follows the delivery rate and fills small buffers. Default: `"cubic"`. */
    congestionControl?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
    /** `--agent-server.keep-alive`: Interval of pings between agent and proxy, 1s to 25s; a connection ends after three intervals and 1s of silence. Of both ends' settings the shorter one counts. With auto at both ends, agents ping over QUIC as rarely as the NATs on the way permit. In milliseconds. Default: `3000`. */
    keepAlive?: number;
    /** `--agent-server.agent.*` */
    agent?: {
      /** `--agent-server.agent.dial-timeout`: Timeout for opening a tunnel through agents. In milliseconds. Default: `10000`. */
      dialTimeout?: number;
      /** `--agent-server.agent.multiple`: Let several agents share one id, and spread tunnels over them. Otherwise the newest replaces the others. Default: `false`. */
      multiple?: boolean;
      /** `--agent-server.agent.on-conflict`: Which of two agents with one id stays when they have replaced each other three times: the one that came last or first, for as long as it is connected, or neither (replace). Default: `"keep-last"`. */
      onConflict?: "keep-last" | "keep-first" | "replace";
    };
  };
  /** `--http-proxy.*` */
  httpProxy?: {
    /** `--http-proxy.listen-address`: TCP address that clients dial. Default: `":3128"`. */
    listenAddress?: string;
    /** `--http-proxy.public-address`: Address, host:port, at which clients reach the proxy or the lb before it, for invitations and advice; by default the host of agent-server.public-address. */
    publicAddress?: string;
    /** `--http-proxy.http2-listen-address`: TCP address that clients dial with HTTP/2, over TLS if http-proxy.tls.enable is set, otherwise with prior knowledge; by default none. */
    http2ListenAddress?: string;
    /** `--http-proxy.tls.*` */
    tls?: {
      /** `--http-proxy.tls.enable`: Accept TLS from clients; needs a key and a certificate. Default: `false`. */
      enable?: boolean;
      /** `--http-proxy.tls.refresh`: Interval at which these files are checked for changes and reloaded; 0s: every 5 s. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--http-proxy.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
      /** `--http-proxy.tls.file.*` */
      file?: {
        /** `--http-proxy.tls.file.key`: Private key, PEM. */
        key?: string;
        /** `--http-proxy.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
        /** `--http-proxy.tls.file.client-ca`: Require client certificates issued by these authorities, PEM. */
        clientCa?: string;
        /** `--http-proxy.tls.file.client-crl`: Reject client certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
      /** `--http-proxy.tls.cert-dir`: Directory with certificates for the names that clients and visitors ask for (SNI), at all TLS ports of clients and forwards; others get the certificate of the port. NAME.pem with its key, NAME.crt and NAME.key, or NAME/fullchain.pem and NAME/privkey.pem. */
      certDir?: string;
      /** `--http-proxy.tls.client-auth`: Whether clients need such a certificate, or may also present none; needs client-ca. Default: `"required"`. */
      clientAuth?: "required" | "optional";
    };
    /** `--http-proxy.trusted-proxies`: Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) is trusted for the client's address; from others it is ignored. By default none. */
    trustedProxies?: string[];
    /** `--http-proxy.proxy-protocol`: Addresses and networks of TCP load balancers that send the client's address in a header of the PROXY protocol, version 1 or 2. Connections from them without the header, and from others with it, are refused. By default none. */
    proxyProtocol?: string[];
    /** `--http-proxy.agent-suffix`: Suffix, such as .rhttp, of destinations that name their agent: db.site7.rhttp is db as the agent site7 resolves it, and site7.rhttp is the agent's own machine. By default none. */
    agentSuffix?: string;
    /** `--http-proxy.pac`: Serve /proxy.pac on the clients' port, a proxy configuration for browsers: names with agent-suffix come here, others go their direct way. Without agent-suffix all come here. Default: `false`. */
    pac?: boolean;
    /** `--http-proxy.host-whitelist`: Destinations that clients may reach; by default all; none allows nothing. */
    hostWhitelist?: string[];
  };
  /** `--socks.*` */
  socks?: {
    /** `--socks.listen-address`: TCP address for SOCKS 5 only, without TLS; by default none, as http-proxy.listen-address accepts SOCKS 5 too. */
    listenAddress?: string;
    /** `--socks.udp-ports`: Ports for UDP ASSOCIATE, first-last; each association needs one. By default the system chooses. */
    udpPorts?: string;
    /** `--socks.udp-address`: Address, without a port, to which clients of UDP ASSOCIATE send datagrams, where NAT or a container changes it; by default the one to which they have connected. */
    udpAddress?: string;
  };
  /** `--forward`: Publish a destination of an agent at an address of its own, for clients without proxy support. */
  forward?: {
    listen: string;
    network?: "tcp" | "udp" | "http" | "https";
    agent: string;
    to: string;
    toProtocol?: "http/1.1" | "h2c";
    sni?: string[];
    host?: string[];
    path?: string[];
    auth?: "none" | "token" | "mtls";
    allow?: string[];
    proxyProtocol?: "none" | "v1" | "v2";
    tokenFile?: string;
    certFile?: string;
    keyFile?: string;
    acme?: boolean;
    clientCaFile?: string;
  }[];
  /** `--auth.*` */
  auth?: {
    /** `--auth.type`: Authentication: none (noauth), by tokens (jwt), or by tokens of an OpenID Connect issuer (oidc). Default: `"noauth"`. */
    type?: "noauth" | "jwt" | "oidc";
    /** `--auth.clients`: Identity providers for clients, tried in this order: jwt, oidc, htpasswd, webhook, mtls. By default clients are authenticated as auth.type says. */
    clients?: string[];
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.public-key`: Public key files that verify tokens, PEM or JWKS; list several to rotate keys. Reloaded when they change. Default: `["auth-key-public.pem"]`. */
      publicKey?: string[];
      /** `--auth.jwt.audience`: Audience that tokens must have in aud; by default any. */
      audience?: string;
      /** `--auth.jwt.on-expiry`: What an expired token closes: connections of agents, which only proxies have (close-agents), tunnels of clients too (close), or nothing (keep). Default: `"close-agents"`. */
      onExpiry?: "close-agents" | "close" | "keep";
      /** `--auth.jwt.revocation-file`: File with the jti of one revoked token per line, or name: or sub: of all tokens of a person or an agent; what was opened with such a token is closed at once. Reloaded when it changes. */
      revocationFile?: string;
    };
    /** `--auth.jwks.*` */
    jwks?: {
      /** `--auth.jwks.url`: URL of a JWKS with keys that verify tokens, besides those of auth.jwt.public-key; https, or http to this machine. By default none. */
      url?: string;
      /** `--auth.jwks.refresh`: Time after which the keys of a JWKS or of the OpenID Connect issuer are fetched again. In milliseconds. Default: `300000`. */
      refresh?: number;
      /** `--auth.jwks.max-stale`: Time after auth.jwks.refresh for which keys stay valid while they cannot be fetched; then clients get 503. 0s: none. In milliseconds. Default: `3600000`. */
      maxStale?: number;
    };
    /** `--auth.oidc.*` */
    oidc?: {
      /** `--auth.oidc.issuer`: URL of the OpenID Connect issuer, exactly as in the iss of its tokens; https, or http to this machine. */
      issuer?: string;
      /** `--auth.oidc.audience`: Audiences, one of which tokens of the issuer must name: the client ids of this service at the issuer. */
      audience?: string[];
      /** `--auth.oidc.name-claim`: Claim with the person's name; dots lead into nested claims. Default: `"preferred_username"`. */
      nameClaim?: string;
      /** `--auth.oidc.groups-claim`: Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles. Default: `"groups"`. */
      groupsClaim?: string;
      /** `--auth.oidc.logout-audience`: Client ids, one of which the issuer's logout tokens must name: POST /backchannel-logout of admin.listen-address then ends what was opened in a session that has ended there. It needs auth.jwt.revocation-file. By default none is accepted. */
      logoutAudience?: string[];
      /** `--auth.oidc.agent-audience`: With --auth.type=oidc, the audiences, one of which agents' tokens must name; none of them may be in auth.oidc.audience, or people could be agents. */
      agentAudience?: string[];
      /** `--auth.oidc.agent-id-claim`: Claim with the agent's id, with --auth.type=oidc; dots lead into nested claims. Default: `"sub"`. */
      agentIdClaim?: string;
    };
    /** `--auth.htpasswd.*` */
    htpasswd?: {
      /** `--auth.htpasswd.file`: File with one user:hash per line, of bcrypt or argon2, as htpasswd -B writes it. Reloaded when it changes. */
      file?: string;
    };
    /** `--auth.webhook.*` */
    webhook?: {
      /** `--auth.webhook.url`: URL of the webhook that authenticates clients; https, or http to this machine. */
      url?: string;
      /** `--auth.webhook.token-file`: File with a secret that is sent to the webhook as a Bearer token, read for each request. By default none is sent. */
      tokenFile?: string;
      /** `--auth.webhook.connect-timeout`: Timeout for a connection to the webhook, including name resolution and TLS; auth.webhook.timeout applies as well. In milliseconds. Default: `2000`. */
      connectTimeout?: number;
      /** `--auth.webhook.timeout`: Timeout for a request to the webhook until the last byte of its answer, including the time in the queue and the connection. In milliseconds. Default: `5000`. */
      timeout?: number;
      /** `--auth.webhook.concurrency`: Concurrent requests to the webhook; 256 more wait, and others get 503. Default: `32`. */
      concurrency?: number;
      /** `--auth.webhook.max-stale`: Time after maxAge for which a cached answer stays valid while the webhook does not answer; then clients get 503. 0s: none. In milliseconds. Default: `0`. */
      maxStale?: number;
    };
    /** `--auth.mtls.*` */
    mtls?: {
      /** `--auth.mtls.subject-from`: Field of a client's certificate that is its sub: the common name, the first DNS name, URI or e-mail address of the subject alternative names, or the certificate's SHA-256. Default: `"cn"`. */
      subjectFrom?: "cn" | "dns" | "uri" | "email" | "sha256";
      /** `--auth.mtls.groups-from`: Field of a client's certificate with its groups: its organizational units, its organizations, or none. Default: `"ou"`. */
      groupsFrom?: "ou" | "o" | "none";
      /** `--auth.mtls.trust-client-cert`: Take the certificate of a client from the field Client-Cert (RFC 9440) of http-proxy.trusted-proxies, each of which must be an lb, or remove the field from what its clients send. Default: `false`. */
      trustClientCert?: boolean;
    };
    /** `--auth.policy-file`: File with rules, YAML, that say which clients may reach what through which agents, besides all lists. Reloaded when it changes; what it no longer allows is closed. By default there are none. */
    policyFile?: string;
  };
  /** `--store.*` */
  store?: {
    /** `--store.type`: Store in which proxies publish their agents for lb. Default: `"none"`. */
    type?: "none" | "memcached" | "redis";
    /** `--store.http-proxy-address`: Address at which lb reaches this proxy; by default the listen address, with this host's name if that has none. */
    httpProxyAddress?: string;
    /** `--store.ttl`: Lifetime of an entry after its proxy is gone; entries are renewed every third of that time. In milliseconds. Default: `30000`. */
    ttl?: number;
    /** `--store.key-prefix`: Prefix of every key in the store, identical on all proxies and lbs; empty as in the Go project, whose keys are agent ids. Default: `""`. */
    keyPrefix?: string;
    /** `--store.memcached.*` */
    memcached?: {
      /** `--store.memcached.address`: Address of memcached; entries are distributed over several servers. Default: `["localhost:11211"]`. */
      address?: string[];
      /** `--store.memcached.timeout`: Timeout of a memcached request. In milliseconds. Default: `1000`. */
      timeout?: number;
    };
    /** `--store.redis.*` */
    redis?: {
      /** `--store.redis.url`: Redis or Valkey URL: `redis://user:password@host:port/database`, or `rediss:` with TLS. Default: `"redis://localhost:6379"`. */
      url?: string;
      /** `--store.redis.timeout`: Timeout of a Redis request. In milliseconds. Default: `1000`. */
      timeout?: number;
      /** `--store.redis.tls.*` */
      tls?: {
        /** `--store.redis.tls.file.*` */
        file?: {
          /** `--store.redis.tls.file.root-ca`: Certificate authorities to trust with `rediss:`, PEM; by default the runtime's. */
          rootCa?: string;
        };
      };
    };
  };
  /** `--state-dir`: Directory that keeps the proxy's own certificates across restarts; by default the system's or the user's state directory. */
  stateDir?: string;
  /** `--acme.*` */
  acme?: {
    /** `--acme.domain`: Names of this proxy for which it obtains a certificate by ACME (RFC 8555) and renews it, for agents and, with http-proxy.tls.enable, for clients, where no certificate file is set. By setting it you agree to the authority's terms of service. */
    domain?: string[];
    /** `--acme.email`: E-mail address for messages of the authority; by default none. */
    email?: string;
    /** `--acme.directory`: URL of the authority's directory; by default Let's Encrypt. Default: `"https://acme-v02.api.letsencrypt.org/directory"`. */
    directory?: string;
    /** `--acme.profile`: Certificate profile of the authority, such as shortlived; by default the authority chooses. */
    profile?: string;
    /** `--acme.challenge`: Challenge by which control of the names is proved, unless acme.dns-command is set: at acme.http-listen-address (http-01), or at the TLS ports of clients and of forwards with network=https, one of which must be reached at port 443 of each name (tls-alpn-01). Default: `"http-01"`. */
    challenge?: "http-01" | "tls-alpn-01";
    /** `--acme.http-listen-address`: TCP address that answers the authority's HTTP-01 challenges, and nothing else. It must be reached at port 80 of each name. Default: `":80"`. */
    httpListenAddress?: string;
    /** `--acme.dns-command`: Program that proves control of the names by DNS-01 instead, called as PROGRAM present|cleanup NAME VALUE for a TXT record; needed for wildcards. */
    dnsCommand?: string;
    /** `--acme.file.*` */
    file?: {
      /** `--acme.file.root-ca`: Authorities to trust for the URL of the directory, PEM; by default the runtime's. */
      rootCa?: string;
    };
    /** `--acme.eab.*` */
    eab?: {
      /** `--acme.eab.key-id`: Key id of an external account, if the authority requires one. */
      keyId?: string;
      /** `--acme.eab.hmac-key`: Key of the external account, base64url. */
      hmacKey?: string;
    };
    /** `--acme.fallback.*` */
    fallback?: {
      /** `--acme.fallback.directory`: URL of the directory of another authority, which is used when the first one has failed twice, or at once if there is no valid certificate. */
      directory?: string;
      /** `--acme.fallback.file.*` */
      file?: {
        /** `--acme.fallback.file.root-ca`: Authorities to trust for that URL, PEM; by default the runtime's. */
        rootCa?: string;
      };
      /** `--acme.fallback.eab.*` */
      eab?: {
        /** `--acme.fallback.eab.key-id`: Key id of an external account there. */
        keyId?: string;
        /** `--acme.fallback.eab.hmac-key`: Key of that account, base64url. */
        hmacKey?: string;
      };
    };
    /** `--acme.store-key-file`: File with a secret of at least 32 characters that all proxies and lbs of the store share: they have one account and one certificate, sealed with it in the store. Several lines replace a secret: the first one seals. By default each orders its own. */
    storeKeyFile?: string;
    /** `--acme.published`: Obtain certificates for the hosts that agents publish with network=https, as their tokens allow: one for each exact name, at most 20 new ones in an hour. Default: `false`. */
    published?: boolean;
    /** `--acme.published-names`: Maximum number of published names with certificates. Default: `100`. */
    publishedNames?: number;
  };
  /** `--limits.*` */
  limits?: {
    /** `--limits.connections`: Concurrent client connections, lowered to what the file descriptor limit permits; 0: limited by that alone. Default: `32768`. */
    connections?: number;
    /** `--limits.connections-per-address`: Concurrent client connections per address (IPv6: per /64); 0: no limit. Default: `4096`. */
    connectionsPerAddress?: number;
    /** `--limits.pending-requests`: Concurrent TLS handshakes and request heads of clients; above it the oldest is refused; 0: no limit. Default: `4096`. */
    pendingRequests?: number;
    /** `--limits.pending-requests-per-address`: The same per address (IPv6: per /64); above it the oldest of that address is refused; 0: no limit. Default: `1024`. */
    pendingRequestsPerAddress?: number;
    /** `--limits.tunnels`: Concurrent tunnels and plain HTTP requests; 0: no limit. Default: `32768`. */
    tunnels?: number;
    /** `--limits.tunnels-per-agent`: The same per agent; 0: no limit. Default: `16384`. */
    tunnelsPerAgent?: number;
    /** `--limits.tunnels-per-client`: The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit. Default: `16384`. */
    tunnelsPerClient?: number;
    /** `--limits.udp-flows-per-client`: Concurrent UDP flows per client, and SOCKS associations, which have flows; they count as tunnels too. 0: no limit. Default: `1024`. */
    udpFlowsPerClient?: number;
    /** `--limits.tunnel-rate-per-address`: New tunnels per second and address (IPv6: per /64); 0: no limit. Default: `1000`. */
    tunnelRatePerAddress?: number;
    /** `--limits.tunnel-rate-per-client`: New tunnels per second and client; 0: no limit. Default: `10000`. */
    tunnelRatePerClient?: number;
    /** `--limits.tunnel-burst`: Burst of new tunnels, as a time at the permitted rate: with 2s and 1000 a second, 2000 at once; 0s: one. In milliseconds. Default: `2000`. */
    tunnelBurst?: number;
    /** `--limits.bandwidth-per-agent`: Bytes per second of all tunnels through one agent, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidthPerAgent?: string;
    /** `--limits.bandwidth-per-client`: The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit. Default: `"0"`. */
    bandwidthPerClient?: string;
    /** `--limits.tunnel-idle-timeout`: Idle time after which a tunnel is reset; 0s: never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: Age at which a tunnel is reset; 0s: never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes per second of one tunnel, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory use of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for the buffers of all tunnels. From half of it on, flow control windows stop growing; from two thirds, new tunnels are refused; from nine tenths, the tunnels that buffer most are reset. 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Default: `"25%"`. */
    bufferMemory?: string;
    /** `--limits.agents`: Concurrent agent connections; 0: no limit. Default: `32768`. */
    agents?: number;
    /** `--limits.agents-per-address`: Concurrent agent connections per address (IPv6: per /64); 0: no limit. Default: `4096`. */
    agentsPerAddress?: number;
    /** `--limits.handshakes`: Concurrent handshakes of agents; more are refused; 0: no limit. Default: `4096`. */
    handshakes?: number;
    /** `--limits.handshakes-per-address`: The same per address (IPv6: per /64): above it, addresses that are not validated get a Retry and validated ones are refused; 0: no limit. Default: `1024`. */
    handshakesPerAddress?: number;
    /** `--limits.retry-threshold`: Concurrent handshakes from which on addresses are validated by Retry (RFC 9000 §8.1.2); 0: always. Default: `256`. */
    retryThreshold?: number;
    /** `--limits.auth-failures`: Failed authentications permitted to an address (IPv6: /64); each further one locks it out, for 1 s at first and twice as long each time. One is forgiven every 10 s (agents: every second); a repeated wrong credential counts once a minute. 0: no limit. Default: `10`. */
    authFailures?: number;
    /** `--limits.auth-lockout-max`: Longest lockout of an address. In milliseconds. Default: `300000`. */
    authLockoutMax?: number;
    /** `--limits.exempt-addresses`: Addresses and networks without limits per address, such as NAT gateways, which stand for many clients; or none, or all. Default: `["127.0.0.0/8","::1"]`. */
    exemptAddresses?: string[];
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.delay`: Time to keep serving after SIGTERM while readiness already fails, so that load balancers notice; drain.timeout begins after it. 0s: none. In milliseconds. Default: `0`. */
    delay?: number;
    /** `--drain.timeout`: Time for open tunnels to finish on SIGTERM, before they are reset; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--handover.*` */
  handover?: {
    /** `--handover.socket`: Unix socket of this service alone, by which a new process with the same options takes over its listeners: a second one that is started, or that SIGUSR2 starts. The old process serves its open tunnels until they end. Only the service's user can open the socket. Off by default. */
    socket?: string;
    /** `--handover.timeout`: Time after a hand-over for tunnels of the old process to finish, before they are reset. In milliseconds. Default: `86400000`. */
    timeout?: number;
  };
  /** `--reload.*` */
  reload?: {
    /** `--reload.forbidden`: What a reload does with open tunnels and agents' connections that changed options forbid: cut them, or keep them until they end. Default: `"cut"`. */
    forbidden?: "cut" | "keep";
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics, /agents and the API; without a host, on loopback only. Off by default. */
    listenAddress?: string;
    /** `--admin.tls.*` */
    tls?: {
      /** `--admin.tls.file.*` */
      file?: {
        /** `--admin.tls.file.key`: Private key, PEM: with it and a certificate, admin.listen-address speaks HTTPS. Reloaded when it changes. */
        key?: string;
        /** `--admin.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
      };
      /** `--admin.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
    };
    /** `--admin.socket`: Unix socket for the same, which only the user of the service and root can open; they need no token. For reverse-http status, agents, tunnels and top. Off by default. */
    socket?: string;
    /** `--admin.token-file`: File with the tokens of the API on admin.listen-address, one ROLE NAME TOKEN per line, with the role viewer or operator; reloaded when it changes. Without it the API is served on admin.socket only. */
    tokenFile?: string;
    /** `--admin.hosts`: Names by which browsers reach the API on admin.listen-address, as in the field Host: admin.example.com, or with a port. By default addresses and localhost. */
    hosts?: string[];
    /** `--admin.jwt.*` */
    jwt?: {
      /** `--admin.jwt.public-key`: Public key files, PEM or JWKS, that verify tokens of auth jwt operator for the API. Reloaded when they change. By default none. */
      publicKey?: string[];
    };
    /** `--admin.oidc.*` */
    oidc?: {
      /** `--admin.oidc.issuer`: URL of an OpenID Connect issuer that authenticates operators, exactly as in the iss of its tokens; https, or http to this machine. */
      issuer?: string;
      /** `--admin.oidc.client-id`: Client id of the dashboard at the issuer; its tokens must name it in aud, and so must its logout tokens, which end sessions. */
      clientId?: string;
      /** `--admin.oidc.client-secret-file`: File with the client's secret at the issuer. Without it the dashboard is a public client, which PKCE protects. */
      clientSecretFile?: string;
      /** `--admin.oidc.url`: URL of the dashboard as browsers see it; login/callback below it is the redirect URI at the issuer. https, or http to this machine. Without it, people cannot sign in at the dashboard, and tokens of the issuer are accepted. */
      url?: string;
      /** `--admin.oidc.name-claim`: Claim with the person's name, for logs; dots lead into nested claims. Default: `"preferred_username"`. */
      nameClaim?: string;
      /** `--admin.oidc.groups-claim`: Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles. Default: `"groups"`. */
      groupsClaim?: string;
      /** `--admin.oidc.operators`: Groups whose members have the role operator. By default none. */
      operators?: string[];
      /** `--admin.oidc.viewers`: Groups whose members have the role viewer. By default none. */
      viewers?: string[];
      /** `--admin.oidc.session`: Time after which a person must sign in at the dashboard again. In milliseconds. Default: `28800000`. */
      session?: number;
    };
    /** `--admin.cluster.*` */
    cluster?: {
      /** `--admin.cluster.key-file`: File with a secret of at least 32 characters that all proxies and lbs of the store share: each of them answers operators for all, with scope=cluster. Several lines replace a secret: the first one signs. Reloaded when it changes. By default each answers for itself alone. */
      keyFile?: string;
      /** `--admin.cluster.address`: Address, host:port, at which the others reach admin.listen-address; by default that one, with the host name if it is for every interface. */
      address?: string;
    };
  };
  /** `--tracing.*` */
  tracing?: {
    /** `--tracing.otlp-endpoint`: URL of a collector that accepts traces by OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is appended unless it ends with that. By default there are no traces. */
    otlpEndpoint?: string;
    /** `--tracing.otlp-headers-file`: File with fields for requests to the collector, one name: value per line, read for each request. By default there are none. */
    otlpHeadersFile?: string;
    /** `--tracing.otlp-headers`: Header fields for requests to the collector, name=value, with values percent-encoded; prefer otlp-headers-file for secrets. */
    otlpHeaders?: string[];
    /** `--tracing.sampling-ratio`: Fraction of requests that are traced, 0 to 1. It does not apply to requests with traceparent, whose sampled flag decides. 0: only those. Default: `"1"`. */
    samplingRatio?: string;
    /** `--tracing.service-name`: Name of the service in traces; by default reverse-http-proxy, reverse-http-lb or reverse-http-agent. */
    serviceName?: string;
    /** `--tracing.resource-attributes`: Attributes of the service in traces, name=value, as deployment.environment.name=test; values are percent-encoded. */
    resourceAttributes?: string[];
  };
  /** `--audit.*` */
  audit?: {
    /** `--audit.file`: File to which a line of JSON is appended for each start and end of a tunnel, each refusal, and each action of an operator. By default none. */
    file?: string;
    /** `--audit.strict`: Refuse tunnels while the audit log cannot be written; otherwise records are lost and counted. Default: `false`. */
    strict?: boolean;
  };
  /** `--workers`: Processes that serve at the same addresses, each with its own thread for new tunnels: one for every two processors at most. Limits hold for all together, except bandwidth per client, which each has for itself. 1: this process alone. More need Linux and the executable. Default: `1`. */
  workers?: number;
  /** `--threads`: Threads that encrypt and move the bytes of tunnels, up to 64; 0: one for every two processors, 16 at most. Default: `0`. */
  threads?: number;
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log format: text for people, json for machines. Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: Lowest level that is logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}

/** What a program may tell an agent. */
export interface AgentOptions {
  /** `--join`: String of reverse-http invite, which sets the proxy's address and pin, and the agent's credentials; or file:NAME for a file that has it. Flags and variables take precedence over it, and it takes precedence over the configuration file. */
  join?: string;
  /** `--agent-client.*` */
  agentClient?: {
    /** `--agent-client.server-address`: Addresses of proxies, or of a UDP load balancer in front of them; repeatable or comma-separated. Default: `["localhost:4242"]`. */
    serverAddress?: string[];
    /** `--agent-client.transport`: Transport of connections to proxies: quic (UDP), tls (TCP), websocket (HTTP), or auto: QUIC, and the others where it does not work. Default: `"auto"`. */
    transport?: "auto" | "quic" | "tls" | "websocket";
    /** `--agent-client.websocket-url`: URL at which the proxy accepts WebSockets, such as wss://proxy.example/reverse-http; without a host, as in wss:///reverse-http, it is at the host of each proxy. */
    websocketUrl?: string;
    /** `--agent-client.proxy`: Outbound proxy for TCP: `http://user:password@host:port` or `socks5:`; file:NAME for a file with the URL, read at every connect; none; by default that of HTTPS_PROXY, ALL_PROXY and NO_PROXY. */
    proxy?: string;
    /** `--agent-client.quic-probe-interval`: Interval at which an agent with transport auto probes QUIC while it uses another one; it grows to 10m while probes fail; 0s: never. In milliseconds. Default: `60000`. */
    quicProbeInterval?: number;
    /** `--agent-client.connections`: Number of proxies to connect to, each at an address of its own; every address of a name counts as a proxy. Default: `1`. */
    connections?: number;
    /** `--agent-client.connect-timeout`: Timeout for a connection to a destination; the proxy itself waits no longer than its --agent-server.agent.dial-timeout. In milliseconds. Default: `9000`. */
    connectTimeout?: number;
    /** `--agent-client.congestion-control`: Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down on every loss; cubic-loss-tolerant ignores up to 2 % of losses while no queue builds up, which is unfair to other traffic on the link; bbr follows the delivery rate and fills small buffers. Default: `"cubic"`. */
    congestionControl?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
    /** `--agent-client.keep-alive`: Interval of pings between agent and proxy, 1s to 25s; a connection ends after three intervals and 1s of silence. Of both ends' settings the shorter one counts. With auto at both ends, agents ping over QUIC as rarely as the NATs on the way permit. In milliseconds. Default: `3000`. */
    keepAlive?: number;
    /** `--agent-client.labels`: Labels that the proxy shows with the agent: name=value, repeatable or comma-separated. */
    labels?: string[];
    /** `--agent-client.publish`: Ask the proxies to publish a destination at a port of theirs while the agent is connected; its token must allow that. */
    publish?: {
      listen: string;
      network?: "tcp" | "udp" | "http" | "https";
      to: string;
      toProtocol?: "http/1.1" | "h2c";
      sni?: string[];
      host?: string[];
      path?: string[];
      auth?: "none" | "token" | "mtls";
      allow?: string[];
      proxyProtocol?: "none" | "v1" | "v2";
    }[];
    /** `--agent-client.host-whitelist`: Allow-list of the agent's destinations; by default all; none allows nothing. */
    hostWhitelist?: string[];
    /** `--agent-client.host-denylist`: Destinations that the agent never connects to; takes precedence over host-whitelist. Names are resolved and their addresses checked too. */
    hostDenylist?: string[];
    /** `--agent-client.tls.*` */
    tls?: {
      /** `--agent-client.tls.insecure-skip-verify`: Accept any certificate of the proxy, without verification. Default: `false`. */
      insecureSkipVerify?: boolean;
      /** `--agent-client.tls.pin-sha256`: Accepted SHA-256 hashes of the proxy's certificate, 64 hexadecimal digits each, or of its public key, sha256/ and base64, which a renewed certificate may keep; without root-ca they replace all other checks of it. */
      pinSha256?: string[];
      /** `--agent-client.tls.refresh`: Interval at which these files are checked for changes; 0s: every 5 s. They are also read at each connection attempt. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--agent-client.tls.file.*` */
      file?: {
        /** `--agent-client.tls.file.root-ca`: Certificate authorities to trust, PEM; by default the system's. */
        rootCa?: string;
        /** `--agent-client.tls.file.key`: Private key of the agent's certificate, PEM. */
        key?: string;
        /** `--agent-client.tls.file.cert`: The agent's certificate chain, PEM, if the proxy requires one. */
        cert?: string;
      };
      /** `--agent-client.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
    };
  };
  /** `--auth.*` */
  auth?: {
    /** `--auth.type`: How the agent authenticates: by its id (noauth), a token (jwt), or tokens that it gets from an OpenID Connect issuer (oidc). Default: `"noauth"`. */
    type?: "noauth" | "jwt" | "oidc";
    /** `--auth.noauth.*` */
    noauth?: {
      /** `--auth.noauth.agent-id`: The agent's id, with --auth.type=noauth. */
      agentId?: string;
    };
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.token`: The agent's token, or file:NAME, which is read at every connect. */
      token?: string;
    };
    /** `--auth.oidc.*` */
    oidc?: {
      /** `--auth.oidc.issuer`: URL of the issuer of the agent's tokens; https, or http to this machine. */
      issuer?: string;
      /** `--auth.oidc.client-id`: The agent's client id at the issuer, for the client credentials grant. */
      clientId?: string;
      /** `--auth.oidc.client-secret`: The client's secret at the issuer, or file:NAME, which is read for each token. */
      clientSecret?: string;
      /** `--auth.oidc.client-key-file`: Private key, PEM, with which the agent authenticates there instead (private_key_jwt, RFC 7523), read for each token. */
      clientKeyFile?: string;
      /** `--auth.oidc.scopes`: Scopes to request from the issuer; by default none. */
      scopes?: string[];
      /** `--auth.oidc.requested-audience`: Parameter audience for the issuer, if it needs one; by default none. */
      requestedAudience?: string;
      /** `--auth.oidc.requested-resource`: Parameter resource (RFC 8707) for the issuer, if it needs one; by default none. */
      requestedResource?: string;
      /** `--auth.oidc.agent-id-claim`: Claim with the agent's id, as at the proxy; only for the agent's own log. Default: `"sub"`. */
      agentIdClaim?: string;
    };
  };
  /** `--state-dir`: Directory in which the agent remembers across restarts where QUIC does not work, and which keys a pinned proxy has announced; by default the system's or the user's state directory. */
  stateDir?: string;
  /** `--limits.*` */
  limits?: {
    /** `--limits.tunnels`: Concurrent tunnels, lowered to what the file descriptor limit permits; 0: limited by that alone. Default: `16384`. */
    tunnels?: number;
    /** `--limits.bandwidth`: Bytes per second of all tunnels, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidth?: string;
    /** `--limits.udp-idle-timeout`: Time without a datagram in either direction after which a UDP flow ends; 0s: never. In milliseconds. Default: `120000`. */
    udpIdleTimeout?: number;
    /** `--limits.dns-idle-timeout`: The same for flows to port 53 (DNS), of which clients open one for each query; the shorter time applies. 0s: that of all flows. In milliseconds. Default: `10000`. */
    dnsIdleTimeout?: number;
    /** `--limits.tunnel-idle-timeout`: Idle time after which a tunnel is reset; 0s: never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: Age at which a tunnel is reset; 0s: never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes per second of one tunnel, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory use of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for the buffers of all tunnels. From half of it on, flow control windows stop growing; from two thirds, new tunnels are refused; from nine tenths, the tunnels that buffer most are reset. 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Default: `"25%"`. */
    bufferMemory?: string;
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.timeout`: Time for open tunnels to finish on SIGTERM, before they are reset; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--handover.*` */
  handover?: {
    /** `--handover.socket`: Unix socket of this service alone, by which a new process with the same options takes over its listeners: a second one that is started, or that SIGUSR2 starts. The old process serves its open tunnels until they end. Only the service's user can open the socket. Off by default. */
    socket?: string;
    /** `--handover.timeout`: Time after a hand-over for tunnels of the old process to finish, before they are reset. In milliseconds. Default: `86400000`. */
    timeout?: number;
  };
  /** `--reload.*` */
  reload?: {
    /** `--reload.forbidden`: What a reload does with open tunnels and agents' connections that changed options forbid: cut them, or keep them until they end. Default: `"cut"`. */
    forbidden?: "cut" | "keep";
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics, /agents and the API; without a host, on loopback only. Off by default. */
    listenAddress?: string;
    /** `--admin.tls.*` */
    tls?: {
      /** `--admin.tls.file.*` */
      file?: {
        /** `--admin.tls.file.key`: Private key, PEM: with it and a certificate, admin.listen-address speaks HTTPS. Reloaded when it changes. */
        key?: string;
        /** `--admin.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
      };
      /** `--admin.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
    };
    /** `--admin.socket`: Unix socket for the same, which only the user of the service and root can open; they need no token. For reverse-http status, agents, tunnels and top. Off by default. */
    socket?: string;
    /** `--admin.token-file`: File with the tokens of the API on admin.listen-address, one ROLE NAME TOKEN per line, with the role viewer or operator; reloaded when it changes. Without it the API is served on admin.socket only. */
    tokenFile?: string;
    /** `--admin.hosts`: Names by which browsers reach the API on admin.listen-address, as in the field Host: admin.example.com, or with a port. By default addresses and localhost. */
    hosts?: string[];
    /** `--admin.jwt.*` */
    jwt?: {
      /** `--admin.jwt.public-key`: Public key files, PEM or JWKS, that verify tokens of auth jwt operator for the API. Reloaded when they change. By default none. */
      publicKey?: string[];
    };
    /** `--admin.oidc.*` */
    oidc?: {
      /** `--admin.oidc.issuer`: URL of an OpenID Connect issuer that authenticates operators, exactly as in the iss of its tokens; https, or http to this machine. */
      issuer?: string;
      /** `--admin.oidc.client-id`: Client id of the dashboard at the issuer; its tokens must name it in aud, and so must its logout tokens, which end sessions. */
      clientId?: string;
      /** `--admin.oidc.client-secret-file`: File with the client's secret at the issuer. Without it the dashboard is a public client, which PKCE protects. */
      clientSecretFile?: string;
      /** `--admin.oidc.url`: URL of the dashboard as browsers see it; login/callback below it is the redirect URI at the issuer. https, or http to this machine. Without it, people cannot sign in at the dashboard, and tokens of the issuer are accepted. */
      url?: string;
      /** `--admin.oidc.name-claim`: Claim with the person's name, for logs; dots lead into nested claims. Default: `"preferred_username"`. */
      nameClaim?: string;
      /** `--admin.oidc.groups-claim`: Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles. Default: `"groups"`. */
      groupsClaim?: string;
      /** `--admin.oidc.operators`: Groups whose members have the role operator. By default none. */
      operators?: string[];
      /** `--admin.oidc.viewers`: Groups whose members have the role viewer. By default none. */
      viewers?: string[];
      /** `--admin.oidc.session`: Time after which a person must sign in at the dashboard again. In milliseconds. Default: `28800000`. */
      session?: number;
    };
  };
  /** `--tracing.*` */
  tracing?: {
    /** `--tracing.otlp-endpoint`: URL of a collector that accepts traces by OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is appended unless it ends with that. By default there are no traces. */
    otlpEndpoint?: string;
    /** `--tracing.otlp-headers-file`: File with fields for requests to the collector, one name: value per line, read for each request. By default there are none. */
    otlpHeadersFile?: string;
    /** `--tracing.otlp-headers`: Header fields for requests to the collector, name=value, with values percent-encoded; prefer otlp-headers-file for secrets. */
    otlpHeaders?: string[];
    /** `--tracing.sampling-ratio`: Fraction of requests that are traced, 0 to 1. It does not apply to requests with traceparent, whose sampled flag decides. 0: only those. Default: `"1"`. */
    samplingRatio?: string;
    /** `--tracing.service-name`: Name of the service in traces; by default reverse-http-proxy, reverse-http-lb or reverse-http-agent. */
    serviceName?: string;
    /** `--tracing.resource-attributes`: Attributes of the service in traces, name=value, as deployment.environment.name=test; values are percent-encoded. */
    resourceAttributes?: string[];
  };
  /** `--threads`: Threads that encrypt and move the bytes of tunnels, up to 64; 0: one for every two processors, 16 at most. Default: `0`. */
  threads?: number;
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log format: text for people, json for machines. Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: Lowest level that is logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}

/** What a program may tell a load balancer. */
export interface LoadBalancerOptions {
  /** `--http-proxy.*` */
  httpProxy?: {
    /** `--http-proxy.listen-address`: TCP address that clients dial. Default: `":3129"`. */
    listenAddress?: string;
    /** `--http-proxy.http2-listen-address`: TCP address that clients dial with HTTP/2, over TLS if http-proxy.tls.enable is set, otherwise with prior knowledge; by default none. */
    http2ListenAddress?: string;
    /** `--http-proxy.tls.*` */
    tls?: {
      /** `--http-proxy.tls.enable`: Accept TLS from clients; needs a key and a certificate. Default: `false`. */
      enable?: boolean;
      /** `--http-proxy.tls.refresh`: Interval at which these files are checked for changes and reloaded; 0s: every 5 s. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--http-proxy.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
      /** `--http-proxy.tls.file.*` */
      file?: {
        /** `--http-proxy.tls.file.key`: Private key, PEM. */
        key?: string;
        /** `--http-proxy.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
        /** `--http-proxy.tls.file.client-ca`: Require client certificates issued by these authorities, PEM. */
        clientCa?: string;
        /** `--http-proxy.tls.file.client-crl`: Reject client certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
      /** `--http-proxy.tls.cert-dir`: Directory with certificates for the names that clients and visitors ask for (SNI), at all TLS ports of clients and forwards; others get the certificate of the port. NAME.pem with its key, NAME.crt and NAME.key, or NAME/fullchain.pem and NAME/privkey.pem. */
      certDir?: string;
      /** `--http-proxy.tls.client-auth`: Whether clients need such a certificate, or may also present none; needs client-ca. Default: `"required"`. */
      clientAuth?: "required" | "optional";
    };
    /** `--http-proxy.trusted-proxies`: Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) is trusted for the client's address; from others it is ignored. By default none. */
    trustedProxies?: string[];
    /** `--http-proxy.proxy-protocol`: Addresses and networks of TCP load balancers that send the client's address in a header of the PROXY protocol, version 1 or 2. Connections from them without the header, and from others with it, are refused. By default none. */
    proxyProtocol?: string[];
    /** `--http-proxy.agent-suffix`: Suffix, such as .rhttp, of destinations that name their agent: db.site7.rhttp is db as the agent site7 resolves it, and site7.rhttp is the agent's own machine. By default none. */
    agentSuffix?: string;
    /** `--http-proxy.pac`: Serve /proxy.pac on the clients' port, a proxy configuration for browsers: names with agent-suffix come here, others go their direct way. Without agent-suffix all come here. Default: `false`. */
    pac?: boolean;
    /** `--http-proxy.host-whitelist`: Destinations that clients may reach; by default all; none allows nothing. */
    hostWhitelist?: string[];
  };
  /** `--socks.*` */
  socks?: {
    /** `--socks.listen-address`: TCP address for SOCKS 5 only, without TLS; by default none, as http-proxy.listen-address accepts SOCKS 5 too. */
    listenAddress?: string;
    /** `--socks.udp-ports`: Ports for UDP ASSOCIATE, first-last; each association needs one. By default the system chooses. */
    udpPorts?: string;
    /** `--socks.udp-address`: Address, without a port, to which clients of UDP ASSOCIATE send datagrams, where NAT or a container changes it; by default the one to which they have connected. */
    udpAddress?: string;
  };
  /** `--forward`: Publish a destination of an agent at an address of its own, for clients without proxy support. */
  forward?: {
    listen: string;
    network?: "tcp" | "udp" | "http" | "https";
    agent: string;
    to: string;
    toProtocol?: "http/1.1" | "h2c";
    sni?: string[];
    host?: string[];
    path?: string[];
    auth?: "none" | "token" | "mtls";
    allow?: string[];
    proxyProtocol?: "none" | "v1" | "v2";
    tokenFile?: string;
    certFile?: string;
    keyFile?: string;
    acme?: boolean;
    clientCaFile?: string;
  }[];
  /** `--published`: Serve the forwards that agents publish at a port of the proxies; looked up in the store for each client. */
  published?: {
    listen: string;
    network?: "tls" | "tcp" | "udp" | "http" | "https";
    lastPort?: number;
    port?: number;
    tokenFile: string;
  }[];
  /** `--http-connector.*` */
  httpConnector?: {
    /** `--http-connector.connect-timeout`: Timeout for connecting to a proxy. In milliseconds. Default: `5000`. */
    connectTimeout?: number;
    /** `--http-connector.response-timeout`: Timeout for the proxy's response, once connected; set it longer than the proxy's --agent-server.agent.dial-timeout. In milliseconds. Default: `15000`. */
    responseTimeout?: number;
    /** `--http-connector.tls.*` */
    tls?: {
      /** `--http-connector.tls.enable`: Connect to proxies over TLS. Default: `false`. */
      enable?: boolean;
      /** `--http-connector.tls.insecure-skip-verify`: Accept any certificate of a proxy. Default: `false`. */
      insecureSkipVerify?: boolean;
      /** `--http-connector.tls.use-system-pool`: Trust the system's authorities as well as those of root-ca. Default: `false`. */
      useSystemPool?: boolean;
      /** `--http-connector.tls.refresh`: Interval at which these files are checked for changes and reloaded; 0s: every 5 s. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--http-connector.tls.file.*` */
      file?: {
        /** `--http-connector.tls.file.root-ca`: Authorities to trust, PEM; by default the system's. */
        rootCa?: string;
        /** `--http-connector.tls.file.key`: Private key of lb's certificate for proxies, PEM. */
        key?: string;
        /** `--http-connector.tls.file.cert`: The certificate chain that lb shows to proxies, PEM. */
        cert?: string;
      };
    };
  };
  /** `--auth.*` */
  auth?: {
    /** `--auth.type`: Authentication: none (noauth), by tokens (jwt), or by tokens of an OpenID Connect issuer (oidc). Default: `"noauth"`. */
    type?: "noauth" | "jwt" | "oidc";
    /** `--auth.clients`: Identity providers for clients, tried in this order: jwt, oidc, htpasswd, webhook, mtls. By default clients are authenticated as auth.type says. */
    clients?: string[];
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.public-key`: Public key files that verify tokens, PEM or JWKS; list several to rotate keys. Reloaded when they change. Default: `["auth-key-public.pem"]`. */
      publicKey?: string[];
      /** `--auth.jwt.audience`: Audience that tokens must have in aud; by default any. */
      audience?: string;
      /** `--auth.jwt.on-expiry`: What an expired token closes: connections of agents, which only proxies have (close-agents), tunnels of clients too (close), or nothing (keep). Default: `"close-agents"`. */
      onExpiry?: "close-agents" | "close" | "keep";
      /** `--auth.jwt.revocation-file`: File with the jti of one revoked token per line, or name: or sub: of all tokens of a person or an agent; what was opened with such a token is closed at once. Reloaded when it changes. */
      revocationFile?: string;
    };
    /** `--auth.jwks.*` */
    jwks?: {
      /** `--auth.jwks.url`: URL of a JWKS with keys that verify tokens, besides those of auth.jwt.public-key; https, or http to this machine. By default none. */
      url?: string;
      /** `--auth.jwks.refresh`: Time after which the keys of a JWKS or of the OpenID Connect issuer are fetched again. In milliseconds. Default: `300000`. */
      refresh?: number;
      /** `--auth.jwks.max-stale`: Time after auth.jwks.refresh for which keys stay valid while they cannot be fetched; then clients get 503. 0s: none. In milliseconds. Default: `3600000`. */
      maxStale?: number;
    };
    /** `--auth.oidc.*` */
    oidc?: {
      /** `--auth.oidc.issuer`: URL of the OpenID Connect issuer, exactly as in the iss of its tokens; https, or http to this machine. */
      issuer?: string;
      /** `--auth.oidc.audience`: Audiences, one of which tokens of the issuer must name: the client ids of this service at the issuer. */
      audience?: string[];
      /** `--auth.oidc.name-claim`: Claim with the person's name; dots lead into nested claims. Default: `"preferred_username"`. */
      nameClaim?: string;
      /** `--auth.oidc.groups-claim`: Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles. Default: `"groups"`. */
      groupsClaim?: string;
      /** `--auth.oidc.logout-audience`: Client ids, one of which the issuer's logout tokens must name: POST /backchannel-logout of admin.listen-address then ends what was opened in a session that has ended there. It needs auth.jwt.revocation-file. By default none is accepted. */
      logoutAudience?: string[];
    };
    /** `--auth.htpasswd.*` */
    htpasswd?: {
      /** `--auth.htpasswd.file`: File with one user:hash per line, of bcrypt or argon2, as htpasswd -B writes it. Reloaded when it changes. */
      file?: string;
    };
    /** `--auth.webhook.*` */
    webhook?: {
      /** `--auth.webhook.url`: URL of the webhook that authenticates clients; https, or http to this machine. */
      url?: string;
      /** `--auth.webhook.token-file`: File with a secret that is sent to the webhook as a Bearer token, read for each request. By default none is sent. */
      tokenFile?: string;
      /** `--auth.webhook.connect-timeout`: Timeout for a connection to the webhook, including name resolution and TLS; auth.webhook.timeout applies as well. In milliseconds. Default: `2000`. */
      connectTimeout?: number;
      /** `--auth.webhook.timeout`: Timeout for a request to the webhook until the last byte of its answer, including the time in the queue and the connection. In milliseconds. Default: `5000`. */
      timeout?: number;
      /** `--auth.webhook.concurrency`: Concurrent requests to the webhook; 256 more wait, and others get 503. Default: `32`. */
      concurrency?: number;
      /** `--auth.webhook.max-stale`: Time after maxAge for which a cached answer stays valid while the webhook does not answer; then clients get 503. 0s: none. In milliseconds. Default: `0`. */
      maxStale?: number;
    };
    /** `--auth.mtls.*` */
    mtls?: {
      /** `--auth.mtls.subject-from`: Field of a client's certificate that is its sub: the common name, the first DNS name, URI or e-mail address of the subject alternative names, or the certificate's SHA-256. Default: `"cn"`. */
      subjectFrom?: "cn" | "dns" | "uri" | "email" | "sha256";
      /** `--auth.mtls.groups-from`: Field of a client's certificate with its groups: its organizational units, its organizations, or none. Default: `"ou"`. */
      groupsFrom?: "ou" | "o" | "none";
      /** `--auth.mtls.trust-client-cert`: Take the certificate of a client from the field Client-Cert (RFC 9440) of http-proxy.trusted-proxies, each of which must be an lb, or remove the field from what its clients send. Default: `false`. */
      trustClientCert?: boolean;
    };
  };
  /** `--store.*` */
  store?: {
    /** `--store.type`: Store in which proxies publish their agents. Default: `"memcached"`. */
    type?: "memcached" | "redis";
    /** `--store.key-prefix`: Prefix of every key in the store, identical on all proxies and lbs; empty as in the Go project, whose keys are agent ids. Default: `""`. */
    keyPrefix?: string;
    /** `--store.memcached.*` */
    memcached?: {
      /** `--store.memcached.address`: Address of memcached; entries are distributed over several servers. Default: `["localhost:11211"]`. */
      address?: string[];
      /** `--store.memcached.timeout`: Timeout of a memcached request. In milliseconds. Default: `1000`. */
      timeout?: number;
    };
    /** `--store.redis.*` */
    redis?: {
      /** `--store.redis.url`: Redis or Valkey URL: `redis://user:password@host:port/database`, or `rediss:` with TLS. Default: `"redis://localhost:6379"`. */
      url?: string;
      /** `--store.redis.timeout`: Timeout of a Redis request. In milliseconds. Default: `1000`. */
      timeout?: number;
      /** `--store.redis.tls.*` */
      tls?: {
        /** `--store.redis.tls.file.*` */
        file?: {
          /** `--store.redis.tls.file.root-ca`: Certificate authorities to trust with `rediss:`, PEM; by default the runtime's. */
          rootCa?: string;
        };
      };
    };
  };
  /** `--state-dir`: Directory that keeps accounts and certificates of acme.*; by default the system's or the user's state directory. */
  stateDir?: string;
  /** `--acme.*` */
  acme?: {
    /** `--acme.domain`: Names of this lb for which it obtains a certificate by ACME (RFC 8555) and renews it, for clients, with http-proxy.tls.enable. Setting it agrees to the authority's terms of service. */
    domain?: string[];
    /** `--acme.email`: E-mail address for messages of the authority; by default none. */
    email?: string;
    /** `--acme.directory`: URL of the authority's directory; by default Let's Encrypt. Default: `"https://acme-v02.api.letsencrypt.org/directory"`. */
    directory?: string;
    /** `--acme.profile`: Certificate profile of the authority, such as shortlived; by default the authority chooses. */
    profile?: string;
    /** `--acme.challenge`: Challenge by which control of the names is proved, unless acme.dns-command is set: at acme.http-listen-address (http-01), or at the TLS ports of clients and of forwards with network=https, one of which must be reached at port 443 of each name (tls-alpn-01). Default: `"http-01"`. */
    challenge?: "http-01" | "tls-alpn-01";
    /** `--acme.http-listen-address`: TCP address that answers the authority's HTTP-01 challenges, and nothing else. It must be reached at port 80 of each name. Default: `":80"`. */
    httpListenAddress?: string;
    /** `--acme.dns-command`: Program that proves control of the names by DNS-01 instead, called as PROGRAM present|cleanup NAME VALUE for a TXT record; needed for wildcards. */
    dnsCommand?: string;
    /** `--acme.file.*` */
    file?: {
      /** `--acme.file.root-ca`: Authorities to trust for the URL of the directory, PEM; by default the runtime's. */
      rootCa?: string;
    };
    /** `--acme.eab.*` */
    eab?: {
      /** `--acme.eab.key-id`: Key id of an external account, if the authority requires one. */
      keyId?: string;
      /** `--acme.eab.hmac-key`: Key of the external account, base64url. */
      hmacKey?: string;
    };
    /** `--acme.fallback.*` */
    fallback?: {
      /** `--acme.fallback.directory`: URL of the directory of another authority, which is used when the first one has failed twice, or at once if there is no valid certificate. */
      directory?: string;
      /** `--acme.fallback.file.*` */
      file?: {
        /** `--acme.fallback.file.root-ca`: Authorities to trust for that URL, PEM; by default the runtime's. */
        rootCa?: string;
      };
      /** `--acme.fallback.eab.*` */
      eab?: {
        /** `--acme.fallback.eab.key-id`: Key id of an external account there. */
        keyId?: string;
        /** `--acme.fallback.eab.hmac-key`: Key of that account, base64url. */
        hmacKey?: string;
      };
    };
    /** `--acme.store-key-file`: File with a secret of at least 32 characters that all proxies and lbs of the store share: they have one account and one certificate, sealed with it in the store. Several lines replace a secret: the first one seals. By default each orders its own. */
    storeKeyFile?: string;
  };
  /** `--limits.*` */
  limits?: {
    /** `--limits.connections`: Concurrent client connections, lowered to what the file descriptor limit permits; 0: limited by that alone. Default: `32768`. */
    connections?: number;
    /** `--limits.connections-per-address`: Concurrent client connections per address (IPv6: per /64); 0: no limit. Default: `4096`. */
    connectionsPerAddress?: number;
    /** `--limits.pending-requests`: Concurrent TLS handshakes and request heads of clients; above it the oldest is refused; 0: no limit. Default: `4096`. */
    pendingRequests?: number;
    /** `--limits.pending-requests-per-address`: The same per address (IPv6: per /64); above it the oldest of that address is refused; 0: no limit. Default: `1024`. */
    pendingRequestsPerAddress?: number;
    /** `--limits.tunnels`: Concurrent tunnels and plain HTTP requests; 0: no limit. Default: `32768`. */
    tunnels?: number;
    /** `--limits.tunnels-per-agent`: The same per agent; 0: no limit. Default: `16384`. */
    tunnelsPerAgent?: number;
    /** `--limits.tunnels-per-client`: The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit. Default: `16384`. */
    tunnelsPerClient?: number;
    /** `--limits.udp-flows-per-client`: Concurrent UDP flows per client, and SOCKS associations, which have flows; they count as tunnels too. 0: no limit. Default: `1024`. */
    udpFlowsPerClient?: number;
    /** `--limits.tunnel-rate-per-address`: New tunnels per second and address (IPv6: per /64); 0: no limit. Default: `1000`. */
    tunnelRatePerAddress?: number;
    /** `--limits.tunnel-rate-per-client`: New tunnels per second and client; 0: no limit. Default: `10000`. */
    tunnelRatePerClient?: number;
    /** `--limits.tunnel-burst`: Burst of new tunnels, as a time at the permitted rate: with 2s and 1000 a second, 2000 at once; 0s: one. In milliseconds. Default: `2000`. */
    tunnelBurst?: number;
    /** `--limits.bandwidth-per-agent`: Bytes per second of all tunnels through one agent, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidthPerAgent?: string;
    /** `--limits.bandwidth-per-client`: The same per client: a person of an identity provider, a token, or, without tokens, an agent id; 0: no limit. Default: `"0"`. */
    bandwidthPerClient?: string;
    /** `--limits.tunnel-idle-timeout`: Idle time after which a tunnel is reset; 0s: never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: Age at which a tunnel is reset; 0s: never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes per second of one tunnel, both directions together, such as 512KiB or 10MiB; 0: no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory use of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for the buffers of all tunnels. From half of it on, flow control windows stop growing; from two thirds, new tunnels are refused; from nine tenths, the tunnels that buffer most are reset. 512MiB, 2GiB, or a share of the memory of the machine or the control group; 0: no limit. Default: `"25%"`. */
    bufferMemory?: string;
    /** `--limits.auth-failures`: Failed authentications permitted to an address (IPv6: /64); each further one locks it out, for 1 s at first and twice as long each time. One is forgiven every 10 s (agents: every second); a repeated wrong credential counts once a minute. 0: no limit. Default: `10`. */
    authFailures?: number;
    /** `--limits.auth-lockout-max`: Longest lockout of an address. In milliseconds. Default: `300000`. */
    authLockoutMax?: number;
    /** `--limits.exempt-addresses`: Addresses and networks without limits per address, such as NAT gateways, which stand for many clients; or none, or all. Default: `["127.0.0.0/8","::1"]`. */
    exemptAddresses?: string[];
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.delay`: Time to keep serving after SIGTERM while readiness already fails, so that load balancers notice; drain.timeout begins after it. 0s: none. In milliseconds. Default: `0`. */
    delay?: number;
    /** `--drain.refuse-clients`: On SIGTERM, after drain.delay: refuse new clients at once, so that a balancer without readiness checks uses another lb. Otherwise they are served until no client is left or drain.timeout is over. Default: `false`. */
    refuseClients?: boolean;
    /** `--drain.timeout`: Time for open tunnels to finish on SIGTERM, before they are reset; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--handover.*` */
  handover?: {
    /** `--handover.socket`: Unix socket of this service alone, by which a new process with the same options takes over its listeners: a second one that is started, or that SIGUSR2 starts. The old process serves its open tunnels until they end. Only the service's user can open the socket. Off by default. */
    socket?: string;
    /** `--handover.timeout`: Time after a hand-over for tunnels of the old process to finish, before they are reset. In milliseconds. Default: `86400000`. */
    timeout?: number;
  };
  /** `--reload.*` */
  reload?: {
    /** `--reload.forbidden`: What a reload does with open tunnels and agents' connections that changed options forbid: cut them, or keep them until they end. Default: `"cut"`. */
    forbidden?: "cut" | "keep";
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics, /agents and the API; without a host, on loopback only. Off by default. */
    listenAddress?: string;
    /** `--admin.tls.*` */
    tls?: {
      /** `--admin.tls.file.*` */
      file?: {
        /** `--admin.tls.file.key`: Private key, PEM: with it and a certificate, admin.listen-address speaks HTTPS. Reloaded when it changes. */
        key?: string;
        /** `--admin.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
      };
      /** `--admin.tls.key-password`: Password of the private key, if it is encrypted. */
      keyPassword?: string;
    };
    /** `--admin.socket`: Unix socket for the same, which only the user of the service and root can open; they need no token. For reverse-http status, agents, tunnels and top. Off by default. */
    socket?: string;
    /** `--admin.token-file`: File with the tokens of the API on admin.listen-address, one ROLE NAME TOKEN per line, with the role viewer or operator; reloaded when it changes. Without it the API is served on admin.socket only. */
    tokenFile?: string;
    /** `--admin.hosts`: Names by which browsers reach the API on admin.listen-address, as in the field Host: admin.example.com, or with a port. By default addresses and localhost. */
    hosts?: string[];
    /** `--admin.jwt.*` */
    jwt?: {
      /** `--admin.jwt.public-key`: Public key files, PEM or JWKS, that verify tokens of auth jwt operator for the API. Reloaded when they change. By default none. */
      publicKey?: string[];
    };
    /** `--admin.oidc.*` */
    oidc?: {
      /** `--admin.oidc.issuer`: URL of an OpenID Connect issuer that authenticates operators, exactly as in the iss of its tokens; https, or http to this machine. */
      issuer?: string;
      /** `--admin.oidc.client-id`: Client id of the dashboard at the issuer; its tokens must name it in aud, and so must its logout tokens, which end sessions. */
      clientId?: string;
      /** `--admin.oidc.client-secret-file`: File with the client's secret at the issuer. Without it the dashboard is a public client, which PKCE protects. */
      clientSecretFile?: string;
      /** `--admin.oidc.url`: URL of the dashboard as browsers see it; login/callback below it is the redirect URI at the issuer. https, or http to this machine. Without it, people cannot sign in at the dashboard, and tokens of the issuer are accepted. */
      url?: string;
      /** `--admin.oidc.name-claim`: Claim with the person's name, for logs; dots lead into nested claims. Default: `"preferred_username"`. */
      nameClaim?: string;
      /** `--admin.oidc.groups-claim`: Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles. Default: `"groups"`. */
      groupsClaim?: string;
      /** `--admin.oidc.operators`: Groups whose members have the role operator. By default none. */
      operators?: string[];
      /** `--admin.oidc.viewers`: Groups whose members have the role viewer. By default none. */
      viewers?: string[];
      /** `--admin.oidc.session`: Time after which a person must sign in at the dashboard again. In milliseconds. Default: `28800000`. */
      session?: number;
    };
    /** `--admin.cluster.*` */
    cluster?: {
      /** `--admin.cluster.key-file`: File with a secret of at least 32 characters that all proxies and lbs of the store share: each of them answers operators for all, with scope=cluster. Several lines replace a secret: the first one signs. Reloaded when it changes. By default each answers for itself alone. */
      keyFile?: string;
      /** `--admin.cluster.address`: Address, host:port, at which the others reach admin.listen-address; by default that one, with the host name if it is for every interface. */
      address?: string;
    };
  };
  /** `--tracing.*` */
  tracing?: {
    /** `--tracing.otlp-endpoint`: URL of a collector that accepts traces by OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is appended unless it ends with that. By default there are no traces. */
    otlpEndpoint?: string;
    /** `--tracing.otlp-headers-file`: File with fields for requests to the collector, one name: value per line, read for each request. By default there are none. */
    otlpHeadersFile?: string;
    /** `--tracing.otlp-headers`: Header fields for requests to the collector, name=value, with values percent-encoded; prefer otlp-headers-file for secrets. */
    otlpHeaders?: string[];
    /** `--tracing.sampling-ratio`: Fraction of requests that are traced, 0 to 1. It does not apply to requests with traceparent, whose sampled flag decides. 0: only those. Default: `"1"`. */
    samplingRatio?: string;
    /** `--tracing.service-name`: Name of the service in traces; by default reverse-http-proxy, reverse-http-lb or reverse-http-agent. */
    serviceName?: string;
    /** `--tracing.resource-attributes`: Attributes of the service in traces, name=value, as deployment.environment.name=test; values are percent-encoded. */
    resourceAttributes?: string[];
  };
  /** `--audit.*` */
  audit?: {
    /** `--audit.file`: File to which a line of JSON is appended for each start and end of a tunnel, each refusal, and each action of an operator. By default none. */
    file?: string;
    /** `--audit.strict`: Refuse tunnels while the audit log cannot be written; otherwise records are lost and counted. Default: `false`. */
    strict?: boolean;
  };
  /** `--threads`: Threads that encrypt and move the bytes of tunnels, up to 64; 0: one for every two processors, 16 at most. Default: `0`. */
  threads?: number;
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log format: text for people, json for machines. Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: Lowest level that is logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}

/** How a program reaches a proxy as its client. */
export interface ClientOptions {
  /** `--join`: String of reverse-http invite --client, which sets proxy, agent, pin and token; or file:NAME for a file that has it. Flags and variables take precedence over it, and it over the profile. */
  join?: string;
  /** `--proxy`: Address of the proxy or lb, host:port. Any proxy that serves CONNECT will do. */
  proxy?: string;
  /** `--http2`: Open all tunnels on one connection over HTTP/2; proxy is then the address of --http-proxy.http2-listen-address. A proxy that does not support it there is used over HTTP/1.1, with a connection for each tunnel. Default: `false`. */
  http2?: boolean;
  /** `--agent-id`: Id of the agent that reaches the destinations; by default the one that a token or the destination's name carries. */
  agentId?: string;
  /** `--token`: The client's token, or file:NAME, which is read for each connection; only the latter on the command line. By default none. */
  token?: string;
  /** `--token-command`: Command for the shell that prints the client's token, run for each connection, instead of token. */
  tokenCommand?: string;
  /** `--issuer`: URL of the OpenID Connect issuer at which reverse-http login signs in, instead of a token; https, or http to this machine. By default none. */
  issuer?: string;
  /** `--client-id`: Client id at the issuer, which must permit the device grant for it. */
  clientId?: string;
  /** `--client-secret`: The client's secret at the issuer, or file:NAME, if the issuer requires one; by default none. */
  clientSecret?: string;
  /** `--scopes`: Scopes to request from the issuer; offline_access is for tokens that can be renewed. Default: `["openid","profile","offline_access"]`. */
  scopes?: string[];
  /** `--audience`: Parameter audience for the issuer, if it needs one for the access token; by default none. */
  audience?: string;
  /** `--resource`: Parameter resource (RFC 8707) for the issuer, if it needs one for the access token; by default none. */
  resource?: string;
  /** `--token-kind`: Token of the issuer that is sent to the proxy: the ID token, whose audience is client-id, or the access token. Default: `"id"`. */
  tokenKind?: "id" | "access";
  /** `--session-file`: File in which reverse-http login stores the issuer's tokens, and later ones that renew them; by default beside the profile. */
  sessionFile?: string;
  /** `--connect-timeout`: Timeout for opening a tunnel: the connection to the proxy and its response together. In milliseconds. Default: `30000`. */
  connectTimeout?: number;
  /** `--tls.*` */
  tls?: {
    /** `--tls.enable`: Connect to the proxy over TLS. Default: `false`. */
    enable?: boolean;
    /** `--tls.insecure-skip-verify`: Accept any certificate of the proxy, without verification. Default: `false`. */
    insecureSkipVerify?: boolean;
    /** `--tls.pin-sha256`: Accepted SHA-256 hashes of the proxy's certificate, 64 hexadecimal digits each, or of its public key, sha256/ and base64, which a renewed certificate may keep; without root-ca they replace all other checks of it. */
    pinSha256?: string[];
    /** `--tls.file.*` */
    file?: {
      /** `--tls.file.root-ca`: Certificate authorities to trust, PEM; by default the system's. */
      rootCa?: string;
      /** `--tls.file.key`: Private key of the client's certificate, PEM. */
      key?: string;
      /** `--tls.file.cert`: The client's certificate chain, PEM, if the proxy requires one. */
      cert?: string;
    };
    /** `--tls.key-password`: Password of the private key, if it is encrypted. */
    keyPassword?: string;
  };
}
