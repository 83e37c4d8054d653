// The local proxy of clients: which agent it asks for, what it adds, and how it refuses.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { clientOptions } from "../../client/options.ts";
import { parseRoute } from "../../client/routes.ts";
import { parseListen, serveSocks } from "../../client/socks.ts";
import { checkAccess } from "../../client/tunnel.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { encodeErrorResponse, ProxyError } from "../../shared/http/status.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import * as socks from "../../testing/socks.ts";
import { bytes, readExactly, readTextExactly } from "../conformance/support.ts";

const ESTABLISHED = "HTTP/1.1 200 OK\r\n\r\n";
const [LOCAL, REMOTE] = ["127.0.0.1:1080", "proxy.test:3128"];

interface Scene {
  readonly net: Net;
  /** What the remote proxy was asked: destination and credentials. */
  readonly asked: string[];
  /** What was reported. */
  readonly reports: string[];
  dial(): Promise<Duplex>;
}

/**
 * A local proxy, and a remote one that responds to each request with `response`, and then sends back what comes.
 */
async function withSocks(
  given: { agentId?: string; agentSuffix?: string; map?: string[]; response?: string },
  use: (scene: Scene) => Promise<void>,
): Promise<void> {
  const { agentId, agentSuffix, map = [], response = ESTABLISHED } = given;
  const net = createMemoryNet();
  const remote = await net.listenTcp({ address: REMOTE });
  const [asked, reports]: [string[], string[]] = [[], []];
  const serving = (async () => {
    for (let batch; (batch = await remote.accept()) !== null;) {
      for (const { stream, head = "" } of batch) {
        if (head === "") continue; // the check at the start
        const [, basic = ""] = /^Proxy-Authorization: Basic (.*)\r$/m.exec(head) ?? [];
        asked.push(`${head.split(" ")[1]} ${atob(basic)}`);
        await stream.write(bytes(response));
        if (response !== ESTABLISHED) stream.close();
        else void echo(stream);
      }
    }
  })();
  const access = checkAccess(withDefaults(clientOptions, { proxy: REMOTE, agentId, token: "secret" }));
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  const { promise: listening, resolve: onListening } = Promise.withResolvers<void>();
  const ended = serveSocks(net, () => access, { listen: LOCAL, agentSuffix, routes: map.map(parseRoute) }, {
    write: () => onListening(),
    report: (line) => void reports.push(line),
    stopped: () => stopped,
  });
  await listening;
  await use({ net, asked, reports, dial: () => net.connectTcp({ host: "127.0.0.1", port: 1080, timeoutMs: 1_000 }) });
  stop();
  await ended;
  net.close();
  await serving;
}

/** Sends back what comes. Never rejects. */
async function echo(stream: Duplex): Promise<void> {
  try {
    for (let data; (data = await stream.read()) !== null;) await stream.write(data);
  } catch { /* the test has ended */ }
  stream.close();
}

/** The head of a response; what follows stays in the stream. */
async function readHead(stream: Duplex): Promise<string> {
  let text = "";
  while (!text.includes("\r\n\r\n")) text += Buffer.from((await stream.read())!).toString("latin1");
  const end = text.indexOf("\r\n\r\n") + 4;
  stream.unread(bytes(text.slice(end)));
  return text.slice(0, end);
}

