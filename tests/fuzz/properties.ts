// Properties that hold for any input: frames, messages, addresses, allow-lists, configuration, PEM, messages of SOCKS, tokens and durations.
// Used by the short run among the tests and by the long one.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { isIP } from "node:net";
import fc from "fast-check";
import { decodeJwt, decodeProtectedHeader, SignJWT } from "jose";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { AuthenticationError } from "../../shared/auth/authenticator.ts";
import { parsePrivateKey, parsePublicKeys } from "../../shared/auth/keys.ts";
import { verifyToken } from "../../shared/auth/token.ts";
import { formatJoin, parseJoin } from "../../shared/config/join.ts";
import { resolve } from "../../shared/config/sources.ts";
import { readConfig } from "../../shared/config/file.ts";
import { checkListenAddress, ConfigError, defineOptions, type Option, parseValue, ValueError } from "../../shared/config/option.ts";
import { formatAuthority, parseAuthority } from "../../shared/address/authority.ts";
import {
  destinationOf,
  incompleteMessage,
  parseHandshake,
  parseRequest,
  requestEnd,
  UnsupportedRequestError,
} from "../../shared/frontend/socks5/messages.ts";
import { createAddressKeys } from "../../shared/limits/addresses.ts";
import { PemError, type PemKind, readPem } from "../../shared/net/pem.ts";
import { encodeFrame, FrameError, FrameReader } from "../../shared/link/frame.ts";
import { decodeMessage, encodeMessage, MessageError } from "../../shared/link/message.ts";
import { parseTraceContext, traceFields } from "../../shared/tracing/context.ts";
import { MalformedRequestError } from "../../shared/tunnel/errors.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { mutations, parts } from "./mutations.ts";
import { policyProperties } from "./policy.ts";
import { payload } from "./scripts.ts";

/** Maximum length of messages about a peer's bytes, which must not fill logs and close frames. */
const LONGEST_SENTENCE = 600;

/** The result, or the error, which must be one of `kinds` and, about a peer's bytes, short. */
function outcome<T>(run: () => T, ...kinds: (new (...args: never[]) => Error)[]): T | Error {
  try {
    return run();
  } catch (error) {
    return expected(error, kinds);
  }
}

function expected(error: unknown, kinds: readonly (new (...args: never[]) => Error)[]): Error {
  const kind = kinds.find((kind) => error instanceof kind);
  if (!kind) throw error;
  const { message } = error as Error;
  const isConfigured = [ConfigError, ValueError, RangeError].some((own) => error instanceof own);
  assert.ok(message.length > 0 && (isConfigured || message.length <= LONGEST_SENTENCE), `an error of ${message.length} characters`);
  return error as Error;
}

const cuts = fc.array(fc.nat(300), { maxLength: 8 });
const bytes = fc.uint8Array({ maxLength: 120 });

/** Returns `all` in parts. */
function streamOf(all: Uint8Array, cuts: readonly number[]) {
  const left = parts(all, cuts);
  return { read: () => Promise.resolve(left.shift() ?? null) };
}

async function framesOf(all: Uint8Array, cuts: readonly number[], limit: number): Promise<string[] | Error> {
  const [reader, found] = [new FrameReader(streamOf(all, cuts), limit), [] as string[]];
  try {
    for (let frame; (frame = await reader.next()) !== null;) found.push(Buffer.from(frame).toString("hex"));
    return found;
  } catch (error) {
    return expected(error, [FrameError]);
  }
}

// ---- addresses, compared by their bits

interface Ip {
  readonly bits: bigint;
  readonly length: 32 | 128;
}

const ipv4 = fc.nat(2 ** 32 - 1).map((n): Ip => ({ bits: BigInt(n), length: 32 }));
const ipv6 = fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }).map((bits): Ip => ({ bits, length: 128 }));
/** Few values, so that they match each other. */
const near = fc.constantFrom(0x7f000001n, 0x7f000002n, 0x7f800001n, 0x0a000001n).map((bits): Ip => ({ bits, length: 32 }));
const mapped = near.map(({ bits }): Ip => ({ bits: 0xffff_0000_0000n | bits, length: 128 }));
const near6 = fc.constantFrom(1n, 2n, 1n << 64n, 0xfe80n << 112n | 1n, 0xffff_ffff_ffffn).map((bits): Ip => ({ bits, length: 128 }));
const ip = fc.oneof(ipv4, ipv6, near, near, mapped, near6);

