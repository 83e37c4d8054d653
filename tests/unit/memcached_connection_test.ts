// The memcached client: replies in any fragments, and servers that break the protocol. tests/conformance/store_test.ts uses real servers.
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { describe, it } from "node:test";
import { MemcachedConnection } from "../../shared/store/memcached_connection.ts";
import { createMemcachedStore } from "../../shared/store/memcached.ts";

/** A server that calls `reply` for each chunk that it receives. */
async function withServer(
  reply: (request: string, socket: Socket) => void,
  body: (port: number) => Promise<void>,
): Promise<void> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.setNoDelay(true).on("error", () => {}).on("data", (data) => reply(data.toString("utf8"), socket));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await body((server.address() as AddressInfo).port);
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, "close");
  }
}

/** Runs `body` on a connection to a server that replies to every chunk with `reply`; returns the number of ends. */
async function withReply(
  reply: string | ((request: string, socket: Socket) => void),
  body: (connection: MemcachedConnection) => Promise<void>,
): Promise<number> {
  let ends = 0;
  await withServer(typeof reply === "string" ? (_, socket) => void socket.write(reply) : reply, async (port) => {
    const connection = new MemcachedConnection("127.0.0.1", port, () => ends++);
    try {
      await body(connection);
    } finally {
      connection.close("the test ended");
    }
  });
  return ends;
}

describe("a memcached connection", () => {
  it("sends the four commands, with the lengths of values in bytes and at most 30 days of lifetime", async () => {
    const requests: string[] = [];
    const replies = ["END\r\n", "STORED\r\n", "NOT_STORED\r\n", "TOUCHED\r\n"];
    const ends = await withReply((request, socket) => {
      requests.push(request);
      socket.write(replies.shift()!);
    }, async (connection) => {
      assert.equal(await connection.get("7"), undefined);
      await connection.set("ä", "ä:1", 30);
      await connection.add("7", "a:1", 40 * 24 * 3_600);
      await connection.touch("7", 30);
    });
    assert.deepEqual(requests, ["get 7\r\n", "set ä 0 30 4\r\nä:1\r\n", "add 7 0 2592000 3\r\na:1\r\n", "touch 7 30\r\n"]);
    assert.equal(ends, 1);
  });

  it("reads a reply that arrives byte by byte, and two in one chunk", async () => {
    const reply = "VALUE 7 0 15\r\nEND\r\nproxy-1:31\r\nEND\r\n";
    await withReply((_, socket) => {
      const bytes = [...Buffer.from(reply + reply)];
      // each turn of the event loop sends one byte
      const next = () => {
        const byte = bytes.shift();
        if (byte !== undefined && socket.writable) socket.write(Uint8Array.of(byte), () => setImmediate(next));
      };
      next();
    }, async (connection) => {
      assert.deepEqual(await Promise.all([connection.get("7"), connection.get("7")]), Array(2).fill("END\r\nproxy-1:31"));
    });
    await withReply(
      reply + reply,
      async (connection) =>
        assert.deepEqual(await Promise.all([connection.get("7"), connection.get("7")]), Array(2).fill("END\r\nproxy-1:31")),
    );
  });

  it("limits one reply, and not the replies to many requests together", async () => {
    const value = "x".repeat(300);
    const requests = 1_000;
    await withReply(
      (request, socket) => void socket.write(`VALUE 7 0 300\r\n${value}\r\nEND\r\n`.repeat(request.split("get 7\r\n").length - 1)),
      async (connection) =>
        assert.deepEqual(
          await Promise.all(Array.from({ length: requests }, () => connection.get("7"))),
          Array(requests).fill(value),
        ),
    );
  });

  const broken: Record<string, [reply: string, reason: RegExp]> = {
    "a value of another key": ["VALUE 8 0 3\r\na:1\r\nEND\r\n", /^unexpected reply VALUE 8 0 3$/],
    "a value that is longer than its length": ["VALUE 7 0 3\r\na:12\r\nEND\r\n", /^the value's length is wrong$/],
    "a value of 4 GiB": ["VALUE 7 0 4294967295\r\n", /^A reply has more than 65536 bytes$/],
    "a line without an end": ["A".repeat(100_000), /^A reply has more than 65536 bytes$/],
    "a negative length": ["VALUE 7 0 -1\r\n", /^unexpected reply VALUE 7 0 -1$/],
    "an error": ["SERVER_ERROR out of memory\u001b\r\n", /^unexpected reply SERVER_ERROR out of memory\?$/],
    "another protocol": ["HTTP/1.1 400 Bad Request\r\n\r\n", /^unexpected reply HTTP\/1\.1 400 Bad Request$/],
    "the reply to another command": ["STORED\r\n", /^unexpected reply STORED$/],
  };
  for (const [what, [reply, reason]] of Object.entries(broken)) {
    it(`ends at ${what}, and rejects all its requests`, async () => {
      const ends = await withReply(reply, async (connection) => {
        const requests = [connection.get("7"), connection.set("7", "a:1", 30)];
        for (const request of requests) await assert.rejects(request, { name: "StoreError", message: reason });
        await assert.rejects(connection.get("7"), { message: reason });
      });
      assert.equal(ends, 1);
    });
  }

  it("ends at a reply without a request", async () => {
    await withReply("END\r\nEND\r\n", async (connection) => {
      assert.equal(await connection.get("7"), undefined);
      await assert.rejects(connection.get("7"), { message: "the server sent a reply without a request" });
    });
  });

  it("rejects its requests when the server closes it", async () => {
    const ends = await withReply((_, socket) => void socket.end("VALUE 7"), async (connection) => {
      await assert.rejects(connection.get("7"), { message: "the server closed the connection" });
    });
    assert.equal(ends, 1);
  });
});

describe("a store in memcached", () => {
  it("never sends an id that would end the command: it sends a hash", async () => {
    let received = "";
    await withServer((request, socket) => {
      received += request;
      socket.write("END\r\n");
    }, async (port) => {
      const store = createMemcachedStore({ addresses: [`127.0.0.1:${port}`], timeoutMs: 5_000, ttlMs: 30_000 });
      try {
        for (const id of ["7 8", "7\r\nflush_all", "7\0", ""]) assert.equal(await store.lookup(id), undefined);
      } finally {
        store.close();
      }
    });
    assert.match(received, /^(get sha256:[0-9a-f]{64}\r\n){4}$/);
  });
});
