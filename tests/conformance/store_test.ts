// The contract of the store: every implementation passes it, on real servers and while servers misbehave.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { Redis } from "ioredis";
import { after, before, describe, it } from "node:test";
import { createMemcachedStore, serverIndex } from "../../shared/store/memcached.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { createRedisStore } from "../../shared/store/redis.ts";
import type { StoreEvents } from "../../shared/store/circuit_breaker.ts";
import { type Store, StoreError } from "../../shared/store/store.ts";
import { BadStore, NarrowRedis } from "../../testing/bad_store.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { Folder, writeCertificates } from "../../testing/programs.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";

const [ONE, TWO] = ["proxy-1:3128", "proxy-2:3128"] as const;
const TIMEOUT_MS = 500;
const PAUSE_MS = 100;

type Kind = "memcached" | "redis";

function openStore(kind: Kind, addresses: readonly string[], events: StoreEvents = {}, ttlMs = 30_000): Store {
  const options = { ...events, timeoutMs: TIMEOUT_MS, ttlMs, maxRetryDelayMs: PAUSE_MS };
  return kind === "memcached"
    ? createMemcachedStore({ ...options, addresses })
    : createRedisStore({ ...options, url: `redis://${addresses[0]}` });
}

/** Polls until `check` holds. */
async function until(check: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!await check()) {
    if (performance.now() > deadline) throw new Error(`It never came to pass that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const works = (store: Store) =>
  until(() => store.set("probe", ONE).then(() => true, () => false), "the store takes an entry").then(async () =>
    assert.equal(await store.lookup("probe"), ONE)
  );

/** A unique id for a test. */
const freshId = () => `agent-${randomBytes(6).toString("hex")}`;

function suite(open: (ttlMs: number) => Store): void {
  it("has no address for an agent without an entry", async () => {
    assert.equal(await open(30_000).lookup(freshId()), undefined);
  });

  it("shares the last address that was set with all its users", async () => {
    const [one, two, id] = [open(30_000), open(30_000), freshId()];
    await one.set(id, ONE);
    assert.equal(await two.lookup(id), ONE);
    await two.set(id, TWO);
    assert.equal(await one.lookup(id), TWO);
  });

  it("accepts every valid agent id", async () => {
    const store = open(30_000);
    for (const id of ["7", "x".repeat(250), "ä€😀".repeat(27), "get", "noreply", "0", "-1", "a/b?c=d", '"', "__proto__", "{slot}"]) {
      await store.set(id, ONE);
      assert.equal(await store.lookup(id), ONE, id);
      await store.renew(id, ONE);
      assert.equal(await store.lookup(id), ONE, id);
    }
  });

  it("adds a missing entry when it is renewed", async () => {
    const [store, id] = [open(30_000), freshId()];
    await store.renew(id, ONE);
    assert.equal(await store.lookup(id), ONE);
  });

  it("does not change another proxy's entry when it is renewed", async () => {
    const [store, id] = [open(30_000), freshId()];
    await store.set(id, TWO);
    await store.renew(id, ONE);
    assert.equal(await store.lookup(id), TWO);
  });

  it("drops an entry that is not renewed", async () => {
    const [store, id] = [open(1_000), freshId()];
    await store.set(id, ONE);
    await until(async () => await store.lookup(id) === undefined, "the entry is gone");
  });

  it("keeps an entry while it is renewed, and then accepts another proxy's", async () => {
    // memcached counts whole seconds: a pause of less than two must not end the entry
    const [store, id] = [open(3_000), freshId()];
    await store.set(id, ONE);
    for (const end = performance.now() + 6_500; performance.now() < end;) {
      await store.renew(id, TWO);
      await store.renew(id, ONE);
      assert.equal(await store.lookup(id), ONE);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    // proxy 1 has stopped renewing: the calls of proxy 2 must not extend the entry's lifetime
    await until(async () => {
      await store.renew(id, TWO);
      return await store.lookup(id) === TWO;
    }, "the entry is proxy 2's");
  });

  it("has one of two addresses when two proxies set it at once, and neither's renewals change it", async () => {
    const [one, two] = [open(30_000), open(30_000)];
    for (let round = 0; round < 20; round++) {
      const id = freshId();
      const calls = [one.set(id, ONE), two.set(id, TWO), one.renew(id, ONE), two.renew(id, TWO)];
      await Promise.all(round % 2 ? calls : calls.slice(2));
      const first = await one.lookup(id);
      assert.ok(first === ONE || first === TWO, String(first));
      await Promise.all([one.renew(id, ONE), two.renew(id, TWO)]);
      assert.equal(await two.lookup(id), first);
    }
  });

  it("handles a thousand concurrent calls", async () => {
    const store = open(30_000);
    const ids = Array.from({ length: 1_000 }, freshId);
    await Promise.all(ids.map((id, i) => store.set(id, `proxy:${i + 1}`)));
    assert.deepEqual(await Promise.all(ids.map((id) => store.lookup(id))), ids.map((_, i) => `proxy:${i + 1}`));
  });
}

describe("memory store", () => {
  const shared = new Map<number, Store>();
  suite((ttlMs) => {
    const store = shared.get(ttlMs) ?? createMemoryStore({ ttlMs });
    shared.set(ttlMs, store);
    return store;
  });
});

/** The start of a reply to the lookup of 7 with almost 4 GiB. */
const HEAD_OF_GIBIBYTES: Record<Kind, string> = { memcached: "VALUE 7 0 4294967295\r\n", redis: "$4294967295\r\n" };
/** The start of a reply to the lookup of 7. */
const HALF_REPLY: Record<Kind, string> = { memcached: "VALUE 7 0 12\r\npro", redis: "$12\r\npro" };

for (const kind of ["memcached", "redis"] as const) {
  describe(`${kind} store`, () => {
    let server: StoreServer;
    const stores: Store[] = [];
    const open = (addresses: readonly string[], events: StoreEvents = {}, ttlMs = 30_000) => {
      const store = openStore(kind, addresses, events, ttlMs);
      stores.push(store);
      return store;
    };
    before(async () => {
      server = await StoreServer.start(kind);
    });
    after(async () => {
      for (const store of stores) store.close();
      await server[Symbol.asyncDispose]();
    });

    suite((ttlMs) => open([server.address], {}, ttlMs));

    it("reports once that its server is down, which one and why, and once that it has recovered", async () => {
      await using own = await StoreServer.start(kind);
      const changes: { name: string; up: boolean; reason?: string }[] = [];
      const store = open([own.address], { onServer: (change) => changes.push(change) });
      await store.set("7", ONE);
      assert.deepEqual(changes, []);
      await own.kill();
      for (let round = 0; round < 20; round++) {
        await assert.rejects(store.lookup("7"), (error) => error instanceof StoreError && error.message.includes(own.address));
      }
      assert.equal(changes.length, 1);
      const { up, name, reason } = changes.at(0)!;
      assert.deepEqual([up, name], [false, `${kind} at ${own.address}`]);
      assert.match(String(reason), /ECONNREFUSED|discarded|closed|ended|response/);
      await own.restart();
      await works(store);
      assert.deepEqual(changes.slice(1), [{ name: `${kind} at ${own.address}`, up: true }]);
    });

    it("is restored after its server was restarted empty, once each proxy has renewed its entries", async () => {
      await using own = await StoreServer.start(kind);
      const [one, two] = [open([own.address]), open([own.address])];
      await one.set("a", ONE);
      await two.set("b", TWO);
      await own.restart();
      const renewed = (store: Store, id: string, address: string) =>
        until(() => store.renew(id, address).then(() => true, () => false), `${id} is renewed`);
      await renewed(one, "a", ONE);
      await renewed(two, "b", TWO);
      assert.deepEqual([await two.lookup("a"), await one.lookup("b")], [ONE, TWO]);
    });

    it("fails at once while a server hangs, after the first timeout, and uses it again afterwards", async () => {
      await using own = await StoreServer.start(kind);
      const calls: { ok: boolean }[] = [];
      const store = open([own.address], { onCall: (call) => calls.push(call) });
      await store.set("7", ONE);
      await own.freeze();
      await assert.rejects(Promise.all([store.lookup("7"), store.lookup("8")]), StoreError);
      const failed = calls.length;
      await Promise.allSettled(Array.from({ length: 100 }, () => store.lookup("7"))); // one of them may have tried it
      assert.ok(calls.length <= failed + 2, `${calls.length - failed} calls of 100 waited for a server that hangs`);
      own.signal("SIGCONT");
      await works(store);
    });

    const nonsense: Record<string, (socket: Socket) => void> = {
      "closes at once": (socket) => socket.destroy(),
      "sends half a reply and closes": (socket) => socket.once("data", () => socket.end(HALF_REPLY[kind])),
      "sends random bytes": (socket) => socket.write(randomBytes(4_096)),
      "speaks HTTP": (socket) => socket.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
      "floods": (socket) => {
        const more = () => {
          while (socket.writable && socket.write(Buffer.alloc(16_384, 0x41)));
        };
        socket.on("drain", more);
        more();
      },
      "sends replies without requests": (socket) => socket.write("VALUE x 0 1\r\na\r\nEND\r\n+OK\r\n$-1\r\n:1\r\n".repeat(100)),
    };
    for (const [what, misbehave] of Object.entries(nonsense)) {
      it(`survives a server that ${what}, and works when a real one replaces it`, async () => {
        await using own = await StoreServer.start(kind);
        await own.kill();
        const sockets = new Set<Socket>();
        const fake: Server = createServer((socket) => {
          sockets.add(socket);
          socket.on("error", () => {}).on("close", () => sockets.delete(socket));
          misbehave(socket);
        }).listen(own.port, "127.0.0.1");
        await once(fake, "listening");
        const store = open([own.address]);
        for (let round = 0; round < 3; round++) {
          // such a reply may count as the reply to a request, but never as an address
          const [found] = await Promise.allSettled([store.lookup("7"), store.set("7", ONE), store.renew("7", ONE)]);
          if (found.status === "fulfilled") {
            // random bytes may be a string of the protocol
            const expected = what === "sends random bytes" ? /^(?!proxy-\d:\d+$)/ : /^$/;
            assert.match(found.value ?? "", expected);
          } else assert.ok(found.reason instanceof StoreError, String(found.reason));
        }
        fake.close();
        for (const socket of sockets) socket.destroy();
        await own.restart();
        await works(store);
      });
    }

    it("uses a new connection in time if its idle one was silently dropped", async () => {
      await using own = await StoreServer.start(kind);
      await using firewall = await BadStore.start(own.address);
      const changes: unknown[] = [];
      const store = open([firewall.address], { onServer: (change) => changes.push(change) });
      for (const id of ["7", "8", "9"]) {
        await store.set(id, ONE);
        firewall.forget();
        assert.deepEqual(await Promise.all(Array.from({ length: 50 }, () => store.lookup(id))), Array(50).fill(ONE));
      }
      firewall.forget();
      await store.renew("7", ONE);
      assert.deepEqual(changes, []);
    });

    it("uses a new connection if the server has closed its idle one", async () => {
      await using own = await StoreServer.start(kind);
      const store = open([own.address]);
      await store.set("7", ONE);
      await own.restart();
      assert.equal(await store.lookup("7"), undefined);
    });

    it("separates entries by the prefix of keys, and accepts every id with one", async () => {
      const options = { timeoutMs: TIMEOUT_MS, ttlMs: 30_000, maxRetryDelayMs: PAUSE_MS };
      const withPrefix = (keyPrefix?: string) =>
        kind === "memcached"
          ? createMemcachedStore({ ...options, keyPrefix, addresses: [server.address] })
          : createRedisStore({ ...options, keyPrefix, url: `redis://${server.address}` });
      const [bare, one, two] = [withPrefix(), withPrefix("one:"), withPrefix("two:")];
      stores.push(bare, one, two);
      for (const id of [freshId(), "x".repeat(250), "ä".repeat(125)]) {
        await bare.set(id, "foreign");
        await one.set(id, ONE);
        await two.renew(id, TWO);
        assert.deepEqual(await Promise.all([bare, one, two].map((store) => store.lookup(id))), ["foreign", ONE, TWO]);
      }
    });

    it("rejects pending and later calls once it is closed", async () => {
      await using own = await StoreServer.start(kind);
      const store = openStore(kind, [own.address]);
      await store.set("7", ONE);
      await own.freeze();
      const pending = assert.rejects(store.lookup("7"), StoreError);
      store.close();
      await pending;
      await assert.rejects(store.lookup("7"), StoreError);
      own.signal("SIGCONT");
    });

    it("rejects an oversized reply without waiting for its end", async () => {
      const sockets = new Set<Socket>();
      const fake = createServer((socket) => {
        sockets.add(socket);
        // more than an entry may have, and no end yet
        socket.on("error", () => {}).once("data", () => {
          socket.write(HEAD_OF_GIBIBYTES[kind]);
          socket.write(new Uint8Array(1_000_000));
        });
      }).listen(0, "127.0.0.1");
      await once(fake, "listening");
      const store = openStore(kind, [`127.0.0.1:${(fake.address() as { port: number }).port}`]);
      try {
        await assert.rejects(store.lookup("7"), /A reply has more than 65536 bytes/);
      } finally {
        store.close();
        for (const socket of sockets) socket.destroy();
        fake.close();
      }
    });
  });
}

