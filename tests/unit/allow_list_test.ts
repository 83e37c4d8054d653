// Allow-lists: every form of pattern with matching and other destinations, alone and through a proxy and an agent.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDestinationPolicy } from "../../agent/destination_policy.ts";
import { serveTunnel } from "../../agent/tunnel.ts";
import { createAllowList, createDenyList, DestinationPatterns, networksOf } from "../../shared/address/allow_list.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { checkNetworks, checkPatterns } from "../../shared/config/common_options.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { parseAuthority } from "../../shared/address/authority.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { readText } from "../conformance/support.ts";
import { connectHead } from "../../testing/sockets.ts";
import { ask, netWith, parseAnswer, streamPair, withNet } from "../../testing/network.ts";

interface Row {
  patterns: string[];
  matches: string[];
  misses: string[];
}

const row = (patterns: string | string[], matches: string[], misses: string[]): Row => ({ patterns: [patterns].flat(), matches, misses });

const TABLE: Row[] = [
  // names
  row("localhost", ["localhost:1", "localhost:65535", "LOCALHOST:80", "localhost.:80"], ["127.0.0.1:80", "[::1]:80", "a.localhost:80"]),
  row("localhost:80", ["localhost:80", "LocalHost.:80"], ["localhost:79", "localhost:81", "127.0.0.1:80"]),
  row("localhost:1000-2000", ["localhost:1000", "localhost:1500", "localhost:2000"], ["localhost:999", "localhost:2001", "localhost:80"]),
  row("LocalHost.", ["localhost:80", "LOCALHOST.:80"], ["localhosts:80", "local:80"]),
  row("db-1.internal_net.example", ["DB-1.internal_net.example.:5432"], ["db-2.internal_net.example:5432", "example:5432"]),
  row("a.b:443-443", ["a.b:443"], ["a.b:442", "a.b:444", "aab:443"]),

  // zones
  row("*.zone", ["zone:1", "a.zone:80", "b.a.zone:65535", "A.ZONE.:80", "zone.:80"], [
    "azone:80",
    "zone.a:80",
    "a.zone.b:80",
    "10.0.0.1:80",
  ]),
  row("*.zone:80", ["zone:80", "a.zone:80"], ["zone:81", "a.zone:8080"]),
  row("*.zone:1000-2000", ["zone:1000", "a.zone:2000"], ["zone:999", "a.zone:2001"]),
  row("*.Sub.Zone.", ["sub.zone:80", "x.SUB.zone:80"], ["zone:80", "x.zone:80", "subzone:80"]),

  // IPv4
  row("127.0.0.1", ["127.0.0.1:1", "127.0.0.1:65535", "[::ffff:127.0.0.1]:80", "[::ffff:7f00:1]:80"], [
    "127.0.0.2:80",
    "localhost:80",
    "[::1]:80",
  ]),
  row("127.0.0.1:80", ["127.0.0.1:80"], ["127.0.0.1:81", "127.0.0.11:80"]),
  row("127.0.0.1:1000-2000", ["127.0.0.1:1000", "127.0.0.1:2000"], ["127.0.0.1:999", "127.0.0.1:2001"]),
  // in every form that the system takes for the address, and as the one that it connects to
  row(
    "127.0.0.1",
    ["127.1:80", "0x7f.1:80", "0x7f000001:80", "2130706433:80", "017700000001:80", "0177.0.0.1:80", "127.0.0.1.:80", "0:80"],
    [
      "127.0.0.1.example:80",
      "256.1:80",
      "4294967296:80",
      "08.0.0.1:80",
    ],
  ),
  row("127.0.0.0/8", ["0.0.0.0:80", "[::ffff:0.0.0.0]:80", "127.65535:80"], [
    "[::]:80",
    "128.1:80",
    "[::127.0.0.1]:80",
    "[64:ff9b::7f00:1]:80",
  ]),
  row("0.0.0.0/8", [], ["0.0.0.0:80", "0:80"]),
  row("0.0.0.0", ["0.0.0.0:80", "127.0.0.1:80"], ["127.0.0.2:80"]),
  row("10.0.0.1/8", ["10.0.0.1:80", "10.0.0.0:80", "10.255.255.255:80", "[::ffff:10.1.2.3]:80"], [
    "9.255.255.255:80",
    "11.0.0.0:80",
    "ten.example:80",
  ]),
  row("10.0.0.1/8:80", ["10.9.8.7:80"], ["10.9.8.7:81", "11.0.0.1:80"]),
  row("10.0.0.1/8:1000-2000", ["10.9.8.7:1000", "10.9.8.7:2000"], ["10.9.8.7:999", "10.9.8.7:2001", "11.0.0.1:1500"]),
  row("192.168.1.128/25", ["192.168.1.128:80", "192.168.1.255:80"], ["192.168.1.127:80", "192.168.2.128:80"]),
  row("10.1.2.3/32", ["10.1.2.3:80"], ["10.1.2.2:80", "10.1.2.4:80"]),
  row("0.0.0.0/0", ["1.2.3.4:80", "255.255.255.255:80", "[::ffff:1.2.3.4]:80"], [
    "localhost:80",
    "1.2.3.4.example:80",
    "[::1]:80",
    "[2001:db8::1]:80",
  ]),

  // IPv6
  row("2001:db8::1", ["[2001:db8::1]:1", "[2001:DB8:0:0::1]:80", "[2001:0db8:0000:0000:0000:0000:0000:0001]:65535"], [
    "[2001:db8::2]:80",
    "host:80",
  ]),
  row("[2001:db8::1]", ["[2001:db8::1]:80", "[2001:db8:0::1]:443"], ["[2001:db8::11]:80"]),
  row("[2001:db8::1]:80", ["[2001:db8::1]:80"], ["[2001:db8::1]:81", "[2001:db8::2]:80"]),
  row("[2001:db8::1]:1000-2000", ["[2001:db8::1]:1000", "[2001:db8::1]:2000"], ["[2001:db8::1]:999", "[2001:db8::1]:2001"]),
  row("2001:db8::1:80", ["[2001:db8::1:80]:443"], ["[2001:db8::1]:80"]), // without brackets there is no port
  row("1000::/16", ["[1000::1]:80", "[1000:ffff::]:80"], ["[1001::]:80", "[fff::1]:80", "16.0.0.1:80"]),
  row("1000::/16:80", ["[1000::1]:80"], ["[1000::1]:81", "[1001::1]:80"]),
  row("1000::/16:1000-2000", ["[1000::1]:1000", "[1000::1]:2000"], ["[1000::1]:999", "[1000::1]:2001"]),
  row("[2001:db8::1]/64", ["[2001:db8::2]:80", "[2001:db8:0:0:ffff::]:80"], ["[2001:db8:0:1::]:80"]),
  row("[2001:db8::1]/64:80", ["[2001:db8::2]:80"], ["[2001:db8::2]:81"]),
  row("[2001:db8::1]/64:1000-2000", ["[2001:db8::2]:1000", "[2001:db8::2]:2000"], ["[2001:db8::2]:999", "[2001:db8::2]:2001"]),
  row("[::1]:9090", ["[::]:9090", "[::1%lo]:9090", "[::1%251]:9090"], ["[::]:9091", "[::2]:9090"]),
  row("::1%lo", ["[::1]:80", "[::1%lo]:80"], ["[::2%lo]:80"]), // a zone has no meaning but with link-local addresses
  row("::1/128", ["[::1]:80", "[0:0:0:0:0:0:0:1]:80"], ["[::2]:80", "127.0.0.1:80", "localhost:80"]),
  row("::/0", ["[::1]:80", "[2001:db8::1]:80"], ["127.0.0.1:80", "[::ffff:127.0.0.1]:80", "localhost:80"]),

  // IPv4-mapped
  row("::ffff:10.0.0.1", ["10.0.0.1:80", "[::ffff:10.0.0.1]:80", "[::ffff:a00:1]:80"], ["10.0.0.2:80", "[::10.0.0.1]:80"]),
  row("[::ffff:10.0.0.1]:80", ["10.0.0.1:80"], ["10.0.0.1:81"]),
  row("::ffff:10.0.0.0/104", ["10.1.2.3:80", "[::ffff:10.1.2.3]:80"], ["11.0.0.0:80", "[::a00:1]:80"]),
  row("::ffff:0:0/96", ["1.2.3.4:80"], ["[::1]:80"]),
  row("::ffff:1.2.3.4/64", ["[::1]:80"], ["1.2.3.4:80"]),

  // zones of IPv6
  row("fe80::1", ["[fe80::1]:80", "[fe80::1%eth0]:80", "[fe80::1%25eth0]:80"], ["[fe80::2%eth0]:80"]),
  row("fe80::1%eth0", ["[fe80::1%eth0]:80", "[fe80::1%25eth0]:80"], ["[fe80::1]:80", "[fe80::1%eth1]:80"]),
  row("[fe80::1%25]:80", ["[fe80::1%25]:80"], ["[fe80::1%2]:80", "[fe80::1]:80"]),
  row("fe80::/10", ["[fe80::1%eth0]:80", "[febf::1]:80"], ["[fec0::1%eth0]:80"]),

  // several: any may match, host and port together
  row(["a.example:80", "b.example:443"], ["a.example:80", "b.example:443"], ["a.example:443", "b.example:80"]),
  row(["a.example:80", "a.example:443", "10.0.0.0/8:22", "10.1.0.0/16"], ["a.example:443", "10.1.2.3:80", "10.2.0.1:22"], ["10.2.0.1:80"]),
  row([], ["anything:1", "10.0.0.1:80", "[::1]:65535"], []), // an empty list allows all
  row("all", ["anything:1", "10.0.0.1:80", "[::1]:65535", "all:80"], []),
  row("None", [], ["anything:1", "10.0.0.1:80", "[::1]:65535", "none:80"]),
  row(["all.", "none.:80"], ["all:1", "none:80"], ["anything:80", "none:81"]), // hosts of these names
];

