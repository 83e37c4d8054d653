// Where an agent connects to: deny-lists against names, addresses, and names whose addresses change.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createDestinations } from "../../agent/destinations.ts";
import { parseAuthority } from "../../shared/http/head.ts";
import { Refusal } from "../../shared/http/status.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { ConnectTcpOptions, Duplex } from "../../shared/net/types.ts";
import { netWith, streamPair, withNet } from "../support/memory.ts";

/** What the README advises. */
const ADVISED = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "100.100.100.200", "metadata.google.internal"];

interface Bench {
  /** Status, or code of the network, or the addresses that were to be connected to. */
  reach(destination: string): Promise<string | number>;
  connected: string[];
}

/** Every connection is taken, but to what `connect` refuses. */
async function withDeny(
  { deny, names = {}, connect, timeoutMs = 5_000 }: {
    deny: string[];
    names?: Record<string, string[] | (() => Promise<string[]>)>;
    connect?: (options: ConnectTcpOptions) => Promise<Duplex>;
    timeoutMs?: number;
  },
  body: (bench: Bench) => Promise<void>,
): Promise<void> {
  await withNet(async (net) => {
    const connected: string[] = [];
    const taking = netWith(net, {
      connectTcp: async (options) => {
        const stream = await (connect?.(options) ?? Promise.resolve(streamPair().near));
        connected.push((options.addresses ?? [options.host]).join());
        return stream;
      },
    });
    const resolve = async (name: string) => {
      const found = names[name];
      if (found === undefined) throw new Error("ENOTFOUND");
      return typeof found === "function" ? await found() : found;
    };
    const destinations = createDestinations({ net: taking, allow: [], deny, resolve });
    const reach = async (text: string) => {
      try {
        await destinations.connect(parseAuthority(text), timeoutMs);
        return connected.at(-1)!;
      } catch (error) {
        if (error instanceof Refusal) return error.status;
        if (error instanceof NetError) return error.code;
        throw error;
      }
    };
    await body({ reach, connected });
  });
}

describe("a deny-list of the agent", () => {
  it("that is advised refuses link-local and metadata addresses in every form, and leaves private networks", () => {
    const names = {
      "169.254.169.254.nip.test": ["169.254.169.254"],
      "0xa9fea9fe": ["169.254.169.254"],
      "mapped.test": ["::ffff:169.254.169.254"],
      "v6.test": ["fe80::1"],
      "internal.test": ["10.0.0.7"],
    };
    return withDeny({ deny: ADVISED, names }, async ({ reach, connected }) => {
      const denied = [
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:a9fe:a9fe]:80",
        "[fe80::1]:80",
        "[fe80::1%25eth0]:80",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "metadata.google.internal:80",
        "METADATA.google.internal.:80",
        ...Object.keys(names).slice(0, 4).map((name) => `${name}:80`),
      ];
      for (const destination of denied) assert.equal(await reach(destination), 403, destination);
      assert.deepEqual(connected, []);
      for (const host of ["10.0.0.1", "192.168.1.1", "127.0.0.1"]) assert.equal(await reach(`${host}:80`), host);
      assert.equal(await reach("internal.test:80"), "10.0.0.7");
    });
  });

  it("holds for the addresses that are connected to: a name is looked up once, and connected to by address", () => {
    let asked = 0;
    const rebinding = () => Promise.resolve(asked++ === 0 ? ["192.0.2.1"] : ["169.254.169.254"]);
    return withDeny({ deny: ADVISED, names: { "rebinding.test": rebinding } }, async ({ reach, connected }) => {
      assert.equal(await reach("rebinding.test:80"), "192.0.2.1");
      assert.equal(await reach("rebinding.test:80"), 403);
      assert.deepEqual([asked, connected], [2, ["192.0.2.1"]]);
    });
  });

  it("leaves those addresses of a name that are not on it", () =>
    withDeny({ deny: ADVISED, names: { "both.test": ["169.254.1.1", "192.0.2.1"] } }, async ({ reach }) => {
      assert.equal(await reach("both.test:80"), "192.0.2.1");
    }));

  it("counts ports", () =>
    withDeny({ deny: ["127.0.0.0/8:9090"], names: { "localhost": ["127.0.0.1"] } }, async ({ reach }) => {
      assert.deepEqual([await reach("localhost:9090"), await reach("localhost:9091")], [403, "127.0.0.1"]);
    }));

  it("holds the network to what is left of an address list, of a name that it keeps, and of the time", async () => {
    let asked: ConnectTcpOptions | undefined;
    const connect = (options: ConnectTcpOptions): Promise<Duplex> => {
      asked = options;
      return Promise.reject(new NetError("refused", "refused"));
    };
    const names = { "three.test": ["169.254.1.1", "192.0.2.1", "::ffff:169.254.1.1", "2001:db8::1"] };
    await withDeny({ deny: ADVISED, names, connect }, async ({ reach }) => {
      assert.equal(await reach("three.test:80"), "refused");
      const { host, port, addresses, timeoutMs } = asked!;
      assert.deepEqual({ host, port, addresses }, { host: "three.test", port: 80, addresses: ["192.0.2.1", "2001:db8::1"] });
      assert.ok(timeoutMs > 0 && timeoutMs <= 5_000, `${timeoutMs}`);
    });
  });

  it("ends a look-up that takes too long", () =>
    withDeny({ deny: ADVISED, names: { "silent.test": () => new Promise(() => {}) }, timeoutMs: 30 }, async ({ reach }) => {
      assert.equal(await reach("silent.test:80"), "timed-out");
    }));

  it("says so where a name is not known", () =>
    withDeny({ deny: ADVISED, names: { "empty.test": [] } }, async ({ reach }) => {
      assert.deepEqual([await reach("nowhere.test:80"), await reach("empty.test:80")], ["unknown-host", "unknown-host"]);
    }));
});
