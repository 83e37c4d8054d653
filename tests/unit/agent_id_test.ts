// Agent ids in user names, which cannot contain every character of an id.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { agentIdOf, AuthenticationError, createNoAuth, identifyClient } from "../../shared/auth/authenticator.ts";
import { parseProxyAuthorization } from "../../shared/frontend/http/credentials.ts";
import { silentLogger } from "../../shared/log/logger.ts";

const PEER = { address: "192.0.2.1", requestId: "r-1" };

const basic = (text: string) => parseProxyAuthorization(`Basic ${btoa(text)}`);
/** The user name for an id, as a client writes it. */
const written = (id: string) => id.replace(/%((?:25)*3A)/gi, "%25$1").replaceAll(":", "%3A");

describe("the agent id in a user name", () => {
  const rows: [username: string, id: string][] = [
    ["4711", "4711"],
    ["00%3A1a%3a2B", "00:1a:2B"],
    ["spiffe%3A//example.org/agent", "spiffe://example.org/agent"],
    ["a%253Ab", "a%3Ab"],
    ["a%25253ab", "a%253ab"],
    ["100%", "100%"],
    ["a%2Fb", "a%2Fb"],
    ["a%3", "a%3"],
    ["%25", "%25"],
  ];
  for (const [username, id] of rows) {
    it(`is ${id} for ${username}`, async () => {
      assert.equal(agentIdOf(username), id);
      assert.equal((await identifyClient(createNoAuth(), basic(`${username}:pass:word`), PEER, silentLogger)).agentId, id);
    });
  }

  it("is not a token, which is kept out of the log", async () => {
    const token = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";
    const isDenied = (error: unknown) => error instanceof AuthenticationError && error.kind === "denied" && !error.message.includes(token);
    await assert.rejects(async () => await createNoAuth().authenticateClient(basic(`${token}:${token}`), PEER), isDenied);
  });

  it("can be any id", () => {
    fc.assert(fc.property(fc.string({ unit: fc.constantFrom(..."%253Aa:x/") }), (id) => {
      assert.equal(agentIdOf(written(id)), id);
      assert.equal(written(id).includes(":"), false);
    }));
  });
});