/** A way to check whether a destination is allowed. */
type Policy = (patterns: string[], body: (allows: (destination: string) => Promise<boolean>) => Promise<void>) => Promise<void>;

const POLICIES: Record<string, Policy> = {
  "an allow-list": async (patterns, body) => {
    const list = createAllowList(patterns);
    await body((destination) => Promise.resolve(list.allows(parseAuthority(destination))));
  },

  "the frontend of proxy and lb": (patterns, body) =>
    withNet(async (net) => {
      const listener = await net.listenTcp({ address: "127.0.0.1:0" });
      const frontend = new Frontend(
        {
          net,
          listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
          authenticator: createNoAuth(),
          allowList: createAllowList(patterns),
          dial: () => Promise.reject(new TunnelError("destination_unavailable", "Allowed")),
          log: silentLogger,
        } as FrontendOptions,
      );
      await body(async (destination) => isAllowed((await ask(net, listener.address, connectHead(destination))).status));
      frontend.close();
      await frontend.done;
    }),

  "an agent": (patterns, body) =>
    withNet(async (net) => {
      const refusing = netWith(net, { connectAndSplice: () => Promise.reject(new NetError("refused", "Allowed")) });
      const destinations = createDestinationPolicy({ allow: patterns, deny: [], resolve: () => Promise.resolve([]) });
      await body(async (destination) => {
        const { near, far } = streamPair("session");
        await serveTunnel({ net: refusing, destinations, log: silentLogger, connectTimeoutMs: 1_000, nextKey: () => "1" }, {
          stream: near,
          head: `CONNECT ${destination} HTTP/1.1\r\nHost: ${destination}\r\n\r\n`,
        });
        return isAllowed(parseAnswer(await readText(far)).status);
      });
    }),
};

