// The library's functions refuse invalid hooks.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ConfigError, NetError, openTunnel, startLoadBalancer, startProxy, TunnelFailure } from "../../mod.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { bytes, readTextExactly } from "../conformance/support.ts";

describe("library", () => {
  for (const [name, start] of Object.entries({ startProxy, startLoadBalancer })) {
    it(`refuses both authenticate and authenticator in ${name}`, async () => {
      const authenticator = { authenticateAgent: () => "4711", authenticateClient: () => "4711" };
      await assert.rejects(
        start({}, { net: createMemoryNet(), authenticate: () => "4711", authenticator }),
        (error) => error instanceof ConfigError && /^Cannot use both authenticate and authenticator/.test(error.message),
      );
    });
  }

  it("opens a tunnel over the given network, which it leaves open", async () => {
    const net = createMemoryNet();
    const listener = await net.listenTcp({ address: "proxy.test:3128" });
    for (const response of ["HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.1 403 Forbidden\r\n\r\n"]) {
      const opening = openTunnel({ proxy: "proxy.test:3128", agentId: "4711", destination: "[2001:db8::1]:80" }, { net });
      const [incoming] = (await listener.accept())!;
      assert.match(incoming!.head!, /^CONNECT \[2001:db8::1\]:80 HTTP\/1\.1\r\n/);
      await incoming!.stream.write(bytes(response));
      if (response.endsWith("hello")) {
        const stream = await opening;
        stream.end("bye");
        assert.equal(await readTextExactly(incoming!.stream, 3), "bye");
        incoming!.stream.close();
        let text = "";
        for await (const part of stream) text += part;
        assert.equal(text, "hello");
      } else await assert.rejects(opening, (error) => error instanceof TunnelFailure && error.kind === "denied");
    }
    net.close();
  });

  it("cancels the opening of a tunnel", async () => {
    const net = createMemoryNet();
    const listener = await net.listenTcp({ address: "proxy.test:3128" });
    const cancel = new AbortController();
    const opening = openTunnel({ proxy: "proxy.test:3128", destination: "db:80" }, { net, signal: cancel.signal });
    await listener.accept();
    cancel.abort();
    await assert.rejects(opening, (error) => error instanceof NetError && error.code === "cancelled");
    net.close();
  });

  for (const options of [{ destination: "a:1" }, { proxy: "b:1", destination: "a" }, { proxy: "b", destination: "a:1" }]) {
    it(`refuses to open a tunnel with ${JSON.stringify(options)}`, async () => {
      await assert.rejects(openTunnel(options, { net: createMemoryNet() }), ConfigError);
    });
  }
});
