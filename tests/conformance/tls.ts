// TLS on TCP and below sessions, with real certificates: who is trusted, who must present one, changes while listening, the peer's view.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createPrivateKey } from "node:crypto";
import { once } from "node:events";
import { describe } from "node:test";
import { setImmediate } from "node:timers/promises";
import { connect, type ConnectionOptions, createServer, type TLSSocket } from "node:tls";
import type { NetErrorCode } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { ClientTls, ServerTls } from "../../shared/net/tls.ts";
import { type Issued, keyPinOf, makeAuthority, makeSelfSignedAuthority, pinOf } from "../../testing/certificates.ts";
import { watch, withRaw } from "./raw.ts";
import {
  ALPN,
  bytes,
  checkEcho,
  dialTcp,
  echo,
  HEAD,
  listenTcp,
  netError,
  oneByOne,
  openPair,
  type Pki,
  portOf,
  readText,
  readTextExactly,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
} from "./support.ts";

/** TLS over one of the transports, in the same words. */
interface Layer {
  name: "TCP" | Sessions["name"];
  /** A server, and what its clients' handshakes came to: `ok` or the error's code. */
  listen(net: Net, tls: ServerTls): Promise<{ port: number; setTls(tls: ServerTls): void; next(): Promise<string> }>;
  /** Connects and learns whether the server agrees. */
  dial(net: Net, port: number, tls: ClientTls, host?: string): Promise<{ echo(): Promise<void> }>;
}

const OVER_TCP: Layer = {
  name: "TCP",
  async listen(net, tls) {
    const { listener, port, next } = await listenTcp(net, { tls });
    const outcome = async () => {
      const incoming = await next();
      if (incoming?.error) return incoming.error.code;
      void echo(incoming!.stream);
      return "ok";
    };
    return { port, setTls: (tls) => listener.setTls(tls), next: outcome };
  },
  async dial(net, port, tls, host = "127.0.0.1") {
    const stream = await dialTcp(net, port, { host, tls });
    await within(stream.write(bytes(HEAD)));
    return { echo: () => checkEcho(stream) };
  },
};

const overSessions = (sessions: Sessions): Layer => ({
  name: sessions.name,
  async listen(net, tls) {
    const outcomes: string[] = [];
    const listener = await sessions.listen(net, {
      address: "127.0.0.1:0",
      tls,
      alpn: ALPN,
      onHandshakeError: ({ error }) => outcomes.push(error.code),
    });
    const serve = async (connection: AgentSession) => {
      for (let stream; (stream = await connection.acceptStream()) !== null;) void echo(stream);
    };
    const run = async () => {
      for (let connection; (connection = await listener.accept()) !== null;) {
        outcomes.push("ok");
        void serve(connection);
      }
    };
    void run();
    const next = async () => {
      await until(() => outcomes.length > 0, "no handshake came to an end");
      return outcomes.shift()!;
    };
    return { port: portOf(listener.address), setTls: (tls) => listener.setTls(tls), next };
  },
  async dial(net, port, tls, host = "127.0.0.1") {
    const connection = await within(sessions.connect(net, { host, port, tls, alpn: ALPN, timeoutMs: 5_000 }));
    return {
      async echo() {
        await checkEcho(await within(connection.openStream()));
      },
    };
  },
});

export function tlsTests(suite: Suite): void {
  if (!suite.adapter.has.tls) return;
  for (const layer of [OVER_TCP, ...sessionsOf(suite).map(overSessions)]) {
    describe(`TLS over ${layer.name}`, () => {
      serverCertificateTests(suite, layer);
      clientCertificateTests(suite, layer);
      keyTests(suite, layer);
      renewalTests(suite, layer);
    });
  }
  describe("TLS over TCP, with other implementations", () => {
    helloTests(suite);
    wireTests(suite);
  });
  describe("TLS over TCP, for several names", () => nameTests(suite));
  describe("TLS over TCP, from the server's end", () => clientTests(suite));
  for (const sessions of sessionsOf(suite)) {
    describe(`TLS over ${sessions.name}, from both ends`, () => sessionCertificateTests(suite, sessions));
  }
}

