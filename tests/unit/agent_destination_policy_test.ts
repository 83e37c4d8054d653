// The destinations that an agent connects to: deny-lists with names, addresses, and names whose addresses change.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDestinationPolicy, type DestinationPolicy } from "../../agent/destination_policy.ts";
import { parseAuthority } from "../../shared/address/authority.ts";
import { statusOf } from "../../shared/http/status.ts";
import { NetError } from "../../shared/net/errors.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";

/** The deny-list that docs/security.md recommends. */
const ADVISED = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "100.100.100.200", "metadata.google.internal"];

type Names = Record<string, string[] | (() => Promise<string[]>)>;

const ZONES = new Map([["2", "eth0"], ["3", "eth1"]]);

function withDeny(deny: string[], names: Names = {}): DestinationPolicy {
  const resolve = async (name: string) => {
    const found = names[name];
    if (found === undefined) throw new Error("ENOTFOUND");
    return typeof found === "function" ? await found() : found;
  };
  return createDestinationPolicy({ allow: [], deny, resolve, zones: () => ZONES });
}

/** The addresses to connect to, or the error type or code of the refusal. */
async function reach(destinations: DestinationPolicy, text: string, timeoutMs = 5_000): Promise<string | number> {
  try {
    const { host, addresses = [host] } = await destinations.resolve(parseAuthority(text), "tcp", timeoutMs);
    return addresses.join();
  } catch (error) {
    if (error instanceof TunnelError) return statusOf(error);
    if (error instanceof NetError) return error.code;
    throw error;
  }
}

