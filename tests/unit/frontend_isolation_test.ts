// A fault within one request or agent affects only that one: its cause is logged, and others are served.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentServer } from "../../proxy/agents/server.ts";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { ALPN, authenticate } from "../../shared/link/link.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { bytes, portOf, readText, within } from "../conformance/support.ts";
import { ask, connectTo, LogBook, netWith, Queue, readUntil, streamPair, withNet } from "../../testing/network.ts";

const FAULT = new TypeError("undefined is not a function");
const fail = (): never => {
  throw FAULT;
};
const REQUEST = `CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: Basic ${btoa("4711:x")}\r\n\r\n`;

/** A frontend that fails while `broken.on` is set. */
async function withFront(
  faulty: (broken: { on: boolean }, net: Net) => Partial<FrontendOptions>,
  body: (bench: { net: Net; address: string; log: LogBook; dialled: Queue<Duplex>; mend: () => void }) => Promise<void>,
): Promise<void> {
  await withNet(async (net) => {
    const broken = { on: true };
    const [log, dialled, listener] = [new LogBook(), new Queue<Duplex>(), await net.listenTcp({ address: "127.0.0.1:0" })];
    const front = new Frontend({
      net,
      listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
      log,
      authenticator: createNoAuth(),
      allowList: createAllowList([]),
      dial: () => {
        const { near, far } = streamPair("session");
        dialled.push(far);
        return Promise.resolve({ stream: near });
      },
      ...faulty(broken, net),
    });
    await body({ net, address: listener.address, log, dialled, mend: () => broken.on = false });
    front.close();
    await within(front.done);
  });
}

/** Checks that a tunnel works. */
async function checkTunnel(net: Net, address: string, dialled: Queue<Duplex>): Promise<void> {
  const client = await connectTo(net, address);
  await client.write(bytes(REQUEST));
  await readUntil(client, "\r\n\r\n");
  const server = await dialled.next();
  server.closeWrite();
  assert.equal(await readText(client), "");
  client.close();
  server.close();
}

describe("a fault of the program", () => {
  const faults: Record<string, (broken: { on: boolean }, net: Net) => Partial<FrontendOptions>> = {
    "in authentication": (broken) => ({
      authenticator: { authenticateAgent: fail, authenticateClient: () => broken.on ? fail() : "4711" },
    }),
    "in an allow-list": (broken) => ({ allowList: { allows: () => broken.on ? fail() : true } }),
    "in the limits": (broken) => ({
      limits: { acquire: () => broken.on ? fail() : undefined } as unknown as FrontendOptions["limits"],
    }),
  };
  for (const [where, faulty] of Object.entries(faults)) {
    it(`${where} causes a 500, is logged with its cause, and does not affect other clients`, () =>
      withFront(faulty, async ({ net, address, log, dialled, mend }) => {
        const { status, body } = await ask(net, address, REQUEST);
        assert.equal(status, 500);
        assert.match(body, /^Internal error \(request [^ ]+\)\n$/);
        assert.match(String((await log.waitFor("request failed")).error), /undefined is not a function/);
        await log.waitFor("request", { status: 500, error: "proxy_internal_error" });
        mend();
        await checkTunnel(net, address, dialled);
      }));
  }

  for (const [how, release] of Object.entries({ throws: fail, rejects: () => Promise.reject(FAULT) })) {
    it(`in the release of a client's credentials, which ${how}, is logged and does not affect the client`, () =>
      withFront(() => ({
        authenticator: { authenticateAgent: fail, authenticateClient: () => ({ agentId: "4711", release }) },
      }), async ({ net, address, log, dialled }) => {
        await checkTunnel(net, address, dialled);
        await log.waitFor("hook failed", { hook: "release" });
        await log.waitFor("request", { status: 200, error: undefined });
        assert.deepEqual(log.logged("request failed"), []);
      }));
  }

  it("in the relay resets the client and the destination", () =>
    withFront((broken, net) => ({
      net: netWith(net, { splice: (a, b, options) => broken.on ? Promise.reject(FAULT) : net.splice(a, b, options) }),
    }), async ({ net, address, log, dialled, mend }) => {
      const client = await connectTo(net, address);
      await client.write(bytes(REQUEST));
      const isReset = (error: unknown) => error instanceof NetError && error.code === "reset";
      await assert.rejects(within((await dialled.next()).read()), isReset);
      await assert.rejects(within(client.read()), isReset);
      await log.waitFor("request failed");
      mend();
      await checkTunnel(net, address, dialled);
    }));

  it("after the end of a request is logged, and does not affect other clients", () =>
    withFront((broken) => ({ onEnd: () => broken.on && fail() }), async ({ net, address, log, dialled, mend }) => {
      await checkTunnel(net, address, dialled);
      await log.waitFor("request failed");
      mend();
      await checkTunnel(net, address, dialled);
    }));

  it("in the release of an agent's credentials is logged, and the agent is removed", () =>
    withNet(async (net) => {
      const [log, listener] = [new LogBook(), await net.listenQuic({ address: "127.0.0.1:0", tls: { cert: "", key: "" }, alpn: ALPN })];
      const server = new AgentServer({
        listeners: [listener],
        log,
        multiple: false,
        onConflict: "replace",
        authenticator: {
          authenticateAgent: (id) => ({ agentId: new TextDecoder().decode(id), release: fail }),
          authenticateClient: fail,
        },
      });
      const options = { host: "127.0.0.1", port: portOf(listener.address), tls: {}, alpn: ALPN, timeoutMs: 5_000 };
      const connection = await net.connectQuic(options);
      await authenticate(connection, bytes("4711"), { version: "", instance: "a", host: "", labels: {} });
      await log.waitFor("agent connected");
      connection.close(0, "over");
      await log.waitFor("hook failed", { hook: "release" });
      await log.waitFor("agent disconnected", { agent: "4711" });
      assert.deepEqual([...server.agents], []);
      await server.close();
    }));
});
