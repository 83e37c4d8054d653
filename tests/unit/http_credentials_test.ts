// Proxy-Authorization as clients write it and as lb forwards it.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { AuthenticationError } from "../../shared/auth/authenticator.ts";
import { formatProxyAuthorization, parseProxyAuthorization, readCredentials } from "../../shared/frontend/http/credentials.ts";
import { CredentialsError } from "../../shared/tunnel/errors.ts";

const field = (value: string) => ["Proxy-Authorization", value] as const;

describe("Proxy-Authorization", () => {
  it("keeps the credentials when it is parsed and written again", () => {
    fc.assert(fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (name, password) => {
      const username = name.replaceAll(":", "");
      const credentials = { scheme: "basic", username, password } as const;
      assert.deepEqual(parseProxyAuthorization(formatProxyAuthorization(credentials)), credentials);
    }));
    const bearer = { scheme: "bearer", token: "a.b-c_d~e+f/g==" } as const;
    assert.deepEqual(parseProxyAuthorization(formatProxyAuthorization(bearer)), bearer);
    assert.equal(formatProxyAuthorization({ scheme: "basic", username: "7", password: "x" }), "Basic Nzp4");
  });

  it("is read with any case of its scheme and any number of spaces after it", () => {
    for (const value of ["basic Nzp4", "BASIC   Nzp4"]) {
      assert.deepEqual(readCredentials([field(value)]), { scheme: "basic", username: "7", password: "x" });
    }
  });

  const refused: [what: string, fields: (readonly [string, string])[]][] = [
    ["is there twice", [field("Basic Nzp4"), field("Basic Nzp4")]],
    ["has another scheme", [field("Digest username=a")]],
    ["has no colon", [field(`Basic ${btoa("7")}`)]],
    ["is not base64", [field("Basic =")]],
    ["is not UTF-8", [field(`Basic ${btoa("\xff:x")}`)]],
  ];
  for (const [what, fields] of refused) {
    it(`that ${what} is refused`, () => {
      const error = readCredentials(fields);
      assert.ok(error instanceof CredentialsError && error.type === "http_request_denied");
    });
  }

  it("may be missing: whether credentials are needed is decided elsewhere", () => {
    assert.equal(readCredentials([]), undefined);
  });

  it("that is malformed is refused without the reason, which the log has", () => {
    const error = readCredentials([field("Digest a")]);
    assert.ok(error instanceof CredentialsError && error.cause instanceof AuthenticationError);
    assert.equal(error.message, "The credentials are not accepted");
    assert.match(error.cause.message, /neither Basic nor Bearer/);
  });
});
