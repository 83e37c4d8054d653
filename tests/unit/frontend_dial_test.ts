// Dialers, and what the frontend counts while one connects.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend } from "../../shared/frontend/server.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { TunnelRequest, Upstream } from "../../shared/tunnel/request.ts";
import { bytes, within } from "../conformance/support.ts";
import { connectTo, LogBook, Queue, readUntil, streamPair, withNet } from "../../testing/network.ts";

const CREDENTIALS = `Proxy-Authorization: Basic ${btoa("4711:x")}\r\n`;

describe("a dialer", () => {
  for (const [method, target] of [["CONNECT", "a:1"], ["GET", "http://a:1/"]] as const) {
    it(`learns that the client of a ${method} has reset its connection`, () =>
      withNet(async (net) => {
        const [log, requests, listener] = [new LogBook(), new Queue<TunnelRequest>(), await net.listenTcp({ address: "127.0.0.1:0" })];
        const frontend = new Frontend({
          net,
          listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
          log,
          authenticator: createNoAuth(),
          allowList: createAllowList([]),
          dial: (request) => {
            requests.push(request);
            const signal = request.clientSignal!();
            return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
          },
        });
        const client = await connectTo(net, listener.address);
        await client.write(bytes(`${method} ${target} HTTP/1.1\r\nHost: a:1\r\n${CREDENTIALS}\r\n`));
        const { clientSignal } = await requests.next();
        client.reset(1);
        await log.waitFor("request", { method, error: "connection_terminated" });
        const { reason } = clientSignal!();
        assert.ok(reason instanceof NetError && reason.code === "reset", String(reason));
        frontend.close();
        await within(frontend.done);
      }));
  }
});

describe("a frontend", () => {
  it("does not keep the head of a request while its tunnel is open", () =>
    withNet(async (net) => {
      const [listener, dialled, accepted] = [await net.listenTcp({ address: "127.0.0.1:0" }), new Queue<TunnelRequest>(), [] as Incoming[]];
      const frontend = new Frontend({
        net,
        listeners: [{
          listener: {
            address: listener.address,
            async accept() {
              const batch = await listener.accept();
              accepted.push(...batch ?? []);
              return batch;
            },
            startDraining: () => listener.startDraining(),
            stopAccepting: () => listener.stopAccepting(),
            close: () => listener.close(),
          },
          protocol: createHttpProxy("reverse-http-proxy"),
        }],
        log: new LogBook(),
        authenticator: createNoAuth(),
        allowList: createAllowList([]),
        dial: (request) => {
          dialled.push(request);
          return new Promise(() => {});
        },
      });
      const client = await connectTo(net, listener.address);
      await client.write(bytes(`CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n${CREDENTIALS}\r\n`));
      assert.deepEqual((await dialled.next()).destination, { host: "a", port: 1 });
      assert.deepEqual(accepted.map(({ head }) => head), [undefined]);
      frontend.close();
    }));

  it("counts a client from its request on, and its tunnel once the destination is connected", () =>
    withNet(async (net) => {
      const [log, listener] = [new LogBook(), await net.listenTcp({ address: "127.0.0.1:0" })];
      const dialled = new Queue<(upstream: Upstream) => void>();
      const frontend = new Frontend({
        net,
        listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
        log,
        authenticator: createNoAuth(),
        allowList: createAllowList([]),
        dial: () => new Promise((resolve) => dialled.push(resolve)),
      });
      const client = await connectTo(net, listener.address);
      await client.write(bytes(`CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n${CREDENTIALS}\r\n`));
      const connected = await dialled.next();
      assert.deepEqual([frontend.open, frontend.tunnels], [1, 0]);
      const { near, far } = streamPair("session");
      connected({ stream: near });
      await readUntil(client, "\r\n\r\n");
      assert.deepEqual([frontend.open, frontend.tunnels], [1, 1]);
      far.closeWrite();
      client.closeWrite();
      await log.waitFor("request", { status: 200 });
      assert.equal(frontend.tunnels, 0);
      frontend.close();
      await within(frontend.done);
    }));
});