function serverCertificateTests({ test, pki }: Suite, { listen, dial }: Layer): void {
  const accepted = async (net: Net, server: ServerTls, client: ClientTls, host?: string) => {
    const { port, next } = await listen(net, server);
    const [outcome, connection] = await Promise.all([next(), dial(net, port, client, host)]);
    assert.equal(outcome, "ok");
    await connection.echo();
  };
  const refused = async (net: Net, server: ServerTls, client: ClientTls, host?: string, code: NetErrorCode = "tls") => {
    const { port } = await listen(net, server);
    await netError(dial(net, port, client, host), code);
  };

  test("trusts a server with a certificate of a given authority, by name and by address", async (net) => {
    const { tls, authority } = await pki;
    await accepted(net, tls, { ca: authority.cert }, "127.0.0.1");
    await accepted(net, tls, { ca: authority.cert }, "localhost");
  });

  test("trusts any of several given authorities", async (net) => {
    const { tls, authority } = await pki;
    await accepted(net, tls, { ca: (await makeAuthority("other")).cert + "\n" + authority.cert });
  });

  test("refuses a server with a certificate of another authority", async (net) => {
    const { tls } = await pki;
    await refused(net, tls, { ca: (await makeAuthority("other")).cert });
  });

  test("refuses a server with a certificate of none of the system's authorities if none is given", async (net) => {
    const { tls } = await pki;
    await refused(net, tls, {});
  });

  test("refuses a server with a certificate for another name", async (net) => {
    const { authority } = await pki;
    const server = await authority.issue({ names: ["example.com", "10.0.0.1"] });
    await refused(net, server, { ca: authority.cert }, "localhost");
    await refused(net, server, { ca: authority.cert }, "127.0.0.1");
  });

  test("refuses a server whose certificate has expired", async (net) => {
    const { authority } = await pki;
    await refused(net, await authority.issue({ names: ["127.0.0.1"], days: -1 }), { ca: authority.cert });
  });

  test("trusts any certificate if configured", async (net) => {
    const { authority } = await pki;
    await accepted(net, await authority.issue({ names: ["example.com"], days: -1 }), { insecureSkipVerify: true });
  });

  test("trusts a server with a pinned certificate of any authority", async (net) => {
    const { authority } = await pki;
    const server = await authority.issue({ names: ["example.com"], days: -1 });
    const colons = pinOf(server.cert).toUpperCase().replace(/(..)(?=.)/g, "$1:");
    await accepted(net, server, { pinSha256: [pinOf(server.cert)] });
    await accepted(net, server, { pinSha256: ["0".repeat(64), colons] });
  });

  test("refuses a server whose certificate is not the pinned one", async (net) => {
    const { tls, authority } = await pki;
    const other = await authority.issue({ names: ["127.0.0.1"] });
    await refused(net, tls, { pinSha256: [pinOf(other.cert)] });
    await refused(net, tls, { pinSha256: [pinOf(other.cert)], ca: authority.cert });
  });

  test("requires both the pin and the authority if both are given", async (net) => {
    const { tls, authority, server } = await pki;
    await accepted(net, tls, { pinSha256: [pinOf(server.cert)], ca: authority.cert });
    await refused(net, tls, { pinSha256: [pinOf(server.cert)], ca: (await makeAuthority("other")).cert });
  });

  test("trusts a server by a pin of its key, which survives a renewal of the certificate", async (net) => {
    const { authority, tls } = await pki;
    const server = await authority.issue({ names: ["example.com"], days: -1 });
    const renewed = await authority.issue({ names: ["127.0.0.1"], days: 7, key: server.key });
    const [pin, other] = [keyPinOf(server.cert), keyPinOf(tls.cert)];
    assert.equal(keyPinOf(renewed.cert), pin);
    for (const each of [server, renewed]) await accepted(net, each, { pinSha256: [other, pin] });
    await refused(net, server, { pinSha256: [other] });
    await refused(net, server, { pinSha256: [`sha256/${Buffer.from(pinOf(server.cert), "hex").toString("base64")}`] });
    await refused(net, server, { pinSha256: [Buffer.from(pin.slice(7), "base64").toString("hex")] });
    await accepted(net, renewed, { pinSha256: [pin], ca: authority.cert });
    await refused(net, renewed, { pinSha256: [pin], ca: (await makeAuthority("other")).cert });
  });

  test("refuses an invalid pin", async (net) => {
    const { tls } = await pki;
    for (const pin of ["", "00", "g".repeat(64), "0".repeat(66), "sha256/AAAA", "sha256/"]) {
      await refused(net, tls, { pinSha256: [pin] }, undefined, "invalid");
    }
  });

  test("refuses an invalid authority", async (net) => {
    const { tls } = await pki;
    for (const ca of ["", "junk"]) await refused(net, tls, { ca });
  });

  test("trusts a server whose certificate is that of an authority if it is identical to the given one", async (net) => {
    const server = await makeSelfSignedAuthority({ names: ["localhost", "127.0.0.1"] });
    const { authority } = await pki;
    await accepted(net, server, { ca: server.cert }, "localhost");
    await accepted(net, server, { ca: authority.cert + server.cert }, "127.0.0.1");
    const forServers = await makeSelfSignedAuthority({ names: ["localhost"], purpose: "server" });
    await accepted(net, forServers, { ca: forServers.cert }, "localhost");
  });

  test("refuses such a server under another name, at another time, for another purpose, and as any other certificate", async (net) => {
    const names = ["localhost"];
    const own = (server: Issued, host = "localhost") => refused(net, server, { ca: server.cert }, host);
    const server = await makeSelfSignedAuthority({ names });
    await own(server, "127.0.0.1");
    await own(await makeSelfSignedAuthority({ names, days: -1 }));
    await own(await makeSelfSignedAuthority({ names, days: 3, startsIn: 2 }));
    await own(await makeSelfSignedAuthority({ names, purpose: "client" }));
    // the same names, another key
    await refused(net, server, { ca: (await makeSelfSignedAuthority({ names })).cert }, "localhost");
    const { authority } = await pki;
    await refused(net, server, { ca: authority.cert }, "localhost");
    await refused(net, server, {}, "localhost");
    await refused(net, server, { ca: server.cert, pinSha256: ["0".repeat(64)] }, "localhost");
  });

  test("reads authorities in every notation of PEM, and refuses anything else", async (net) => {
    const { tls, authority } = await pki;
    const first = (await makeAuthority("other")).cert;
    const spellings = [`\ufeff${authority.cert}`, authority.cert.replaceAll("\n", "\r\n"), authority.cert.replace(/^/, " ")];
    for (const ca of spellings) await accepted(net, tls, { ca });
    for (const ca of spellings) await accepted(net, tls, { ca: ca + first });
    for (const ca of [`x ${authority.cert}${first}`, authority.cert + first.replace("-----END", "----END")]) {
      await refused(net, tls, { ca });
    }
  });

  test("checks settings without opening anything", async (net) => {
    const { tls, authority, client: other } = await pki;
    net.checkServerTls({ ...tls, clientCa: authority.cert, clientCrl: await authority.revocationList([]) });
    net.checkClientTls({ ca: authority.cert, ...tls });
    const wrong = (check: () => void) => netError(Promise.resolve().then(check), "tls");
    await wrong(() => net.checkServerTls({ ...tls, key: other.key }));
    await wrong(() => net.checkServerTls({ ...tls, clientCa: "junk" }));
    await wrong(() => net.checkServerTls({ ...tls, clientCa: authority.cert, clientCrl: "junk" }));
    await wrong(() => net.checkClientTls({ ca: "junk" }));
    await wrong(() => net.checkClientTls({ cert: tls.cert, key: other.key }));
  });
}