describe("memcached store on several servers", () => {
  it("distributes its entries, and uses those of one server while another is down", async () => {
    await using first = await StoreServer.start("memcached");
    await using second = await StoreServer.start("memcached");
    const addresses = [first.address, second.address];
    const store = openStore("memcached", addresses);
    try {
      const ids = Array.from({ length: 100 }, (_, i) => String(i));
      await Promise.all(ids.map((id) => store.set(id, ONE)));
      const there = ids.filter((id) => serverIndex(id, addresses) === 0);
      const elsewhere = ids.filter((id) => serverIndex(id, addresses) === 1);
      assert.ok(there.length > 25 && elsewhere.length > 25, `${there.length} and ${elsewhere.length}`);
      await second.kill();
      for (const id of there) assert.equal(await store.lookup(id), ONE);
      for (const id of elsewhere) await assert.rejects(store.lookup(id), StoreError);
      for (const id of there) assert.equal(await store.lookup(id), ONE);
    } finally {
      store.close();
    }
  });

  it("moves only the entries of a removed server", () => {
    const [all, fewer] = [["a:1", "b:1", "c:1"], ["a:1", "c:1"]];
    for (let i = 0; i < 300; i++) {
      const place = all[serverIndex(String(i), all)]!;
      if (place !== "b:1") assert.equal(fewer[serverIndex(String(i), fewer)], place);
    }
  });
});

