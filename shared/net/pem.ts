// The program's PEM reader (RFC 7468). Anything it does not understand is an error with its line, never skipped. Messages quote no content.
import { Buffer } from "node:buffer";

/** One block, BEGIN line to END line. */
export interface PemBlock {
  readonly label: string;
  /** Number of its BEGIN line, from 1. */
  readonly line: number;
  readonly der: Uint8Array<ArrayBuffer>;
  /** Whether it has headers (RFC 1421), as encrypted PKCS #1 and SEC 1 keys do. */
  readonly hasHeaders: boolean;
  /** The block in normal form: lines of 64 characters, ended by LF. */
  readonly text: string;
}

/** Invalid PEM. */
export class PemError extends Error {
  override readonly name = "PemError";
  constructor(why: string, readonly line?: number) {
    super(line === undefined ? why : `line ${line}: ${why}`);
  }
}

interface Kind {
  /** Labels of the blocks to read. */
  readonly labels: readonly string[];
  /** Labels of blocks that are skipped. */
  readonly skipped: readonly string[];
  readonly onlyOne?: boolean;
  /** The OpenSSL command that reads DER of this kind. */
  readonly openssl: string;
}

const PRIVATE_KEYS = ["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
/** Blocks that `openssl ecparam -genkey` and old server configurations write into the same file. */
const PARAMETERS = ["EC PARAMETERS", "DH PARAMETERS"];

/** Kinds of content. */
const KINDS = {
  /** A certificate chain; its key may be in the same file. */
  chain: { labels: ["CERTIFICATE"], skipped: [...PRIVATE_KEYS, ...PARAMETERS], openssl: "x509" },
  /** Certificates to trust. */
  authorities: { labels: ["CERTIFICATE"], skipped: [], openssl: "x509" },
  /** A private key; its certificates may be in the same file. */
  "private key": { labels: PRIVATE_KEYS, skipped: ["CERTIFICATE", ...PARAMETERS], onlyOne: true, openssl: "pkey" },
  "revocation lists": { labels: ["X509 CRL"], skipped: [], openssl: "crl" },
  /** The Go original writes `EC PUBLIC KEY`. */
  "public keys": { labels: ["PUBLIC KEY", "EC PUBLIC KEY"], skipped: ["EC PARAMETERS"], openssl: "pkey -pubin" },
} as const satisfies Record<string, Kind>;

/** Kind of content. */
export type PemKind = keyof typeof KINDS;

/**
 * Reads the blocks of `kind`, at least one; of a private key exactly one.
 * @throws {PemError}
 */
export function readPem(text: string | Uint8Array, kind: PemKind): PemBlock[] {
  const { labels, skipped, onlyOne, openssl }: Kind = KINDS[kind];
  const all = readBlocks(toText(text, openssl));
  const blocks = all.filter(({ label }) => labels.includes(label));
  const other = all.find(({ label }) => !labels.includes(label) && !skipped.includes(label));
  if (blocks.length === 0) {
    const others = [...new Set(all.map(({ label }) => label))];
    throw new PemError(`it has no ${labels[0]} in PEM${others.length === 0 ? "" : `, but ${others.join(", ")}`}${hintFor(others, kind)}`);
  }
  if (other) {
    throw new PemError(`it is a block of ${other.label}; only ${labels[0]} is allowed${hintFor([other.label], kind)}`, other.line);
  }
  const [first, second] = blocks;
  if (onlyOne && second) throw new PemError(`it is a second ${second.label}, after the one in line ${first!.line}`, second.line);
  for (const block of blocks) checkDer(block);
  return blocks;
}

const ALIASES: Readonly<Record<string, string>> = { "X509 CERTIFICATE": "CERTIFICATE" };

const HINTS: Readonly<Record<string, string>> = {
  "TRUSTED CERTIFICATE": "openssl x509 -in FILE -out NEW writes a plain one",
  "PKCS7": "openssl pkcs7 -print_certs -in FILE -out NEW writes its certificates",
  "CRL": "a revocation list has the label X509 CRL",
  "OPENSSH PRIVATE KEY": "ssh-keygen -p -m PKCS8 -f FILE converts it in place",
  "RSA PUBLIC KEY": "openssl rsa -RSAPublicKey_in -in FILE -pubout -out NEW converts it",
};

/** Hints for public keys. */
const PUBLIC_HINTS: Readonly<Record<string, string>> = {
  "CERTIFICATE": "openssl x509 -pubkey -noout -in FILE writes its public key",
  ...Object.fromEntries(
    PRIVATE_KEYS.map((label) => [label, "keep the private key where tokens are created; auth key public writes its public key"]),
  ),
};

function hintFor(labels: readonly string[], kind: PemKind): string {
  const hint = labels.map((label) => HINTS[label] ?? (kind === "public keys" ? PUBLIC_HINTS[label] : undefined)).find(Boolean);
  return hint === undefined ? "" : `; ${hint}`;
}

/** One character per byte: comments may be in any encoding. */
function toText(input: string | Uint8Array, openssl: string): string {
  const text = typeof input === "string" ? input : Buffer.from(input).toString("latin1");
  const start = text.slice(0, 2);
  if (text.includes("\0") && /^(?:\xff\xfe|\xfe\xff|\ufffd\ufffd|.\0|\0.)/s.test(start)) {
    throw new PemError("it is UTF-16; UTF-8 or ASCII is required");
  }
  // a SEQUENCE with a length of more than one byte; invalid UTF-8 has become U+FFFD
  if (/^0[\x81-\x84\ufffd]/.test(start)) {
    const isPkcs12 = text.slice(0, 9).includes("\x02\x01\x03"); // its version

    const convert = isPkcs12 ? "openssl pkcs12 -in FILE -out NEW -nodes" : `openssl ${openssl} -inform der -in FILE -out NEW`;
    throw new PemError(`it is ${isPkcs12 ? "PKCS #12" : "DER"}; PEM is required: ${convert} converts it`);
  }
  if (text.includes("\0")) throw new PemError("it is not text");
  return text;
}

/** Byte-order marks, as a character or as the three bytes of UTF-8. Concatenated files have them inside. */
const MARK = /^(?:\ufeff|\xef\xbb\xbf)+/;
const BEGIN = /^-----BEGIN ([!-,.-~]+(?:[ -][!-,.-~]+)*)-----$/;
const END = /^-----END ([!-,.-~]+(?:[ -][!-,.-~]+)*)-----$/;
/** A malformed BEGIN or END line: in any case and with any Unicode dashes. */
const NEARLY =
  /(?:-|[\u2010-\u2015\u2212]|\xe2\x80[\x90-\x95]|\xe2\x88\x92){2}[ \t]*(?:BEGIN|END)\b|\b(?:BEGIN|END) [A-Z0-9 ]*[-\u2014]{3}/i;
/** The start of a certificate or key in base64: its BEGIN line is missing. */
const BARE = /^MI[A-Za-z0-9+/]{38,}={0,2}$/;
const HEADER = /^[A-Za-z][A-Za-z0-9-]*:/;
/** Base64 characters; the padding is checked when the block is complete. */
const BASE64 = /^[A-Za-z0-9+/=]+$/;

function readBlocks(text: string): PemBlock[] {
  const blocks: PemBlock[] = [];
  let open: OpenBlock | undefined;
  for (const [index, raw] of text.split(/\r\n|\n|\r/).entries()) {
    const number = index + 1;
    const line = raw.trim().replace(MARK, "").trim();
    if (open) {
      if (!open.take(line, number)) continue;
      blocks.push(open.finish(number));
      open = undefined;
      continue;
    }
    // explanatory text around blocks is allowed (RFC 7468 §2); a comment may contain a disabled block
    if (line.startsWith("#")) continue;
    const [, label] = BEGIN.exec(line) ?? [];
    if (label !== undefined) open = new OpenBlock(label, number);
    else if (END.test(line)) throw new PemError("it is an END line without a BEGIN line", number);
    else if (NEARLY.test(line)) {
      throw new PemError("a BEGIN or END line must be on its own line, like -----BEGIN CERTIFICATE-----", number);
    } else if (BARE.test(line)) throw new PemError("it is base64 outside of a block: the BEGIN line is missing", number);
  }
  if (open) throw new PemError(`the block of ${open.label} has no END line`, open.line);
  return blocks;
}

/** A block whose END line has not been read yet. */
class OpenBlock {
  #base64 = "";
  readonly #headers: string[] = [];
  #inHeaders = false;

  constructor(readonly label: string, readonly line: number) {}

  /** Takes a line; returns whether it is the END line. */
  take(line: string, number: number): boolean {
    const [, label] = END.exec(line) ?? [];
    if (label === this.label) return true;
    if (label !== undefined) {
      throw new PemError(`the END line has the label ${label}, but the block from line ${this.line} has ${this.label}`, number);
    }
    if (line.startsWith(`-----END ${this.label}-----`)) {
      throw new PemError("text follows the END line on the same line: concatenated files need a line break between them", number);
    }
    if (line.includes("--") || NEARLY.test(line)) {
      throw new PemError(`the block of ${this.label} from line ${this.line} has no END line before this`, number);
    }
    if (line === "") {
      this.#inHeaders = false;
    } else if (this.#base64 === "" && this.label.endsWith("PRIVATE KEY") && (HEADER.test(line) || this.#inHeaders)) {
      this.#headers.push(line);
      this.#inHeaders = true;
    } else {
      const base64 = line.replace(/[ \t]+/g, "");
      if (!BASE64.test(base64) || this.#base64.endsWith("=") && !/^=$/.test(base64)) {
        throw new PemError(`it is not base64, inside the block of ${this.label} from line ${this.line}`, number);
      }
      this.#base64 += base64;
    }
    return false;
  }

  finish(number: number): PemBlock {
    const { label, line } = this;
    const base64 = this.#base64;
    if (base64 === "") throw new PemError(`the block of ${label} from line ${line} is empty`, number);
    if (base64.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) {
      throw new PemError(`the base64 of the block of ${label} from line ${line} is truncated`, number);
    }
    const hasHeaders = this.#headers.length > 0;
    const lines = [
      `-----BEGIN ${label}-----`,
      ...hasHeaders ? [...this.#headers, ""] : [],
      ...base64.match(/.{1,64}/g)!,
      `-----END ${label}-----`,
      "",
    ];
    const alias = ALIASES[label];
    const text = lines.join("\n");
    return {
      label: alias ?? label,
      line,
      der: new Uint8Array(Buffer.from(base64, "base64")),
      hasHeaders,
      text: alias === undefined ? text : text.replaceAll(label, alias),
    };
  }
}

/** Checks that a block is exactly one SEQUENCE (X.690), unless it is encrypted as a whole. */
function checkDer({ label, line, der, hasHeaders }: PemBlock): void {
  if (hasHeaders) return;
  const size = sequenceSize(der);
  if (size === undefined) throw new PemError(`the block of ${label} is damaged: it does not begin with a SEQUENCE`, line);
  if (size > der.length) throw new PemError(`the ${label} is truncated: it has ${der.length} of ${size} bytes`, line);
  if (size < der.length) throw new PemError(`the ${label} has ${der.length - size} extra bytes at its end`, line);
}

function sequenceSize(der: Uint8Array): number | undefined {
  const [tag, first] = der;
  if (tag !== 0x30 || first === undefined || first === 0x80 || first > 0x84) return undefined;
  if (first < 0x80) return 2 + first;
  const count = first & 0x7f;
  if (der.length < 2 + count) return undefined;
  return 2 + count + der.subarray(2, 2 + count).reduce((length, byte) => length * 256 + byte, 0);
}
