// Attacks on the compiled executables by clients, agents and proxies. Each test shows that resources stay bounded, the log is right, and
// other peers are served.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { encodeFrame } from "../../shared/link/frame.ts";
import { ALPN, authenticate, PROXY_TRANSPORT, receiveCredentials, receiveHello } from "../../shared/link/link.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, QuicTransport } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { AGENT, AGENT_ID, eventually, openDescriptors, Pair, residentMiB, Site } from "../../testing/programs.ts";
import { type Answer, ask, assertRefused, connectHead, credentials, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const onLinux = { skip: process.platform === "linux" ? false : "only Linux shows what a process has open" };
const encoder = new TextEncoder();

/** Runs a test with its own network, which is closed afterwards. */
async function withNet(body: (net: Net) => Promise<void>): Promise<void> {
  const net = createNativeNet();
  try {
    await body(net);
  } finally {
    net.close();
  }
}

/** Connects to the proxy that listens on `agents`, without verifying it. */
async function connect(net: Net, agents: string, alpn: readonly string[] = ALPN, transport?: QuicTransport): Promise<AgentSession> {
  const { hostname: host, port } = new URL(`quic://${agents}`);
  const options = { host, port: Number(port), tls: { insecureSkipVerify: true }, alpn: [...alpn], transport, timeoutMs: 10_000 };
  return await net.connectQuic(options);
}

/** Connects and authenticates with an id. */
async function connectAs(net: Net, agents: string, id: string, hello = {}): Promise<AgentSession> {
  const connection = await connect(net, agents);
  await authenticate(connection, encoder.encode(id), { version: "raw", instance: id, host: "raw", labels: {}, ...hello });
  return connection;
}

/** Uses a tunnel in both directions. */
async function checkTunnel(clients: string, origin: Origin, id?: string): Promise<void> {
  using client = await openTunnel(clients, origin.authority, { id });
  using server = await origin.accept();
  await client.write("there");
  assert.equal((await server.read(5)).toString(), "there");
  server.finish("back");
  assert.equal((await client.readAll()).toString(), "back");
  client.finish();
}

/** Many tunnels at once, which are ended in any case. */
async function withWires(count: number, address: string, body: (wires: Wire[]) => Promise<void>): Promise<void> {
  const wires: Wire[] = [];
  try {
    for (let i = 0; i < count; i++) wires.push(await dial(address));
    await body(wires);
  } finally {
    for (const wire of wires) wire.reset();
  }
}

describe("a client", () => {
  it("that sends its request byte by byte gets no more time than others, and does not delay them", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    await withWires(100, clients, async (wires) => {
      const head = connectHead(origin.authority);
      let sent = 0;
      const timer = setInterval(() => {
        for (const wire of wires) wire.socket.write(head[sent % head.length]!);
        sent++;
      }, 250);
      try {
        for (let i = 0; i < 10; i++) await checkTunnel(clients, origin);
        for (const wire of wires) assert.match(await wire.readUntil("\r\n\r\n"), /^HTTP\/1\.1 408 /);
      } finally {
        clearInterval(timer);
      }
    });
    await checkTunnel(clients, origin);
  });

  it("that sends its body byte by byte is cut off at the maximum duration of a tunnel", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.tunnel-max-duration=2s"] });
    await using origin = await Origin.start();
    using wire = await dial(pair.addresses.clients);
    await wire.write(`POST http://${origin.authority}/ HTTP/1.1\r\n${credentials()}Content-Length: 1000000\r\n\r\n`);
    using server = await origin.accept();
    const timer = setInterval(() => wire.socket.write("x"), 100);
    try {
      assert.match(await wire.readUntil("\r\n"), /^HTTP\/1\.1 503 /);
      assert.equal(await server.ending(), "ECONNRESET");
    } finally {
      clearInterval(timer);
    }
  });

  it("that opens many connections without a request is limited, and the others are served", onLinux, async () => {
    await using pair = await Pair.start({ proxy: ["--limits.pending-requests=200"] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    await checkTunnel(clients, origin);
    const before = { descriptors: openDescriptors(pair.proxy.pid), memory: residentMiB(pair.proxy.pid) };
    await withWires(1_500, clients, async () => {
      await checkTunnel(clients, origin);
      const held = () => openDescriptors(pair.proxy.pid) - before.descriptors;
      await eventually(() => held() <= 250, () => `${held()} descriptors are held by connections without a head`);
      assert.ok(residentMiB(pair.proxy.pid) - before.memory < 64);
    });
  });

  it("that opens tunnels and resets them at once, repeatedly, leaves nothing behind", onLinux, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    await using attacked = await Origin.start();
    const { clients } = pair.addresses;
    await checkTunnel(clients, origin);
    const open = () => [pair.proxy, pair.agent].map(({ pid }) => openDescriptors(pid));
    const before = open();
    for (let round = 0; round < 40; round++) {
      const wires = await Promise.all(Array.from({ length: 50 }, () => dial(clients)));
      await Promise.all(wires.map((wire) => wire.write(connectHead(attacked.authority))));
      // some before, some after the answer
      if (round % 2 === 0) await wires[0]!.readUntil("\r\n\r\n");
      for (const wire of wires) wire.reset();
    }
    await checkTunnel(clients, origin);
    await eventually(() => open().every((count, i) => count <= before[i]! + 2), () => `${open()} descriptors are open, not ${before}`);
  });

  it("that connects to the proxy's own ports is served as any client, and refused if the agent denies them", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    await using inner = await Origin.start();
    const { addresses } = await site.startProxy(["--admin.listen-address=:0"]);
    const agent = await site.startAgent(addresses, ["--drain.timeout=0s"]);
    // a tunnel in a tunnel: the inner one needs credentials like any other
    using wire = await openTunnel(addresses.clients, addresses.clients);
    await wire.write("CONNECT a:1 HTTP/1.1\r\n\r\n");
    assert.match(await wire.readUntil("\r\n\r\n"), /^HTTP\/1\.1 407 /);
    using outer = await openTunnel(addresses.clients, addresses.clients);
    await outer.write(connectHead(inner.authority));
    assert.match(await outer.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /);
    await agent.stop();
    await site.startAgent(addresses, [`--agent-client.host-denylist=127.0.0.0/8:${addresses.clients.split(":")[1]}`]);
    const forms = ["0.0.0.0", "127.0.0.1.", "127.1", "0x7f.1", "2130706433", "017700000001", "[::ffff:7f00:1]", "[::ffff:0:0]"];
    for (const host of ["127.0.0.1", "localhost", "LOCALHOST", "LOCALHOST.", "[::ffff:127.0.0.1]", ...forms]) {
      const answer = await ask(addresses.clients, connectHead(`${host}:${addresses.clients.split(":")[1]}`));
      assertRefused(answer, 403, "destination_ip_prohibited");
    }
    await checkTunnel(addresses.clients, origin);
  });

  it("reaches neither link-local nor metadata addresses through an agent that denies them", async () => {
    const deny = "169.254.0.0/16,fe80::/10,fd00:ec2::254,100.100.100.200,metadata.google.internal";
    await using pair = await Pair.start({ agent: [`--agent-client.host-denylist=${deny}`] });
    await using origin = await Origin.start();
    for (const host of ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "Metadata.Google.Internal.", "0xa9fea9fe"]) {
      const answer = await ask(pair.addresses.clients, connectHead(`${host}:80`));
      assert.equal(answer.status, 403, host);
      await pair.agent.waitFor("tunnel refused", { status: 403 });
    }
    const request = `GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\n${credentials()}\r\n`;
    assertRefused(await ask(pair.addresses.clients, request), 403, "destination_ip_prohibited");
    await checkTunnel(pair.addresses.clients, origin);
  });
});