function written({ bits, length }: Ip): string {
  if (length === 32) return [24n, 16n, 8n, 0n].map((shift) => bits >> shift & 255n).join(".");
  return Array.from({ length: 8 }, (_, i) => (bits >> BigInt(112 - 16 * i) & 0xffffn).toString(16)).join(":");
}

/** The same host for all notations: IPv4-mapped is IPv4. */
function canonical(ip: Ip): Ip {
  return ip.length === 128 && ip.bits >> 32n === 0xffffn ? { bits: ip.bits & 0xffff_ffffn, length: 32 } : ip;
}

/** The address of a connection to it. */
function connected(ip: Ip): Ip {
  const { bits, length } = canonical(ip);
  return bits > 0n ? { bits, length } : { bits: length === 32 ? 0x7f00_0001n : 1n, length };
}

type PatternModel = { readonly text: string; readonly matches: (host: Ip | string, port: number) => boolean };

const ports = fc.option(fc.tuple(fc.integer({ min: 1, max: 200 }), fc.nat(100)), { nil: undefined });
const LABELS = ["a", "b", "example", "com", "x-y", "_s"];
const name = fc.array(fc.constantFrom(...LABELS), { minLength: 1, maxLength: 4 }).map((labels) => labels.join("."));

function inPorts(range: [number, number] | undefined): [suffix: string, test: (port: number) => boolean] {
  if (!range) return ["", () => true];
  const [first, more] = range;
  return [more === 0 ? `:${first}` : `:${first}-${first + more}`, (port) => port >= first && port <= first + more];
}

const patternModel: fc.Arbitrary<PatternModel> = fc.oneof(
  fc.tuple(name, ports, fc.boolean()).map(([name, range, isZone]): PatternModel => {
    const [suffix, fits] = inPorts(range);
    return {
      text: `${isZone ? "*." : ""}${name}${suffix}`,
      matches: (host, port) => fits(port) && typeof host === "string" && (host === name || isZone && host.endsWith(`.${name}`)),
    };
  }),
  fc.tuple(ip, fc.option(fc.nat(128), { nil: undefined }), ports).map(([ip, prefix, range]): PatternModel => {
    const [suffix, fits] = inPorts(range);
    const bits = prefix === undefined ? undefined : Math.min(prefix, ip.length);
    const text = `${ip.length === 128 ? `[${written(ip)}]` : written(ip)}${bits === undefined ? "" : `/${bits}`}${suffix}`;
    // a prefix shorter than that of all mapped addresses is one of IPv6
    const isWide = ip.length === 128 && bits !== undefined && bits < 96;
    const base = isWide ? ip : bits === undefined ? connected(ip) : canonical(ip);
    const length = bits === undefined ? base.length : bits - (ip.length - base.length);
    const shift = BigInt(base.length - length);
    return {
      text,
      matches: (host, port) => {
        if (!fits(port) || typeof host === "string") return false;
        const other = connected(host);
        return other.length === base.length && other.bits >> shift === base.bits >> shift;
      },
    };
  }),
);
const host: fc.Arbitrary<Ip | string> = fc.oneof(ip, name);
const GOOD_PATTERNS = [
  "localhost",
  "*.example.com:80-90",
  "10.0.0.0/8:443",
  "[2001:db8::]/32",
  "[fe80::1%eth0]:22",
  "::1",
  "127.0.0.1:1",
  "all",
  "none",
];
const PATTERN_PIECES = [
  ..."*.:/[]%-_, \t\0\xff09ag",
  "::",
  "..",
  "/0",
  "/33",
  "/129",
  ":0",
  ":65536",
  "1-",
  "0x7f",
  "127.1",
  "256",
  "*.",
  "%eth0",
  "all",
  "none",
];