function isAllowed(status: number): boolean {
  assert.ok([403, 502].includes(status), `it answered ${status}`);
  return status === 502;
}

for (const [name, gate] of Object.entries(POLICIES)) {
  describe(name, () => {
    for (const { patterns, matches, misses } of TABLE) {
      it(`allows what ${patterns.join(", ") || "no pattern at all"} matches, and nothing else`, async () => {
        await gate(patterns, async (allows) => {
          for (const destination of matches) assert.equal(await allows(destination), true, `${destination} is not allowed`);
          for (const destination of misses) assert.equal(await allows(destination), false, `${destination} is allowed`);
        });
      });
    }
  });
}

describe("the network of a destination", () => {
  const both = (allows: (network: "tcp" | "udp") => boolean) => [allows("tcp"), allows("udp")];

  it("is TCP in an allow-list, and UDP with udp:", () => {
    const rows: [string[], [tcp: boolean, udp: boolean]][] = [
      [[], [true, true]],
      [["all"], [true, true]],
      [["none"], [false, false]],
      [["10.0.0.53:53"], [true, false]],
      [["udp:10.0.0.53:53"], [false, true]],
      [["UDP:10.0.0.0/8"], [false, true]],
      [["udp:10.0.0.53:54"], [false, false]],
      [["udp:all"], [false, true]],
      [["udp:all", "10.0.0.53"], [true, true]],
      [["udp:*.zone", "udp:[::1]:53", "udp:::1"], [false, false]],
    ];
    for (const [patterns, wanted] of rows) {
      const list = createAllowList(patterns);
      assert.deepEqual(both((network) => list.allows({ host: "10.0.0.53", port: 53 }, network)), wanted, patterns.join());
      assert.equal(list.allows({ host: "10.0.0.53", port: 53 }), wanted[0]);
    }
  });

  it("is either in a deny-list, and UDP with udp:", () => {
    for (
      const [pattern, wanted] of [["10.0.0.53", [true, true]], ["udp:10.0.0.53", [false, true]], ["all", [true, true]], ["udp:all", [
        false,
        true,
      ]]]
    ) {
      const list = createDenyList([String(pattern)]);
      assert.deepEqual(both((network) => list.denies({ host: "10.0.0.53", port: 53 }, network)), wanted, String(pattern));
    }
  });

  it("is not the name udp", () => {
    const list = createAllowList(["udp:53", "udp"]);
    assert.deepEqual(both((network) => list.allows({ host: "udp", port: 53 }, network)), [true, false]);
  });
});