function clientCertificateTests({ test, pki }: Suite, { listen, dial }: Layer): void {
  const revoking = async ({ authority, tls }: Pki, list?: string): Promise<ServerTls> => ({
    ...tls,
    clientCa: authority.cert,
    clientCrl: list ?? await authority.revocationList([(await authority.issue({ names: ["gone"] })).serialNumber]),
  });

  /** Whether the client learns it from its handshake or right after it is TLS's business (RFC 8446 §4.4.2.4 allows both). */
  const refused = async (net: Net, server: ServerTls, client: ClientTls) => {
    const { port, next } = await listen(net, server);
    const using = async () => await (await dial(net, port, client)).echo();
    const [outcome] = await Promise.all([next(), netError(using(), "tls", "reset", "closed")]);
    assert.equal(outcome, "tls");
  };
  const accepted = async (net: Net, server: ServerTls, client: ClientTls) => {
    const { port, next } = await listen(net, server);
    const [outcome, connection] = await Promise.all([next(), dial(net, port, client)]);
    assert.equal(outcome, "ok");
    await connection.echo();
  };

  test("accepts a client with a certificate of the required authority", async (net) => {
    const all = await pki;
    await accepted(net, { ...all.tls, clientCa: all.authority.cert }, { ca: all.authority.cert, ...all.client });
    await accepted(net, await revoking(all), { ca: all.authority.cert, ...all.client });
  });

  test("refuses a client without a certificate if one is required", async (net) => {
    const { tls, authority } = await pki;
    await refused(net, { ...tls, clientCa: authority.cert }, { ca: authority.cert });
  });

  test("refuses a client with a certificate of another authority", async (net) => {
    const { tls, authority } = await pki;
    const stranger = await (await makeAuthority("other")).issue({ names: ["client"] });
    await refused(net, { ...tls, clientCa: authority.cert }, { ca: authority.cert, ...stranger });
  });

  test("refuses a client whose certificate has expired", async (net) => {
    const { tls, authority } = await pki;
    await refused(net, { ...tls, clientCa: authority.cert }, {
      ca: authority.cert,
      ...await authority.issue({ names: ["client"], days: -1 }),
    });
  });

  test("refuses a client whose certificate is revoked, and no other", async (net) => {
    const all = await pki;
    const revoked = await all.authority.issue({ names: ["client"] });
    const list = await all.authority.revocationList([revoked.serialNumber]);
    for (const written of [list, `\ufeff${list}`, list.replace(/^/, " "), list.replaceAll("\n", "\r\n"), `text\n${list}`]) {
      await refused(net, await revoking(all, written), { ca: all.authority.cert, ...revoked });
      await accepted(net, await revoking(all, written), { ca: all.authority.cert, ...all.client });
    }
  });

  test("refuses an invalid authority or revocation list before it listens", async (net) => {
    const { tls, authority } = await pki;
    await netError(listen(net, { ...tls, clientCa: "junk" }), "tls");
    await netError(listen(net, { ...tls, clientCa: authority.cert, clientCrl: "junk" }), "tls");
    await netError(listen(net, { ...tls, clientCa: authority.cert, clientCrl: tls.cert }), "tls");
  });
}