// ---- configuration

const OPTIONS = defineOptions({
  "a.text": { kind: "string", description: "" },
  "a.time": { kind: "duration", default: "1s", description: "" },
  "a.count": { kind: "integer", default: "1", description: "" },
  "b.on": { kind: "boolean", description: "" },
  "b.list": { kind: "list", description: "" },
  "b.address": { kind: "address", default: ":1", description: "" },
  "secret": { kind: "string", secret: true, choices: ["right"], description: "" },
});
const GOOD_FILES = [
  "a:\n  text: x\n  time: 1m30s\n  count: 7\nb:\n  on: true\n  list: [x, y]\n  address: '[::1]:80'\n",
  "a.text: &t hello\nb.list:\n  - *t\n  - 007\n",
  '{"a": {"text": "\\u0041", "count": 3}, "b": {"on": false, "list": ["p", "q"]}}',
  "# nothing\n---\na: {time: 0}\n...\n",
];
const FILE_PIECES = [
  ..."\n\t :,-[]{}&*!|>'\"%@`#?~\0\x7f\x85\xa0\xff\r",
  ...[
    "\n  ",
    "- ",
    ": ",
    "? ",
    "&a ",
    "*a",
    "*t",
    "!!binary ",
    "!!str ",
    "<<: *t",
    "<<: [*t, *t]",
    "a: &g {text: x}\n",
    "b: *g\n",
    "<<: *g",
    "*.zone",
    "---\n",
    "...",
    "|\n",
    ">-\n",
    "null",
    "~",
    "0x1f",
    "1e3",
    ".inf",
  ],
  ...[
    "a:\n",
    "b:\n",
    "a.text: ",
    "text: ",
    "secret: hidden-thing\n",
    "constructor: 1\n",
    "__proto__: 1\n",
    "toString:\n",
    "{a: ".repeat(50),
  ],
];
/** Possible texts in an environment and on a command line. */
const value = fc.oneof(
  fc.string({ maxLength: 12, unit: fc.constantFrom(..."abz09.:,-/ '\"#&*[]{}\\%é") }),
  fc.constantFrom(
    "",
    "true",
    "0",
    "007",
    "1m",
    "1.5h",
    "null",
    "~",
    "yes",
    "0x10",
    ":80",
    "[::1]:1",
    "a, b",
    " x",
    "x ",
    "- a",
    "a: b",
    "#x",
    "1e3",
  ),
);

/** The values, or the error message. */
function resolved(name: keyof typeof OPTIONS, sources: Partial<Parameters<typeof resolve>[1]>): string {
  const result = outcome(() => resolve(OPTIONS, { flags: new Map(), env: {}, ...sources }).values, ConfigError);
  // it says where the value stood, and that is another place
  return result instanceof Error ? result.message.replace(/ \([^()]*\)(?=:)/, "") : JSON.stringify([name, result]);
}

// ---- durations

const UNITS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1_000, ms: 1 } as const;
const spans = fc.array(fc.tuple(fc.nat(500), fc.constantFrom(...Object.keys(UNITS) as (keyof typeof UNITS)[])), {
  minLength: 1,
  maxLength: 4,
});
const DURATION: Option = { kind: "duration", description: "" };
const GOOD_DURATIONS = ["300ms", "1m30s", "24h", "0", "1.5h", "100us", "7µs", "+3s"];
const DURATION_PIECES = [..."0123456789.+-smhnuµμe \0\xff", "ms", "ns", "576h", "1e3s", "Infinity", "NaN", "0x1s", "-1s", "9".repeat(400)];

// ---- join strings

const JOIN = formatJoin({
  role: "agent",
  servers: ["proxy.example:4242"],
  agentId: "4711",
  tls: true,
  pin: "1c".repeat(32),
  token: "abc.def.ghi",
});

// ---- tokens

const KEY = makeTokenKey();
const SIGNING = parsePrivateKey(KEY.privatePem);
const VERIFYING = parsePublicKeys(KEY.publicPem);
const NOW = 1_700_000_000_000;
const EXPECTED = { role: "client", now: NOW } as const;

