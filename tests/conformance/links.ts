// Sessions that share a TCP listener with other clients: which connection is whose, and whose certificates and limits apply.
import assert from "node:assert/strict";
import { describe } from "node:test";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Net } from "../../shared/net/net.ts";
import type { HandshakeFailure, ListenTlsLinkOptions, SessionListener } from "../../shared/net/session.ts";
import type { ListenTcpOptions } from "../../shared/net/tcp.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import {
  ALPN,
  assertUsable,
  bytes,
  dialTcp,
  HEAD,
  listenTcp,
  netError,
  openPair,
  Sessions,
  type Suite,
  type TcpServer,
  within,
} from "./support.ts";

export function linkTests(suite: Suite): void {
  const { test, pki, adapter } = suite;
  const sessions = new Sessions("tls");

  /** A listener for both, whose sessions have no other way in. */
  const share = async (
    net: Net,
    ofLinks: Partial<ListenTlsLinkOptions> = {},
    ofClients: Partial<ListenTcpOptions> = {},
  ): Promise<TcpServer & { links: SessionListener }> => {
    const { tls } = await pki;
    const links = await net.listenTlsLink({ tls, alpn: ALPN, ...ofLinks });
    return { links, ...await listenTcp(net, { tls, links, ...ofClients }) };
  };
  const accept = async (links: SessionListener) => {
    const session = await within(links.accept());
    assert.ok(session);
    return session;
  };

  describe("a TCP listener that sessions share", () => {
    test("passes on what offers their protocol, and serves the rest", async (net) => {
      const { links, port, request } = await share(net);
      assert.equal(links.address, "");
      const [server, client] = await Promise.all([accept(links), sessions.dial(net, await pki, port)]);
      assert.equal(server.transport, "tls");
      assert.equal(server.alpn, ALPN[0]);
      const { a, b } = await openPair(client, server);
      const other = await dialTcp(net, port, { tls: { ca: (await pki).authority.cert } });
      await other.write(bytes(HEAD));
      const { stream, head } = await request();
      assert.equal(head, HEAD);
      await assertUsable(other, stream);
      await assertUsable(a, b);
    });

    test("serves its other clients after their listener was closed", async (net) => {
      const { links, port, request } = await share(net);
      await within(links.close(0, ""));
      await netError(sessions.dial(net, await pki, port), "refused", "reset");
      const other = await dialTcp(net, port, { tls: { ca: (await pki).authority.cert } });
      await other.write(bytes(HEAD));
      await assertUsable(other, (await request()).stream);
    });

    if (!adapter.has.tls) return;

    test("uses the certificate and the authorities of the one that a connection is for", async (net) => {
      const { authority, client, tls } = await pki;
      const own = await makeAuthority("Links");
      const { cert, key } = await own.issue({ names: ["127.0.0.1"] });
      const { links, port, request } = await share(net, { tls: { cert, key, clientCa: own.cert } }, {
        tls: { ...tls, clientCa: authority.cert },
      });
      const member = await own.issue({ names: ["member"] });
      const [session] = await Promise.all([
        accept(links),
        sessions.dial(net, await pki, port, { tls: { ca: own.cert, cert: member.cert, key: member.key } }),
      ]);
      assert.ok(session.peerCertificate);
      await netError(sessions.dial(net, await pki, port, { tls: { ca: own.cert, cert: client.cert, key: client.key } }), "tls");
      await netError(sessions.dial(net, await pki, port, { tls: { ca: authority.cert } }), "tls");
      const other = await dialTcp(net, port, { tls: { ca: authority.cert, cert: client.cert, key: client.key } });
      await other.write(bytes(HEAD));
      await assertUsable(other, (await request()).stream);
    });

    for (
      const [what, send] of [
        ["stops after its first message", (socket: Socket, hello: Uint8Array) => void socket.write(hello)],
        ["sends its first message byte by byte", sendBytes],
      ] as const
    ) {
      test(`applies the limits of sessions to a handshake that ${what}`, async (net) => {
        let report: (failure: HandshakeFailure) => void = () => {};
        const failed = new Promise<HandshakeFailure>((resolve) => report = resolve);
        const { links, port } = await share(net, { handshakeTimeoutMs: 100, onHandshakeError: report });
        void links.accept(); // reports failures
        const socket = connect({ host: "127.0.0.1", port, noDelay: true });
        socket.on("error", () => {});
        void send(socket, await helloWith(ALPN));
        const { error, remote } = await within(failed);
        assert.equal(error.code, "timed-out");
        assert.equal(remote, `127.0.0.1:${socket.localPort}`);
        socket.destroy();
      });
    }

    test("passes on the address that a load balancer reports", async (net) => {
      const { links, port } = await share(net, {}, { proxyProtocol: ["127.0.0.0/8"] });
      const socket = connect({ host: "127.0.0.1", port });
      socket.write("PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n");
      const client = connectTls({ socket, ALPNProtocols: ALPN, rejectUnauthorized: false });
      client.on("error", () => {});
      client.write(SETTINGS);
      assert.equal((await accept(links)).remote, "192.0.2.1:1234");
      client.destroy();
    });
  });
}

/** SETTINGS of docs/protocol.md: 16 streams, with windows of 1 MiB. */
const SETTINGS = Uint8Array.from([0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 16, 0, 16, 0, 0, 0, 16, 0, 0]);

/** Writes each byte alone. */
async function sendBytes(socket: Socket, data: Uint8Array): Promise<void> {
  for (const byte of data) await new Promise((resolve) => socket.write(Uint8Array.of(byte), resolve));
}

/** The first message of a TLS client. */
async function helloWith(protocols: string[]): Promise<Uint8Array> {
  const server = createServer();
  const received = new Promise<Uint8Array>((resolve) => {
    server.on("connection", (socket) =>
      socket.once("data", (data) => {
        resolve(new Uint8Array(Buffer.from(data)));
        socket.destroy();
      }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const client = connectTls({ host: "127.0.0.1", port, ALPNProtocols: protocols });
  client.on("error", () => {});
  const hello = await within(received);
  client.destroy();
  server.close();
  return hello;
}
