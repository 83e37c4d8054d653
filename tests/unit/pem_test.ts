// The PEM parser: accepted files, and the line in errors about others.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { PemError, type PemKind, readPem } from "../../shared/net/pem.ts";
import { makeAuthority } from "../../testing/certificates.ts";

const authority = await makeAuthority();
const other = await makeAuthority("Other CA");
const { cert, key } = authority;
const list = await authority.revocationList(["01"]);

/** The same content in several notations. */
function read(text: string | Uint8Array, kind: PemKind = "authorities"): string[] {
  return readPem(text, kind).map(({ text }) => text);
}

function refusal(text: string | Uint8Array, kind: PemKind = "authorities"): string {
  try {
    read(text, kind);
  } catch (error) {
    assert.ok(error instanceof PemError, String(error));
    return error.message;
  }
  return assert.fail("it was not refused");
}

const inBytes = (text: string) => new Uint8Array(Buffer.from(text));

describe("PEM", () => {
  const both = [cert, other.cert];
  const spellings: Record<string, string> = {
    "as it is written by tools": cert + other.cert,
    "with a byte-order mark": `\ufeff${cert}${other.cert}`,
    "with a byte-order mark before each block": `\ufeff${cert}\ufeff${other.cert}`,
    "with CRLF": (cert + other.cert).replaceAll("\n", "\r\n"),
    "with CR": (cert + other.cert).replaceAll("\n", "\r"),
    "indented by blanks and tabs": (cert + other.cert).replaceAll(/^/gm, " \t "),
    "with blanks at the ends of lines": (cert + other.cert).replaceAll("\n", "  \n"),
    "with empty lines": (cert + other.cert).replaceAll("\n", "\n\n"),
    "without a line break at its end": (cert + other.cert).trimEnd(),
    "in one line of base64": [cert, other.cert].map((pem) => pem.replaceAll(/(?<=[A-Za-z0-9+/])\n(?=[A-Za-z0-9+/=])/g, "")).join(""),
    "with text around it, in any encoding":
      `subject=CN = Test CA\n    X509v3 ext:\n\xe9\n====\n${cert}\nBag Attributes\n localKeyID: 01\n${other.cert}end`,
    "with a block that is commented out": `${cert}${cert.trimEnd().replaceAll(/^/gm, "# ")}\n${other.cert}`,
    "with the label of old tools": (cert + other.cert).replaceAll("CERTIFICATE", "X509 CERTIFICATE"),
  };
  for (const [how, text] of Object.entries(spellings)) {
    it(`is read ${how}`, () => {
      assert.deepEqual(read(text), both);
      assert.deepEqual(read(inBytes(text)), both);
      assert.deepEqual(read(read(text).join("")), both);
    });
  }

  it("of another kind may only accompany a chain and a key", () => {
    assert.deepEqual(read(key + cert, "chain"), [cert]);
    assert.deepEqual(read(cert + key, "private key"), [key]);
    assert.deepEqual(read(list, "revocation lists"), [list]);
    assert.match(refusal(cert + key), /^line 11: it is a block of PRIVATE KEY; only CERTIFICATE is allowed$/);
    assert.match(refusal(list + cert, "revocation lists"), /^line \d+: it is a block of CERTIFICATE; only X509 CRL is allowed$/);
    assert.match(refusal(cert.replaceAll("CERT", "UNKNOWN CERT") + cert, "chain"), /^line 1: it is a block of UNKNOWN CERTIFICATE/);
  });

  const lines = cert.trimEnd().split("\n");
  const withLine = (index: number, line: string) => [...lines.slice(0, index), line, ...lines.slice(index + 1)].join("\n");
  const bad: [what: string, text: string, message: RegExp][] = [
    ["text before BEGIN on its line", `x ${cert}`, /^line 1: a BEGIN or END line must be on its own line/],
    ["a BEGIN line with four dashes", cert.replace("-----BEGIN", "----BEGIN"), /^line 1: a BEGIN or END line must be on its own line/],
    ["a BEGIN line in lower case", cert.replace("BEGIN CERTIFICATE", "begin certificate"), /^line 1: a BEGIN or END line must be/],
    ["long dashes", cert.replace(/-----BEGIN (\w+)-----/, "—–-BEGIN $1—–-"), /^line 1: a BEGIN or END line must be on its own line/],
    ["no BEGIN line", other.cert + lines.slice(1).join("\n"), /^line 11: it is base64 outside of a block: the BEGIN line is missing$/],
    ["an END line alone", `${cert}-----END CERTIFICATE-----\n`, /^line 11: it is an END line without a BEGIN line$/],
    ["no END line", lines.slice(0, -1).join("\n"), /^line 1: the block of CERTIFICATE has no END line$/],
    [
      "no END line before the next BEGIN",
      `${lines.slice(0, -1).join("\n")}\n${cert}`,
      /^line 10: the block of CERTIFICATE from line 1 has no END line before this$/,
    ],
    ["no line break between two", cert.trimEnd() + cert, /^line 10: text follows the END line on the same line/],
    [
      "another label at its end",
      cert.replace("END CERTIFICATE", "END X509 CRL"),
      /^line 10: the END line has the label X509 CRL, but the block from line 1 has CERTIFICATE$/,
    ],
    [
      "characters that are not base64",
      withLine(3, "_".repeat(64)),
      /^line 4: it is not base64, inside the block of CERTIFICATE from line 1$/,
    ],
    ["a comment inside", withLine(3, `# mine\n${lines[3]}`), /^line 4: it is not base64/],
    ["a header inside", withLine(1, `Version: 1\n\n${lines[1]}`), /^line 2: it is not base64/],
    ["padding in the middle", withLine(3, `${lines[3]!.slice(0, -1)}=`), /^line 5: it is not base64/],
    ["a character too few", withLine(3, lines[3]!.slice(1)), /^line 10: the base64 of the block of CERTIFICATE from line 1 is truncated$/],
    ["four characters too few", withLine(3, lines[3]!.slice(4)), /^line 1: the CERTIFICATE is truncated: it has \d+ of \d+ bytes$/],
    ["a line too many", withLine(3, `${lines[3]}\n${lines[3]}`), /^line 1: the CERTIFICATE has 48 extra bytes at its end$/],
    [
      "nothing inside",
      "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
      /^line 2: the block of CERTIFICATE from line 1 is empty$/,
    ],
    ["nothing at all", "\n", /^it has no CERTIFICATE in PEM$/],
    ["NUL characters", `${cert}\0`, /^it is not text$/],
    ["another kind", key, /^it has no CERTIFICATE in PEM, but PRIVATE KEY$/],
    [
      "OpenSSL's trusted form",
      cert.replaceAll("CERT", "TRUSTED CERT"),
      /but TRUSTED CERTIFICATE; openssl x509 -in FILE -out NEW writes a plain one$/,
    ],
  ];
  for (const [what, text, message] of bad) {
    it(`with ${what} is refused, with the line`, () => {
      assert.match(refusal(text), message);
      assert.match(refusal(inBytes(text)), message);
    });
  }

  it("in UTF-16, DER or PKCS #12 is refused, with the command that converts it", () => {
    for (const encoding of ["utf16le", "utf16be"] as const) {
      const bytes = Buffer.from(`\ufeff${cert}`, "utf16le");
      if (encoding === "utf16be") bytes.swap16();
      assert.match(refusal(new Uint8Array(bytes)), /^it is UTF-16; UTF-8 or ASCII is required$/);
      assert.match(refusal(new Uint8Array(bytes.subarray(2))), /^it is UTF-16/); // without the mark
    }
    const { der } = readPem(cert, "chain")[0]!;
    assert.match(refusal(der), /^it is DER; PEM is required: openssl x509 -inform der -in FILE -out NEW converts it$/);
    assert.match(refusal(readPem(list, "revocation lists")[0]!.der, "revocation lists"), /: openssl crl -inform der /);
    assert.match(refusal(new Uint8Array([0x30, 0x82, 9, 9, 2, 1, 3, 0x30, 0x82])), /^it is PKCS #12; PEM is required: openssl pkcs12 /);
  });

  it("has one private key, which no error shows", () => {
    assert.match(refusal(key + other.key, "private key"), /^line 6: it is a second PRIVATE KEY, after the one in line 1$/);
    const secret = key.split("\n")[1]!;
    const broken = [
      key.replaceAll("\n", " "),
      key.replace("-----END", "----END"),
      key.replace(secret, `${secret}!`),
      key.replace(secret, secret.slice(1)),
    ];
    for (const text of broken) assert.ok(!refusal(text, "private key").includes(secret.slice(8, 24)));
  });
});