async function verdict(token: string) {
  try {
    return await verifyToken(token, await VERIFYING, EXPECTED);
  } catch (error) {
    return expected(error, [AuthenticationError]);
  }
}

const socksRequests = fc.oneof(
  fc.tuple(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.constant(1)),
  fc.tuple(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.constant(4)),
  fc.tuple(
    fc.oneof(
      fc.uint8Array({ maxLength: 255 }),
      fc.oneof(name, ip.map(written), ip.map((each) => `[${written(each)}]`)).map((text) => Buffer.from(text)),
    )
      .map((host) => Buffer.concat([Uint8Array.of(host.length), host])),
    fc.constant(3),
  ),
).chain(([address, type]) =>
  fc.tuple(fc.constantFrom(1, 1, 2, 3, 0xf0), fc.nat(65_535)).map(([command, port]) =>
    Buffer.concat([Uint8Array.of(5, command, 0, type), address, Uint8Array.of(port >> 8, port & 255)])
  )
);

const CLAIMS = { agent_id: "4711", role: "client", exp: NOW / 1000 + 60, nbf: NOW / 1000 - 60, jti: "1" };
const claim = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom(-1, 0, 1e21, 1e308, NOW, "client", "agent", ["*.a"], [], [""], [1], "a b", "\0"),
);
const claims = fc.dictionary(
  fc.constantFrom("agent_id", "role", "exp", "nbf", "iat", "iss", "sub", "aud", "jti", "allow", "__proto__"),
  claim,
);
const TOKEN_PIECES = [
  ..."._-=+/ \0\xffAZaz09",
  "..",
  "eyJhbGciOiJub25lIn0",
  "eyJhbGciOiJIUzI1NiJ9",
  "e30",
  "bnVsbA",
  "W10",
  "A".repeat(20_000),
];

// ---- PEM

const AUTHORITY = makeAuthority();
const PEM_PIECES = [
  ..."-=#:\n\r\t \0\ufeff\xef—AZ+/",
  "\r\n",
  "-----",
  "-----BEGIN CERTIFICATE-----\n",
  "-----END CERTIFICATE-----\n",
  "-----BEGIN PRIVATE KEY-----\n",
  "-----BEGIN X509 CRL-----\n",
  "-----END X509 CRL-----\n",
  "BEGIN",
  "END",
  "Proc-Type: 4,ENCRYPTED\n\n",
  "MII".padEnd(64, "A"),
];
const PEM_KINDS: PemKind[] = ["chain", "authorities", "private key", "revocation lists", "public keys"];

/** The content of a text, independent of its notation. */
function meaning(token: string): string {
  const [header, body, signature] = token.split(".").map((part) => Buffer.from(part, "base64url").toString("hex"));
  return `${header}.${body}.${signature}`;
}

