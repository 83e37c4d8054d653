// How an agent serves a UDP flow: when it ends without a datagram.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDestinationPolicy } from "../../agent/destination_policy.ts";
import { serveTunnel } from "../../agent/tunnel.ts";
import { encodeUdpRequest } from "../../shared/http/connect_udp.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import { netWith, streamPair, withNet } from "../../testing/network.ts";

describe("a UDP flow of an agent", () => {
  it("ends after the idle timeout, and that of DNS at port 53 if it is shorter", () =>
    withNet(async (net) => {
      const rows = [
        [5353, 120_000, 10_000, 120_000],
        [53, 120_000, 10_000, 10_000],
        [53, 5_000, 10_000, 5_000],
        [53, 0, 10_000, 10_000],
        [53, 120_000, 0, 120_000],
        [53, 0, 0, 0],
      ] as const;
      const destinations = createDestinationPolicy({ allow: [], deny: [], resolve: () => Promise.resolve([]) });
      for (const [port, udpIdleMs, dnsIdleMs, expected] of rows) {
        let seen: number | undefined;
        const watched = netWith(net, {
          connectUdp: (_stream, _address, options) => {
            seen = options?.idleTimeoutMs;
            return Promise.reject(new NetError("unreachable", "there is no network"));
          },
        });
        const head = new TextDecoder().decode(encodeUdpRequest({ host: "192.0.2.1", port }, [["Host", "proxy"]]));
        const options = {
          net: watched,
          destinations,
          log: silentLogger,
          connectTimeoutMs: 1_000,
          nextKey: () => "1",
          udpIdleMs,
          dnsIdleMs,
        };
        const incoming: Incoming = { stream: streamPair("session").near, head };
        const served = serveTunnel(options, incoming);
        assert.equal(incoming.head, undefined, "the head is not kept while the tunnel is open");
        await served;
        assert.equal(seen, expected, `${port} ${udpIdleMs} ${dnsIdleMs}`);
      }
    }));
});