function keyTests({ test, pki }: Suite, { listen, dial }: Layer): void {
  test("reads a key in SEC 1 as well as in PKCS #8", async (net) => {
    const { tls, authority } = await pki;
    const key = createPrivateKey(tls.key).export({ type: "sec1", format: "pem" }).toString();
    assert.match(key, /^-----BEGIN EC PRIVATE KEY-----/);
    const { port } = await listen(net, { ...tls, key });
    await dial(net, port, { ca: authority.cert });
  });

  test("refuses an invalid certificate or key before it listens", async (net) => {
    const { tls, authority } = await pki;
    const other = await authority.issue({ names: ["127.0.0.1"] });
    for (const bad of [{ cert: "junk" }, { cert: "" }, { key: "junk" }, { key: "" }, { key: other.key }, { key: tls.cert }]) {
      const error = await netError(listen(net, { ...tls, ...bad }), "tls");
      assert.ok(!error.message.includes(other.key.slice(30, 60)), "an error shows a key");
    }
  });

  test("refuses a client's certificate without its key before it connects", async (net) => {
    const { tls, authority, client } = await pki;
    const { port } = await listen(net, tls);
    await netError(dial(net, port, { ca: authority.cert, cert: client.cert }), "tls", "invalid");
    await netError(dial(net, port, { ca: authority.cert, cert: client.cert, key: "junk" }), "tls");
  });
}

function renewalTests({ test, pki }: Suite, { listen, dial }: Layer): void {
  test("presents new certificates from the next handshake on, and keeps open connections", async (net) => {
    const { tls, authority } = await pki;
    const renewed = await authority.issue({ names: ["127.0.0.1"] });
    const { port, setTls, next } = await listen(net, tls);
    const open = async (pin: string) => (await Promise.all([dial(net, port, { pinSha256: [pinOf(pin)] }), next()]))[0];
    const before = await open(tls.cert);
    setTls(renewed);
    const after = await open(renewed.cert);
    await netError(dial(net, port, { pinSha256: [pinOf(tls.cert)] }), "tls");
    await before.echo();
    await after.echo();
  });

  test("requires client certificates as in the new settings", async (net) => {
    const { tls, authority, client } = await pki;
    const { port, setTls, next } = await listen(net, tls);
    setTls({ ...tls, clientCa: authority.cert });
    const using = async () => await (await dial(net, port, { ca: authority.cert })).echo();
    const [outcome] = await Promise.all([next(), netError(using(), "tls", "reset", "closed")]);
    assert.equal(outcome, "tls");
    await dial(net, port, { ca: authority.cert, ...client });
    assert.equal(await next(), "ok");
  });

  test("keeps the old certificate if the new one is invalid", async (net) => {
    const { tls, authority } = await pki;
    const { port, setTls } = await listen(net, tls);
    const other = await authority.issue({ names: ["127.0.0.1"] });
    for (const bad of [{ ...tls, key: other.key }, { ...tls, cert: "junk" }, { ...tls, clientCa: "junk" }]) {
      assert.throws(() => setTls(bad), { name: "NetError", code: "tls" });
    }
    await dial(net, port, { pinSha256: [pinOf(tls.cert)] });
  });
}

