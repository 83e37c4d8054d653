// The one reader of PEM (RFC 7468) in the program: what it does not understand is an error with its line, never skipped. The network's adapter
// hands what it found to the engine as DER. Files and options are not known here, and no message shows any content.
import { Buffer } from "node:buffer";

/** One block, BEGIN line to END line. */
export interface PemBlock {
  readonly label: string;
  /** Of its BEGIN line; the first line is 1. */
  readonly line: number;
  readonly der: Uint8Array<ArrayBuffer>;
  /** It has the headers of RFC 1421, as encrypted PKCS #1 and SEC 1 keys do. */
  readonly hasHeaders: boolean;
  /** In its plainest form: lines of 64 characters that end with LF. */
  readonly text: string;
}

/** Why a text cannot be used. */
export class PemError extends Error {
  override readonly name = "PemError";
  constructor(why: string, readonly line?: number) {
    super(line === undefined ? why : `line ${line}: ${why}`);
  }
}

interface Kind {
  /** What is read. */
  readonly labels: readonly string[];
  /** What may stand beside it. */
  readonly beside: readonly string[];
  readonly onlyOne?: boolean;
  /** The command of OpenSSL that reads DER of this kind. */
  readonly openssl: string;
}

const PRIVATE_KEYS = ["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
/** What `openssl ecparam -genkey` and old server set-ups write into the same file. */
const PARAMETERS = ["EC PARAMETERS", "DH PARAMETERS"];

/** What a text may hold, by what it is for. */
const KINDS = {
  /** A certificate chain; its key may be in the same file. */
  chain: { labels: ["CERTIFICATE"], beside: [...PRIVATE_KEYS, ...PARAMETERS], openssl: "x509" },
  /** Certificates to trust. */
  authorities: { labels: ["CERTIFICATE"], beside: [], openssl: "x509" },
  /** A private key; its certificates may be in the same file. */
  "private key": { labels: PRIVATE_KEYS, beside: ["CERTIFICATE", ...PARAMETERS], onlyOne: true, openssl: "pkey" },
  "revocation lists": { labels: ["X509 CRL"], beside: [], openssl: "crl" },
  /** `EC PUBLIC KEY` is what the Go original writes. */
  "public keys": { labels: ["PUBLIC KEY", "EC PUBLIC KEY"], beside: ["EC PARAMETERS"], openssl: "pkey -pubin" },
} as const satisfies Record<string, Kind>;

/** What a text is for. */
export type PemKind = keyof typeof KINDS;

/**
 * The blocks of `kind` in the text, at least one; of private keys exactly one.
 * @throws {PemError}
 */
export function readPem(text: string | Uint8Array, kind: PemKind): PemBlock[] {
  const { labels, beside, onlyOne, openssl }: Kind = KINDS[kind];
  const all = readBlocks(toText(text, openssl));
  const found = all.filter(({ label }) => labels.includes(label));
  const other = all.find(({ label }) => !labels.includes(label) && !beside.includes(label));
  if (found.length === 0) {
    const others = [...new Set(all.map(({ label }) => label))];
    throw new PemError(`it has no ${labels[0]} in PEM${others.length === 0 ? "" : `, but ${others.join(", ")}`}${hintFor(others, kind)}`);
  }
  if (other) {
    throw new PemError(`it is a block of ${other.label}, where only ${labels[0]} can be used${hintFor([other.label], kind)}`, other.line);
  }
  const [first, second] = found;
  if (onlyOne && second) throw new PemError(`it is a second ${second.label}, after the one in line ${first!.line}`, second.line);
  for (const block of found) checkDer(block);
  return found;
}

const ALIASES: Readonly<Record<string, string>> = { "X509 CERTIFICATE": "CERTIFICATE" };

const HINTS: Readonly<Record<string, string>> = {
  "TRUSTED CERTIFICATE": "openssl x509 -in FILE -out NEW writes a plain one",
  "PKCS7": "openssl pkcs7 -print_certs -in FILE -out NEW writes its certificates",
  "CRL": "a revocation list has the label X509 CRL",
  "OPENSSH PRIVATE KEY": "ssh-keygen -p -m PKCS8 -f FILE converts it in its place",
  "RSA PUBLIC KEY": "openssl rsa -RSAPublicKey_in -in FILE -pubout -out NEW converts it",
};

/** Where public keys are needed. */
const PUBLIC_HINTS: Readonly<Record<string, string>> = {
  "CERTIFICATE": "openssl x509 -pubkey -noout -in FILE writes its public key",
  ...Object.fromEntries(
    PRIVATE_KEYS.map((label) => [label, "a private key belongs where tokens are made: auth key public writes its public key"]),
  ),
};

function hintFor(labels: readonly string[], kind: PemKind): string {
  const hint = labels.map((label) => HINTS[label] ?? (kind === "public keys" ? PUBLIC_HINTS[label] : undefined)).find(Boolean);
  return hint === undefined ? "" : `; ${hint}`;
}

/** One character a byte, without the mark at its start: comments may be in any encoding. */
function toText(input: string | Uint8Array, openssl: string): string {
  const text = typeof input === "string" ? input : Buffer.from(input).toString("latin1");
  const start = text.slice(0, 2);
  if (text.includes("\0") && /^(?:\xff\xfe|\xfe\xff|\ufffd\ufffd|.\0|\0.)/s.test(start)) {
    throw new PemError("it is text in UTF-16, and UTF-8 or ASCII is needed");
  }
  // SEQUENCE, and a length of more than one byte; what is no UTF-8 became U+FFFD
  if (/^0[\x81-\x84\ufffd]/.test(start)) {
    const isPkcs12 = text.slice(0, 9).includes("\x02\x01\x03"); // its version

    const convert = isPkcs12 ? "openssl pkcs12 -in FILE -out NEW -nodes" : `openssl ${openssl} -inform der -in FILE -out NEW`;
    throw new PemError(`it is ${isPkcs12 ? "PKCS #12" : "DER"}, and PEM is needed; ${convert} converts it`);
  }
  if (text.includes("\0")) throw new PemError("it is not text");
  return text;
}

/** A byte-order mark, as it is in a string and as the three bytes of UTF-8; joined files have one inside. */
const MARK = /^(?:\ufeff|\xef\xbb\xbf)+/;
const BEGIN = /^-----BEGIN ([!-,.-~]+(?:[ -][!-,.-~]+)*)-----$/;
const END = /^-----END ([!-,.-~]+(?:[ -][!-,.-~]+)*)-----$/;
/** What looks like a BEGIN or END line, in any case and with any dashes of Unicode. */
const NEARLY =
  /(?:-|[\u2010-\u2015\u2212]|\xe2\x80[\x90-\x95]|\xe2\x88\x92){2}[ \t]*(?:BEGIN|END)\b|\b(?:BEGIN|END) [A-Z0-9 ]*[-\u2014]{3}/i;
/** The start of a certificate or key in base64: its BEGIN line is missing. */
const BARE = /^MI[A-Za-z0-9+/]{38,}={0,2}$/;
const HEADER = /^[A-Za-z][A-Za-z0-9-]*:/;
/** All that looks like base64; where the padding may be is checked when the block is complete. */
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
    // text around blocks explains them (RFC 7468 §2); a comment may be a block that was put out of use
    if (line.startsWith("#")) continue;
    const [, label] = BEGIN.exec(line) ?? [];
    if (label !== undefined) open = new OpenBlock(label, number);
    else if (END.test(line)) throw new PemError("it is an END line without a BEGIN line", number);
    else if (NEARLY.test(line)) {
      throw new PemError("a BEGIN or END line must be a line of its own, like -----BEGIN CERTIFICATE-----", number);
    } else if (BARE.test(line)) throw new PemError("it is base64 outside of a block: its BEGIN line is missing", number);
  }
  if (open) throw new PemError(`the block of ${open.label} has no END line`, open.line);
  return blocks;
}