describe("the local proxy of clients", () => {
  const rows: [destination: string, user: string | undefined, asked: string][] = [
    ["wiki.corp", undefined, "wiki.corp:80 site7:secret"],
    ["10.8.0.9", undefined, "10.8.0.9:80 site8:secret"],
    ["other.example", undefined, "other.example:80 4711:secret"],
    ["wiki.corp", "site9", "wiki.corp:80 site9:secret"],
    ["wiki.corp.site10.rhttp", undefined, "wiki.corp:80 site10:secret"],
    ["site10.rhttp", "site9", "localhost:80 site10:secret"],
  ];
  const options = { agentId: "4711", agentSuffix: ".rhttp", map: ["*.corp=site7", "10.0.0.0/8=site8", "wiki.corp=other"] };

  it("asks for the agent of the name, the user, a route or the profile, over HTTP", async () => {
    await withSocks(options, async ({ dial, asked }) => {
      for (const [host, user, expected] of rows) {
        const stream = await dial();
        const credentials = user === undefined ? "" : `Proxy-Authorization: Basic ${btoa(`${user}:x`)}\r\n`;
        await stream.write(bytes(`CONNECT ${host}:80 HTTP/1.1\r\n${credentials}\r\n`));
        assert.match(await readHead(stream), /^HTTP\/1\.1 200 /);
        await stream.write(bytes("there and back"));
        assert.equal(await readTextExactly(stream, 14), "there and back");
        stream.close();
        assert.equal(asked.at(-1), expected);
      }
    });
  });

  it("does so over SOCKS 5, with and without a user name", async () => {
    await withSocks(options, async ({ dial, asked }) => {
      for (const [host, user, expected] of rows) {
        const stream = await dial();
        await stream.write(user === undefined ? socks.methods(0) : socks.methods(0, 2));
        assert.equal((await readExactly(stream, 2))[1], user === undefined ? 0 : 2);
        if (user !== undefined) {
          await stream.write(socks.credentials(user, "x"));
          assert.deepEqual([...await readExactly(stream, 2)], [1, 0]);
        }
        await stream.write(socks.request(host, 80));
        assert.equal((await readExactly(stream, 10))[1], 0);
        await stream.write(bytes("there and back"));
        assert.equal(await readTextExactly(stream, 14), "there and back");
        stream.close();
        assert.equal(asked.at(-1), expected);
      }
    });
  });

  it("leaves the agent to the proxy if nothing says it", async () => {
    await withSocks({}, async ({ dial, asked }) => {
      const stream = await dial();
      await stream.write(bytes("CONNECT db.site7.rhttp:80 HTTP/1.1\r\n\r\n"));
      await readHead(stream);
      stream.close();
      assert.equal(asked.at(-1), "db.site7.rhttp:80 ");
    });
  });

  it("refuses as the proxy did, without asking for credentials, and reports why", async () => {
    const responseOf = (status: number, type: "connection_refused" | "http_request_denied", message: string) =>
      Buffer.from(encodeErrorResponse(new ProxyError(status, type, message), "reverse-http-proxy")).toString();
    const refusals: [response: string, status: number, reply: number, said: string][] = [
      [
        responseOf(502, "connection_refused", "db:80 refused the connection"),
        502,
        5,
        "db:80 refused the connection (502, connection_refused)",
      ],
      [responseOf(407, "http_request_denied", "no"), 403, 2, "db:80: no (407, http_request_denied)"],
      ["HTTP/1.1 503 Service Unavailable\r\n\r\n", 502, 4, "db:80: Service Unavailable (503)"],
    ];
    for (const [response, status, reply, said] of refusals) {
      await withSocks({ response }, async ({ dial, reports }) => {
        const http = await dial();
        await http.write(bytes("CONNECT db:80 HTTP/1.1\r\n\r\n"));
        assert.match(await readHead(http), new RegExp(`^HTTP/1\\.1 ${status} `));
        http.close();
        const socks5 = await dial();
        await socks5.write(socks.methods(0));
        await readExactly(socks5, 2);
        await socks5.write(socks.request("db", 80));
        assert.equal((await readExactly(socks5, 10))[1], reply);
        socks5.close();
        assert.deepEqual(reports, [said, said]);
      });
    }
  });

  it("serves a configuration for browsers with the suffix alone", async () => {
    for (const [agentSuffix, status] of [[".rhttp", 200], [undefined, 405]] as const) {
      await withSocks({ agentSuffix }, async ({ dial }) => {
        const stream = await dial();
        await stream.write(bytes("GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n"));
        assert.match(await readHead(stream), new RegExp(`^HTTP/1\\.1 ${status} `));
        stream.close();
      });
    }
  });
});

describe("the address of the local proxy", () => {
  for (
    const [text, address] of [[undefined, "127.0.0.1:1080"], ["9050", "127.0.0.1:9050"], [":0", "127.0.0.1:0"], ["[::]:1", "[::]:1"], [
      "0.0.0.0:1080",
      "0.0.0.0:1080",
    ]] as const
  ) {
    it(`is ${address} for ${text}`, () => assert.equal(parseListen(text), address));
  }

  it("is refused in any other form", () => {
    for (const text of ["a b", "1:2:3", "70000"]) assert.throws(() => parseListen(text), ConfigError);
  });
});

describe("a route", () => {
  it("is refused without a pattern or an agent", () => {
    for (const text of ["site7", "=site7", "*.corp=", "a b=site7", "*.corp=a b"]) assert.throws(() => parseRoute(text), RangeError, text);
  });
});
