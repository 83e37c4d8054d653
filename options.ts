// The options of the command line for programs, nested by the dots. Written by `deno task docs`: their definitions are elsewhere.

/** What a program may tell a proxy. */
export interface ProxyOptions {
  /** `--agent-server.*` */
  agentServer?: {
    /** `--agent-server.listen-address`: UDP address that agents dial. Default: `":4242"`. */
    listenAddress?: string;
    /** `--agent-server.tls.*` */
    tls?: {
      /** `--agent-server.tls.file.*` */
      file?: {
        /** `--agent-server.tls.file.key`: The server's private key, PEM; without key and certificate the proxy makes its own and keeps them. */
        key?: string;
        /** `--agent-server.tls.file.cert`: The server's certificate chain, PEM. */
        cert?: string;
        /** `--agent-server.tls.file.client-ca`: Require certificates of these authorities from agents, PEM. */
        clientCa?: string;
        /** `--agent-server.tls.file.client-crl`: Refuse certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
      /** `--agent-server.tls.key-password`: Password of the private key, where it is encrypted. */
      keyPassword?: string;
      /** `--agent-server.tls.refresh`: Read these files again at this interval; 0s never. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--agent-server.tls.agent-id-from`: Name in an agent's certificate that must be its id: a subject alternative name (DNS, URI or e-mail), the common name, or none. Default: `"none"`. */
      agentIdFrom?: "none" | "san" | "cn";
    };
    /** `--agent-server.congestion-control`: Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down for every loss; cubic-loss-tolerant does not for up to 2 % without a queue, which is unfair to others on the link; bbr goes by the rate that arrives, and fills small buffers. Default: `"cubic"`. */
    congestionControl?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
    /** `--agent-server.agent.*` */
    agent?: {
      /** `--agent-server.agent.dial-timeout`: Longest wait for a stream to an agent and its answer. In milliseconds. Default: `10000`. */
      dialTimeout?: number;
      /** `--agent-server.agent.multiple`: Several agents may have one id: tunnels are spread over them. Otherwise the newest takes the place of the others. Default: `false`. */
      multiple?: boolean;
    };
  };
  /** `--http-proxy.*` */
  httpProxy?: {
    /** `--http-proxy.listen-address`: TCP address that clients dial. Default: `":3128"`. */
    listenAddress?: string;
    /** `--http-proxy.tls.*` */
    tls?: {
      /** `--http-proxy.tls.enable`: Speak TLS to clients; needs key and certificate. Default: `false`. */
      enable?: boolean;
      /** `--http-proxy.tls.refresh`: Read these files again at this interval; 0s never. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--http-proxy.tls.key-password`: Password of the private key, where it is encrypted. */
      keyPassword?: string;
      /** `--http-proxy.tls.file.*` */
      file?: {
        /** `--http-proxy.tls.file.key`: Private key, PEM. */
        key?: string;
        /** `--http-proxy.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
        /** `--http-proxy.tls.file.client-ca`: Require certificates of these authorities from clients, PEM. */
        clientCa?: string;
        /** `--http-proxy.tls.file.client-crl`: Refuse certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
    };
    /** `--http-proxy.trusted-proxies`: Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) tells the client's address; of all others it is ignored. By default none. */
    trustedProxies?: string[];
    /** `--http-proxy.proxy-protocol`: Addresses and networks of TCP load balancers, whose connections begin with a header of the PROXY protocol, version 1 or 2, which tells the client's address; one without it is refused, and one from elsewhere with it. By default none. */
    proxyProtocol?: string[];
    /** `--http-proxy.host-whitelist`: Destinations that clients may reach; by default all; none allows nothing. */
    hostWhitelist?: string[];
  };
  /** `--auth.*` */
  auth?: {
    /** `--auth.type`: How agents and clients say who they are. Default: `"noauth"`. */
    type?: "noauth" | "jwt";
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.public-key`: Files of the keys that verify tokens, PEM or JWKS; several while keys are exchanged. Read again when they change. Default: `["auth-key-public.pem"]`. */
      publicKey?: string[];
      /** `--auth.jwt.audience`: Audience that tokens must have. */
      audience?: string;
      /** `--auth.jwt.on-expiry`: What ends with an expired token: the agent's connection, the client's tunnels too, or nothing that is open. Default: `"close-agents"`. */
      onExpiry?: "close-agents" | "close" | "keep";
      /** `--auth.jwt.revocation-file`: File with the jti of a revoked token on each line; what was opened with one ends at once. Read again when it changes. */
      revocationFile?: string;
    };
  };
  /** `--store.*` */
  store?: {
    /** `--store.type`: Where proxies tell lb which agents they hold. Default: `"none"`. */
    type?: "none" | "memcached" | "redis";
    /** `--store.http-proxy-address`: Where lb reaches this proxy; by default the listen address, with this host's name where that has none. */
    httpProxyAddress?: string;
    /** `--store.ttl`: How long an entry lives after its proxy is gone; it is renewed every third of that time. In milliseconds. Default: `30000`. */
    ttl?: number;
    /** `--store.key-prefix`: Stands before every key in the store, the same for all proxies and lbs; empty as in the Go project, whose keys are agent ids. Default: `""`. */
    keyPrefix?: string;
    /** `--store.memcached.*` */
    memcached?: {
      /** `--store.memcached.address`: Address of memcached; several share the entries among them. Default: `["localhost:11211"]`. */
      address?: string[];
      /** `--store.memcached.timeout`: Longest wait for an answer of memcached. In milliseconds. Default: `1000`. */
      timeout?: number;
    };
    /** `--store.redis.*` */
    redis?: {
      /** `--store.redis.url`: Redis or Valkey: `redis://user:password@host:port/database`, or `rediss:` with TLS. Default: `"redis://localhost:6379"`. */
      url?: string;
      /** `--store.redis.timeout`: Longest wait for an answer of Redis. In milliseconds. Default: `1000`. */
      timeout?: number;
      /** `--store.redis.tls.*` */
      tls?: {
        /** `--store.redis.tls.file.*` */
        file?: {
          /** `--store.redis.tls.file.root-ca`: Authorities to trust with `rediss:`, PEM; by default the runtime's. */
          rootCa?: string;
        };
      };
    };
  };
  /** `--state-dir`: Directory for what must outlive the proxy, its self-signed certificate; by default the system's or the user's place for that. */
  stateDir?: string;
  /** `--limits.*` */
  limits?: {
    /** `--limits.connections`: Client connections served at a time, fewer where there are not descriptors enough; 0 no limit but that. Default: `32768`. */
    connections?: number;
    /** `--limits.connections-per-address`: Client connections served at a time from one address, of IPv6 from one /64; 0 no limit. Default: `4096`. */
    connectionsPerAddress?: number;
    /** `--limits.pending-requests`: TLS handshakes and request heads of clients being read at a time: one more, and the oldest is refused; 0 no limit. Default: `4096`. */
    pendingRequests?: number;
    /** `--limits.pending-requests-per-address`: The same of clients of one address, of IPv6 of one /64: one more, and the oldest of these is refused; 0 no limit. Default: `1024`. */
    pendingRequestsPerAddress?: number;
    /** `--limits.tunnels`: Tunnels and plain HTTP requests at a time; 0 no limit. Default: `32768`. */
    tunnels?: number;
    /** `--limits.tunnels-per-agent`: The same through one agent; 0 no limit. Default: `16384`. */
    tunnelsPerAgent?: number;
    /** `--limits.tunnels-per-client`: The same of one client: of one token, or where there are none, of one agent id; 0 no limit. Default: `16384`. */
    tunnelsPerClient?: number;
    /** `--limits.tunnel-rate-per-address`: New tunnels a second from one address, of IPv6 from one /64; 0 no limit. Default: `1000`. */
    tunnelRatePerAddress?: number;
    /** `--limits.tunnel-rate-per-client`: New tunnels a second of one client; 0 no limit. Default: `10000`. */
    tunnelRatePerClient?: number;
    /** `--limits.tunnel-burst`: The new tunnels of so long a time may come at once. In milliseconds. Default: `2000`. */
    tunnelBurst?: number;
    /** `--limits.bandwidth-per-agent`: Bytes a second of all tunnels through one agent, both directions together, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidthPerAgent?: string;
    /** `--limits.bandwidth-per-client`: The same of one client: of one token, or where there are none, of one agent id; 0 no limit. Default: `"0"`. */
    bandwidthPerClient?: string;
    /** `--limits.tunnel-idle-timeout`: A tunnel that has been silent for so long is reset; 0s never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: A tunnel that is so old is reset; 0s never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes a second of one tunnel, both directions together, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. On Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for what tunnels buffer, of all of them together: from half of it on their windows do not grow, from three quarters on new tunnels are refused, from nine tenths on those that hold most are reset. 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. Default: `"25%"`. */
    bufferMemory?: string;
    /** `--limits.agents`: Connections of agents at a time; 0 no limit. Default: `32768`. */
    agents?: number;
    /** `--limits.agents-per-address`: Connections of agents at a time from one address, of IPv6 from one /64; 0 no limit. Default: `4096`. */
    agentsPerAddress?: number;
    /** `--limits.handshakes`: Handshakes of agents under way at a time: more are refused; 0 no limit. Default: `4096`. */
    handshakes?: number;
    /** `--limits.handshakes-per-address`: The same of one address, of IPv6 of one /64: from so many on an address must prove that it is one; of those that have, more are refused; 0 no limit. Default: `1024`. */
    handshakesPerAddress?: number;
    /** `--limits.retry-threshold`: Handshakes under way from which on an address must prove that it is one (RFC 9000 §8.1.2); 0 always. Default: `256`. */
    retryThreshold?: number;
    /** `--limits.auth-failures`: Failed authentications that are forgiven an address, of IPv6 a /64, and one more every 10 s (agents: every second); then it is locked out for 1 s, and with every further one for twice as long. One wrong credential counts once a minute, however often it is repeated. 0 no limit. Default: `10`. */
    authFailures?: number;
    /** `--limits.auth-lockout-max`: The longest lock-out. In milliseconds. Default: `300000`. */
    authLockoutMax?: number;
    /** `--limits.exempt-addresses`: Addresses and networks to which no limit by address applies: those that stand for many and cannot say for whom, as a NAT; or none, or all. Default: `["127.0.0.0/8","::1"]`. */
    exemptAddresses?: string[];
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.delay`: On SIGTERM: go on as before for so long while readiness fails, so that load balancers notice; 0s not at all. In milliseconds. Default: `0`. */
    delay?: number;
    /** `--drain.timeout`: On SIGTERM, after that: let running tunnels finish for so long, then reset them; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics and /agents; without a host, for this machine alone. Not served by default. */
    listenAddress?: string;
  };
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log lines for people (text) or machines (json). Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: The least important messages that are logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}

/** What a program may tell an agent. */
export interface AgentOptions {
  /** `--agent-client.*` */
  agentClient?: {
    /** `--agent-client.server-address`: Addresses of proxies, or of a UDP load balancer before them; repeatable or comma-separated. Default: `["localhost:4242"]`. */
    serverAddress?: string[];
    /** `--agent-client.connections`: Proxies to be connected to at a time, each at an address of its own; of a name, every address is a proxy. Default: `1`. */
    connections?: number;
    /** `--agent-client.connect-timeout`: Longest wait for a connection to a destination; the proxy waits no longer than its --agent-server.agent.dial-timeout. In milliseconds. Default: `9000`. */
    connectTimeout?: number;
    /** `--agent-client.congestion-control`: Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down for every loss; cubic-loss-tolerant does not for up to 2 % without a queue, which is unfair to others on the link; bbr goes by the rate that arrives, and fills small buffers. Default: `"cubic"`. */
    congestionControl?: "cubic" | "cubic-loss-tolerant" | "newreno" | "bbr";
    /** `--agent-client.labels`: Shown by the proxy with the agent: name=value, repeatable or comma-separated. */
    labels?: string[];
    /** `--agent-client.host-whitelist`: Destinations that the agent connects to; by default all; none allows nothing. */
    hostWhitelist?: string[];
    /** `--agent-client.host-denylist`: Destinations that the agent never connects to, whatever host-whitelist says; names are resolved first, and their addresses count. */
    hostDenylist?: string[];
    /** `--agent-client.tls.*` */
    tls?: {
      /** `--agent-client.tls.insecure-skip-verify`: Accept any certificate of the proxy. Default: `false`. */
      insecureSkipVerify?: boolean;
      /** `--agent-client.tls.pin-sha256`: SHA-256 of the proxy's certificate, 64 hexadecimal digits, any of these; without root-ca it replaces all other checks of the certificate. */
      pinSha256?: string[];
      /** `--agent-client.tls.refresh`: Check these files for changes at this interval, 0s never; they are read at every connect anyway. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--agent-client.tls.file.*` */
      file?: {
        /** `--agent-client.tls.file.root-ca`: Authorities to trust, PEM; by default the system's. */
        rootCa?: string;
        /** `--agent-client.tls.file.key`: Private key of the agent's certificate, PEM. */
        key?: string;
        /** `--agent-client.tls.file.cert`: The agent's certificate chain, PEM, where the proxy asks for one. */
        cert?: string;
      };
      /** `--agent-client.tls.key-password`: Password of the private key, where it is encrypted. */
      keyPassword?: string;
    };
  };
  /** `--auth.*` */
  auth?: {
    /** `--auth.type`: How the agent says who it is. Default: `"noauth"`. */
    type?: "noauth" | "jwt";
    /** `--auth.noauth.*` */
    noauth?: {
      /** `--auth.noauth.agent-id`: The agent's id, with --auth.type noauth. */
      agentId?: string;
    };
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.token`: The agent's token, or file:NAME, which is read at every connect. */
      token?: string;
    };
  };
  /** `--limits.*` */
  limits?: {
    /** `--limits.tunnels`: Tunnels at a time, fewer where there are not descriptors enough; 0 no limit but that. Default: `16384`. */
    tunnels?: number;
    /** `--limits.bandwidth`: Bytes a second of all tunnels together, both directions, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidth?: string;
    /** `--limits.tunnel-idle-timeout`: A tunnel that has been silent for so long is reset; 0s never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: A tunnel that is so old is reset; 0s never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes a second of one tunnel, both directions together, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. On Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for what tunnels buffer, of all of them together: from half of it on their windows do not grow, from three quarters on new tunnels are refused, from nine tenths on those that hold most are reset. 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. Default: `"25%"`. */
    bufferMemory?: string;
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.timeout`: On SIGTERM, after that: let running tunnels finish for so long, then reset them; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics and /agents; without a host, for this machine alone. Not served by default. */
    listenAddress?: string;
  };
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log lines for people (text) or machines (json). Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: The least important messages that are logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}

/** What a program may tell a load balancer. */
export interface LoadBalancerOptions {
  /** `--http-proxy.*` */
  httpProxy?: {
    /** `--http-proxy.listen-address`: TCP address that clients dial. Default: `":3129"`. */
    listenAddress?: string;
    /** `--http-proxy.tls.*` */
    tls?: {
      /** `--http-proxy.tls.enable`: Speak TLS to clients; needs key and certificate. Default: `false`. */
      enable?: boolean;
      /** `--http-proxy.tls.refresh`: Read these files again at this interval; 0s never. In milliseconds. Default: `0`. */
      refresh?: number;
      /** `--http-proxy.tls.key-password`: Password of the private key, where it is encrypted. */
      keyPassword?: string;
      /** `--http-proxy.tls.file.*` */
      file?: {
        /** `--http-proxy.tls.file.key`: Private key, PEM. */
        key?: string;
        /** `--http-proxy.tls.file.cert`: Certificate chain, PEM. */
        cert?: string;
        /** `--http-proxy.tls.file.client-ca`: Require certificates of these authorities from clients, PEM. */
        clientCa?: string;
        /** `--http-proxy.tls.file.client-crl`: Refuse certificates on these revocation lists, PEM; needs client-ca. */
        clientCrl?: string;
      };
    };
    /** `--http-proxy.trusted-proxies`: Addresses and networks of lb and other proxies in front, whose Forwarded field (RFC 7239) tells the client's address; of all others it is ignored. By default none. */
    trustedProxies?: string[];
    /** `--http-proxy.proxy-protocol`: Addresses and networks of TCP load balancers, whose connections begin with a header of the PROXY protocol, version 1 or 2, which tells the client's address; one without it is refused, and one from elsewhere with it. By default none. */
    proxyProtocol?: string[];
    /** `--http-proxy.host-whitelist`: Destinations that clients may reach; by default all; none allows nothing. */
    hostWhitelist?: string[];
  };
  /** `--http-connector.*` */
  httpConnector?: {
    /** `--http-connector.connect-timeout`: Longest wait for a connection to a proxy. In milliseconds. Default: `5000`. */
    connectTimeout?: number;
    /** `--http-connector.response-timeout`: Longest wait for a proxy's answer after that; longer than the proxy waits for its agents. In milliseconds. Default: `15000`. */
    responseTimeout?: number;
    /** `--http-connector.tls.*` */
    tls?: {
      /** `--http-connector.tls.enable`: Speak TLS to proxies. Default: `false`. */
      enable?: boolean;
      /** `--http-connector.tls.insecure-skip-verify`: Accept any certificate of a proxy. Default: `false`. */
      insecureSkipVerify?: boolean;
      /** `--http-connector.tls.use-system-pool`: Trust the system's authorities as well as those of root-ca. Default: `false`. */
      useSystemPool?: boolean;
      /** `--http-connector.tls.refresh`: Read these files again at this interval; 0s never. In milliseconds. Default: `0`. */
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
    /** `--auth.type`: How agents and clients say who they are. Default: `"noauth"`. */
    type?: "noauth" | "jwt";
    /** `--auth.jwt.*` */
    jwt?: {
      /** `--auth.jwt.public-key`: Files of the keys that verify tokens, PEM or JWKS; several while keys are exchanged. Read again when they change. Default: `["auth-key-public.pem"]`. */
      publicKey?: string[];
      /** `--auth.jwt.audience`: Audience that tokens must have. */
      audience?: string;
      /** `--auth.jwt.on-expiry`: What ends with an expired token: the agent's connection, the client's tunnels too, or nothing that is open. Default: `"close-agents"`. */
      onExpiry?: "close-agents" | "close" | "keep";
      /** `--auth.jwt.revocation-file`: File with the jti of a revoked token on each line; what was opened with one ends at once. Read again when it changes. */
      revocationFile?: string;
    };
  };
  /** `--store.*` */
  store?: {
    /** `--store.type`: Where proxies tell which agents they hold. Default: `"memcached"`. */
    type?: "memcached" | "redis";
    /** `--store.key-prefix`: Stands before every key in the store, the same for all proxies and lbs; empty as in the Go project, whose keys are agent ids. Default: `""`. */
    keyPrefix?: string;
    /** `--store.memcached.*` */
    memcached?: {
      /** `--store.memcached.address`: Address of memcached; several share the entries among them. Default: `["localhost:11211"]`. */
      address?: string[];
      /** `--store.memcached.timeout`: Longest wait for an answer of memcached. In milliseconds. Default: `1000`. */
      timeout?: number;
    };
    /** `--store.redis.*` */
    redis?: {
      /** `--store.redis.url`: Redis or Valkey: `redis://user:password@host:port/database`, or `rediss:` with TLS. Default: `"redis://localhost:6379"`. */
      url?: string;
      /** `--store.redis.timeout`: Longest wait for an answer of Redis. In milliseconds. Default: `1000`. */
      timeout?: number;
      /** `--store.redis.tls.*` */
      tls?: {
        /** `--store.redis.tls.file.*` */
        file?: {
          /** `--store.redis.tls.file.root-ca`: Authorities to trust with `rediss:`, PEM; by default the runtime's. */
          rootCa?: string;
        };
      };
    };
  };
  /** `--limits.*` */
  limits?: {
    /** `--limits.connections`: Client connections served at a time, fewer where there are not descriptors enough; 0 no limit but that. Default: `32768`. */
    connections?: number;
    /** `--limits.connections-per-address`: Client connections served at a time from one address, of IPv6 from one /64; 0 no limit. Default: `4096`. */
    connectionsPerAddress?: number;
    /** `--limits.pending-requests`: TLS handshakes and request heads of clients being read at a time: one more, and the oldest is refused; 0 no limit. Default: `4096`. */
    pendingRequests?: number;
    /** `--limits.pending-requests-per-address`: The same of clients of one address, of IPv6 of one /64: one more, and the oldest of these is refused; 0 no limit. Default: `1024`. */
    pendingRequestsPerAddress?: number;
    /** `--limits.tunnels`: Tunnels and plain HTTP requests at a time; 0 no limit. Default: `32768`. */
    tunnels?: number;
    /** `--limits.tunnels-per-agent`: The same through one agent; 0 no limit. Default: `16384`. */
    tunnelsPerAgent?: number;
    /** `--limits.tunnels-per-client`: The same of one client: of one token, or where there are none, of one agent id; 0 no limit. Default: `16384`. */
    tunnelsPerClient?: number;
    /** `--limits.tunnel-rate-per-address`: New tunnels a second from one address, of IPv6 from one /64; 0 no limit. Default: `1000`. */
    tunnelRatePerAddress?: number;
    /** `--limits.tunnel-rate-per-client`: New tunnels a second of one client; 0 no limit. Default: `10000`. */
    tunnelRatePerClient?: number;
    /** `--limits.tunnel-burst`: The new tunnels of so long a time may come at once. In milliseconds. Default: `2000`. */
    tunnelBurst?: number;
    /** `--limits.bandwidth-per-agent`: Bytes a second of all tunnels through one agent, both directions together, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidthPerAgent?: string;
    /** `--limits.bandwidth-per-client`: The same of one client: of one token, or where there are none, of one agent id; 0 no limit. Default: `"0"`. */
    bandwidthPerClient?: string;
    /** `--limits.tunnel-idle-timeout`: A tunnel that has been silent for so long is reset; 0s never. In milliseconds. Default: `86400000`. */
    tunnelIdleTimeout?: number;
    /** `--limits.tunnel-max-duration`: A tunnel that is so old is reset; 0s never. In milliseconds. Default: `0`. */
    tunnelMaxDuration?: number;
    /** `--limits.bandwidth-per-tunnel`: Bytes a second of one tunnel, both directions together, like 512KiB or 10MiB; 0 no limit. Default: `"0"`. */
    bandwidthPerTunnel?: string;
    /** `--limits.memory-watermark`: Memory of the process above which new tunnels are refused: 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. On Linux only. Default: `"85%"`. */
    memoryWatermark?: string;
    /** `--limits.buffer-memory`: Memory for what tunnels buffer, of all of them together: from half of it on their windows do not grow, from three quarters on new tunnels are refused, from nine tenths on those that hold most are reset. 512MiB, 2GiB, or a share of what the machine or the process' control group has; 0 no limit. Default: `"25%"`. */
    bufferMemory?: string;
    /** `--limits.auth-failures`: Failed authentications that are forgiven an address, of IPv6 a /64, and one more every 10 s (agents: every second); then it is locked out for 1 s, and with every further one for twice as long. One wrong credential counts once a minute, however often it is repeated. 0 no limit. Default: `10`. */
    authFailures?: number;
    /** `--limits.auth-lockout-max`: The longest lock-out. In milliseconds. Default: `300000`. */
    authLockoutMax?: number;
    /** `--limits.exempt-addresses`: Addresses and networks to which no limit by address applies: those that stand for many and cannot say for whom, as a NAT; or none, or all. Default: `["127.0.0.0/8","::1"]`. */
    exemptAddresses?: string[];
  };
  /** `--drain.*` */
  drain?: {
    /** `--drain.delay`: On SIGTERM: go on as before for so long while readiness fails, so that load balancers notice; 0s not at all. In milliseconds. Default: `0`. */
    delay?: number;
    /** `--drain.refuse-clients`: On SIGTERM, after that: refuse new clients at once, so that a balancer which watches no readiness takes another lb; otherwise they are served until no client is left or drain.timeout is over. Default: `false`. */
    refuseClients?: boolean;
    /** `--drain.timeout`: On SIGTERM, after that: let running tunnels finish for so long, then reset them; 0s resets them at once. In milliseconds. Default: `30000`. */
    timeout?: number;
  };
  /** `--admin.*` */
  admin?: {
    /** `--admin.listen-address`: TCP address for /healthz, /readyz, /metrics and /agents; without a host, for this machine alone. Not served by default. */
    listenAddress?: string;
  };
  /** `--log.*` */
  log?: {
    /** `--log.format`: Log lines for people (text) or machines (json). Default: `"text"`. */
    format?: "text" | "json";
    /** `--log.level`: The least important messages that are logged. Default: `"info"`. */
    level?: "trace" | "debug" | "info" | "warn" | "error";
  };
}