/** The extensions of a ClientHello by number (RFC 8446 §4.1.2), from the bytes of the TLS record it comes in. */
function parseClientHello(record: Uint8Array): Map<number, Buffer> {
  const hello = Buffer.from(record).subarray(5);
  let at = 4 + 2 + 32; // type and length, version, random
  at += 1 + hello.readUInt8(at); // session id
  at += 2 + hello.readUInt16BE(at); // cipher suites
  at += 1 + hello.readUInt8(at); // compression methods
  const end = at + 2 + hello.readUInt16BE(at);
  const extensions = new Map<number, Buffer>();
  for (at += 2; at < end;) {
    const length = hello.readUInt16BE(at + 2);
    extensions.set(hello.readUInt16BE(at), hello.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return extensions;
}

function helloTests({ test }: Suite): void {
  const SERVER_NAME = 0;
  const SUPPORTED_GROUPS = 10;
  const SUPPORTED_VERSIONS = 43;
  const KEY_SHARE = 51;
  const X25519MLKEM768 = 0x11ec;
  const TLS_1_3 = 0x0304;

  const helloOf = async (net: Net, host: string) => {
    let extensions = new Map<number, Buffer>();
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const controller = new AbortController();
      const { signal } = controller;
      const dial = netError(
        net.connectTcp({ host, port, timeoutMs: 5_000, tls: { insecureSkipVerify: true }, signal }),
        "cancelled",
      );
      const socket = await next();
      let received = Buffer.alloc(0);
      socket.on("data", (data) => received = Buffer.concat([received, Buffer.from(data)]));
      await until(() => received.length > 5 && received.length >= 5 + received.readUInt16BE(3), "no ClientHello came");
      controller.abort();
      await dial;
      extensions = parseClientHello(received);
    });
    return extensions;
  };

  test("offers the post-quantum key exchange X25519MLKEM768 first, with a share for it", async (net) => {
    const extensions = await helloOf(net, "127.0.0.1");
    assert.equal(extensions.get(SUPPORTED_GROUPS)?.readUInt16BE(2), X25519MLKEM768);
    assert.equal(extensions.get(KEY_SHARE)?.readUInt16BE(2), X25519MLKEM768);
  });

  test("offers TLS 1.3 first", async (net) => {
    assert.equal((await helloOf(net, "127.0.0.1")).get(SUPPORTED_VERSIONS)?.readUInt16BE(1), TLS_1_3);
  });

  test("sends the server's name, but no address", async (net) => {
    assert.ok((await helloOf(net, "localhost")).get(SERVER_NAME)?.includes("localhost"));
    assert.equal((await helloOf(net, "127.0.0.1")).get(SERVER_NAME), undefined);
  });
}