describe("redis store", () => {
  it("uses its password, and keys with its own prefix", async () => {
    await using server = await StoreServer.start("redis", ["--requirepass", "secret"]);
    const open = (url: string) => createRedisStore({ url, timeoutMs: TIMEOUT_MS, ttlMs: 30_000, maxRetryDelayMs: PAUSE_MS });
    const [store, stranger] = [open(`redis://:secret@${server.address}/0`), open(`redis://${server.address}`)];
    try {
      await store.set("7", ONE);
      assert.equal(await store.lookup("7"), ONE);
      const error = await stranger.lookup("7").catch((error) => error);
      assert.ok(error instanceof StoreError);
      assert.match(error.message, /NOAUTH/);
      const wrong = open(`redis://:hush-hush@${server.address}`);
      const refused = await wrong.lookup("7").catch((error) => error);
      assert.ok(refused instanceof StoreError);
      assert.ok(!refused.message.includes("hush-hush"), refused.message);
      wrong.close();
    } finally {
      store.close();
      stranger.close();
    }
  });

  it("reports a missing database as an error, and never uses another one", async () => {
    await using server = await StoreServer.start("redis", ["--databases", "4"]);
    const open = (path: string) =>
      createRedisStore({ url: `redis://${server.address}${path}`, timeoutMs: TIMEOUT_MS, ttlMs: 30_000, maxRetryDelayMs: PAUSE_MS });
    const [third, missing, query, first] = [open("/3"), open("/99"), open("?db=99"), open("")];
    try {
      await third.set("7", ONE);
      for (const store of [missing, query]) {
        await assert.rejects(store.set("7", TWO), (error) => error instanceof StoreError && /DB index is out of range/.test(error.message));
      }
      assert.deepEqual([await third.lookup("7"), await first.lookup("7")], [ONE, undefined]);
      await server.restart();
      await works(third);
      assert.equal(await first.lookup("probe"), undefined);
      await assert.rejects(missing.lookup("probe"), StoreError);
    } finally {
      for (const store of [third, missing, query, first]) store.close();
    }
  });

  it("needs only the commands that proxies of Redis support", async () => {
    await using server = await StoreServer.start("redis", ["--requirepass", "secret"]);
    await using narrow = await NarrowRedis.start(server.address, ["auth", "get", "set", "pexpire"]);
    const store = createRedisStore({
      url: `redis://:secret@${narrow.address}`,
      timeoutMs: TIMEOUT_MS,
      ttlMs: 30_000,
      maxRetryDelayMs: PAUSE_MS,
    });
    try {
      await store.set("7", ONE);
      await store.renew("7", ONE);
      assert.equal(await store.lookup("7"), ONE);
      assert.deepEqual(narrow.refused, []);
    } finally {
      store.close();
    }
  });

  it("has no address of an agent whose key has another type, and still has those of others", async () => {
    await using server = await StoreServer.start("redis");
    const changes: unknown[] = [];
    const store = openStore("redis", [server.address], { onServer: (change) => changes.push(change) });
    const other = new Redis(server.port, "127.0.0.1");
    try {
      await store.set("7", ONE);
      await other.rpush("reverse-http:agent:list", "x");
      assert.deepEqual([await store.lookup("list"), await store.lookup("7")], [undefined, ONE]);
      await store.renew("list", TWO);
      await store.set("list", TWO); // replaces it
      assert.equal(await store.lookup("list"), TWO);
      assert.deepEqual(changes, []);
    } finally {
      store.close();
      other.disconnect();
    }
  });

  it("uses TLS to a server of the given authority, and to no other", async () => {
    using folder = new Folder();
    const files = await writeCertificates(folder, await makeAuthority());
    const tlsPort = await freePort();
    const args = ["--tls-port", String(tlsPort), "--tls-cert-file", files.cert, "--tls-key-file", files.key];
    await using _server = await StoreServer.start("redis", [...args, "--tls-ca-cert-file", files.ca, "--tls-auth-clients", "no"]);
    const open = (ca?: string, scheme = "rediss") =>
      createRedisStore({ url: `${scheme}://127.0.0.1:${tlsPort}`, ca, timeoutMs: 5_000, ttlMs: 30_000 });
    const ca = readFileSync(files.ca, "utf8");
    const [trusting, inCapitals, stranger] = [open(ca), open(ca, "REDISS"), open()];
    try {
      await trusting.set("7", ONE);
      assert.deepEqual([await trusting.lookup("7"), await inCapitals.lookup("7")], [ONE, ONE]);
      await assert.rejects(stranger.lookup("7"), (error) => error instanceof StoreError && /certificate|issuer/i.test(error.message));
    } finally {
      for (const store of [trusting, inCapitals, stranger]) store.close();
    }
  });
});
