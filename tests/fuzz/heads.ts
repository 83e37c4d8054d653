// Requests made by mutating valid ones, the frontend that parses them, and a second parser that judges the result. Used by the short run
// among the tests and by the long one.
import type fc from "fast-check";
import { Buffer } from "node:buffer";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend } from "../../shared/frontend/server.ts";
import type { LogFields } from "../../shared/log/logger.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { TcpListener } from "../../shared/net/tcp.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest, Upstream } from "../../shared/tunnel/request.ts";
import { mutations } from "./mutations.ts";

const AGENT_ID = "4711";
const AUTH = `Proxy-Authorization: Basic ${btoa(`${AGENT_ID}:secret`)}\r\n`;
const ALLOWED = ["localhost", "127.0.0.1:1-1000", "*.example.com", "[::1]"];

/** Valid header sections. */
export const GOOD = [
  `CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n${AUTH}\r\n`,
  `CONNECT a.example.com:80 HTTP/1.0\r\n${AUTH}User-Agent: fuzz/1.0 (x; y)\r\nProxy-Connection: keep-alive\r\n\r\n`,
  `CONNECT [::1]:22 HTTP/1.1\r\nhost: [::1]:22\r\nX-Request-Id: a-b.c\r\n${AUTH}\r\n`,
  `CONNECT 127.0.0.1:999 HTTP/1.1\r\n${AUTH}Content-Length: 0\r\n\r\n`,
  `GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n${AUTH}Accept: */*\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n`,
  `POST http://www.example.com:8080/a?b=c HTTP/1.1\r\nHost: www.example.com:8080\r\nContent-Length: 3\r\n${AUTH}\r\n`,
  `PUT http://127.0.0.1:80 HTTP/1.1\r\n${AUTH}Transfer-Encoding: chunked\r\nHost:\r\n\r\n`,
  `OPTIONS http://[::1] HTTP/1.1\r\nHost: [::1]\r\nMax-Forwards: 3\r\n${AUTH}\r\n`,
  `CONNECT ::1:22 HTTP/1.1\r\nHost: ::1:22\r\n${AUTH}\r\n`,
  `GET http://user:secret@localhost/ HTTP/1.1\r\nHost: localhost\r\n${AUTH}\r\n`,
  `GET ws://localhost/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${AUTH}Host: localhost\r\n\r\n`,
  `GET HTTP://LOCALHOST:80/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${AUTH}Host: LOCALHOST\r\n\r\n`,
];

const PIECES = [
  ..."\r\n\t \0:;,/\\?#@[]%.+-*\"'(){}<>=&|~^_`0aZ\x7f\x80\xa0\xff\x85\x0b\x0c\x01",
  ...[
    "\r\n",
    "\r\n\r\n",
    "\n\n",
    "\r\r\n",
    "\r\n ",
    "\r\n\t",
    " HTTP/1.1\r\n",
    "HTTP/1.0",
    "HTTP/2.0",
    "://",
    "http://",
    "https://",
    "ws://",
    "u:p@",
    "::",
    "%25",
    "%00",
  ],
  ...["Content-Length: 3\r\n", "Content-Length: 0\r\n", "Content-Length: -1\r\n", "Content-Length: 3, 3\r\n", "content-length:\r\n"],
  ...[
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding : chunked\r\n",
    "transfer-encoding:\tCHUNKED\r\n",
  ],
  ...[
    "Host: localhost\r\n",
    "Host: other.test\r\n",
    "Host:\r\n",
    "Connection: close\r\n",
    "Connection: host, content-length\r\n",
    "Connection: Upgrade\r\n",
  ],
  ...[
    "Upgrade: h2c\r\n",
    AUTH,
    "Proxy-Authorization: Bearer a.b.c\r\n",
    "Proxy-Authorization: Basic Og==\r\n",
    "Max-Forwards: 0\r\n",
    "Max-Forwards: x\r\n",
  ],
  ...[
    "X-Request-Id: a b\r\n",
    "GET /smuggled HTTP/1.1\r\n",
    "CONNECT ",
    "CONNECT other.test:80 ",
    "connect ",
    "GET ",
    "localhost",
    "other.test",
    "[::1]",
    ":0",
    ":65536",
  ],
];

