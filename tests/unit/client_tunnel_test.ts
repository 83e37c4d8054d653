// How clients ask a proxy for a tunnel, and what they make of the responses of any proxy.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { checkAccess, openTunnel } from "../../client/tunnel.ts";
import { TunnelFailure, type TunnelFailureKind } from "../../client/tunnel_failure.ts";
import { clientOptions } from "../../client/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { encodeErrorResponse, ProxyError } from "../../shared/http/status.ts";
import type { TunnelErrorType } from "../../shared/tunnel/errors.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { Folder } from "../../testing/programs.ts";
import { readTextExactly } from "../conformance/support.ts";

const DESTINATION = { host: "db", port: 5432 };

const refusal = (status: number, error: TunnelErrorType, message: string) =>
  new TextDecoder("latin1").decode(encodeErrorResponse(new ProxyError(status, error, message), "reverse-http-proxy"));

/** A proxy with this response, and what it was asked. */
async function withProxy(response: string, use: (open: () => ReturnType<typeof openTunnel>) => Promise<void>): Promise<string[]> {
  const net = createMemoryNet();
  const listener = await net.listenTcp({ address: "proxy.test:3128" });
  const heads: string[] = [];
  const serving = (async () => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const { stream, head = "" } of batch) {
        heads.push(head);
        await stream.write(new TextEncoder().encode(response));
        if (!/^HTTP\/1\.. 2/.test(response)) stream.close();
      }
    }
  })();
  const access = checkAccess(withDefaults(clientOptions, { proxy: "proxy.test:3128", agentId: "4711", connectTimeout: 2_000 }));
  await use(() => openTunnel(net, access, DESTINATION));
  net.close();
  await serving;
  return heads;
}

describe("a client's tunnel", () => {
  for (
    const response of ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 Connection established\r\nX-Any: 1\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n"]
  ) {
    it(`is open after ${response.split("\r\n")[0]}, and has what follows the response`, async () => {
      const heads = await withProxy(`${response}the server speaks first`, async (open) => {
        assert.equal(await readTextExactly(await open(), 23), "the server speaks first");
      });
      assert.match(heads.join(), /^CONNECT db:5432 HTTP\/1\.1\r\nHost: db:5432\r\nProxy-Authorization: Basic NDcxMTp4\r\n/);
    });
  }

  const rows: [response: string, kind: TunnelFailureKind, said: RegExp][] = [
    ["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "unreachable", /^db:5432: Service Unavailable \(503\)$/],
    ["HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "denied", /\(407\)$/],
    [refusal(403, "destination_ip_prohibited", "no"), "denied", /no \(403, destination_ip_prohibited\)/],
    [refusal(502, "connection_refused", "db:5432 refused the connection"), "refused", /^db:5432 refused the connection \(502/],
    [refusal(502, "destination_unavailable", "The agent is not connected to any proxy"), "no-agent", /not connected to any proxy/],
    [refusal(503, "destination_unavailable", "The agent is shutting down"), "unreachable", /shutting down/],
    ["HTTP/1.1 405 Method Not Allowed\r\n\r\n", "proxy", /\(405\)$/],
    ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "proxy", /gave no response to CONNECT/],
    ["\x15\x03\x03\x00\x02\x02\x28", "proxy", /set --tls\.enable/],
    ["", "proxy", /gave no response to CONNECT/],
    [`HTTP/1.1 500 ${"\x07".repeat(3)}${"a".repeat(5_000)}\r\n\r\n`, "unreachable", /^.{1,300}$/],
  ];
  for (const [response, kind, said] of rows) {
    it(`fails with ${kind} after ${JSON.stringify(response.slice(0, 40))}`, async () => {
      await withProxy(response, async (open) => {
        await assert.rejects(open(), (error) => error instanceof TunnelFailure && error.kind === kind && said.test(error.message));
      });
    });
  }

  it("sends the token that its file has at that moment, as the agent's password or alone", async () => {
    using folder = new Folder();
    const token = `file:${folder.write("token", "first\n")}`;
    const sent: string[] = [];
    for (const [agentId, text] of [["4711", "first\n"], ["a:b", " second"], [undefined, "third"]] as const) {
      folder.write("token", text);
      const net = createMemoryNet();
      const listener = await net.listenTcp({ address: "proxy.test:3128" });
      const access = checkAccess(withDefaults(clientOptions, { proxy: "proxy.test:3128", agentId, token }));
      const opening = openTunnel(net, access, DESTINATION);
      const [incoming] = (await listener.accept())!;
      sent.push(/^Proxy-Authorization: (.*)\r$/m.exec(incoming!.head!)![1]!);
      await incoming!.stream.write(Buffer.from("HTTP/1.1 200 OK\r\n\r\n"));
      await opening;
      net.close();
    }
    assert.deepEqual(sent, [`Basic ${btoa("4711:first")}`, `Basic ${btoa("a%3Ab:second")}`, "Bearer third"]);
  });
});
