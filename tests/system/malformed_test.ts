// Malformed requests to the compiled proxy, whose agent is connected and could reach the apparent destinations.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { malformedHeads } from "../../testing/malformed.ts";
import { Pair } from "../../testing/programs.ts";
import { type Answer, ask, connectHead, credentials, dial, openTunnel, Origin } from "../../testing/sockets.ts";

/** Concurrent connections. */
const AT_ONCE = 50;
/** The first byte of SOCKS 5 clients, which the same port accepts. */
const SOCKS5 = "\x05";

const PROXY_STATUS = /^reverse-http-proxy;error=[a-z_]+;details="(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"$/;

/** Why a response is not the right refusal of this request; `undefined` if it is. */
function judge(answer: Answer, status: number, isHead: boolean): string | undefined {
  if (answer.status !== status) return `${answer.status} instead of ${status}`;
  if (!PROXY_STATUS.test(answer.fields["proxy-status"] ?? "")) return `Proxy-Status: ${answer.fields["proxy-status"]}`;
  if (answer.fields["connection"] !== "close") return `Connection: ${answer.fields["connection"]}`;
  if (!isHead && answer.fields["content-length"] !== String(answer.body.length)) return "a body of another length";
  if (status === 405 && answer.fields["allow"] !== "CONNECT") return "no Allow";
  if (status === 407 && answer.fields["proxy-authenticate"] === undefined) return "no Proxy-Authenticate";
  return undefined;
}

describe("proxy", () => {
  it("refuses every malformed request with the right status, and opens no tunnel for it", async () => {
    await using pair = await Pair.start();
    const cases = malformedHeads().filter(({ head }) => !head.startsWith(SOCKS5));
    assert.ok(cases.length >= 500, `There are only ${cases.length} heads`);
    const wrong: string[] = [];
    const next = cases.values();
    const work = async () => {
      for (const { head, status } of next) {
        const answer = await ask(pair.addresses.clients, Buffer.from(head, "latin1"));
        const problem = judge(answer, status, head.startsWith("HEAD "));
        if (problem !== undefined) wrong.push(`${problem}: ${JSON.stringify(head.slice(0, 200))}`);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    assert.deepEqual(wrong, []);
    // nothing came to the agent, and the proxy is as it was
    await using origin = await Origin.start();
    using tunnel = await openTunnel(pair.addresses.clients, origin.authority);
    tunnel.finish();
    (await origin.accept()).finish();
    await pair.agent.waitFor("tunnel", { status: 200 });
    assert.equal(pair.agent.logged("tunnel").length + pair.agent.logged("tunnel refused").length, 1);
    assert.equal(pair.proxy.logged("request failed").length, 0);
  });

  it("accepts a request that arrives byte by byte, and keeps the bytes after it", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await dial(pair.addresses.clients);
    for (const byte of Buffer.from(`${connectHead(origin.authority)}behind it`)) await client.write(Uint8Array.of(byte));
    assert.match(await client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /);
    assert.equal((await (await origin.accept()).read(9)).toString(), "behind it");
  });

  it("accepts unusual but valid requests", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const target = origin.authority;
    const basic = credentials().slice("Proxy-Authorization: Basic ".length);
    const heads = [
      `CONNECT ${target} HTTP/1.0\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\n${credentials()}\r\n`, // no Host
      `\r\n\r\nCONNECT ${target} HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nHost: other.example:1\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nHost:\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nproxy-authorization:bAsIc   ${basic}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nPROXY-AUTHORIZATION:\t \tBASIC ${basic.replace("\r\n", "\t \r\n")}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nContent-Length: 0\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\nX-Empty:\r\nX-Tabs:\t\t\r\n!#$%&'*+-.^_\`|~: "\\\xff,;"\r\n${credentials()}\r\n`,
      `CONNECT ${target} HTTP/1.1\r\n${"A: b\r\n".repeat(99)}${credentials()}\r\n`,
      `CONNECT [::ffff:127.0.0.1]:${origin.port} HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT ::ffff:127.0.0.1:${origin.port} HTTP/1.1\r\nHost: ::ffff:127.0.0.1:${origin.port}\r\n${credentials()}\r\n`,
      `CONNECT LOCALHOST:${origin.port} HTTP/1.1\r\n${credentials()}\r\n`,
    ];
    for (const head of heads) {
      using client = await dial(pair.addresses.clients);
      await client.write(Buffer.from(head, "latin1"));
      assert.match(await client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /, JSON.stringify(head));
    }
  });
});
