// Options that a program passes to the library: the defaults and checks of the command line.
import process from "node:process";
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { agentOptions } from "../../agent/options.ts";
import { SERVICES } from "../../services.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { camelCase, type Options } from "../../shared/config/option.ts";
import { refusal } from "../../testing/refusal.ts";

describe("withDefaults", () => {
  it("keeps given values, and sets the defaults of the others", () => {
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

  it("treats undefined as not given", () => {
    assert.deepEqual(withDefaults(agentOptions, { agentClient: { serverAddress: undefined } }).agentClient.serverAddress, [
      "localhost:4242",
    ]);
  });

  it("does not read the environment", () => {
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
    assert.match(refusal(() => withDefaults(agentOptions, { agentClient: { serverAddress: [":4242"] } })), /has no host or no port/);
  });

  const numbers: [value: number, said: RegExp][] = [
    [-1, /is not a whole number/],
    [1.5, /is not a whole number/],
    [NaN, /is not a whole number/],
    [Infinity, /is not a whole number/],
    [2 ** 31, /is more than/],
    [Number.MAX_SAFE_INTEGER, /is more than/],
  ];
  for (const [value, said] of numbers) {
    it(`refuses ${value} for every option that is a number`, () => {
      for (const all of Object.values(SERVICES) as Options[]) {
        for (const [name, { kind, maxMs }] of Object.entries(all)) {
          if (kind !== "integer" && kind !== "duration") continue;
          assert.equal(maxMs, undefined, `${name} may be longer than a timer can`);
          const given = name.split(".").map(camelCase).reduceRight<unknown>((inner, key) => ({ [key]: inner }), value);
          const message = refusal(() => withDefaults(all, given as Record<string, never>));
          assert.ok(message.startsWith(`Cannot use --${name}: `), message);
          assert.match(message, said);
        }
      }
    });
  }

  it("refuses an invalid address and an empty value", () => {
    assert.match(refusal(() => withDefaults(proxyOptions, { agentServer: { listenAddress: "junk" } })), /its port is missing/);
    assert.match(refusal(() => withDefaults(proxyOptions, { httpProxy: { listenAddress: "" } })), /it is empty/);
    assert.match(refusal(() => withDefaults(proxyOptions, { httpProxy: { hostWhitelist: [] } })), /it is empty; write all/);
    assert.match(
      refusal(() => withDefaults(agentOptions, { agentClient: { serverAddress: ["[fe80::1%lo]:4242", "[zz]:4242"] } })),
      /brackets/,
    );
    assert.deepEqual(withDefaults(proxyOptions, { httpProxy: { hostWhitelist: ["all"] } }).httpProxy.hostWhitelist, ["all"]);
  });

  it("refuses an unknown key and a value in place of a group", () => {
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