/** Datagrams that resemble QUIC. */
function* datagrams(count: number): Iterable<Uint8Array> {
  for (let i = 0; i < count; i++) {
    const packet = crypto.getRandomValues(new Uint8Array(i % 5 === 4 ? 60 : 1_200));
    // of the first bytes: long header, version, length of the connection id (RFC 9000 §17.2)
    const first = [
      [0xc3, 0, 0, 0, 1, 8], // an unencrypted Initial
      [0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8], // an unknown version
      [0xc3, 0, 0, 0, 1, 255], // a connection id that is too long
      [0xe3, 0, 0, 0, 1, 8], // a Handshake of no connection
      [0x43], // a short header: of no connection, or the guess of a stateless reset
    ][i % 5]!;
    packet.set(first);
    yield packet;
  }
}

describe("a stranger", () => {
  it("that floods the agents' port with invalid datagrams gets fewer bytes than it sends, and ends no connection", onLinux, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { agents, clients } = pair.addresses;
    using client = await openTunnel(clients, origin.authority);
    using server = await origin.accept();
    const before = residentMiB(pair.proxy.pid);
    const { hostname, port } = new URL(`udp://${agents}`);
    let [sent, received] = [0, 0];
    const sockets = Array.from({ length: 20 }, () => createSocket("udp4").on("message", (data) => received += data.length));
    try {
      let next = 0;
      for (const packet of datagrams(20_000)) {
        await new Promise<void>((resolve, reject) =>
          sockets[next++ % sockets.length]!.send(packet, Number(port), hostname, (error) => error ? reject(error) : resolve())
        );
        sent += packet.length;
      }
      for (let i = 0; i < 5; i++) await checkTunnel(clients, origin);
    } finally {
      for (const socket of sockets) socket.close();
    }
    assert.ok(received < sent, `${received} bytes came back for ${sent}`);
    await client.write("still");
    assert.equal((await server.read(5)).toString(), "still");
    assert.equal(pair.proxy.logged("agent disconnected").length, 0);
    assert.ok(residentMiB(pair.proxy.pid) - before < 64, `${before} MiB have become ${residentMiB(pair.proxy.pid)} MiB`);
    await pair.site.startAgent(pair.addresses, [], "4712");
  });
});