/** Each by its content. */
export async function makeProperties(): Promise<Readonly<Record<string, fc.IRawProperty<unknown>>>> {
  const { cert, key, revocationList } = await AUTHORITY;
  const pems = [cert, key, await revocationList([]), cert + cert, key + cert];
  const secret = key.split("\n")[1]!.slice(16, 32);
  const token = await new SignJWT(CLAIMS).setProtectedHeader({ alg: SIGNING.algorithm }).sign(SIGNING.key);
  return {
    "frames are the same however they come": fc.asyncProperty(fc.array(bytes, { maxLength: 6 }), cuts, async (payloads, cuts) => {
      const all = new Uint8Array(Buffer.concat(payloads.map((each) => encodeFrame(each))));
      assert.deepEqual(await framesOf(all, cuts, 120), payloads.map((each) => Buffer.from(each).toString("hex")));
    }),
    "whatever comes as frames is read or refused, the same at every cut": fc.asyncProperty(
      fc.array(fc.oneof(bytes, fc.constant(new Uint8Array(4)), bytes.map((each) => encodeFrame(each))), { maxLength: 6 }),
      cuts,
      async (pieces, cuts) => {
        const all = new Uint8Array(Buffer.concat(pieces));
        const [whole, cut] = [await framesOf(all, [], 100), await framesOf(all, cuts, 100)];
        assert.equal(whole instanceof Error ? whole.message : whole.join(), cut instanceof Error ? cut.message : cut.join());
      },
    ),
    "a control message is read, ignored or refused, and what is read is what was sent": fc.property(payload, (payload) => {
      const message = outcome(() => decodeMessage(payload), MessageError);
      if (message === undefined || message instanceof Error) return;
      assert.deepEqual(decodeMessage(encodeMessage(message)), message);
      const { data: _, ...texts } = message as { data?: Uint8Array };
      // deno-lint-ignore no-control-regex -- these are what must not be in it
      assert.doesNotMatch(JSON.stringify(texts), /\\u00[01]|[\x00-\x1f\x7f-\x9f]/);
    }),
    "an authority is read as what it is written as, or refused": fc.property(
      fc.oneof(
        fc.tuple(host, fc.integer({ min: 1, max: 65_535 })).map(([host, port]) =>
          formatAuthority({ host: typeof host === "string" ? host : written(host), port })
        ),
        mutations(["localhost:80", "[fe80::1%25eth0]:8080", "127.0.0.1:1"], [...PATTERN_PIECES, "%25", "@", "/", "\\"]),
      ),
      (text) => {
        const authority = outcome(() => parseAuthority(text), MalformedRequestError);
        if (authority instanceof Error) return;
        assert.deepEqual(parseAuthority(formatAuthority(authority)), authority);
      },
    ),
    "an address to listen on is taken as it is, or refused": fc.property(
      mutations(["localhost:80", "[::1]:8080", ":0", "0.0.0.0:65535"], PATTERN_PIECES),
      (text) => {
        if (outcome(() => checkListenAddress(text), ValueError) instanceof Error) return;
        const [, port] = /:([0-9]+)$/.exec(text)!;
        assert.ok(Number(port) <= 65_535);
      },
    ),
    "addresses count as one where they are one host, or one network of IPv6": fc.property(ip, ip, (a, b) => {
      const keyOf = createAddressKeys([]);
      const [one, other] = [a, b].map((ip) => keyOf(ip.length === 32 ? `${written(ip)}:1` : `[${written(ip)}]:65535`));
      const [x, y] = [canonical(a), canonical(b)];
      const isSame = x.length === y.length && (x.length === 32 ? x.bits === y.bits : x.bits >> 64n === y.bits >> 64n);
      assert.equal(one === other, isSame, `${one} ${other}`);
    }),
    "an allow-list allows what its patterns say": fc.property(
      fc.array(patternModel, { minLength: 1, maxLength: 4 }),
      host,
      fc.integer({ min: 1, max: 300 }),
      (patterns, host, port) => {
        const list = createAllowList(patterns.map(({ text }) => text));
        const wanted = patterns.some(({ matches }) => matches(host, port));
        assert.equal(list.allows({ host: typeof host === "string" ? host : written(host), port }), wanted);
      },
    ),
    "a pattern is used or refused, and no host upsets it": fc.property(
      mutations(GOOD_PATTERNS, PATTERN_PIECES),
      mutations(["localhost", "a.example.com", "10.1.2.3", "fe80::1%eth0"], PATTERN_PIECES),
      (pattern, host) => {
        const list = outcome(() => createAllowList([pattern]), RangeError);
        if (list instanceof Error) return assert.match(list.message, /^Cannot use the allow-list pattern "/);
        assert.equal(typeof list.allows({ host, port: 80 }), "boolean");
      },
    ),
    "a value means the same on the command line, in the environment, in YAML and in JSON": fc.property(
      fc.constantFrom(...Object.keys(OPTIONS) as (keyof typeof OPTIONS)[]),
      value,
      (name, text) => {
        const flag = resolved(name, { flags: new Map([[name, text]]) });
        const variable = `REVERSE_HTTP_${name.toUpperCase().replaceAll(".", "_")}`;
        // an empty variable is not given
        assert.equal(resolved(name, { env: { [variable]: text } }), text === "" ? resolved(name, {}) : flag);
        const nested = name.split(".").reduceRight<unknown>((inner, key) => ({ [key]: inner }), text);
        for (const file of [JSON.stringify({ [name]: text }), JSON.stringify(nested), `${name}: ${JSON.stringify(text)}\n`]) {
          assert.equal(resolved(name, { file: readConfig(OPTIONS, { name: "c", text: file }) }), flag, file);
        }
      },
    ),
    "a configuration file is read or refused, and shows no secret": fc.property(mutations(GOOD_FILES, FILE_PIECES), (text) => {
      const result = outcome(
        () => resolve(OPTIONS, { flags: new Map(), env: {}, file: readConfig(OPTIONS, { name: "c.yaml", text }) }),
        ConfigError,
      );
      if (!(result instanceof Error)) return assert.equal(Object.getPrototypeOf(result.values), Object.prototype);
      assert.match(result.message, /^(Cannot|Unknown) /);
      // a text that became another option's value is shown
      if (/--secret|^Cannot read/.test(result.message)) assert.doesNotMatch(result.message, /hidden-thing/);
    }),
    "a duration is the sum of what it is written with": fc.property(spans, (spans) => {
      const text = spans.map(([count, unit]) => `${count}${unit}`).join("");
      const sum = spans.reduce((ms, [count, unit]) => ms + count * UNITS[unit], 0);
      const result = outcome(() => parseValue(DURATION, text), ValueError);
      if (sum <= 576 * UNITS.h) assert.equal(result, sum);
      else assert.ok(result instanceof Error);
    }),
    "whatever is written as a duration is a number of milliseconds, or refused": fc.property(
      mutations(GOOD_DURATIONS, DURATION_PIECES),
      (text) => {
        const result = outcome(() => parseValue(DURATION, text), ValueError);
        if (result instanceof Error) return;
        assert.ok(Number.isSafeInteger(result) && Number(result) >= 0 && Number(result) <= 576 * UNITS.h, `${result}`);
      },
    ),
    "PEM is read as the same in its plain form, or refused without showing it": fc.property(
      mutations(pems, PEM_PIECES),
      fc.constantFrom(...PEM_KINDS),
      (text, kind) => {
        const blocks = outcome(() => readPem(text, kind), PemError);
        if (blocks instanceof Error) return assert.ok(!blocks.message.includes(secret), blocks.message);
        assert.ok(blocks.length > 0);
        assert.deepEqual(readPem(blocks.map(({ text }) => text).join(""), kind).map(({ der }) => der), blocks.map(({ der }) => der));
        // every BEGIN line that is no comment is a block that was read, or one that may stand beside it: none is skipped in silence
        const begun = text.split(/\r\n|\n|\r/).filter((line) =>
          !/^[\s\ufeff]*(?:\xef\xbb\xbf)?\s*#/.test(line) && /BEGIN (?:CERTIFICATE|X509 CRL)-/.test(line)
        );
        if (kind === "authorities" || kind === "revocation lists") assert.equal(blocks.length, begun.length);
      },
    ),
    "the credentials of a SOCKS client are what it sent, and no other handshake breaks the parser": fc.property(
      fc.array(fc.nat(255), { maxLength: 255 }),
      fc.uint8Array({ maxLength: 255 }),
      fc.uint8Array({ maxLength: 255 }),
      (methods, username, password) => {
        const offer = Uint8Array.of(5, methods.length, ...methods);
        const sent = Uint8Array.of(...offer, 1, username.length, ...username, password.length, ...password);
        const { credentials, methods: offered } = parseHandshake(Buffer.from(sent).toString("latin1"));
        assert.deepEqual([offered, [...credentials!.username], [...credentials!.password]], [methods, [...username], [...password]]);
        assert.deepEqual(parseHandshake(Buffer.from(offer).toString("latin1")), { methods });
        const cut = sent.subarray(0, sent.length - 1 - password.length);
        for (const part of [cut, sent.subarray(0, 1)]) incompleteMessage(Buffer.from(part).toString("latin1"));
      },
    ),
    "a request of a SOCKS client ends at one place, and is a destination or refused": fc.property(
      fc.oneof(socksRequests, fc.uint8Array({ maxLength: 300 })),
      bytes,
      (request, more) => {
        const all = Buffer.concat([request, more]);
        const end = outcome(() => requestEnd(all), MalformedRequestError);
        if (end instanceof Error || end === undefined || end > all.length) return;
        for (let n = 0; n <= end; n++) assert.ok([undefined, end].includes(requestEnd(all.subarray(0, n))));
        const parsed = outcome(() => parseRequest(all.subarray(0, end)), UnsupportedRequestError);
        if (parsed instanceof Error) return;
        const destination = outcome(() => destinationOf(parsed), MalformedRequestError);
        if (destination instanceof Error) return;
        assert.deepEqual(parseAuthority(formatAuthority(destination)), destination);
        // an address is one in every notation
        const host = destination.host.replace(/^\[|\]$|%.*/g, "");
        if (all[3] !== 3) assert.ok(isIP(host) > 0, host);
        assert.doesNotMatch(destination.host, /[\s[\]]/);
      },
    ),
    "the place in a trace is read as it is passed on, or not at all": fc.property(
      mutations([`00-${"0af7651916cd43dd8448eb211c80319c"}-b7ad6b7169203331-01`], ["-", "0", "ff", "A", " "]),
      fc.string({ maxLength: 600 }),
      (parent, state) => {
        const context = parseTraceContext([["traceparent", parent], ["tracestate", state]]);
        if (context === undefined) return;
        assert.ok(parent.toLowerCase().startsWith(`${parent.slice(0, 3)}${context.traceId}-${context.spanId}-`));
        const sent = traceFields({ context });
        assert.deepEqual(parseTraceContext(sent), context);
        for (const [, value] of sent) assert.match(value, /^[\x20-\x7e]{1,512}$/);
      },
    ),
    "a join string is read as it was written": fc.property(
      fc.record({
        role: fc.constantFrom("agent" as const, "client" as const),
        servers: fc.constantFrom(["proxy.example:4242"], ["[2001:db8::1]:1"]),
        agentId: fc.string({ minLength: 1 }),
        tls: fc.boolean(),
        pin: fc.option(fc.constant("1c".repeat(32)), { nil: undefined }),
        token: fc.option(fc.constant(token), { nil: undefined }),
      }),
      (invitation) => {
        const text = formatJoin(invitation);
        assert.deepEqual(parseJoin(text, invitation.role), { ...invitation });
      },
    ),
    "no other text is a join string": fc.property(mutations([JOIN], ["rhttp1.", ".", "~", "A"]), (changed) => {
      const parsed = outcome(() => parseJoin(changed, "agent"), ValueError);
      if (!(parsed instanceof Error)) assert.equal(changed.replace(/\s+/g, ""), JOIN);
      else assert.ok(changed.length < 60 || !parsed.message.includes(changed.slice(0, 60)));
    }),
    "a token that was changed is not believed": fc.asyncProperty(mutations([token], TOKEN_PIECES), async (changed) => {
      const result = await verdict(changed);
      if (result instanceof Error) assert.notEqual(changed, token);
      else assert.equal(meaning(changed), meaning(token));
    }),
    "a token of our own signature is believed or refused, whatever it says": fc.asyncProperty(
      claims,
      fc.boolean(),
      async (claims, whole) => {
        const text = await new SignJWT({ ...whole && CLAIMS, ...claims }).setProtectedHeader({ alg: SIGNING.algorithm }).sign(SIGNING.key);
        const result = await verdict(text);
        if (result instanceof Error) return;
        const said = decodeJwt(text);
        assert.deepEqual([said.role, said.agent_id, decodeProtectedHeader(text).alg], ["client", result.agentId, SIGNING.algorithm]);
        assert.ok(result.expiresAt > NOW - 5_000);
      },
    ),
    ...policyProperties,
  };
}