describe("a deny-list of the agent", () => {
  it("as recommended refuses link-local and metadata addresses in every notation, and allows private networks", async () => {
    const names = {
      "169.254.169.254.nip.test": ["169.254.169.254"],
      "mapped.test": ["::ffff:169.254.169.254"],
      "v6.test": ["fe80::1"],
      "internal.test": ["10.0.0.7"],
    };
    const destinations = withDeny(ADVISED, names);
    const denied = [
      "169.254.169.254:80",
      "[::ffff:169.254.169.254]:80",
      "[::ffff:a9fe:a9fe]:80",
      "0xa9fea9fe:80",
      "[fe80::1]:80",
      "[fe80::1%25eth0]:80",
      "[fd00:ec2::254]:80",
      "100.100.100.200:80",
      "metadata.google.internal:80",
      "METADATA.google.internal.:80",
      ...Object.keys(names).slice(0, 3).map((name) => `${name}:80`),
    ];
    for (const destination of denied) assert.equal(await reach(destinations, destination), 403, destination);
    for (const host of ["10.0.0.1", "192.168.1.1", "127.0.0.1"]) assert.equal(await reach(destinations, `${host}:80`), host);
    assert.equal(await reach(destinations, "internal.test:80"), "10.0.0.7");
  });

  it("applies to the addresses that are connected to: a name is resolved once, then its address is used", async () => {
    let asked = 0;
    const rebinding = () => Promise.resolve(asked++ === 0 ? ["192.0.2.1"] : ["169.254.169.254"]);
    const destinations = withDeny(ADVISED, { "rebinding.test": rebinding });
    assert.equal(await reach(destinations, "rebinding.test:80"), "192.0.2.1");
    assert.equal(await reach(destinations, "rebinding.test:80"), 403);
    assert.equal(asked, 2);
  });

  /** Of which all lead to the loopback address, or could where there is a gateway. */
  const LOOPBACK = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0X7F.0.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.01",
    "127.255.255.254",
    "0.0.0.0",
    "0",
    "0x0",
    "00000",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::1%lo]",
    "[::1%251]",
    "[::%lo]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:7f00:1%lo]",
    "[::ffff:0:0]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::127.0.0.1]",
    "[64:ff9b:1:7f00:0:100::]",
    "[2002:7f00:1::]",
    "[2002:7f00:1:1::9]",
  ];

  it("refuses every notation of the loopback address with the denied port, and allows other ports and networks", async () => {
    const destinations = withDeny(["127.0.0.0/8:9090", "[::1]:9090"]);
    for (const host of LOOPBACK) {
      assert.equal(await reach(destinations, `${host}:9090`), 403, host);
      assert.equal(typeof await reach(destinations, `${host}:9091`), "string", host);
    }
    for (const host of ["10.0.0.1", "128.1", "2147483649", "[::2]", "[64:ff9b::a00:1]", "[2002:a00:1::]", "[2001:db8::127.0.0.1]"]) {
      assert.equal(typeof await reach(destinations, `${host}:9090`), "string", host);
    }
  });

  it("refuses names that resolve to any form of a denied address", async () => {
    for (
      const host of ["0.0.0.0", "::", "::1", "127.0.0.7", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "::1%lo", "::127.0.0.1"]
    ) {
      const destinations = withDeny(["127.0.0.0/8:9090", "[::1]:9090"], { "rebound.test": [host], "both.test": [host, "192.0.2.1"] });
      assert.equal(await reach(destinations, "rebound.test:9090"), 403, host);
      assert.equal(await reach(destinations, "both.test:9090"), "192.0.2.1", host);
    }
  });

  it("also denies an address as it was written", async () => {
    const destinations = withDeny(["0.0.0.0/8", "::/128", "64:ff9b::/96"]);
    for (const host of ["0.0.0.0", "0", "[::]", "[64:ff9b::a00:1]"]) assert.equal(await reach(destinations, `${host}:80`), 403, host);
    for (const host of ["127.0.0.1", "[::1]"]) assert.equal(typeof await reach(destinations, `${host}:80`), "string", host);
  });

  it("knows an interface by its name and by its number", async () => {
    for (const pattern of ["fe80::1%eth0", "[fe80::1%2]:80"]) {
      const destinations = withDeny([pattern]);
      for (const zone of ["eth0", "2"]) assert.equal(await reach(destinations, `[fe80::1%${zone}]:80`), 403, `${pattern} ${zone}`);
      for (const zone of ["eth1", "3"]) {
        assert.equal(await reach(destinations, `[fe80::1%${zone}]:80`), `fe80::1%${zone}`, `${pattern} ${zone}`);
      }
    }
  });

  it("connects to the address that it has checked, in its usual form", async () => {
    for (const deny of [[], ADVISED]) {
      for (const [written, address] of [["0x7f.1", "127.0.0.1"], ["0.0.0.0", "127.0.0.1"], ["[::]", "::1"], ["[::1%lo]", "::1"]]) {
        assert.equal(await reach(withDeny(deny), `${written}:80`), address);
      }
    }
  });

  it("allows the other addresses of a name", async () => {
    const destinations = withDeny(ADVISED, { "both.test": ["169.254.1.1", "192.0.2.1"] });
    assert.equal(await reach(destinations, "both.test:80"), "192.0.2.1");
  });

  it("compares ports", async () => {
    const destinations = withDeny(["127.0.0.0/8:9090"], { "localhost": ["127.0.0.1"] });
    assert.equal(await reach(destinations, "localhost:9090"), 403);
    assert.equal(await reach(destinations, "localhost:9091"), "127.0.0.1");
  });

  it("passes on the allowed addresses, the name, and the remaining time", async () => {
    const names = { "three.test": ["169.254.1.1", "192.0.2.1", "::ffff:169.254.1.1", "2001:db8::1"] };
    const { timeoutMs, ...rest } = await withDeny(ADVISED, names).resolve(parseAuthority("three.test:80"), "tcp", 5_000);
    assert.deepEqual(rest, { host: "three.test", port: 80, addresses: ["192.0.2.1", "2001:db8::1"] });
    assert.ok(timeoutMs > 0 && timeoutMs <= 5_000, `${timeoutMs}`);
  });

  it("ends a lookup that takes too long", async () => {
    const destinations = withDeny(ADVISED, { "silent.test": () => new Promise(() => {}) });
    assert.equal(await reach(destinations, "silent.test:80", 30), "name-timed-out");
  });

  it("reports an unknown name", async () => {
    const destinations = withDeny(ADVISED, { "empty.test": [] });
    assert.equal(await reach(destinations, "nowhere.test:80"), "unknown-host");
    assert.equal(await reach(destinations, "empty.test:80"), "unknown-host");
  });
});