/** A block whose END line was not read yet. */
class OpenBlock {
  #base64 = "";
  readonly #headers: string[] = [];
  #inHeaders = false;

  constructor(readonly label: string, readonly line: number) {}

  /** Whether the line is its END line. */
  take(line: string, number: number): boolean {
    const [, label] = END.exec(line) ?? [];
    if (label === this.label) return true;
    if (label !== undefined) {
      throw new PemError(`the END line is one of ${label}, and the block of line ${this.line} is ${this.label}`, number);
    }
    if (line.startsWith(`-----END ${this.label}-----`)) {
      throw new PemError("something follows the END line on the same line: files that are joined need a line break between them", number);
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
      throw new PemError(`the base64 of the block of ${label} from line ${line} is cut short`, number);
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

/** One SEQUENCE (X.690) that fills the block. What is encrypted as a whole cannot be looked at. */
function checkDer({ label, line, der, hasHeaders }: PemBlock): void {
  if (hasHeaders) return;
  const size = sequenceSize(der);
  if (size === undefined) throw new PemError(`the block of ${label} is damaged: it does not begin as one`, line);
  if (size > der.length) throw new PemError(`the ${label} is cut short: it has ${der.length} of ${size} bytes`, line);
  if (size < der.length) throw new PemError(`the ${label} has ${der.length - size} bytes behind its end`, line);
}

function sequenceSize(der: Uint8Array): number | undefined {
  const [tag, first] = der;
  if (tag !== 0x30 || first === undefined || first === 0x80 || first > 0x84) return undefined;
  if (first < 0x80) return 2 + first;
  const count = first & 0x7f;
  if (der.length < 2 + count) return undefined;
  return 2 + count + der.subarray(2, 2 + count).reduce((length, byte) => length * 256 + byte, 0);
}
