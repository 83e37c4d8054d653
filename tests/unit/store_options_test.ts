// The options of the store: which values are refused, and that no message has a password in it.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { resolve } from "../../shared/config/sources.ts";
import { ConfigError } from "../../shared/config/option.ts";

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
  it("is taken with and without user, password, port and database", () => {
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
  it("is short and visible", () => {
    for (const good of ["", "reverse-http:", "x".repeat(64)]) assert.equal(problemOf("store.key-prefix", good), undefined, good);
    for (const bad of ["a b", "ä", "x\n", "x".repeat(65)]) assert.match(problemOf("store.key-prefix", bad)!, /store\.key-prefix/, bad);
  });
});
