// The options of the store: which values are refused, and that no message contains a password.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { resolve } from "../../shared/config/sources.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { checkStoreOptions } from "../../shared/store/options.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { Folder } from "../../testing/programs.ts";

function problemOf(option: string, value: string): string | undefined {
  try {
    resolve(lbOptions, { flags: new Map([[option, value]]), env: {} });
    return undefined;
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.message;
  }
}

describe("the URL of Redis", () => {
  it("is accepted with and without user, password, port and database", () => {
    const urls = ["redis://h", "redis://h:1/", "rediss://u:p@h:1/15", "redis://:p%2F%23%40%25@[::1]:6379/0", "redis://h?db=3"];
    for (const url of urls) assert.equal(problemOf("store.redis.url", url), undefined, url);
  });

  for (
    const [url, expected] of [
      ["redis://:hush/hush@h:1/0", /percent-encode.*\/ is %2F/],
      ["redis://:hush#hush@h", /percent-encode.*# %23/],
      ["redis://:hush?hush@h", /percent-encode.*\? %3F/],
      ["redis://u:12/hush@h:1/0", /its database, after the last \/, is not a number; in a password, \/ is %2F/],
      ["redis://:hush%zz@h", /a % that is not followed by two hexadecimal digits; % itself is %25/],
      ["redis://:hush@h/hush", /its database.* is not a number/],
      ["redis://:hush@h/-1", /its database.* is not a number/],
      ["redis://:hush@h:0", /it has the port 0/],
      ["redis://:hush@h/0#1", /it has a #; in a password, # is %23/],
      ["redis://hush@h", /a user without a password; a password alone is written redis:\/\/:password@host/],
      ["redis://:hush@h/1/2", /its database.* is not a number/],
      ["http://:hush@h", /it is not a redis: or rediss: URL/],
      ["hush", /it is not a redis: or rediss: URL/],
    ] as const
  ) {
    it(`is refused as ${url}, with the remedy and without the password`, () => {
      const problem = problemOf("store.redis.url", url)!;
      assert.match(problem, /^Cannot use --store\.redis\.url: /);
      assert.match(problem, expected);
      assert.ok(!problem.includes("hush"), problem);
    });
  }
});

describe("the prefix of keys", () => {
  it("is short and visible ASCII", () => {
    for (const good of ["", "reverse-http:", "x".repeat(64)]) assert.equal(problemOf("store.key-prefix", good), undefined, good);
    for (const bad of ["a b", "ä", "x\n", "x".repeat(65)]) assert.match(problemOf("store.key-prefix", bad)!, /store\.key-prefix/, bad);
  });
});

describe("the authorities of Redis", () => {
  /** What {@link checkStoreOptions} reads of the file, with this URL. */
  const read = async (rootCa: string, url = "rediss://h") =>
    await checkStoreOptions({
      type: "redis",
      keyPrefix: "",
      memcached: { address: [], timeout: 1 },
      redis: { url, timeout: 1, tls: { file: { rootCa } } },
    });

  it("are read as plain PEM, whatever the case of the URL's scheme", async () => {
    using folder = new Folder();
    const { cert } = await makeAuthority();
    const file = folder.write("ca.pem", `\ufeff# a comment\r\n${cert.replaceAll("\n", "\r\n")}`);
    for (const url of ["rediss://h", "REDISS://h"]) assert.equal((await read(file, url)).redisCa?.trim(), cert.trim());
    await assert.rejects(read(file, "redis://h"), /root-ca: --store\.redis\.url is not a rediss: URL$/);
  });

  it("are refused if the file has none, with the option and the file's name", async () => {
    using folder = new Folder();
    const { cert, key } = await makeAuthority();
    const wrong: [content: string, said: RegExp][] = [
      ["garbage", /: it has no CERTIFICATE in PEM$/],
      ["", /: it has no CERTIFICATE in PEM$/],
      [key, /: it has no CERTIFICATE in PEM, but PRIVATE KEY$/],
      [cert + key, /: line \d+: it is a block of PRIVATE KEY; only CERTIFICATE is allowed$/],
      [cert.slice(0, -30), /: the block of CERTIFICATE|: line \d+: /],
    ];
    for (const [content, said] of wrong) {
      const file = folder.write("ca.pem", content);
      await assert.rejects(read(file), (error) => {
        assert.ok(error instanceof ConfigError);
        assert.ok(error.message.startsWith(`Cannot use --store.redis.tls.file.root-ca ${file}: `), error.message);
        assert.match(error.message, said);
        return true;
      });
    }
    await assert.rejects(read("/nonexistent/ca.pem"), {
      message: "Cannot read --store.redis.tls.file.root-ca /nonexistent/ca.pem: the file does not exist",
    });
  });
});