describe("an agent", () => {
  it("whose first frame is too long, truncated, empty or not UTF-8 is refused, and others are accepted", () =>
    withNet(async (net) => {
      await using pair = await Pair.start();
      await using origin = await Origin.start();
      const { agents, clients } = pair.addresses;
      const frames: [bytes: Uint8Array, finished: boolean, code: number][] = [
        [Uint8Array.of(0xff, 0xff, 0xff, 0xff), false, 401],
        [Uint8Array.of(0, 1, 0, 1), false, 401],
        [Uint8Array.of(0, 0, 0, 9, 65), true, 401],
        [Uint8Array.of(0, 0), true, 401],
        [new Uint8Array(0), true, 401],
        [Uint8Array.of(0, 0, 0, 0), true, 400],
        [encodeFrame(Uint8Array.of(0xc3, 0x28)), true, 400],
        [encodeFrame(encoder.encode("a".repeat(64 * 1024))), true, 400],
        [encodeFrame(encoder.encode("a\r\nb")), true, 400],
        [encodeFrame(encoder.encode("get x\r\ndelete y")), true, 400],
      ];
      for (const [bytes, finished, code] of frames) {
        const connection = await connect(net, agents);
        const stream = await connection.openStream();
        stream.write(bytes).catch(() => {}); // it may be closed by then
        if (finished) stream.closeWrite();
        const closed = await connection.closed;
        assert.deepEqual([closed.code, closed.remote], [code, true], `${bytes.subarray(0, 8)}`);
      }
      // who says nothing is gone after 3 s
      const silent = await connect(net, agents);
      assert.equal((await silent.closed).code, 401);
      await checkTunnel(clients, origin);
    }));

  it("that fills its streams before it has authenticated occupies little memory", onLinux, () =>
    withNet(async (net) => {
      await using pair = await Pair.start();
      await using origin = await Origin.start();
      const { agents, clients } = pair.addresses;
      const before = residentMiB(pair.proxy.pid);
      const connectAndFill = async () => {
        const connection = await connect(net, agents);
        const credentials = await connection.openStream();
        await credentials.write(Uint8Array.of(0, 1, 0, 0)); // a frame of 64 KiB that never comes
        for (let i = 0; i < 3; i++) (await connection.openStream()).write(new Uint8Array(8 << 20)).catch(() => {});
        return connection;
      };
      // each at once: the proxy closes a connection 3 s after its handshake
      const connections = await Promise.all(Array.from({ length: 40 }, connectAndFill));
      await checkTunnel(clients, origin);
      for (const { closed } of connections) assert.equal((await closed).remote, true);
      const grown = residentMiB(pair.proxy.pid) - before;
      assert.ok(grown < 100, `The proxy has grown by ${grown} MiB`);
      await checkTunnel(clients, origin);
    }));

  it("that opens a stream of a kind that agents must not open is closed with 422", () =>
    withNet(async (net) => {
      await using pair = await Pair.start();
      for (const alpn of ALPN) {
        const connection = await connect(net, pair.addresses.agents, [alpn]);
        await authenticate(connection, encoder.encode("other"), { version: "raw", instance: "raw", host: "raw", labels: {} });
        await (await connection.openStream()).write(encoder.encode("x"));
        const { code, reason } = await connection.closed;
        assert.deepEqual([code, reason], [422, "An agent opens no more streams"]);
      }
    }));

  const withoutCredit = [
    { parameter: "initial_max_streams_bidi", transport: { maxPeerStreams: 0 } },
    { parameter: "initial_max_stream_data_bidi_remote", transport: { streamWindow: 0 } },
  ];
  for (const { parameter, transport } of withoutCredit) {
    it(`whose QUIC stack has an ${parameter} of 0 is refused, and both sides log why`, () =>
      withNet(async (net) => {
        await using pair = await Pair.start();
        await using origin = await Origin.start();
        const { agents, clients } = pair.addresses;
        for (const alpn of ALPN) {
          const connection = await connect(net, agents, [alpn], transport);
          const hello = { version: "raw", instance: "raw", host: "raw", labels: {} };
          await assert.rejects(authenticate(connection, encoder.encode("other"), hello), { appCode: 422 });
          const { code, reason } = await connection.closed;
          assert.equal(code, 422);
          assert.match(
            reason,
            new RegExp(`^Cannot [a-z ]+ for tunnels: the agent's transport parameter ${parameter} is 0. Set it to \\d+ or more$`),
          );
          await pair.proxy.waitFor("agent refused", { reason }, ALPN.indexOf(alpn) + 1);
        }
        await checkTunnel(clients, origin);
      }));
  }

  it("with a token of 64 KiB, a forged one, or one with another role or the algorithm none, is refused", () =>
    withNet(async (net) => {
      await using site = await Site.create();
      const key = makeTokenKey();
      const publicKey = site.folder.write("public.pem", key.publicPem);
      const { proxy, addresses } = await site.startProxy([
        "--auth.type=jwt",
        `--auth.jwt.public-key=${publicKey}`,
        "--limits.auth-failures=0",
      ]);
      const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
      const claims = part({ agent_id: AGENT_ID, role: "agent", exp: 4_000_000_000 });
      const hmac = (input: string) => `${input}.${createHmac("sha256", key.publicPem).update(input).digest("base64url")}`;
      const [head, body, signature] = (await key.sign({ role: "agent" })).split(".") as [string, string, string];
      const wrong: Record<string, string> = {
        "64 KiB": "a".repeat(64 * 1024),
        "64 KiB of a token": `${head}.${"a".repeat(60_000)}.${signature}`,
        "alg none": `${part({ alg: "none" })}.${claims}.`,
        "alg None": `${part({ alg: "None" })}.${claims}.`,
        "no alg": `${part({})}.${claims}.${signature}`,
        "HS256 by the public key": hmac(`${part({ alg: "HS256" })}.${claims}`),
        "ES256 signed as HS256": hmac(`${part({ alg: "ES256" })}.${claims}`),
        "RS256 by a key of ES256": `${part({ alg: "RS256" })}.${body}.${signature}`,
        "its own key": `${part({ alg: "ES256", jwk: { kty: "EC", crv: "P-256", x: "a", y: "a" } })}.${claims}.${signature}`,
        "other claims": `${head}.${claims}.${signature}`,
        "no signature": `${head}.${body}.`,
        "a zero signature": `${head}.${body}.${Buffer.alloc(64).toString("base64url")}`,
        "another's key": await makeTokenKey().sign({ role: "agent" }),
        "a client's": await key.sign({ role: "client" }),
        "expired": await key.sign({ role: "agent", durationMs: -60_000 }),
      };
      for (const [what, token] of Object.entries(wrong)) {
        const connection = await connect(net, addresses.agents);
        await assert.rejects(authenticate(connection, encoder.encode(token), { version: "", instance: "", host: "", labels: {} }), what);
        const { code, reason } = await connection.closed;
        assert.deepEqual([code, reason], [401, "authentication failed"], what);
      }
      await proxy.waitFor("agent refused", {}, Object.keys(wrong).length);
      // the right token, twice: it identifies the agent, and the newest connection replaces the older one
      const token = await key.sign({ role: "agent" });
      const show = async (instance: string) => {
        const connection = await connect(net, addresses.agents);
        await authenticate(connection, encoder.encode(token), { version: "", instance, host: "", labels: {} });
        return connection;
      };
      const first = await show("one");
      await show("two");
      assert.equal((await first.closed).code, 409);
    }));

  it("that never reads its requests delays its own clients up to the timeout, and no others", () =>
    withNet(async (net) => {
      await using pair = await Pair.start({ proxy: ["--agent-server.agent.dial-timeout=1s"] });
      await using origin = await Origin.start();
      const { agents, clients } = pair.addresses;
      await connectAs(net, agents, "deaf");
      await pair.proxy.waitFor("agent connected", { agent: "deaf" });
      const waiting = Array.from({ length: 200 }, () => ask(clients, connectHead(origin.authority, "deaf")));
      for (let i = 0; i < 20; i++) await checkTunnel(clients, origin);
      for (const answer of await Promise.all(waiting)) assertRefused(answer, 504, "http_response_timeout");
    }));

  it("that responds with fields of its own changes nothing in the response but a member of Proxy-Status", () =>
    withNet(async (net) => {
      await using pair = await Pair.start();
      const { agents, clients } = pair.addresses;
      const connection = await connectAs(net, agents, "forger");
      const answers = [
        'HTTP/1.1 502 X\r\nProxy-Status: x; error=dns_error; details="\\"; error=none; forged=\\"1"\r\nSet-Cookie: a=b\r\n\r\n',
        'HTTP/1.1 403 X\r\nProxy-Status: x; error=forged_error; details="a\xff\tb"\r\nLocation: http://forged/\r\n\r\n',
        "HTTP/1.1 503 X\r\nRetry-After: 1\tSet-Cookie: a=b\r\n\r\n",
        "HTTP/1.1 502 X\nSet-Cookie: a=b\r\n\r\n",
        "HTTP/1.1 407 X\r\nProxy-Authenticate: Basic realm=forged\r\n\r\n",
        "nonsense\r\n\r\n",
      ];
      const received: Answer[] = [];
      for (const answer of answers) {
        const asked = ask(clients, connectHead("a:1", "forger"));
        const [incoming] = (await connection.acceptRequests())!;
        await incoming!.stream.write(Uint8Array.from(answer, (c) => c.charCodeAt(0)));
        incoming!.stream.close();
        received.push(await asked);
      }
      for (const { status, fields } of received) {
        assert.ok([403, 502, 503].includes(status), String(status));
        const names = Object.keys(fields).filter((name) => name !== "retry-after").sort();
        assert.deepEqual(names, ["connection", "content-length", "content-type", "proxy-status", "x-request-id"]);
        // an RFC 8941 item: a token, then parameters whose strings are closed
        assert.match(
          fields["proxy-status"]!,
          /^(?:reverse-http-proxy|x);error=[a-z_]+;details="(?:[^"\\]|\\["\\])*"(?:, reverse-http-proxy)?$/,
        );
      }
      assert.equal(received[0]!.fields["proxy-status"], 'x;error=dns_error;details="\\"; error=none; forged=\\"1", reverse-http-proxy');
    }));

  it("cannot forge a line or a field in the log with its own description", () =>
    withNet(async (net) => {
      await using pair = await Pair.start();
      await using origin = await Origin.start();
      const forged = { version: 'v"\nlevel=ERROR FORGED', host: "\x1b[31m\u2028FORGED=1" };
      await connectAs(net, pair.addresses.agents, 'x"FORGED=1', forged).catch(() => {}); // refusing it would do as well
      await checkTunnel(pair.addresses.clients, origin);
      const { stderr } = await pair.proxy.stop();
      for (const line of stderr.trimEnd().split("\n")) assert.ok(line.startsWith('{"@timestamp"') && JSON.parse(line), line);
    }));

  it("that floods does not affect another agent's tunnels", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.tunnels-per-agent=100", "--agent-server.agent.dial-timeout=3s"] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    const other = await pair.site.startAgent(pair.addresses, [], "4712");
    other.signal("SIGSTOP");
    const flood = Array.from({ length: 500 }, () => ask(clients, connectHead(origin.authority, "4712")));
    for (let i = 0; i < 50; i++) await checkTunnel(clients, origin);
    const statuses = (await Promise.all(flood)).map(({ status }) => status);
    assert.ok(statuses.filter((status) => status === 503).length >= 400, `${statuses}`);
    assert.deepEqual([...new Set(statuses)].sort(), [503, 504]);
    other.signal("SIGCONT");
  });
});

