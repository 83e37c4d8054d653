// The behaviour of hostile peers of the agent link as data: frames of both versions, valid, invalid, truncated, too long and out of order.
// `link.ts` plays it on sockets.
import fc from "fast-check";
import { ALPN, CREDENTIALS_ALPN } from "../../shared/link/link.ts";
import { PROBE_ALPN } from "../../shared/link/probe.ts";
import { encodeMessage, type Message } from "../../shared/link/message.ts";
import { mutations } from "./mutations.ts";

/** How a direction or a stream ends. */
export type End = "finish" | "reset" | "stop" | "close" | "leave";

/** The bytes written on one stream, and its end. */
export interface Writing {
  readonly bytes: Uint8Array;
  /** Where it is cut into writes. */
  readonly cuts: readonly number[];
  readonly end: End;
  /** Of a reset or stop. */
  readonly code: number;
}

/** One connection of a hostile agent. */
export interface AgentScript {
  readonly alpn: readonly string[];
  /** The order in which its streams are opened: the first is where the proxy looks for credentials. */
  readonly order: readonly ("credentials" | "control" | "other")[];
  readonly credentials: Writing;
  readonly control: Writing;
  readonly other: Writing;
  /** To requests, in turn. */
  readonly answers: readonly Writing[];
  /** Whether it waits for the proxy's word before it goes on. */
  readonly patient: boolean;
  readonly close?: { readonly code: number; readonly reason: string };
}

/** One connection of a hostile proxy. */
export interface ProxyScript {
  /** To the agent's credentials. */
  readonly answer: Writing;
  /** Back on the agent's control stream. */
  readonly control: Writing;
  /** Streams of its own: requests, or what passes for them. */
  readonly requests: readonly Writing[];
  readonly close?: { readonly code: number; readonly reason: string };
}

const encoder = new TextEncoder();

function join(all: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(all.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const each of all) {
    bytes.set(each, at);
    at += each.length;
  }
  return bytes;
}

function latin1(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** A frame with the right length, or another one. */
function frame(payload: Uint8Array, announced = payload.length): Uint8Array {
  const bytes = new Uint8Array(4 + payload.length);
  new DataView(bytes.buffer).setUint32(0, announced);
  bytes.set(payload, 4);
  return bytes;
}

const announced = fc.oneof(
  { weight: 8, arbitrary: fc.constant(undefined) },
  { weight: 1, arbitrary: fc.constantFrom(0, 1, 3, 16_384, 16_385, 65_536, 65_537, 2 ** 31, 2 ** 32 - 1) },
);
const framed = (payload: fc.Arbitrary<Uint8Array>) => fc.tuple(payload, announced).map(([bytes, length]) => frame(bytes, length));

const end: fc.Arbitrary<End> = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom("finish", "leave") },
  { weight: 1, arbitrary: fc.constantFrom("reset", "stop", "close") },
);
const code = fc.oneof(fc.constantFrom(0, 1, 400, 401, 409, 422, 500, 503, 2 ** 32 - 1), fc.nat(2 ** 30));
const cuts = fc.array(fc.nat(200), { maxLength: 6 });

function writing(bytes: fc.Arbitrary<Uint8Array>, ends = end): fc.Arbitrary<Writing> {
  return fc.record({ bytes, cuts, end: ends, code });
}

const closing = fc.option(fc.record({ code, reason: fc.string({ maxLength: 300, unit: "binary" }) }), { nil: undefined, freq: 4 });

/** Payloads above 64 KiB, and bytes that are not UTF-8. */
const junk = fc.oneof(
  { weight: 6, arbitrary: fc.uint8Array({ maxLength: 200 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 100_000 }).map((length) => new Uint8Array(length).fill(65)) },
);

// ---- messages of the control stream

