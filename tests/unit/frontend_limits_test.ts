// How a refused client counts towards the limits.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend } from "../../shared/frontend/server.ts";
import { ClientLimits } from "../../shared/limits/client_limits.ts";
import { LimitReporter } from "../../shared/limits/limit.ts";
import { addressLimitOptions, clientLimitOptions } from "../../shared/limits/options.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { bytes, within } from "../conformance/support.ts";
import { ask, connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";

const REQUEST = `CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: Basic ${btoa("4711:x")}\r\n\r\n`;

describe("a client that was refused", () => {
  it("holds no tunnel while its connection stays open so that it can read the response", () =>
    withNet(async (net) => {
      const listener = await net.listenTcp({ address: "127.0.0.1:0" });
      const { address } = listener;
      const log = new LogBook();
      const reports = new LimitReporter({ log });
      const values = { ...withDefaults(addressLimitOptions, {}).limits, ...withDefaults(clientLimitOptions, {}).limits };
      const limits = new ClientLimits({ ...values, tunnelsPerAgent: 1 }, 1, {
        log,
        reports,
        createRate: (options) => net.createRate(options),
      });
      const front = new Frontend({
        net,
        listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
        log,
        limits,
        authenticator: createNoAuth(),
        allowList: createAllowList([]),
        dial: () => Promise.reject(new TunnelError("destination_unavailable", "It is not there")),
      });
      const lingering = await connectTo(net, address);
      await lingering.write(bytes(REQUEST));
      assert.match(await readUntil(lingering, "\r\n\r\n"), /^HTTP\/1\.1 502 /);
      assert.equal(front.open, 1);
      assert.equal((await ask(net, address, REQUEST)).status, 502);
      lingering.close();
      front.close();
      await within(front.done);
      limits.close();
    }));
});