function wireTests({ test, pki }: Suite): void {
  test("is TLS 1.3 with another implementation's client, half-close included", async (net) => {
    const { tls, authority } = await pki;
    const { port, request } = await listenTcp(net, { tls });
    const options = { host: "127.0.0.1", port, ca: authority.cert, servername: "localhost", allowHalfOpen: true };
    const socket = connect(options as ConnectionOptions);
    try {
      const { received, ended } = watch(socket);
      await within(once(socket, "secureConnect"));
      assert.equal(socket.getProtocol(), "TLSv1.3");
      socket.write(HEAD + "question");
      const { stream, head } = await request();
      assert.equal(head, HEAD);
      assert.equal(await readTextExactly(stream, 8), "question");
      await within(stream.write(bytes("answer")));
      stream.closeWrite();
      assert.equal(await ended, "end");
      assert.equal(received(), "answer");
    } finally {
      socket.destroy();
    }
  });

  test("works with another implementation's server", async (net) => {
    const { tls, authority } = await pki;
    const server = createServer({ ...tls, allowHalfOpen: true }, (socket) => {
      socket.on("error", () => {});
      socket.on("data", (data) => socket.write(data));
      socket.on("end", () => socket.end("bye"));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    try {
      const stream = await dialTcp(net, (server.address() as { port: number }).port, { tls: { ca: authority.cert } });
      await within(stream.write(bytes("hello ")));
      assert.equal(await readTextExactly(stream, 6), "hello ");
      stream.closeWrite();
      assert.equal(await readText(stream), "bye");
    } finally {
      server.close();
    }
  });

  /** A connection over a relay, so that it can be cut below TLS. */
  const cuttable = async (net: Net, raw: Parameters<Parameters<typeof withRaw>[0]>[0]) => {
    const { tls, authority } = await pki;
    const { port, request } = await listenTcp(net, { tls });
    const relay = await raw.relayTcp(port);
    const client = await dialTcp(net, relay.port, { tls: { ca: authority.cert } });
    await within(client.write(bytes(HEAD)));
    const { stream } = await request();
    await within(stream.write(bytes("half of it")));
    assert.equal(await readTextExactly(client, 10), "half of it");
    return { client, stream, relay };
  };

  test("treats a client's end without close_notify as an end", async (net) => {
    await withRaw(async (raw) => {
      const { client, stream, relay } = await cuttable(net, raw);
      await within(client.write(bytes("all of it")));
      assert.equal(await readTextExactly(stream, 9), "all of it");
      relay.endServer();
      assert.equal(await within(stream.read()), null);
      await within(stream.write(bytes("answer")));
      assert.equal(await readTextExactly(client, 6), "answer");
    });
  });

  test("shows a server's end without close_notify as a reset, because it may be truncated", async (net) => {
    await withRaw(async (raw) => {
      const { client, relay } = await cuttable(net, raw);
      relay.endClient();
      await readToError(client, "reset");
      await netError(client.read(), "reset");
    });
  });

  test("shows an RST below it as a reset", async (net) => {
    await withRaw(async (raw) => {
      const { client, relay } = await cuttable(net, raw);
      relay.resetClient();
      await readToError(client, "reset");
    });
  });

  test("reports a client without TLS", async (net) => {
    const { tls } = await pki;
    const { port, next } = await listenTcp(net, { tls });
    const client = await dialTcp(net, port);
    await within(client.write(bytes("\x05\x01\x00 is no handshake")));
    const incoming = await next();
    assert.equal(incoming?.error?.code, "tls");
    assert.equal(incoming.error.remote, true);
    incoming.stream.close();
  });

  test("reports a client with plain HTTP, to which a response can be sent", async (net) => {
    const { tls } = await pki;
    const { port, next } = await listenTcp(net, { tls });
    const client = await dialTcp(net, port);
    await within(client.write(bytes(HEAD)));
    const incoming = await next();
    assert.equal(incoming?.error?.code, "not-tls");
    await within(incoming.stream.write(bytes("HTTP/1.1 400 Bad Request\r\n\r\n")));
    incoming.stream.close();
    assert.match(await readText(client), /^HTTP\/1\.1 400 /);
  });

  test("selects http/1.1 from the protocols that a client offers, or none if it is not among them", async (net) => {
    const { tls, authority } = await pki;
    const { port, next, listener } = await listenTcp(net, { tls });
    const offers: [offered: string[] | undefined, picked: string | false][] = [
      [["h2", "http/1.1"], "http/1.1"],
      [["http/1.1", "h2"], "http/1.1"],
      [["http/1.1"], "http/1.1"],
      [["h2"], false],
      [["http/1.0"], false],
      [undefined, false],
    ];
    for (const again of [false, true]) {
      for (const [offered, picked] of offers) {
        const socket = connect({ host: "127.0.0.1", port, servername: "localhost", ca: authority.cert, ALPNProtocols: offered });
        await within(once(socket, "secureConnect"));
        assert.equal(socket.alpnProtocol || false, picked, `${offered}`);
        socket.write(HEAD);
        const incoming = await next();
        assert.equal(incoming?.head, HEAD);
        incoming.stream.close();
        socket.destroy();
      }
      if (!again) listener.setTls(tls);
    }
  });

  test("fails with a server without TLS", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const dial = netError(net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 5_000, tls: { insecureSkipVerify: true } }), "tls");
      (await next()).write("HTTP/1.1 400 Bad Request\r\n\r\n");
      await dial;
    });
  });

  test("includes the handshake in the timeout of the head", async (net) => {
    await withRaw(async (raw) => {
      const { tls } = await pki;
      const { port, next } = await listenTcp(net, { tls, headTimeoutMs: 50 });
      const { ended } = watch(await raw.connect(port));
      const incoming = await next();
      assert.equal(incoming?.error?.code, "head-timeout");
      incoming.stream.close();
      assert.match(await ended, /^(end|ECONNRESET)$/);
    });
  });

  test("serves the next client while 200 handshakes never finish", async (net) => {
    await withRaw(async (raw) => {
      const { tls, authority } = await pki;
      const { port, request } = await listenTcp(net, { tls });
      for (let i = 0; i < 200; i++) (await raw.connect(port)).write("\x16\x03\x01\x02");
      const client = await dialTcp(net, port, { tls: { ca: authority.cert } });
      await within(client.write(bytes(HEAD)));
      assert.equal((await request()).head, HEAD);
    });
  });

  for (const end of ["FIN", "RST"] as const) {
    test(`is not returned for the health check of a load balancer that ends with ${end}`, async (net) => {
      await withRaw(async (raw) => {
        const { tls, authority } = await pki;
        const { listener, port } = await listenTcp(net, { tls });
        const next = oneByOne(() => listener.accept());
        const check = await raw.connect(port);
        if (end === "FIN") check.end();
        else check.resetAndDestroy();
        const client = await dialTcp(net, port, { tls: { ca: authority.cert } });
        await within(client.write(bytes(HEAD)));
        const incoming = await next();
        assert.equal(incoming?.error, undefined);
        assert.equal(incoming?.head, HEAD);
      });
    });
  }
}

/** Connects with another implementation's client. */
async function open(port: number, options: ConnectionOptions = {}): Promise<TLSSocket> {
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ...options });
  socket.on("error", () => {});
  await within(once(socket, "secureConnect"));
  return socket;
}