const INSTANCE = "123e4567-e89b-42d3-a456-426614174000";
const HELLO = JSON.stringify({ instance: INSTANCE, version: "reverse-http/1.2.3", host: "h", labels: { "a/b": "c", zone: "eu" } });
const GOAWAY = JSON.stringify({ reason: "shutting down", withinMs: 50 });
const JSON_PIECES = [
  ...'{}[]":,\\0\0\x7f\x85\xff\ud800-',
  ...[
    "null",
    "true",
    "1e999",
    "-1",
    "-0",
    "1e-999",
    "{}",
    "[]",
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"__proto__":',
    '"constructor":{},',
    '"labels":{},',
  ],
  ...['"instance":"b",', '"instance":1,', '"withinMs":1e12,', "[".repeat(5_000), `"${"x".repeat(300)}"`, `"${"k".repeat(16_000)}":"v",`],
  ...[`"labels":{${Array.from({ length: 40 }, (_, i) => `"l${i}":"x"`)}},`, "\ufeff", '"toString":1,'],
];
const json = (type: number, good: string) =>
  mutations([good], JSON_PIECES).map((text) => join([Uint8Array.of(type), encoder.encode(text)]));
const message = (message: Message) => fc.constant(encodeMessage(message));
const eight = fc.uint8Array({ minLength: 8, maxLength: 8 });

/** The payload of a control frame. */
export const payload: fc.Arbitrary<Uint8Array> = fc.oneof(
  { weight: 4, arbitrary: json(0, HELLO) },
  { weight: 3, arbitrary: json(1, GOAWAY) },
  { weight: 3, arbitrary: eight.map((data) => encodeMessage({ type: "ping", data })) },
  { weight: 2, arbitrary: eight.map((data) => encodeMessage({ type: "pong", data })) },
  { weight: 2, arbitrary: message({ type: "moved", found: true }) },
  {
    weight: 1,
    arbitrary: fc.tuple(fc.nat(255), fc.uint8Array({ maxLength: 20 })).map(([type, body]) => join([Uint8Array.of(type), body])),
  },
  { weight: 1, arbitrary: fc.constant(new Uint8Array(0)) },
  { weight: 1, arbitrary: junk },
);
const hello = fc.constant(frame(encodeMessage({ type: "hello", hello: { instance: INSTANCE, version: "fuzz", host: "", labels: {} } })));
const goodFrames = fc.array(eight.map((data) => frame(encodeMessage({ type: "ping", data }))), { maxLength: 6 });
/** Control messages, half of which are valid. */
const frames = fc.oneof(goodFrames, fc.array(framed(payload), { maxLength: 12 }));
/** With a valid start, or without. */
const agentFrames = fc.tuple(fc.option(hello, { freq: 5, nil: new Uint8Array(0) }), frames).map(([first, rest]) => join([first, ...rest]));
/** More frames than are allowed in a second. */
const flood = fc.integer({ min: 90, max: 400 }).map((count) =>
  join(Array.from({ length: count }, () => frame(encodeMessage({ type: "ping", data: new Uint8Array(8) }))))
);

// ---- credentials

/** The ids of hostile agents. */
export const HOSTILE_IDS = ["hostile-1", "hostile-2"];
const id = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...HOSTILE_IDS).map((text) => encoder.encode(text)) },
  {
    weight: 1,
    arbitrary: fc.constantFrom("", " ", "a b", "a\nb", "\0", "a".repeat(250), "a".repeat(251), "\ufeffx", "é", "..").map((t) =>
      encoder.encode(t)
    ),
  },
  { weight: 1, arbitrary: junk },
);

// ---- heads

const ANSWERS = [
  "HTTP/1.1 200 Connection established\r\n\r\n",
  "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nbytes of the tunnel",
  "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
  'HTTP/1.1 502 Bad Gateway\r\nProxy-Status: reverse-http; error=connection_refused; details="no"\r\nContent-Length: 3\r\n\r\nno\n',
  'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nProxy-Status: x; error=y; details="a\\"b"\r\n\r\n',
  "HTTP/1.1 403 Forbidden\r\n\r\n",
];
const HEAD_PIECES = [
  ...'\r\n\t \0:;,"\\=[]%\x7f\x80\xff\x0b',
  ...[
    "\r\n",
    "\r\n\r\n",
    "\n\n",
    "\r\n ",
    "HTTP/1.1 ",
    "HTTP/2.0",
    "100",
    "199",
    "000",
    "999",
    "2000",
    "Retry-After: x\r\n",
    "Retry-After: -1\r\n",
  ],
  ...[
    "Content-Length: 5\r\n",
    "Content-Length: 9, 9\r\n",
    "Proxy-Status: \r\n",
    'Proxy-Status: a; error="\\',
    'Proxy-Status: a;details="\x80\r\n',
  ],
  ...["Set-Cookie: a=b\r\n", "X: y\r\n".repeat(101), `X: ${"y".repeat(16_384)}\r\n`, "GET / HTTP/1.1\r\n", "Location: http://x/\r\n"],
];
const answer = writing(
  mutations(ANSWERS, HEAD_PIECES).map(latin1),
  fc.constantFrom("finish", "finish", "finish", "leave", "reset", "stop", "close"),
);

