// Clients of virtual hosts: how each request on a connection is routed and rewritten, and when the connection ends.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import { AuthenticationError, type Authenticator, createNoAuth } from "../../shared/auth/authenticator.ts";
import { CertificateIdentities } from "../../shared/auth/certificate_identity.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { TrustedProxies } from "../../shared/frontend/client_address.ts";
import { forwardOptions } from "../../shared/frontend/forwards/forwards.ts";
import { createVirtualHosts } from "../../shared/frontend/http/virtual_host.ts";
import type { FrontendOptions } from "../../shared/frontend/server.ts";
import { VirtualHosts } from "../../shared/frontend/forwards/virtual_hosts.ts";
import { clientCertField } from "../../shared/http/client_cert.ts";
import { NetError } from "../../shared/net/errors.ts";
import { CredentialsError, TunnelError } from "../../shared/tunnel/errors.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { ask, connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";
import { RecordingTracer, TRACE_ID } from "../../testing/tracer.ts";
import { bytes, readText, within } from "../conformance/support.ts";
import { type FrontendBench, withFrontend } from "./tunnels.ts";

type Given = Partial<NonNullable<Parameters<typeof withDefaults<typeof forwardOptions>>[1]["forward"]>[number]>;

interface BenchOptions extends Partial<FrontendOptions> {
  readonly records?: Given[];
  readonly idleTimeoutMs?: number;
  /** That clients present, as if there were TLS. */
  readonly certificate?: Uint8Array;
}

function withBench(
  { records = [{}], idleTimeoutMs, certificate, ...options }: BenchOptions,
  body: (bench: FrontendBench) => Promise<void>,
): Promise<void> {
  return withNet(async (net) => {
    const given = records.map((record) => ({ listen: ":80", network: "http" as const, agent: "site", to: "web:8080", ...record }));
    const hosts = new VirtualHosts(":80", "http", withDefaults(forwardOptions, { forward: given }).forward);
    const protocol = createVirtualHosts(() => hosts, "reverse-http-proxy", idleTimeoutMs);
    const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble: protocol.preamble });
    const accept = listener.accept.bind(listener);
    listener.accept = async () => (await accept())?.map((incoming) => ({ ...incoming, peerCertificate: certificate })) ?? null;
    await withFrontend(net, { listener, protocol }, options, body);
  });
}