describe("an invalid allow-list", () => {
  const bad = [
    ["", "it is not"],
    [" ", "is not a name"],
    ["*", "is not a name"],
    ["*.", "is not a name"],
    ["a.*", "is not a name"],
    ["*.*.zone", "is not a name"],
    ["*.10.0.0.1", "is not a name"],
    ["-a", "is not a name"],
    ["a..b", "is not a name"],
    ["a b", "is not a name"],
    ["b\u00fccher.example", "is not a name"],
    ["http://a.example", "is not"],
    ["a.example/", "it is not"],
    ["10.0.0", "is not a name or an address"],
    ["10.0.0.256", "is not a name or an address"],
    ["010.0.0.1", "is not a name or an address"],
    ["0x7f.1", "is not a name or an address"],
    ["localhost:", "is not a port"],
    ["localhost:0", "is not a port"],
    ["localhost:65536", "is not a port"],
    ["localhost:http", "is not a port"],
    ["localhost:2000-1000", "is not a port"],
    ["localhost:1-2-3", "is not a port"],
    ["localhost:-80", "is not a port"],
    ["localhost: 80", "is not a port"],
    ["localhost/8", "is not an address"],
    ["*.zone/8", "is not an address"],
    ["10.0.0.1/33", "longer than 32 bits"],
    ["10.0.0.1/-1", "it is not"],
    ["10.0.0.1/8/8", "it is not"],
    ["10.0.0.1/", "it is not"],
    ["10.0.0.1/8:", "is not a port"],
    ["1000::/129", "longer than 128 bits"],
    ["::ffff:10.0.0.1/129", "longer than 128 bits"],
    ["2001:db8::1:1000-2000", "is not a name or an address"],
    ["2001:db8::1:1000-2000", "write [2001:db8::1]:1000-2000"],
    ["2001:db8::1:65535", "write [2001:db8::1]:65535"],
    ["2001:db8::g", "is not a name or an address"],
    ["2001::db8::1", "is not a name or an address"],
    ["[2001:db8::1", "is not a name or an address"],
    ["2001:db8::1]", "is not"],
    ["[2001:db8::1]80", "is not a name or an address"],
    ["[2001:db8::1]:", "is not a port"],
    ["[10.0.0.1]", "is not an IPv6 address"],
    ["[localhost]", "is not an IPv6 address"],
    ["[]", "it is not"],
    ["[*.zone]", "is not an IPv6 address"],
    ["fe80::1%", "is not a name or an address"],
    ["fe80::1%eth0/64", "a network has no zone"],
    ["127.0.0.1-127.0.0.9", "a range of addresses is written as networks"],
    ["127.0.0.1-9", "a range of addresses is written as networks"],
    ["10.0.0.1-10.0.0.9:80", "a range of addresses is written as networks"],
    ["fe80::1-fe80::9", "a range of addresses is written as networks"],
    ["[fe80::1]-[fe80::9]", "a range of addresses is written as networks"],
    ["10.0.0.*", "write 10.0.0.0/24"],
    ["10.0.*.*:80", "write 10.0.0.0/16"],
    ["10.*", "write 10.0.0.0/8"],
    ["10.0.0.0/255.255.255.0", "write 10.0.0.0/24"],
    ["10.0.0.0/255.0.255.0", "it is not"],
    ["*.*", "write all for every destination"],
    ["*:80", "write all for every destination"],
    ["*:80", "or 0.0.0.0/0:80 and [::]/0:80 for every address with this port"],
    [".example.com:80", "write *.example.com:80"],
    ["127.0.0.1:*", "write 127.0.0.1 for all ports"],
    ["udp:*.games.example:*", "write udp:*.games.example for all ports"],
    ["*a.example", "* stands only at the beginning"],
    ["web*", "* stands only at the beginning"],
    ["https://u:p@a.example:8080/x", "write a.example:8080 alone"],
    ["a.example/path", "a pattern has no path"],
    ["a.example:80/path", "a pattern has no path"],
    ["a b", "separated by commas"],
    ["b\u00fccher.example:80", "write xn--bcher-kva.example:80"],
    ["all:80", "all is a whole list"],
    ["udp:", "is not a port"],
    ["udp:none", "none is a whole list"],
    ["udp://a.example:53", "write udp:a.example:53 alone"],
    ["udp:*:53", "write udp:all"],
    ["udp:10.0.0.*", "write udp:10.0.0.0/24"],
    ["udp:udp:a.example", "is not a port"],
    ["tcp:a.example:80", "is not a name"],
    ["a".repeat(64), "63 between two dots"],
    ["a.".repeat(127) + "a", "at most 253 characters"],
  ] as const;
  for (const [pattern, why] of bad) {
    it(`names ${JSON.stringify(pattern)} and says why`, () => {
      assert.throws(() => createAllowList(["localhost", pattern]), (error) => {
        assert.ok(error instanceof RangeError);
        assert.ok(error.message.includes(JSON.stringify(pattern.replace(":p@", ":***@"))), error.message);
        assert.ok(error.message.includes(why), error.message);
        return true;
      });
    });
  }
});