/** A request to `authority`, possibly malformed. */
function request(authority: string): fc.Arbitrary<Writing> {
  const good = [
    `CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\nProxy-Connection: keep-alive\r\nX-Request-Id: a\r\n\r\nhello`,
    `CONNECT ${authority} HTTP/1.0\r\n\r\n`,
    `GET http://${authority}/ HTTP/1.1\r\nHost: ${authority}\r\n\r\n`,
    "CONNECT nobody.example:1 HTTP/1.1\r\n\r\n",
  ];
  const pieces = [
    ...HEAD_PIECES,
    "CONNECT ",
    authority,
    "[::1]:1",
    ":0",
    ":65536",
    "Transfer-Encoding: chunked\r\n",
    "X-Request-Id: \x80\r\n",
  ];
  return writing(mutations(good, pieces).map(latin1), fc.constantFrom("finish", "finish", "leave", "reset", "stop", "close"));
}

export const agentScript: fc.Arbitrary<AgentScript> = fc.record({
  alpn: fc.constantFrom([ALPN[0]!], [ALPN[0]!], [ALPN[0]!], [ALPN[1]!], [ALPN[1]!], ALPN, ALPN, [CREDENTIALS_ALPN], [PROBE_ALPN]),
  order: fc.oneof(
    { weight: 6, arbitrary: fc.constant(["credentials", "control"] as const) },
    { weight: 1, arbitrary: fc.shuffledSubarray(["credentials", "control", "other"] as const) },
  ),
  credentials: writing(
    fc.oneof(
      { weight: 10, arbitrary: id.map((bytes) => frame(bytes)) },
      { weight: 2, arbitrary: framed(id) },
      { weight: 1, arbitrary: junk },
      { weight: 1, arbitrary: fc.tuple(id, junk).map(([bytes, more]) => join([frame(bytes), more])) },
    ),
    fc.constantFrom("finish", "finish", "finish", "finish", "leave", "reset", "stop", "close"),
  ),
  control: writing(
    fc.oneof({ weight: 8, arbitrary: agentFrames }, { weight: 1, arbitrary: flood }, { weight: 1, arbitrary: junk }),
    fc.constantFrom("leave", "leave", "leave", "leave", "finish", "reset", "stop"),
  ),
  other: writing(junk),
  answers: fc.array(answer, { minLength: 1, maxLength: 3 }),
  patient: fc.boolean(),
  close: closing,
});

const whole = (text: string): Writing => ({ bytes: encoder.encode(text), cuts: [], end: "finish", code: 0 });
/** A well-behaved connection. */
export const FRIENDLY: AgentScript = {
  alpn: [ALPN[1]!],
  order: ["credentials"],
  credentials: { ...whole(""), bytes: frame(encoder.encode(HOSTILE_IDS[0])) },
  control: whole(""),
  other: whole(""),
  answers: [whole(ANSWERS[0]!)],
  patient: true,
};

export function proxyScript(authority: string): fc.Arbitrary<ProxyScript> {
  const welcome = frame(encoder.encode("authenticated"));
  return fc.record({
    answer: writing(
      fc.oneof({ weight: 8, arbitrary: fc.constant(welcome) }, { weight: 1, arbitrary: framed(junk) }, { weight: 1, arbitrary: junk }),
      fc.constantFrom("finish", "finish", "finish", "finish", "leave", "reset", "stop", "close"),
    ),
    control: writing(
      fc.oneof({ weight: 6, arbitrary: frames.map(join) }, { weight: 1, arbitrary: flood }, { weight: 1, arbitrary: junk }),
      fc.constantFrom("leave", "leave", "leave", "leave", "finish", "reset", "stop"),
    ),
    requests: fc.array(request(authority), { minLength: 1, maxLength: 24 }),
    close: closing,
  });
}