const get = (host: string, path = "/", fields = "") => bytes(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n${fields}\r\n`);
const OK = bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");

/** The lines of a head in lower case, by name. */
function linesOf(head: string): Map<string, string> {
  return new Map(
    head.split("\r\n").slice(1).filter(Boolean).map((line) => [line.split(":")[0]!.toLowerCase(), line.slice(line.indexOf(":") + 2)]),
  );
}

/** Serves the next request with `response`. Returns its head, and to whom it went. */
async function serveNext({ dialled }: FrontendBench, response = OK): Promise<{ head: string; to: string }> {
  const { request, far } = await dialled.next();
  const head = await readUntil(far, "\r\n\r\n");
  await far.write(response);
  far.closeWrite();
  return { head, to: `${request.agentId} ${request.destination.host}` };
}

describe("a client of virtual hosts with a certificate", () => {
  it("still needs the credentials that a record asks for: its authorities may not be those of the proxy's clients", () => {
    const seen: unknown[] = [];
    const authenticator: Authenticator = {
      ...createNoAuth(),
      authenticateClient(_, { certificate }) {
        seen.push(certificate);
        throw new AuthenticationError("denied", "the password is wrong");
      },
    };
    return withBench({ records: [{ auth: "token" }], authenticator, certificate: new Uint8Array([1]) }, async ({ net, address }) => {
      const statusOf = async (fields: string) => (await ask(net, address, `GET / HTTP/1.1\r\nHost: a\r\n${fields}\r\n`)).status;
      assert.equal(await statusOf(`Authorization: Basic ${btoa("a:x")}\r\n`), 401);
      assert.equal(await statusOf(""), 401);
      assert.deepEqual(seen, [undefined]);
    });
  });
});

describe("a virtual host with auth=mtls behind a trusted proxy", () => {
  const options = async () => {
    const authority = await makeAuthority();
    const der = async (commonName: string) => {
      const { cert } = await authority.issue({ names: [], commonName });
      return new Uint8Array(new X509Certificate(cert).raw);
    };
    const certificates = new CertificateIdentities({ subjectFrom: "cn", groupsFrom: "ou" });
    return {
      alice: await der("alice"),
      bench: { records: [{ network: "https" as const, auth: "mtls" as const }], certificate: await der("lb"), certificates },
    };
  };

  it("knows the visitor by the certificate that this proxy reports, which the next hop learns", async () => {
    const { alice, bench } = await options();
    await withBench({ ...bench, trusted: new TrustedProxies(["127.0.0.1"], [], true) }, async ({ net, address, dialled }) => {
      const client = await connectTo(net, address);
      await client.write(get("a", "/", `${clientCertField(alice).join(": ")}\r\n`));
      const { request: { identity }, far } = await dialled.next();
      assert.deepEqual([identity.subject, identity.certificate], ["alice", alice]);
      far.reset(1);
      client.close();
    });
  });

  it("forgets the visitor's certificate with the request", async () => {
    const { alice, bench } = await options();
    await withBench({ ...bench, trusted: new TrustedProxies(["127.0.0.1"], [], true) }, async (running) => {
      const { net, address, dialled, frontend } = running;
      const client = await connectTo(net, address);
      await client.write(get("a", "/", `${clientCertField(alice).join(": ")}\r\n`));
      await serveNext(running);
      await readUntil(client, "ok");
      frontend.update({ trusted: new TrustedProxies([]) });
      await client.write(get("a"));
      const { request, far } = await dialled.next();
      assert.equal(request.identity.subject, "lb");
      far.reset(1);
      client.close();
    });
  });

  it("takes the certificate of this proxy for no visitor's", async () => {
    const { bench } = await options();
    for (const trustsCertificates of [true, false]) {
      await withBench({ ...bench, trusted: new TrustedProxies(["127.0.0.1"], [], trustsCertificates) }, async ({ net, address }) => {
        assert.equal((await ask(net, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")).status, 403);
      });
    }
  });
});

describe("a client of virtual hosts", () => {
  const records = [{ host: ["a.example"], agent: "a", to: "one:80" }, { host: ["*.example"], agent: "b", to: "two:80" }];

  it("has each request on its connection routed by itself", () =>
    withBench({ records }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      for (const [host, to] of [["a.example", "a one"], ["B.example:80", "b two"], ["a.example", "a one"]] as const) {
        await client.write(get(host, "/x?y"));
        const served = await serveNext(bench);
        assert.equal(served.to, to);
        assert.match(served.head, new RegExp(`^GET /x\\?y HTTP/1.1\r\nHost: ${host}\r\n`));
        const answer = await readUntil(client, "ok");
        assert.match(answer, /^HTTP\/1\.1 200 OK\r\n/);
        assert.doesNotMatch(answer, /^Connection:/m);
      }
      const count = (agent: string) => bench.log.logged("request", { agent, status: 200, method: "GET", received: 2 }).length;
      await bench.log.waitFor("request", { agent: "a" }, 2);
      assert.deepEqual([count("a"), count("b")], [2, 1]);
      client.close();
    }));

  it("has a span for each request on its connection, whose place in the trace the server gets", () => {
    const tracer = new RecordingTracer();
    return withBench({ records, tracer }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      const sent = `TraceParent: 00-${"b".repeat(32)}-${"c".repeat(16)}-00\r\nTraceState: v=1\r\n`;
      for (const [n, fields, expected] of [[1, sent, "\r\ntracestate: v=1"], [2, "", ""]] as const) {
        await client.write(get("a.example", "/", fields));
        const { head } = await serveNext(bench);
        const lines = head.match(/^trace.*$/gim)!.map((line) => line.trim());
        assert.deepEqual(lines.join("\r\n"), `traceparent: 00-${TRACE_ID}-${String(n).padStart(16, "0")}-01${expected}`);
        await readUntil(client, "ok");
        await bench.log.waitFor("request", { trace_id: TRACE_ID }, n);
      }
      assert.deepEqual(tracer.parents.map((parent) => parent?.spanId), ["c".repeat(16), undefined]);
      assert.deepEqual(tracer.ends.map(({ name, error }) => [name, error]), [["GET", undefined], ["GET", undefined]]);
      client.close();
    });
  });

  it("has its connection closed after a response that it might read on into the next one", async () => {
    const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (const body of ["2\r\nok\r\n0\r\n", "2\nok\r\n0\r\n\r\n", "2\r\nok\r\n0\r\nX: y\n\n"]) {
      await withBench({ records }, async (bench) => {
        const client = await connectTo(bench.net, bench.address);
        await client.write(bytes(`${Buffer.from(get("a.example"))}${Buffer.from(get("b.example"))}`));
        await serveNext(bench, bytes(chunked + body));
        const answer = await within(readText(client));
        assert.equal(answer.slice(answer.indexOf("\r\n\r\n") + 4), body);
      });
    }
  });

  it("may send several requests at once, with bodies, and gets the responses in order", () =>
    withBench({ records }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      const post = (host: string, body: string) => `POST / HTTP/1.1\r\nHost: ${host}\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
      await client.write(bytes(`${post("a.example", "first")}${post("b.example", "second")}\r\n${post("a.example", "third")}`));
      for (const [to, body] of [["a one", "first"], ["b two", "second"], ["a one", "third"]] as const) {
        const { request, far } = await bench.dialled.next();
        assert.equal(`${request.agentId} ${request.destination.host}`, to);
        assert.match(await readUntil(far, body), new RegExp(`\r\n\r\n${body}$`));
        await far.write(bytes(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[${body.slice(0, 3)}]\r\n0\r\n\r\n`));
        await readUntil(client, `[${body.slice(0, 3)}]\r\n0\r\n\r\n`);
        await bench.log.waitFor("request", { destination: `${request.destination.host}:80`, sent: body.length });
        far.close();
      }
      client.close();
    }));

  it("has all its requests reach their origins intact, whatever the segments in which they come", () => {
    const request = fc.record({
      host: fc.constantFrom("a.example", "b.example"),
      body: fc.string({ maxLength: 40 }),
      framing: fc.constantFrom("length", "chunks", "none"),
    });
    return fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 5 }),
        fc.array(fc.nat(60), { maxLength: 12 }),
        (requests, cuts) =>
          withBench({ records }, async (bench) => {
            const texts = requests.map(({ host, body, framing }) => {
              const text = Buffer.from(body).toString("latin1");
              const head = `POST /${host} HTTP/1.1\r\nHost: ${host}\r\n`;
              if (framing === "none") return [host, head, ""] as const;
              if (framing === "length") return [host, `${head}Content-Length: ${text.length}\r\n`, text] as const;
              const chunk = text === "" ? "" : `${text.length.toString(16)}\r\n${text}\r\n`;
              return [host, `${head}Transfer-Encoding: chunked\r\n`, `${chunk}0\r\n\r\n`] as const;
            });
            const client = await connectTo(bench.net, bench.address);
            const all = Buffer.from(texts.map(([, head, body]) => `${head}\r\n${body}`).join(""), "latin1");
            const send = async () => {
              let at = 0;
              for (const cut of [...cuts, all.length]) {
                await client.write(all.subarray(at, at + cut));
                at = Math.min(at + cut, all.length);
              }
            };
            const sent = send();
            for (const [host, , body] of texts) {
              const { request: { agentId }, far } = await bench.dialled.next();
              assert.equal(agentId, host[0]);
              const head = await readUntil(far, "\r\n\r\n");
              assert.ok(head.startsWith(`POST /${host} HTTP/1.1\r\nHost: ${host}\r\n`));
              let received = head.slice(head.indexOf("\r\n\r\n") + 4);
              while (received.length < body.length) received += Buffer.from((await within(far.read()))!).toString("latin1");
              assert.equal(received, body);
              await far.write(OK);
              await readUntil(client, "ok");
              far.close();
            }
            await sent;
            client.close();
          }),
      ),
      { numRuns: 60 },
    );
  });

  it("keeps its connection after a response whose end is that of the origin's connection", () =>
    withBench({}, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a"));
      await serveNext(bench, bytes("HTTP/1.1 200 OK\r\n\r\nto the end"));
      assert.match(await readUntil(client, "0\r\n\r\n"), /Transfer-Encoding: chunked\r\n[^]*a\r\nto the end\r\n0\r\n\r\n$/);
      await client.write(get("a"));
      await serveNext(bench);
      await readUntil(client, "ok");
      client.close();
    }));

  const closing: [what: string, request: Uint8Array][] = [
    ["asks for that", get("a", "/", "Connection: close\r\n")],
    ["speaks HTTP/1.0", bytes("GET / HTTP/1.0\r\nHost: a\r\n\r\n")],
    ["asks for another protocol in vain", get("a", "/", "Connection: upgrade\r\nUpgrade: websocket\r\n")],
  ];
  for (const [what, request] of closing) {
    it(`has its connection closed after the response if it ${what}`, () =>
      withBench({}, async (bench) => {
        const client = await connectTo(bench.net, bench.address);
        await client.write(request);
        await serveNext(bench);
        assert.match(await readText(client), /\r\nConnection: close\r\n\r\nok$/);
        client.close();
      }));
  }

  it("has its connection closed after a response that comes before its request is complete", () =>
    withBench({}, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(bytes("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"));
      await serveNext(bench, bytes("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"));
      assert.match(await readText(client), /^HTTP\/1\.1 413 [^]*\r\nConnection: close\r\n/);
      client.close();
    }));

  it("gets no response if its first request does not come in time", () => {
    const { refusalOf } = createVirtualHosts(() => new VirtualHosts(":80", "http", []), "reverse-http-proxy");
    assert.equal(refusalOf?.(new NetError("head-timeout", "late")), undefined);
    assert.equal(refusalOf?.(new NetError("head-too-large", "long"))?.message, "The request head is too large");
  });

  it("is disconnected if it sends no other request for some time", () =>
    withBench({ idleTimeoutMs: 1 }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a"));
      await serveNext(bench);
      assert.match(await readText(client), /ok$/);
      client.close();
    }));

  it("is disconnected as well if it sends nothing but empty lines", () =>
    withBench({ idleTimeoutMs: 500 }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a"));
      await serveNext(bench);
      await readUntil(client, "ok");
      await client.write(bytes("\r\n"));
      assert.equal(await within(readText(client)), ""); // a head would have 10 s
      client.close();
    }));

  it("is disconnected while it is idle when the service drains, and told so in a response", () =>
    withBench({}, async (bench) => {
      const [idle, busy] = [await connectTo(bench.net, bench.address), await connectTo(bench.net, bench.address)];
      await idle.write(get("a"));
      await serveNext(bench);
      await readUntil(idle, "ok");
      await busy.write(get("a"));
      const { far } = await bench.dialled.next();
      await readUntil(far, "\r\n\r\n");
      const drained = bench.frontend.drain(20_000);
      assert.equal(await readText(idle), "");
      await far.write(OK);
      assert.match(await readText(busy), /\r\nConnection: close\r\n\r\nok$/);
      await within(drained);
      idle.close();
      busy.close();
    }));

  it("has its next request refused if that cannot be read", async () => {
    const rows: [request: string, status: number][] = [
      [`GET / HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(16 * 1024)}\r\n\r\n`, 431],
      ["GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400],
      ["GET / HTTP/1.1\r\nHost: a\n\n", 400],
    ];
    for (const [request, status] of rows) {
      await withBench({}, async (bench) => {
        const client = await connectTo(bench.net, bench.address);
        await client.write(get("a"));
        await serveNext(bench);
        await readUntil(client, "ok");
        await client.write(bytes(request));
        client.closeWrite();
        assert.match(await readText(client), new RegExp(`^HTTP/1.1 ${status} `));
        client.close();
      });
    }
  });

  it("passes on an upgrade to WebSocket, and what follows, only once the origin has accepted it", () =>
    withBench({}, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
      await client.write(bytes("early"));
      const { far } = await bench.dialled.next();
      const head = await readUntil(far, "\r\n\r\n");
      assert.match(head, /\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n$/);
      await far.write(bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nserver"));
      assert.equal(await readUntil(far, "early"), "early");
      await readUntil(client, "\r\n\r\nserver");
      client.closeWrite();
      assert.equal(await readText(far), "");
      far.close();
      assert.equal(await readText(client), "");
      client.close();
    }));

  const refused: [what: string, request: string, status: number, error: string][] = [
    ["for an unknown host", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 404, "destination_not_found"],
    ["without a host", "GET / HTTP/1.1\r\n\r\n", 400, "http_request_error"],
    ["for a malformed host", "GET / HTTP/1.1\r\nHost: a..example\r\n\r\n", 400, "http_request_error"],
    ["for a tunnel", "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n", 405, "http_request_denied"],
    ["for a target in another form", "GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n", 400, "http_request_error"],
    ["that no hop may forward", "TRACE / HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 0\r\n\r\n", 405, "http_request_denied"],
  ];
  for (const [what, request, status, error] of refused) {
    it(`gets ${status} for a request ${what}`, () =>
      withBench({ records }, async ({ net, address }) => {
        const answer = await ask(net, address, request);
        assert.equal(answer.status, status);
        assert.match(answer.field("Proxy-Status")!, new RegExp(`^reverse-http-proxy;error=${error}`));
      }));
  }

  it("may name the host in the target, and have a target for the server as a whole", () =>
    withBench({ records }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(bytes("GET http://b.example:81/x HTTP/1.1\r\nHost: a.example\r\n\r\n"));
      const absolute = await serveNext(bench);
      assert.match(absolute.head, /^GET \/x HTTP\/1\.1\r\nHost: b\.example:81\r\n/);
      assert.equal(absolute.to, "b two");
      await readUntil(client, "ok");
      await client.write(bytes("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"));
      const whole = await serveNext(bench);
      assert.match(whole.head, /^OPTIONS \* HTTP\/1\.1\r\nHost: a\.example\r\n/);
      client.close();
    }));

  it("gets 400 for a path that may lead past its prefix, where that matters", () =>
    withBench({ records: [{ path: ["/api"] }, {}] }, async ({ net, address }) => {
      assert.equal((await ask(net, address, "GET /x/%2e%2e/api HTTP/1.1\r\nHost: a\r\n\r\n")).status, 400);
    }));

  it("gets the status of a failed tunnel", async () => {
    const rows: [error: TunnelError, status: number][] = [
      [new TunnelError("destination_unavailable", "The agent is not connected to this proxy"), 502],
      [new TunnelError("connection_timeout", "late"), 504],
      [new TunnelError("connection_limit_reached", "full", { retryAfterMs: 1_000 }), 503],
      [new CredentialsError("refused by the next hop"), 500],
    ];
    for (const [error, status] of rows) {
      await withBench({ dial: () => Promise.reject(error) }, async ({ net, address }) => {
        const answer = await ask(net, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert.equal(answer.status, status);
      });
    }
  });

  it("is refused if its address is not on the list", () =>
    withBench({ records: [{ allow: ["192.0.2.0/24"] }] }, async ({ net, address }) => {
      assert.equal((await ask(net, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")).status, 403);
    }));
});

describe("the fields that tell an origin of the client", () => {
  const claims = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX_Forwarded_For: 10.0.0.2\r\n" +
    "X-Forwarded-Port: 1\r\nX-Real-IP: 10.0.0.3\r\nForwarded: for=10.0.0.4\r\n";

  /** The head that an origin gets of a request with `fields`. */
  async function headOf(fields: string, options: BenchOptions = {}): Promise<Map<string, string>> {
    let lines = new Map<string, string>();
    await withBench(options, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a.example:80", "/", fields));
      lines = linesOf((await serveNext(bench)).head);
      await readUntil(client, "ok");
      client.close();
    });
    return lines;
  }

  const own: [name: string, value: string][] = [
    ["x-forwarded-for", "127.0.0.1"],
    ["x-forwarded-proto", "http"],
    ["x-forwarded-host", "a.example:80"],
    ["forwarded", 'for="127.0.0.1";host="a.example:80";proto=http'],
  ];

  it("replace what the client says", async () => {
    const lines = await headOf(claims);
    for (const [name, value] of own) assert.equal(lines.get(name), value);
    assert.deepEqual([...lines.keys()].sort(), ["connection", "forwarded", "host", "via", ...own.slice(0, 3).map(([name]) => name)].sort());
  });

  it("stay if the client names them as fields of the connection", async () => {
    const lines = await headOf("Connection: X-Forwarded-For, Forwarded, X-Forwarded-Proto, X-Forwarded-Host\r\n");
    for (const [name, value] of own) assert.equal(lines.get(name), value);
  });

  it("are added to those of a trusted proxy, which names the client", async () => {
    const log = new LogBook();
    const lines = await headOf(claims, { log, trusted: new TrustedProxies(["127.0.0.1"]) });
    assert.equal(lines.get("x-forwarded-for"), "10.0.0.1, 127.0.0.1");
    assert.equal(lines.get("x-forwarded-proto"), "https");
    assert.equal(lines.get("x-forwarded-host"), "evil");
    assert.equal(lines.get("x-real-ip"), "10.0.0.3");
    assert.equal(lines.get("forwarded"), `for=10.0.0.4, ${own[3]![1]}`);
    await log.waitFor("request", { client: "10.0.0.4" });
  });

  it("have the certificate that a trusted proxy reports only if it is trusted with that", async () => {
    const forged = "Client-Cert: :AQID:\r\nClient_Cert: :AQID:\r\nClient-Cert-Chain: :AQID:\r\n";
    for (const trusted of [undefined, new TrustedProxies(["127.0.0.1"]), new TrustedProxies(["10.0.0.0/8"], [], true)]) {
      const lines = await headOf(forged, { trusted });
      assert.deepEqual([...lines.keys()].filter((name) => name.startsWith("client")), []);
    }
    assert.equal((await headOf(forged, { trusted: new TrustedProxies(["127.0.0.1"], [], true) })).get("client-cert"), ":AQID:");
  });
});

describe("a virtual host with auth=token", () => {
  const authenticator: Authenticator = {
    authenticateAgent: () => "",
    authenticateClient: (given) => {
      const token = given.scheme === "bearer" ? given.token : given.password;
      if (token === "good") return { agentId: "site", tokenId: "4" };
      if (token === "other") return { agentId: "other" };
      throw new AuthenticationError("denied", "The token has expired");
    },
  };
  const options = { authenticator, records: [{ auth: "token" as const }] };
  const basic = (password: string) => `Authorization: Basic ${Buffer.from(`site:${password}`).toString("base64")}\r\n`;

  for (
    const [what, fields, status] of [["none", "", 401], ["an expired one", basic("old"), 401], [
      "another agent's",
      basic("other"),
      403,
    ]] as const
  ) {
    it(`answers ${status} to a client with ${what}`, () =>
      withBench(options, async ({ net, address, log }) => {
        const answer = await ask(net, address, `GET / HTTP/1.1\r\nHost: a\r\n${fields}\r\n`);
        assert.equal(answer.status, status);
        assert.equal(answer.field("WWW-Authenticate")?.startsWith('Basic realm="reverse-http"') ?? false, status === 401);
        assert.equal(answer.field("Proxy-Authenticate"), undefined);
        await log.waitFor("request", { status });
      }));
  }

  for (const fields of [basic("good"), "Authorization: Bearer good\r\n"]) {
    it(`lets a client in, and shows its token to the next hop and not to the origin: ${fields.slice(0, 20)}`, () =>
      withBench(options, async (bench) => {
        const client = await connectTo(bench.net, bench.address);
        await client.write(get("a", "/", fields));
        const { request, far } = await bench.dialled.next();
        assert.deepEqual(request.credentials, { scheme: "basic", username: "site", password: "good" });
        assert.doesNotMatch(await readUntil(far, "\r\n\r\n"), /authorization/i);
        await far.write(OK);
        await readUntil(client, "ok");
        await bench.log.waitFor("request", { agent: "site", jti: "4", status: 200 });
        client.close();
      }));
  }

  it("leaves Authorization to the origin without it", () =>
    withBench({ authenticator }, async (bench) => {
      const client = await connectTo(bench.net, bench.address);
      await client.write(get("a", "/", "Authorization: Bearer of-the-app\r\n"));
      assert.match((await serveNext(bench)).head, /\r\nAuthorization: Bearer of-the-app\r\n/);
      client.close();
    }));
});