describe("an IPv6 address without brackets", () => {
  it("is refused as an option if it could be an address and a port, and the error shows both readings", () => {
    for (const [pattern, address] of [["::1:80", "::1"], ["2001:db8::1:8080", "2001:db8::1"], ["fe80::a:1", "fe80::a"]] as const) {
      const port = pattern.split(":").at(-1);
      const said = checkPatterns(["localhost", pattern])!;
      assert.ok(said.includes(`"${pattern}": it is an address`), said);
      assert.ok(said.includes(`write [${pattern}] or [${address}]:${port};`), said);
      for (const clear of [`[${pattern}]`, `[${address}]:${port}`]) assert.equal(checkPatterns([clear]), undefined, clear);
      assert.ok(checkPatterns([`udp:${pattern}`])!.includes(`write udp:[${pattern}] or udp:[${address}]:${port};`));
    }
  });

  it("is accepted if it cannot contain a port", () => {
    for (const clear of ["::1", "2001:db8::1", "::1:a", "::1:0", "1:2:3:4:5:6:7:80", "2001:db8::1:80/128"]) {
      assert.equal(checkPatterns([clear]), undefined, clear);
    }
    assert.equal(checkNetworks({ words: false })(["::1:80"]), undefined);
  });
});

describe("words that stand for a whole list", () => {
  it("cannot be combined with patterns", () => {
    for (const patterns of [["all", "a.example"], ["a.example", "NONE"], ["all", "none"], ["none", "none"]]) {
      assert.throws(() => createAllowList(patterns), /cannot be combined with other patterns/, patterns.join());
      assert.throws(() => createDenyList(patterns), RangeError);
      assert.throws(() => networksOf(patterns), RangeError);
    }
  });

  it("deny everything or nothing", () => {
    for (const host of ["a.example", "10.0.0.1", "::1"]) {
      assert.deepEqual([["all"], ["none"], []].map((list) => createDenyList(list).denies({ host, port: 80 })), [true, false, false]);
    }
  });
});

