// Options that a program gives: the command line's defaults and checks.
import process from "node:process";
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { agentOptions } from "../../agent/options.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { withDefaults } from "../../shared/cli/defaults.ts";
import { ConfigError, defineOptions } from "../../shared/cli/option.ts";

function refusal(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.message;
  }
  throw new Error("it was taken");
}

describe("withDefaults", () => {
  it("keeps what is given, and gives the rest its default", () => {
    const options = withDefaults(proxyOptions, {
      agentServer: { tls: { file: { key: "key.pem" } } },
      httpProxy: { hostWhitelist: ["a:80"] },
    });
    assert.equal(options.agentServer.tls.file.key, "key.pem");
    assert.equal(options.agentServer.tls.file.cert, undefined);
    assert.equal(options.agentServer.listenAddress, ":4242");
    assert.equal(options.agentServer.agent.dialTimeout, 10_000);
    assert.deepEqual(options.httpProxy.hostWhitelist, ["a:80"]);
  });

  it("takes undefined as not given", () => {
    assert.deepEqual(withDefaults(agentOptions, { agentClient: { serverAddress: undefined } }).agentClient.serverAddress, [
      "localhost:4242",
    ]);
  });

  it("does not look at this process's environment", () => {
    const before = process.env.LOG_LEVEL;
    process.env.LOG_LEVEL = "loud";
    try {
      assert.equal(withDefaults(agentOptions, {}).log.level, "info");
    } finally {
      if (before === undefined) delete process.env.LOG_LEVEL;
      else process.env.LOG_LEVEL = before;
    }
  });

  it("refuses what the command line would refuse", () => {
    assert.match(
      refusal(() => withDefaults(agentOptions, { agentClient: { hostWhitelist: ["a:b:c"] } })),
      /^Cannot use --agent-client\.host-whitelist: .*"a:b:c"/,
    );
    assert.match(
      refusal(() => withDefaults(proxyOptions, { agentServer: { agent: { dialTimeout: 0 } } })),
      /^Cannot use --agent-server\.agent\.dial-timeout/,
    );
    assert.match(refusal(() => withDefaults(agentOptions, { agentClient: { tls: { pinSha256: ["abc"] } } })), /"abc" is not the SHA-256/);
    const missing = defineOptions({ "wings": { kind: "boolean", notBuilt: "Flying", description: "Fly." } });
    assert.equal(refusal(() => withDefaults(missing, { wings: true })), "Cannot use --wings: Flying is not built yet");
    assert.match(refusal(() => withDefaults(agentOptions, { agentClient: { serverAddress: [":4242"] } })), /lacks a host or a port/);
  });

  it("refuses a key that no option has, and a value in place of a group", () => {
    // as a program without types gives them
    const given = (value: unknown) => () => withDefaults(agentOptions, value as Record<string, never>);
    assert.equal(refusal(given({ agentClient: { serverAdress: "a:1" } })), "Unknown option agentClient.serverAdress");
    assert.equal(refusal(given({ agentClient: "a:1" })), "Unknown option agentClient");
  });

  it("refuses a value of another type", () => {
    const given = (value: unknown) => () => withDefaults(proxyOptions, { agentServer: { agent: { dialTimeout: value as number } } });
    assert.match(refusal(given("10s")), /^Cannot use --agent-server\.agent\.dial-timeout: "10s" is not a duration/);
    assert.match(refusal(given(null)), /is not a duration/);
  });
});
