// Header sections of requests that must be refused, with the status of each: valid ones, mutated in every way that a parser could tolerate.
import { AGENT_ID } from "./programs.ts";
import { credentials } from "./sockets.ts";

export interface Malformed {
  /** One character per byte, with the blank line at its end, if it has one. */
  readonly head: string;
  readonly status: number;
  /** Whether it is malformed: no parser may accept it. Otherwise only the request is refused. */
  readonly isSyntax: boolean;
}

const AUTH = credentials();
const HOST = "Host: localhost:1\r\n";

/** All of them, without duplicates. */
export function malformedHeads(): Malformed[] {
  const all = [
    ...requestLines(),
    ...targets(),
    ...fieldLines(),
    ...lineEnds(),
    ...lengths(),
    ...hosts(),
    ...absolute(),
    ...connects(),
    ...sizes(),
    ...refusedCredentials(),
  ];
  return [...new Map(all.map((each) => [each.head, each])).values()];
}

function head(line: string, ...fields: string[]): string {
  return `${line}\r\n${HOST}${AUTH}${fields.map((field) => `${field}\r\n`).join("")}\r\n`;
}

/** Refused by the parser. */
function syntax(status: number, heads: Iterable<string>): Malformed[] {
  return [...heads].map((head) => ({ head, status, isSyntax: true }));
}

/** Refused because of their request. */
function each(status: number, heads: Iterable<string>): Malformed[] {
  return [...heads].map((head) => ({ head, status, isSyntax: false }));
}

/** Characters that a token cannot contain (RFC 9110 §5.6.2), without control characters. */
const DELIMITERS = [...'"(),/:;<=>?@[\\]{} \x80\xff'];
const CONTROLS = Array.from({ length: 32 }, (_, code) => String.fromCharCode(code)).filter((c) => !"\t\r\n".includes(c)).concat("\x7f");

function* around(text: string, insert: string): Iterable<string> {
  yield insert + text;
  yield text.slice(0, 3) + insert + text.slice(3);
  yield text + insert;
}

function requestLines(): Malformed[] {
  const good = "CONNECT localhost:1 HTTP/1.1";
  const [method, target, version] = good.split(" ") as [string, string, string];
  const bad = [
    ...[...DELIMITERS, ...CONTROLS, "\t"].flatMap((c) => [...around(method, c)].map((m) => `${m} ${target} ${version}`)),
    ...[
      "",
      "HTTP/1",
      "HTTP/1.",
      "HTTP/.1",
      "HTTP/11.1",
      "HTTP/1.10",
      "HTTP/1,1",
      "HTTP/1 .1",
      "HTTP 1.1",
      "http/1.1",
      "Http/1.1",
      "HTTPS/1.1",
    ].map((v) => `${method} ${target} ${v}`),
    ...[
      "ICY/1.1",
      "RTSP/1.0",
      "HTTP/a.b",
      "HTTP/-1.1",
      "HTTP/+1.1",
      "HTTP/1.1\x0b",
      "HTTP/1.1 ",
      "HTTP/1.1\t",
      "HTTP\\1.1",
      "HTTP//1.1",
      "1.1",
    ].map((v) => `${method} ${target} ${v}`),
    ...["  ", "\t", " \t", "\t ", "\x0b", "\x0c", "\xa0", "+", "%20"].flatMap((gap) => [
      `${method}${gap}${target} ${version}`,
      `${method} ${target}${gap}${version}`,
    ]),
    `${method}`,
    `${method} ${target}`,
    `${method} ${version}`,
    `${target} ${version}`,
    `${good} ${version}`,
    `${method} ${good}`,
    `${method} ${target} ${target} ${version}`,
    "",
    " ",
    ":",
    "HTTP/1.1 200 OK",
    `C\xd6NNECT ${target} ${version}`,
    `${method} local\xe9host:1 ${version}`,
    `${method} local\x7fhost:1 ${version}`,
  ];
  const unknown = ["0.0", "0.9", "1.2", "1.9", "2.0", "3.0", "9.9"].map((v) => head(`${method} ${target} HTTP/${v}`));
  return [...syntax(400, bad.map((line) => head(line))), ...syntax(505, unknown)];
}