/** A valid header section, possibly mutated. */
export const heads: fc.Arbitrary<string> = mutations(GOOD, PIECES);

/** The result of one request. */
interface Outcome {
  head: string;
  /** Written to the client. */
  answer: string;
  /** The way that was asked for. */
  dialled?: TunnelRequest;
  /** Written to the destination. */
  forwarded: string;
  tunnel: boolean;
  reset: boolean;
  /** The access log's line. */
  logged?: LogFields;
}

/** The bytes that the client sends after its header section. */
const BEHIND = "abcGET /behind HTTP/1.1\r\n\r\n";

const text = (data: Uint8Array) => Buffer.from(data).toString("latin1");

/** A client that finishes after its bytes. */
class FakeClient implements Duplex {
  #given = [BEHIND];
  constructor(readonly outcome: Outcome, readonly remote: string) {}
  read(): Promise<Uint8Array | null> {
    const next = this.#given.shift();
    return Promise.resolve(next === undefined ? null : new Uint8Array(Buffer.from(next, "latin1")));
  }
  unread(data: Uint8Array): void {
    this.#given.unshift(text(data));
  }
  write(data: Uint8Array): Promise<void> {
    this.outcome.answer += text(data);
    return Promise.resolve();
  }
  whenReset(): Promise<never> {
    return new Promise(() => {});
  }
  closeWrite(): void {}
  reset(): void {
    this.outcome.reset = true;
  }
  stopRead(): void {}
  close(): void {}
}

/** The destination's end of a tunnel, which responds to anything. */
class FakeOrigin implements Duplex {
  readonly remote = "agent";
  #given = ["HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"];
  #outcome: Outcome | undefined;
  /** `opened` tells whose way has been opened last: the first to write to it. */
  constructor(readonly request: TunnelRequest, readonly opened: () => Outcome | undefined) {}
  read(): Promise<Uint8Array | null> {
    const next = this.#given.shift();
    return Promise.resolve(next === undefined ? null : new Uint8Array(Buffer.from(next, "latin1")));
  }
  unread(data: Uint8Array): void {
    this.#given.unshift(text(data));
  }
  write(data: Uint8Array): Promise<void> {
    this.#outcome ??= this.opened()!;
    this.#outcome.dialled = this.request;
    this.#outcome.forwarded += text(data);
    return Promise.resolve();
  }
  whenReset(): Promise<never> {
    return new Promise(() => {});
  }
  closeWrite(): void {}
  reset(): void {}
  stopRead(): void {}
  close(): void {}
}

/** The real frontend in a test environment. */
export class FuzzedFront {
  readonly #front: Frontend;
  #deliver: (batch: Incoming[] | null) => void = () => {};
  #pending = 0;
  #settled: () => void = () => {};
  #opened: Outcome | undefined;
  readonly #outcomes = new Map<string, Outcome>();
  /** Heads that were taken for a tunnel, forwarded, refused. */
  readonly counts = { tunnels: 0, forwarded: 0, refused: 0 };