describe("a numbered pattern of a network", () => {
  it("has one number in all notations, and other networks, ports and protocols have others", () => {
    const patterns = new DestinationPatterns("allow");
    const numbers = (...all: string[]) => all.map((pattern) => patterns.add(pattern));
    assert.deepEqual(numbers("2001:db8::/32", "[2001:DB8:7::1]/32", "2001:db8:0:0::/32:1-65535"), [0, 0, 0]);
    assert.deepEqual(numbers("10.0.0.0/8", "10.1.2.3/8", "::ffff:10.0.0.0/104"), [1, 1, 1]);
    const others = ["2001:db9::/32", "2001:db8::/33", "[2001:db8::]/32:443", "udp:[2001:db8::]/32", "11.0.0.0/8", "10.0.0.0/9"];
    assert.deepEqual(numbers(...others, "fe80::1%a", "fe80::1%b", "db", "2001:db8::/32"), [2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
  });
});

describe("networks of patterns", () => {
  it("are those of addresses and networks", () => {
    const patterns = ["127.0.0.0/8", "::1", "10.0.0.1", "[2001:db8::1]/64", "::ffff:10.0.0.0/104"];
    assert.deepEqual(networksOf(patterns), ["127.0.0.0/8", "::1/128", "10.0.0.1/32", "2001:db8::1/64", "::ffff:a00:0/104"]);
    assert.deepEqual([networksOf(["all"]), networksOf(["none"]), networksOf([])], [["0.0.0.0/0", "::/0"], [], []]);
  });

  for (
    const pattern of [
      "10.0.0.2:80",
      "10.0.0.0/8:1-65535",
      "[::1]:80",
      "fe80::1%eth0",
      "*.zone",
      "host",
      "10.0.0.0/33",
      "1.1.1.1-1.1.1.9",
      "udp:10.0.0.1",
      "udp:all",
    ]
  ) {
    it(`are not those of ${pattern}, which is refused`, () => {
      assert.throws(() => networksOf(["127.0.0.1", pattern]), (error) => error instanceof RangeError && error.message.includes(pattern));
    });
  }
});