/** Requests for the proxy itself: well-formed, but not served. */
const OWN_TARGETS = [
  "/",
  "/path",
  "*",
  "/?u=http://localhost/",
  "localhost:1",
  "localhost",
  "//localhost/",
  "http:/localhost",
  "http:localhost",
  "?",
];

/** Invalid hosts, before `:80`. */
export const BAD_HOSTS = [
  "",
  "a b",
  "a..b",
  ".a",
  "-a",
  "a-",
  "a/b",
  "a\\b",
  "a@b",
  "u:p@a",
  "a?b",
  "a#b",
  "a%41",
  "a,b",
  "a*b",
  "*",
  "a\x00",
  "caf\xe9",
  "[",
  "]",
  "[]",
  "[::1",
  "::1]",
  "::12345",
  "::1%",
  "[127.0.0.1]",
  "[a]",
  "[::g]",
  "[::1:]",
  "[1::2::3]",
  "[[::1]]",
  "[::1]]",
  "[::1%]",
  "x[::1]",
  "[::1]x",
  "[v1.a]",
  " ",
  "[:1]",
  "[1:2:3:4:5:6:7:8:9]",
  "[::12345]",
  "[::1.2.3]",
  "user@a",
  "a".repeat(254),
];
/** Invalid ports, after a host. */
export const BAD_PORTS = [
  "",
  "0",
  "00",
  "00000",
  "65536",
  "70000",
  "99999",
  "100000",
  "-1",
  "+1",
  "1x",
  "x",
  "0x50",
  "1.5",
  "1:1",
  "\xb2",
  "1/",
  "1?",
  "1#",
  "http",
  "80x",
  " 80",
  "80 ",
  "8 0",
  "80:80",
];

function targets(): Malformed[] {
  const bad = [
    ...BAD_HOSTS.map((host) => `${host}:1`),
    ...BAD_PORTS.flatMap((port) => [`localhost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`]),
    ...[
      "localhost",
      "127.0.0.1",
      "[::1]",
      "80",
      "http://localhost:1",
      "http://localhost:1/",
      "https://localhost:1",
      "/",
      "*",
      "localhost:1/",
    ],
    ...CONTROLS.map((c) => `local${c}host:1`),
  ];
  return [
    ...each(400, bad.map((target) => head(`CONNECT ${target} HTTP/1.1`))),
    ...each(
      405,
      OWN_TARGETS.flatMap((target) => ["GET", "POST", "HEAD", "OPTIONS", "connect", "Connect"].map((m) => head(`${m} ${target} HTTP/1.1`))),
    ),
  ];
}

function fieldLines(): Malformed[] {
  const bad = [
    ...[...DELIMITERS, ...CONTROLS, "\t"].filter((c) => c !== ":").flatMap((c) => [...around("X-Name", c)].map((name) => `${name}: value`)),
    ...CONTROLS.flatMap((c) => [...around("value", c)].map((value) => `X-Name: ${value}`)),
    ...[
      " X-Name: value",
      "\tX-Name: value",
      "X-Name: value\r\n continued",
      "X-Name: value\r\n\tcontinued",
      "X-Name: value\r\n ",
      "X-Name:\r\n value",
    ],
    ...[
      "X-Name",
      "X-Name value",
      "X-Name\t",
      ":",
      ": value",
      " : value",
      "X Name: value",
      "X-Name : value",
      "X-Name\t: value",
      '"X": value',
    ],
  ];
  const line = "CONNECT localhost:1 HTTP/1.1";
  return syntax(400, [
    ...bad.map((field) => head(line, field)),
    ...bad.slice(0, 60).map((field) => `${line}\r\n${field}\r\n${HOST}${AUTH}\r\n`), // as the first of all
  ]);
}

