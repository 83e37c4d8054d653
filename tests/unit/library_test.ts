// The library's functions refuse invalid hooks.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ConfigError, startLoadBalancer, startProxy } from "../../mod.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";

describe("library", () => {
  for (const [name, start] of Object.entries({ startProxy, startLoadBalancer })) {
    it(`refuses both authenticate and authenticator in ${name}`, async () => {
      const authenticator = { authenticateAgent: () => "4711", authenticateClient: () => "4711" };
      await assert.rejects(
        start({}, { net: createMemoryNet(), authenticate: () => "4711", authenticator }),
        (error) => error instanceof ConfigError && /^Cannot use both authenticate and authenticator/.test(error.message),
      );
    });
  }
});