describe("a proxy", () => {
  /** A proxy of the test's own making, and an agent of ours that it has welcomed. */
  async function withAgent(
    args: readonly string[],
    body: (connection: AgentSession, agent: { pid: number }) => Promise<void>,
  ): Promise<void> {
    await withNet(async (net) => {
      await using site = await Site.create();
      const { cert, key } = site.files;
      const tls = { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
      const listener = await net.listenQuic({ address: "127.0.0.1:0", tls, alpn: ALPN, transport: PROXY_TRANSPORT });
      const agent = site.start(AGENT, [...site.agentArgs({ agents: listener.address, clients: "" }), ...args]);
      const connection = (await listener.accept())!;
      const { accept } = await receiveCredentials(connection);
      await receiveHello(connection);
      await accept();
      await agent.waitFor("connected");
      await body(connection, agent);
    });
  }

  const head = (authority: string) => encoder.encode(`CONNECT ${authority} HTTP/1.1\r\n\r\n`);

  /** A whole tunnel, asked for over the agent's connection. */
  async function checkAgent(connection: AgentSession, origin: Origin): Promise<void> {
    const { stream, head: answer } = await connection.request(head(origin.authority), { timeoutMs: 20_000 });
    assert.match(answer, /^HTTP\/1\.1 200 /);
    using server = await origin.accept();
    await server.write("x");
    assert.equal((await stream.read())?.length, 1);
    stream.reset(0);
    stream.stopRead(0);
    stream.close();
  }

  it(
    "that opens streams and resets them at once, again and again, leaves the agent as it was",
    onLinux,
    () =>
      withAgent([], async (connection, { pid }) => {
        await using silent = await Origin.start(async (wire) => void await wire.ending());
        await using origin = await Origin.start();
        await checkAgent(connection, origin);
        const before = { descriptors: openDescriptors(pid), memory: residentMiB(pid) };
        for (let round = 0; round < 100; round++) {
          const streams: Duplex[] = await Promise.all(Array.from({ length: 50 }, () => connection.openStream()));
          // a part of a head, a head, and nothing at all
          await Promise.all(
            streams.map((stream, i) => i % 3 === 0 ? undefined : stream.write(head(silent.authority).subarray(0, i % 3 === 1 ? 9 : 999))),
          );
          for (const stream of streams) {
            stream.reset(7);
            stream.stopRead(7);
            stream.close();
          }
        }
        await checkAgent(connection, origin);
        const open = () => openDescriptors(pid);
        await eventually(() => open() <= before.descriptors + 2, () => `${open()} descriptors are open, not ${before.descriptors}`);
        assert.ok(residentMiB(pid) - before.memory < 64, `${before.memory} MiB have become ${residentMiB(pid)} MiB`);
      }),
  );

  it("that sends invalid requests gets a refusal for each, and the agent continues", () =>
    withAgent(["--agent-client.host-whitelist=127.0.0.1"], async (connection) => {
      await using origin = await Origin.start();
      const heads: [text: string, status: number][] = [
        ["GET / HTTP/1.1\r\n\r\n", 405],
        ["CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n", 400],
        ["CONNECT 127.0.0.1:99999 HTTP/1.1\r\n\r\n", 400],
        ["CONNECT localhost:80 HTTP/1.1\r\n\r\n", 403],
        ["nonsense\r\n\r\n", 400],
        [`CONNECT 127.0.0.1:1 HTTP/1.1\r\n${"A: b\r\n".repeat(101)}\r\n`, 431],
      ];
      for (const [text, status] of heads) {
        const { stream, head: answer } = await connection.request(encoder.encode(text), { timeoutMs: 20_000 });
        assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `), text);
        stream.close();
      }
      await checkAgent(connection, origin);
    }));
});