function lineEnds(): Malformed[] {
  const good = head("CONNECT localhost:1 HTTP/1.1", "X-Name: value");
  const breaks = [...good.matchAll(/\r\n/g)].map((match) => match.index);
  const at = (i: number, end: string) => good.slice(0, i) + end + good.slice(i + 2);
  const last = breaks.at(-1)!;
  return syntax(400, [
    ...breaks.flatMap((i) => ["\n", "\n\r\n", "\r\r\n"].filter(() => i !== last).map((end) => at(i, end))),
    ...breaks.filter((i) => i < breaks.at(-2)!).flatMap((i) => ["\r", "\r ", " \r", "\x00\r\n", "\x0b\r\n"].map((end) => at(i, end))),
    at(last, "\n"),
    good.replaceAll("\r\n", "\n"),
    good.replace("value", "va\rlue"),
    good.replace("value", "va\nlue"),
    good.replace("value", "va\r\rlue"),
    good.replace("X-Name", "X-\rName"),
    good.replace("localhost:1 ", "localhost:1\r "),
  ]).filter(({ head }) => head.endsWith("\r\n\r\n") || head.endsWith("\n\n") || head.endsWith("\n\r\n"));
}

function lengths(): Malformed[] {
  const badLengths = [
    "",
    "+1",
    "-1",
    "1.0",
    "0x1",
    "1e1",
    "1, 1",
    "1,2",
    "1 1",
    "1;",
    "one",
    "\xb2",
    "\x01",
    "1".repeat(16),
    '"1"',
    "1\t1",
    "NaN",
    "Infinity",
  ];
  const badCodings = [
    ...[
      "",
      "identity",
      "gzip",
      "gzip, chunked",
      "chunked, gzip",
      "chunked, chunked",
      "chunked,",
      ",chunked",
      "chunked;a=b",
      '"chunked"',
      "xchunked",
    ],
    ...["chunke", "chunked chunked", "chunked\tx", "\x0bchunked", "CHUNKED, identity", "c\xe9hunked"],
  ];
  const pairs = [
    ["Content-Length: 1", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Content-Length: 1"],
    ["content-length: 0", "TRANSFER-ENCODING: chunked"],
    ["Content-Length: 1", "Transfer-Encoding: identity"],
    ["Content-Length:", "Transfer-Encoding: chunked"],
    ["Content-Length: 1", "Content-Length: 2"],
    ["Content-Length: 1", "Content-Length: 1"],
    ["Content-Length: 1", "X: y", "content-length:"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    ["Transfer-Encoding: identity", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding : chunked"],
    ["Content-Length : 1"],
    ["Transfer-Encoding\t: chunked"],
    ["Transfer-Encoding\x00: chunked"],
    ["X: y\r\n Transfer-Encoding: chunked"],
    ["X: y\nTransfer-Encoding: chunked"],
    ["X: y\rTransfer-Encoding: chunked"],
  ];
  const forms = [
    ...badLengths.map((length) => [`Content-Length: ${length}`]),
    ...badCodings.map((coding) => [`Transfer-Encoding: ${coding}`]),
    ...pairs,
  ];
  const lines = ["POST http://localhost:1/ HTTP/1.1", "GET http://localhost:1/ HTTP/1.1", "CONNECT localhost:1 HTTP/1.1"];
  return syntax(400, [
    ...lines.flatMap((line) => forms.map((fields) => head(line, ...fields))),
    head("POST http://localhost:1/ HTTP/1.0", "Transfer-Encoding: chunked"),
  ]);
}

function hosts(): Malformed[] {
  const bad = [
    "a b",
    "a/b",
    "http://a",
    "a@b",
    "u:p@a",
    "a:b",
    "a:1:2",
    "[::1",
    "::1]",
    "::x",
    "[::1]x",
    "a\\b",
    "a#b",
    "a?b",
    "caf\xe9",
    '"a"',
    "<a>",
  ];
  const line = "CONNECT localhost:1 HTTP/1.1";
  return syntax(400, [
    ...bad.map((host) => `${line}\r\nHost: ${host}\r\n${AUTH}\r\n`),
    ...["localhost:1", "LOCALHOST:1", "other.example", ""].map((second) => head(line, `hOsT: ${second}`)),
  ]);
}

function absolute(): Malformed[] {
  const bad = [
    ...[
      "https://localhost/",
      "HTTPS://localhost/",
      "ftp://localhost/",
      "wss://localhost/",
      "wsx://localhost/",
      "file:///etc/passwd",
      "a+b://localhost/",
      "://localhost/",
    ],
    ...[
      "http://",
      "http:///",
      "http:///path",
      "http://?q",
      "http://:80/",
      "http://localhost:0/",
      "http://localhost:65536/",
      "http://localhost:x/",
      "http://localhost:1:/",
      "http://localhost::/",
      "http://[::1]:1:/",
    ],
    ...[
      "http://localhost@/",
      "http://u@u@localhost/",
      "http://u[@localhost/",
      "http://u:p@/",
      "http://localhost\\@other/",
      "http://[::1/",
    ],
    ...[
      "http://[::1]x/",
      "http://::1/",
      "http://a..b/",
      "http://a%41/",
      "http://localhost/#part",
      "http://localhost#",
      "1http://localhost/",
    ],
    ...[
      "ht tp://localhost/",
      "http://local host/",
      "http://localhost/a b",
      "http://localhost/\x7f",
      "http://localhost/\xe9",
      "http://localhost/\x00",
    ],
    ...[
      "-http://localhost/",
      "http_x://localhost/",
      "http://localhost:1:2/",
      "http://localhost:+1/",
      "http://a,b/",
      "http://*/",
      "http://[127.0.0.1]/",
    ],
  ];
  return each(400, bad.flatMap((target) => ["GET", "POST", "OPTIONS"].map((method) => head(`${method} ${target} HTTP/1.1`))));
}

function connects(): Malformed[] {
  const line = "CONNECT localhost:1 HTTP/1.1";
  return each(
    400,
    ["Content-Length: 1", "Content-Length: 999999", "Transfer-Encoding: chunked", "transfer-encoding: CHUNKED"].map((f) => head(line, f)),
  );
}

function sizes(): Malformed[] {
  const line = "CONNECT localhost:1 HTTP/1.1";
  return each(431, [
    head(line, ...Array<string>(99).fill("A: b")), // `head` adds two more
    head(line, ...Array<string>(1_000).fill("A: b")),
    head(line, `A: ${"a".repeat(16_384)}`),
    head(line, `${"A".repeat(16_384)}: a`),
    head(`CONNECT ${"a".repeat(16_384)}:1 HTTP/1.1`),
    head(`${"A".repeat(16_384)} / HTTP/1.1`),
    `${"\r\n".repeat(8_192)}${head(line)}`,
    "A".repeat(16_385),
  ]);
}

function refusedCredentials(): Malformed[] {
  const encoded = btoa(`${AGENT_ID}:any`);
  const bad = [
    ...[
      "",
      "Basic",
      "Basic ",
      "Basic !",
      `Basic${encoded}`,
      `Basic ${encoded} x`,
      `Basic ${encoded},`,
      `Basic "${encoded}"`,
      `Digest ${encoded}`,
      encoded,
    ],
    ...[
      `Basic ${btoa("no colon")}`,
      `Basic ${btoa(":any")}`,
      `Basic ${btoa("a b:any")}`,
      `Basic ${btoa("a\x00:any")}`,
      `Basic ${btoa("\xff:any")}`,
    ],
    ...[
      `Basic ${btoa(`${"a".repeat(251)}:any`)}`,
      `Basic =${encoded}`,
      `Basic ${encoded}=====`,
      "Bearer",
      "Bearer a",
      "Bearer a b",
      `Basic\t${encoded}`,
    ],
  ];
  const line = "CONNECT localhost:1 HTTP/1.1";
  const with_ = (...fields: string[]) => `${line}\r\n${HOST}${fields.map((field) => `${field}\r\n`).join("")}\r\n`;
  return each(407, [
    with_(),
    with_(`Authorization: Basic ${encoded}`),
    with_(`Proxy-Authorization2: Basic ${encoded}`),
    with_(`Proxy-Authorization: Basic ${encoded}`, `Proxy-Authorization: Basic ${encoded}`),
    with_(`Proxy-Authorization: Basic ${encoded}`, "proxy-authorization:"),
    ...bad.map((value) => with_(`Proxy-Authorization: ${value}`)),
  ]);
}