function nameTests({ test, pki }: Suite): void {
  /** The common name of the certificate that a client gets. */
  const shown = async (port: number, servername: string | undefined) => {
    const socket = await open(port, { servername });
    const { subject } = socket.getPeerCertificate();
    socket.destroy();
    return subject.CN;
  };
  const settings = async (prefix = ""): Promise<ServerTls> => {
    const { authority } = await pki;
    const issue = async (name: string) => await authority.issue({ names: [], commonName: prefix + name });
    return {
      ...await issue("default"),
      hosts: [
        { names: ["a.example", "b.example"], tls: await issue("both") },
        { names: ["*.Zone.example"], tls: await issue("zone") },
        { names: ["*.low.zone.example", "x.zone.example"], tls: await issue("lower") },
      ],
    };
  };
  const ROWS: readonly [name: string | undefined, certificate: string][] = [
    [undefined, "default"],
    ["other.example", "default"],
    ["a.example", "both"],
    ["B.EXAMPLE", "both"],
    ["x.zone.example", "lower"],
    ["y.zone.example", "zone"],
    ["y.x.zone.example", "zone"],
    ["zone.example", "default"],
    ["y.low.zone.example", "lower"],
    ["low.zone.example", "zone"],
    ["azone.example", "default"],
  ];

  test("presents the certificate of the name: an exact one, then that of the longest zone, then that for all others", async (net) => {
    const { port } = await listenTcp(net, { tls: await settings() });
    for (const [name, certificate] of ROWS) assert.equal(await shown(port, name), certificate, `${name}`);
  });

  test("presents renewed certificates of all names, and keeps all if one is invalid", async (net) => {
    const { listener, port } = await listenTcp(net, { tls: await settings() });
    const renewed = await settings("new ");
    listener.setTls(renewed);
    for (const [name, certificate] of ROWS.slice(0, 4)) assert.equal(await shown(port, name), `new ${certificate}`, `${name}`);
    const [host] = renewed.hosts!;
    const bad = { ...await settings(), hosts: [{ ...host!, tls: { ...host!.tls, key: (await pki).client.key } }] };
    assert.throws(() => listener.setTls(bad), { name: "NetError", code: "tls" });
    assert.throws(() => net.checkServerTls(bad), { name: "NetError", code: "tls" });
    for (const [name, certificate] of ROWS.slice(0, 4)) assert.equal(await shown(port, name), `new ${certificate}`, `${name}`);
  });

  test("requires client certificates as each name does, also of a client that resumes the session of another name", async (net) => {
    const { authority, client, tls } = await pki;
    const host = { names: ["closed.example"], tls: { ...tls, clientCa: authority.cert } };
    const { port, next } = await listenTcp(net, { tls: { ...tls, hosts: [host] } });
    for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
      const socket = connect({ host: "127.0.0.1", port, servername: "open.example", rejectUnauthorized: false, maxVersion });
      const session = await within(sessionOf(socket));
      socket.write(HEAD);
      assert.equal((await next())?.error, undefined);
      socket.destroy();
      const other = connect({ host: "127.0.0.1", port, servername: "closed.example", rejectUnauthorized: false, maxVersion, session });
      other.on("error", () => {});
      assert.equal((await next())?.error?.code, "tls", maxVersion);
      other.destroy();
    }
    const known = await open(port, { servername: "closed.example", cert: client.cert, key: client.key });
    known.write(HEAD);
    assert.equal((await next())?.head, HEAD);
    known.destroy();
  });

  test("answers the challenges of an ACME authority, and other clients as without them", async (net) => {
    const { authority, tls } = await pki;
    const challenge = { names: ["proxy.example"], tls: await authority.issue({ names: ["proxy.example"], commonName: "challenge" }) };
    // a challenge asks the authority for no certificate
    const { listener, port, next } = await listenTcp(net, { tls: { ...tls, clientCa: authority.cert, challenges: [challenge] } });
    const validator = await open(port, { servername: "proxy.example", ALPNProtocols: ["acme-tls/1"] });
    assert.equal(validator.alpnProtocol, "acme-tls/1");
    assert.equal(validator.getPeerCertificate().subject.CN, "challenge");
    validator.resume();
    await within(once(validator, "close"));
    const { client } = await pki;
    const visitor = { cert: client.cert, key: client.key };
    const others = [["proxy.example", ["http/1.1"]], ["other.example", ["acme-tls/1"]], ["proxy.example", undefined]] as const;
    for (const [servername, ALPNProtocols] of others) {
      const socket = await open(port, { servername, ALPNProtocols: ALPNProtocols && [...ALPNProtocols], ...visitor });
      assert.notEqual(socket.alpnProtocol, "acme-tls/1");
      assert.equal(socket.getPeerCertificate().subject.CN, "localhost");
      socket.write(HEAD);
      assert.equal((await next())?.head, HEAD); // the validator was not delivered
      socket.destroy();
    }
    listener.setTls({ ...tls, clientCa: authority.cert });
    const late = await open(port, { servername: "proxy.example", ALPNProtocols: ["acme-tls/1"], ...visitor });
    assert.notEqual(late.alpnProtocol, "acme-tls/1");
    late.destroy();
  });
}

/** The session that another connection may resume; `undefined` on Deno, whose node:tls resumes none. */
async function sessionOf(socket: TLSSocket): Promise<Buffer | undefined> {
  if ("Deno" in globalThis) return undefined;
  const [session] = await once(socket, "session") as [Buffer];
  await setImmediate(); // Node.js sends nothing that is written while it reads the ticket
  return session;
}