  constructor() {
    const listener = {
      address: "127.0.0.1:3128",
      accept: () => new Promise<Incoming[] | null>((resolve) => this.#deliver = resolve),
      close: () => this.#deliver(null),
    } as unknown as TcpListener;
    const net = {
      createRate: () => ({ take: () => Promise.resolve(), close() {} }),
      splice: (client: FakeClient, origin: FakeOrigin, { initialDataToA }: { initialDataToA: Uint8Array }) => {
        client.outcome.answer += text(initialDataToA);
        client.outcome.tunnel = true;
        client.outcome.dialled = origin.request;
        return Promise.resolve({ aToB: 0, bToA: 0 });
      },
    } as unknown as Net;
    const take = (message: string, fields?: LogFields) => this.#log(message, fields);
    const log = { trace() {}, warn() {}, error() {}, info: take, debug: take };
    this.#front = new Frontend({
      net,
      listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
      log,
      authenticator: createNoAuth(),
      allowList: createAllowList(ALLOWED),
      dial: (request) => this.#dial(request),
    });
  }

  #log(message: string, fields: LogFields = {}): void {
    const outcome = this.#outcomes.get(String(fields.client));
    if (message === "tunnel opened") this.#opened = outcome;
    if (message !== "request" || !outcome) return;
    outcome.logged = fields;
    if (--this.#pending === 0) this.#settled();
  }

  #dial(request: TunnelRequest): Promise<Upstream> {
    if (request.agentId === AGENT_ID) return Promise.resolve({ stream: new FakeOrigin(request, () => this.#opened) });
    return Promise.reject(new TunnelError("destination_unavailable", "The agent is not connected to this proxy"));
  }

  /** Puts the heads to the front, and throws for the first whose outcome should not be. */
  async check(batch: readonly string[]): Promise<void> {
    this.#outcomes.clear();
    const incoming = batch.map((head, i): Incoming => {
      const outcome: Outcome = { head, answer: "", forwarded: "", tunnel: false, reset: false };
      this.#outcomes.set(`client ${i}`, outcome);
      return { stream: new FakeClient(outcome, `client ${i}`), head };
    });
    this.#pending = batch.length;
    let timer: ReturnType<typeof setTimeout> | undefined;
    await new Promise<void>((resolve, reject) => {
      this.#settled = resolve;
      timer = setTimeout(() => reject(new Error("A head is never decided on")), 30_000);
      this.#deliver(incoming);
    }).finally(() => clearTimeout(timer));
    for (const outcome of this.#outcomes.values()) {
      const problem = judge(outcome);
      if (problem !== undefined) throw new Error(`${problem}: ${JSON.stringify(outcome)}`);
      if (outcome.tunnel) this.counts.tunnels++;
      else if (outcome.forwarded !== "") this.counts.forwarded++;
      else this.counts.refused++;
    }
  }

  async close(): Promise<void> {
    this.#front.close();
    await this.#front.done;
  }
}

/** The destination of a well-formed target, according to the second parser. */
function destinationOf(target: string): [host: string, port: number] {
  const [scheme] = /^(http|ws):\/\//i.exec(target) ?? [];
  const isAbsolute = scheme !== undefined;
  const authority = isAbsolute ? target.slice(scheme.length).split(/[/?#]/)[0]!.replace(/^[^@]*@/, "") : target;
  const colon = authority.endsWith("]") ? -1 : authority.lastIndexOf(":");
  const host = colon < 0 ? authority : authority.slice(0, colon);
  const port = colon < 0 ? "" : authority.slice(colon + 1);
  return [host.replace(/^\[(.*)\]$/, "$1").replace(/%25(?=.)/, "%"), isAbsolute && port === "" ? 80 : Number(port)];
}

const REFUSALS = new Set([400, 403, 405, 407, 431, 502, 505]);
export const ANSWER =
  /^HTTP\/1\.1 ([0-9]{3}) [A-Za-z ]+ \([a-z_]+, request [!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\)\r\nProxy-Status: (?:[\x20-\x7e]{1,4200}, )?reverse-http-proxy(?:;error=[a-z_]+;details="(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*")?\r\n(?:[A-Za-z-]+: [^\r\n]*\r\n)*Content-Length: ([0-9]+)\r\nConnection: close\r\n\r\n([^\r\n]+\n)?$/;
// RFC 9112 as one expression
const TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const HEAD = new RegExp(
  `^(${TOKEN}) ([\\x21-\\x7e]+) HTTP/1\\.([01])\\r\\n((?:${TOKEN}:[\\t\\x20-\\x7e\\x80-\\xff]*\\r\\n){0,100})\\r\\n$`,
);

/** Why the result is wrong; `undefined` if it is right. */
function judge(outcome: Outcome): string | undefined {
  const { answer, tunnel, forwarded, logged } = outcome;
  if (tunnel || forwarded !== "") return judgeTaken(outcome);
  const [, status, length, body] = ANSWER.exec(answer) ?? [];
  if (status === undefined) return "no answer, or one that is malformed";
  if (!REFUSALS.has(Number(status))) return `a status of its own making: ${status}`;
  if (status === "502" && logged?.agent === AGENT_ID) return "502 for an agent that is there";
  if (body !== undefined && body.length !== Number(length)) return "a body of another length";
  if (Number(logged?.status) !== Number(status)) return "another status in the log";
  return undefined;
}

/** Why an accepted request should not have been accepted, or had the wrong destination. */
function judgeTaken({ head, answer, dialled, tunnel, forwarded, reset }: Outcome): string | undefined {
  const [, method, target, version, block] = HEAD.exec(head) ?? [];
  if (method === undefined || !dialled) return "a head was taken that RFC 9112 does not allow";
  const fields = block!.split("\r\n").slice(0, -1).map((line) =>
    [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1)] as const
  );
  const valuesOf = (name: string) => fields.filter(([n]) => n === name).map(([, value]) => value.replace(/^[\t ]+|[\t ]+$/g, ""));
  const [authorization, ...others] = valuesOf("proxy-authorization");
  const basic = /^basic +([A-Za-z0-9+/]+=*)$/i.exec(authorization ?? "")?.[1];
  if (basic === undefined || others.length > 0) return "taken without credentials";
  if (Buffer.from(basic, "base64").toString().split(":")[0] !== dialled.agentId) return "taken for another agent";
  const [host, port] = destinationOf(target!);
  if (dialled.destination.host !== host || dialled.destination.port !== port) return "led elsewhere";
  if (!isAllowed(host, port)) return "reached a forbidden destination";
  const [lengths, codings] = [valuesOf("content-length"), valuesOf("transfer-encoding")];
  if (lengths.length + codings.length > 1 || valuesOf("host").length > 1) return "ambiguous, and taken";
  if (lengths.some((length) => !/^[0-9]+$/.test(length)) || codings.some((coding) => !/^chunked$/i.test(coding))) {
    return "of no length, and taken";
  }
  if (codings.length > 0 && version === "0") return "chunked in HTTP/1.0, and taken";
  if (reset) return "reset";
  if ((method === "CONNECT") !== tunnel) return "a tunnel for what is no CONNECT";
  if (!tunnel) return judgeForwarded(method, forwarded, answer, codings.length > 0 ? Infinity : Number(lengths[0] ?? 0));
  if (codings.length > 0 || lengths.some((length) => Number(length) > 0)) return "a CONNECT with content, and taken";
  return answer === "HTTP/1.1 200 Connection established\r\n\r\n" && forwarded === "" ? undefined : "another answer to CONNECT";
}

function judgeForwarded(method: string, forwarded: string, answer: string, length: number): string | undefined {
  const end = forwarded.indexOf("\r\n\r\n") + 4;
  const head = forwarded.slice(0, end);
  if (!HEAD.test(head)) return "forwarded a head that is malformed";
  if (!head.startsWith(`${method} `)) return "forwarded with another method";
  if (/^(proxy-(authorization|connection|authenticate)|te|keep-alive):/im.test(head)) return "forwarded what was for the proxy";
  if (head.match(/^host:/gim)?.length !== 1 || head.match(/^connection:/gim)?.length !== 1) {
    return "forwarded without one Host and one Connection";
  }
  const body = forwarded.slice(end);
  // what is no chunk is not sent on
  if (body !== (length === Infinity ? "" : BEHIND.slice(0, length))) return "forwarded another body";
  return answer.startsWith("HTTP/1.1 204 No Content\r\nX: y\r\nVia: 1.1 reverse-http\r\nConnection: close\r\n\r\n")
    ? undefined
    : "another response";
}

function isAllowed(host: string, port: number): boolean {
  const name = host.toLowerCase().replace(/\.$/, "");
  if (name === "localhost" || name === "example.com" || name.endsWith(".example.com")) return true;
  // every form of the address; the unspecified one leads there too
  const ipv4 = URL.parse(`http://${name}`)?.hostname;
  if (ipv4 === "127.0.0.1" || ipv4 === "0.0.0.0") return port >= 1 && port <= 1_000;
  // a zone says by which interface, not whom
  const address = name.replace(/%.*$/, "");
  if (/^[0:]+$/.test(address)) return true;
  return /^[0:]*:0*1$/.test(address) && address.includes("::") || /^(0{1,4}:){7}0{0,3}1$/.test(address);
}
