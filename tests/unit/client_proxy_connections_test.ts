// Which connection to the proxy a client's tunnel gets over HTTP/2.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { clientOptions } from "../../client/options.ts";
import { type ConnectOptions, ProxyConnections } from "../../client/proxy_connections.ts";
import { checkAccess, openTunnel } from "../../client/tunnel.ts";
import { TunnelFailure } from "../../client/tunnel_failure.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { Http2Connection } from "../../shared/net/tcp.ts";
import { instead, netWith, streamPair, withNet } from "../../testing/network.ts";
import { netError, readTextExactly } from "../conformance/support.ts";

const OPTIONS: ConnectOptions = { proxy: "proxy.test:443", http2: true, connectTimeout: 5_000 };

/** A network whose connections of HTTP/2 have so many streams. */
class Proxy {
  readonly net: Net;
  /** The far ends of the streams, by connection. */
  readonly connections: Duplex[][] = [];
  readonly released = new Set<number>();
  /** Fails connections with this error. */
  error?: NetError;
  /** Fails streams of all connections so far with `closed`. */
  isAway = false;
  /** Over HTTP/1.1. */
  plain = 0;

  constructor(net: Net, most = Infinity) {
    this.net = netWith(net, {
      connectHttp2: async () => {
        await Promise.resolve();
        if (this.error) throw this.error;
        this.isAway = false;
        const streams: Duplex[] = [];
        const number = this.connections.push(streams) - 1;
        const connection: Http2Connection = {
          remote: "proxy.test:443",
          openStream: async () => {
            await Promise.resolve();
            if (this.isAway) throw new NetError("closed", "The connection accepts no more streams");
            if (streams.length >= most) throw new NetError("limit", "As many streams are open as the server allows");
            const { near, far } = streamPair();
            streams.push(far);
            return near;
          },
          release: () => void this.released.add(number),
        };
        return connection;
      },
      connectTcp: async () => {
        await Promise.resolve();
        this.plain++;
        return streamPair().near;
      },
    });
  }

  get counts(): number[] {
    return this.connections.map((streams) => streams.length);
  }
}

describe("connections to the proxy", () => {
  it("are one for tunnels that begin at once, and another when it has no stream left", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net, 3);
      const connections = new ProxyConnections(proxy.net);
      await Promise.all(Array.from({ length: 7 }, () => connections.connect(OPTIONS)));
      assert.deepEqual(proxy.counts, [3, 3, 1]);
    });
  });

  it("are replaced when they take no more streams", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net);
      const connections = new ProxyConnections(proxy.net);
      await connections.connect(OPTIONS);
      proxy.isAway = true;
      await connections.connect(OPTIONS);
      assert.deepEqual([proxy.counts, [...proxy.released]], [[1, 1], [0]]);
    });
  });

  it("are replaced when the proxy or the settings of TLS change", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net);
      const connections = new ProxyConnections(proxy.net);
      for (const changed of [{}, { proxy: "other.test:443" }, { tls: { pinSha256: ["ab"] } }, { tls: { pinSha256: ["ab"] } }]) {
        await connections.connect({ ...OPTIONS, ...changed });
      }
      assert.deepEqual([proxy.counts, [...proxy.released]], [[1, 1, 2], [0, 1]]);
    });
  });

  it("speak HTTP/1.1 with a proxy that does not know it, which is asked once, and where it is not wanted", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net);
      proxy.error = new NetError("not-http2", "The server does not speak HTTP/2");
      const reported: string[] = [];
      const connections = new ProxyConnections(proxy.net, (line) => reported.push(line));
      await Promise.all([connections.connect(OPTIONS), connections.connect(OPTIONS)]);
      proxy.error = undefined;
      await connections.connect(OPTIONS);
      assert.match(reported.join("\n"), /^[^\n]+ does not speak HTTP\/2: each tunnel [^\n]+$/);
      await new ProxyConnections(proxy.net).connect({ ...OPTIONS, http2: false });
      assert.deepEqual([proxy.plain, proxy.counts], [4, []]);
    });
  });

  it("fail for all that wait for one, and are tried again", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net);
      proxy.error = new NetError("refused", "Cannot connect");
      const connections = new ProxyConnections(proxy.net);
      await Promise.all([1, 2].map(() => netError(connections.connect(OPTIONS), "refused")));
      proxy.error = undefined;
      await connections.connect(OPTIONS);
      assert.deepEqual(proxy.counts, [1]);
    });
  });

  it("are opened for others although the one that asked first has been cancelled", async () => {
    await withNet(async (net) => {
      const proxy = new Proxy(net);
      const connections = new ProxyConnections(proxy.net);
      const abort = new AbortController();
      const first = netError(connections.connect({ ...OPTIONS, signal: abort.signal }), "cancelled");
      const second = connections.connect(OPTIONS);
      abort.abort();
      await Promise.all([first, second]);
      assert.deepEqual(proxy.counts, [1]);
    });
  });
});

describe("a client's tunnel over HTTP/2", () => {
  const access = checkAccess(withDefaults(clientOptions, { proxy: "proxy.test:443", http2: true, connectTimeout: 5_000 }));
  const destination = { host: "db", port: 5432 };

  it("is asked for again, once, if the proxy has not processed the request", async () => {
    await withNet(async (net) => {
      let requests = 0;
      for (const failures of [1, 2]) {
        requests = 0;
        const proxy = new Proxy(net);
        const failing = netWith(proxy.net, {
          connectHttp2: async (options) =>
            instead(await proxy.net.connectHttp2(options), {
              openStream: () => {
                const { near, far } = streamPair();
                requests++;
                if (requests > failures) void far.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\n\r\nhello"));
                const lost = () => Promise.reject(new NetError("closed", "The connection is going away", { remote: true }));
                return Promise.resolve(requests > failures ? near : instead<Duplex>(near, { read: lost }));
              },
            }),
        });
        const opened = openTunnel(failing, access, destination);
        if (failures === 1) assert.equal(await readTextExactly(await opened, 5), "hello");
        else await assert.rejects(opened, TunnelFailure);
        assert.equal(requests, 2);
      }
    });
  });
});