function clientTests({ test, pki }: Suite): void {
  test("gives the server the client's certificate and the name that it has asked for", async (net) => {
    const { authority, client, tls } = await pki;
    const { port, next } = await listenTcp(net, { tls: { ...tls, clientCa: authority.cert } });
    for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
      for (const servername of ["Site.example", undefined]) {
        const socket = await open(port, { servername, cert: client.cert, key: client.key, maxVersion });
        socket.write(HEAD);
        const incoming = await next();
        assert.equal(incoming?.serverName, servername?.toLowerCase());
        assert.equal(pinOfDer(incoming?.peerCertificate), pinOf(client.cert));
        socket.destroy();
      }
    }
  });

  test("gives neither without TLS, and no certificate of a client that is not asked for one", async (net) => {
    const { client, tls } = await pki;
    const [plain, server] = [await listenTcp(net), await listenTcp(net, { tls })];
    const tcp = await dialTcp(net, plain.port);
    await within(tcp.write(bytes(HEAD)));
    const first = await plain.next();
    assert.deepEqual([first?.serverName, first?.peerCertificate], [undefined, undefined]);
    const socket = await open(server.port, { servername: "a.example", cert: client.cert, key: client.key });
    socket.write(HEAD);
    const second = await server.next();
    assert.deepEqual([second?.serverName, second?.peerCertificate], ["a.example", undefined]);
    socket.destroy();
  });

  test("accepts clients without a certificate too if it is optional, but none with an invalid one", async (net) => {
    const { authority, client, tls } = await pki;
    const { port, next } = await listenTcp(net, { tls: { ...tls, clientCa: authority.cert, isClientOptional: true } });
    const stranger = await (await makeAuthority("other")).issue({ names: ["client"] });
    const expired = await authority.issue({ names: ["client"], days: -1 });
    const rows = [[undefined, "none"], [client, "known"], [stranger, "tls"], [expired, "tls"]] as const;
    for (const [given, outcome] of rows) {
      const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, cert: given?.cert, key: given?.key });
      socket.on("error", () => {});
      socket.write(HEAD);
      const incoming = await next();
      const known = incoming?.peerCertificate && pinOfDer(incoming.peerCertificate) === pinOf(client.cert);
      assert.equal(incoming?.error?.code ?? (known ? "known" : "none"), outcome);
      socket.destroy();
    }
  });

  test("knows the certificate of a client that resumes its session, and none if it had none", async (net) => {
    const { authority, client, tls } = await pki;
    const { port, next } = await listenTcp(net, { tls: { ...tls, clientCa: authority.cert, isClientOptional: true } });
    for (const given of [client, undefined]) {
      const options = { host: "127.0.0.1", port, servername: "localhost", rejectUnauthorized: false, cert: given?.cert, key: given?.key };
      let session: Buffer | undefined;
      for (const isResumed of [false, true]) {
        const socket = connect({ ...options, session });
        socket.on("error", () => {});
        const tickets = isResumed ? undefined : sessionOf(socket);
        socket.write(HEAD);
        const incoming = await next();
        assert.equal(incoming?.peerCertificate && pinOfDer(incoming.peerCertificate), given && pinOf(given.cert), `${isResumed}`);
        if (tickets) session = await within(tickets);
        else assert.equal(socket.isSessionReused(), session !== undefined);
        socket.destroy();
      }
    }
  });
}

function sessionCertificateTests({ test, pki }: Suite, sessions: Sessions): void {
  test("gives the server the client's certificate, and the client the server's", async (net) => {
    const all = await pki;
    const { authority, client: issued } = all;
    const tls = { ...all.tls, clientCa: authority.cert };
    const { client, server } = await sessions.pair(net, all, { tls }, { tls: { ca: authority.cert, ...issued } });
    assert.equal(pinOfDer(server.peerCertificate), pinOf(issued.cert));
    assert.equal(pinOfDer(client.peerCertificate), pinOf(all.server.cert));
  });

  test("gives no certificate if the client presented none", async (net) => {
    const { server } = await sessions.pair(net, await pki);
    assert.equal(server.peerCertificate, undefined);
  });

  test("compares the server's certificate with the given name", async (net) => {
    const all = await pki;
    const server = await all.authority.issue({ names: ["proxy.example"] });
    const { client, server: accepted } = await sessions.pair(net, all, { tls: server }, { serverName: "proxy.example" });
    await openPair(client, accepted);
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls: all.tls, alpn: ALPN });
    const dial = sessions.connect(net, {
      host: "127.0.0.1",
      port: portOf(listener.address),
      serverName: "proxy.example",
      tls: { ca: all.authority.cert },
      alpn: ALPN,
      timeoutMs: 5_000,
    });
    await netError(dial, "tls");
  });
}

function pinOfDer(der: Uint8Array | undefined): string {
  assert.ok(der);
  return pinOf(`-----BEGIN CERTIFICATE-----\n${Buffer.from(der).toString("base64")}\n-----END CERTIFICATE-----\n`);
}
