// The unix socket of the admin server: who can open it, what replaces it, and what is read from it.
import assert from "node:assert/strict";
import { existsSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { AdminClient } from "../../admin/client.ts";
import { serveRequest } from "../../shared/service/http_server.ts";
import { listenUnix, type UnixListener } from "../../shared/service/unix_socket.ts";
import { Folder } from "../../testing/programs.ts";
import { within } from "../conformance/support.ts";

/** Answers with what it was asked. */
async function listen(path: string, hasPredecessor = false): Promise<UnixListener> {
  return await listenUnix(
    path,
    "--admin.socket",
    (connection) =>
      void serveRequest(
        connection,
        { isLocal: true, listening: path },
        async (request, { isLocal, host }) =>
          Response.json({ method: request.method, path: new URL(request.url).pathname, body: await request.text(), isLocal, host }),
      ),
    hasPredecessor,
  );
}

const clientOf = (admin: string) => AdminClient.create({ admin, adminToken: undefined });

async function sendRaw(path: string, text: string): Promise<string> {
  const socket = connect({ path });
  socket.write(text);
  let response = "";
  for await (const part of socket) response += part;
  return response;
}

describe("the unix socket", () => {
  it("serves requests with a body, and only its owner can open it", async () => {
    using folder = new Folder();
    const path = join(folder.path, "admin.sock");
    const listener = await listen(path);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    const client = await clientOf(path);
    assert.deepEqual(await client.get("status"), { method: "GET", path: "/api/v1/status", body: "", isLocal: true, host: "localhost" });
    const { body } = await client.post<{ body: string }>("drain", { a: "x".repeat(10_000) });
    assert.equal(body.length, 10_008);
    await listener.close();
    assert.ok(!existsSync(path));
  });

  it("is another process's until it is published", async () => {
    using folder = new Folder();
    const path = join(folder.path, "admin.sock");
    const before = await listen(path);
    const { ino } = statSync(path);
    const failed = await listen(path, true);
    await failed.close();
    assert.equal(statSync(path).ino, ino);
    const after = await listen(path, true);
    await after.publish();
    assert.notEqual(statSync(path).ino, ino);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    await before.close();
    await (await clientOf(path)).get("status");
    await after.close();
    assert.deepEqual(readdirSync(folder.path), []);
  });

  it("replaces one without a listener, and neither one in use nor another file", async () => {
    using folder = new Folder();
    const path = join(folder.path, "admin.sock");
    const first = await listen(path);
    await assert.rejects(listen(path), { code: "address-in-use" });
    const second = await listen(join(folder.path, "other.sock"));
    await first.close();
    // left behind by a process that was killed
    const { renameSync } = await import("node:fs");
    renameSync(second.path, path);
    await second.close();
    const third = await listen(path);
    await third.close();
    writeFileSync(path, "precious");
    await assert.rejects(listen(path), /Cannot use --admin\.socket .*: there is a file that is no socket/);
    await assert.rejects(listen(join(folder.path, "none", "admin.sock")), /the directory does not exist/);
    await assert.rejects(listen(join(folder.path, "x".repeat(120))), /too long for a socket/);
  });

  it("refuses malformed requests, and ends connections at its close", async () => {
    using folder = new Folder();
    const path = join(folder.path, "admin.sock");
    const listener = await listen(path);
    assert.match(await sendRaw(path, "nonsense\r\n\r\n"), /^HTTP\/1\.1 400 /);
    assert.match(await sendRaw(path, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), /^HTTP\/1\.1 400 /);
    assert.equal(await sendRaw(path, `GET / HTTP/1.1\r\nA: ${"x".repeat(20_000)}`).catch(() => ""), "");
    const waiting = sendRaw(path, "GET /").catch(() => "");
    await listener.close();
    assert.equal(await within(waiting), "");
  });
});
