// What a proxy logs at its start: who can use it, and how agents reach it.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { PublicAddresses } from "../../proxy/public_address.ts";
import { logPin } from "../../proxy/tls.ts";
import { type Exposure, warnOfExposure } from "../../shared/frontend/exposure.ts";
import { LogBook } from "../../testing/network.ts";

describe("a client listener", () => {
  const open: Exposure = { address: "[::]:3128", option: "http-proxy.listen-address", asksForSecret: false, allowList: [] };
  const warnings = (exposure: Partial<Exposure>) => {
    const log = new LogBook();
    warnOfExposure(log, { ...open, ...exposure });
    return log.entries;
  };

  for (
    const address of ["[::]:3128", "0.0.0.0:3128", "192.0.2.1:3128", "[2001:db8::1]:3128", "[::ffff:192.0.2.1]:3128", "[fe80::1%eth0]:3128"]
  ) {
    it(`at ${address} without credentials and allow-list causes a warning with a remedy`, () => {
      const [warning, ...more] = warnings({ address });
      assert.deepEqual(more, []);
      assert.equal(warning!.level, "warn");
      assert.equal(warning!.message, "everyone who can reach this address can use every agent, for any destination");
      assert.equal(warning!.fields.address, address);
      for (const option of ["--auth.type=jwt", "--http-proxy.host-whitelist", "--http-proxy.listen-address=127.0.0.1:3128"]) {
        assert.ok(String(warning!.fields.remedy).includes(option), option);
      }
    });
  }

  it("is advised to listen on loopback at its own port", () => {
    const [warning] = warnings({ address: "[::]:3129" });
    assert.match(String(warning!.fields.remedy), /--http-proxy\.listen-address=127\.0\.0\.1:3129$/);
  });

  for (const address of ["127.0.0.1:3128", "127.8.9.10:3128", "[::1]:3128", "[::ffff:127.0.0.1]:3128"]) {
    it(`at ${address} causes none`, () => assert.deepEqual(warnings({ address }), []));
  }

  it("whose allow-list contains all destinations causes a warning too", () => {
    for (const word of ["all", "ALL"]) assert.equal(warnings({ allowList: [word] }).length, 1, word);
    assert.deepEqual(warnings({ allowList: ["none"] }), []);
  });

  it("that requires a secret or has an allow-list causes none", () => {
    assert.deepEqual(warnings({ asksForSecret: true }), []);
    assert.deepEqual(warnings({ allowList: ["10.0.0.0/8"] }), []);
  });
});

describe("the options for agents that a proxy logs with its pin", () => {
  const shown = (addresses: PublicAddresses) => {
    const log = new LogBook();
    logPin({ pin: "ab".repeat(32), file: "/state/agent-server.pem" } as Parameters<typeof logPin>[0], addresses, log);
    return log.entries.map(({ fields }) => fields);
  };

  it("have the addresses that others reach, and why they may not", () => {
    const [known] = shown({ addresses: ["proxy.example:4242", "[2001:db8::1]:4242"] });
    assert.equal(
      known!.options,
      `--agent-client.server-address=proxy.example:4242,[2001:db8::1]:4242 --agent-client.tls.pin-sha256=${"ab".repeat(32)}`,
    );
    assert.equal(known!.note, undefined);
    assert.equal(shown({ addresses: ["10.0.0.1:4242"], doubt: "a guess" })[0]!.note, "a guess");
  });
});
