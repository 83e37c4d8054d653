// Why a proxy does not respond: when UDP is probed, and how the result appears in the error.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { explainTimeout } from "../../agent/transport/explain_timeout.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import { netWith, withNet } from "../../testing/network.ts";

const TARGET = { address: "proxy.test:4242", host: "proxy.test", port: 4242, serverName: "proxy.test" };
const TROUBLE = new NetError("unreachable", "there is no route");

describe("a proxy's silence", () => {
  it("is explained in the log during the attempt, and in its error", () =>
    withNet(async (net) => {
      const told = Promise.withResolvers<unknown>();
      const log = { ...silentLogger, warn: (_: string, fields?: object) => told.resolve(fields) };
      const attempt = Promise.withResolvers<string>();
      const explained = explainTimeout(netWith(net, { probeUdp: () => Promise.resolve(TROUBLE) }), log, TARGET, attempt.promise);
      assert.deepEqual(await told.promise, { proxy: TARGET.address, reason: TROUBLE.message });
      attempt.reject(new NetError("timed-out", "no answer"));
      await assert.rejects(explained, (error) => error instanceof NetError && error.code === "timed-out" && error.cause === TROUBLE);
    }));

  it("does not end an attempt that still succeeds", () =>
    withNet(async (net) => {
      const asked = Promise.withResolvers<void>();
      const attempt = Promise.withResolvers<string>();
      const probeUdp = () => {
        asked.resolve();
        return Promise.resolve(TROUBLE);
      };
      const explained = explainTimeout(netWith(net, { probeUdp }), silentLogger, TARGET, attempt.promise);
      await asked.promise;
      attempt.resolve("connected");
      assert.equal(await explained, "connected");
    }));

  it("is not probed if the proxy responds with any error, which is kept", () =>
    withNet(async (net) => {
      const probing = netWith(net, { probeUdp: () => assert.fail("it asked") });
      assert.equal(await explainTimeout(probing, silentLogger, TARGET, Promise.resolve("connected")), "connected");
      const refusal = new NetError("tls", "a bad certificate");
      await assert.rejects(explainTimeout(probing, silentLogger, TARGET, Promise.reject(refusal)), (error) => error === refusal);
    }));
});
