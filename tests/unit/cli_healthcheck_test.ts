// healthcheck with various responses of a service, and how it finds the address.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import process from "node:process";
import { describe, it } from "node:test";
import { SERVICES } from "../../services.ts";
import { readCommandLine, type Terminal } from "../../shared/cli/command.ts";
import { withStandardCommands } from "../../shared/cli/standard_commands.ts";

const executable = withStandardCommands({
  root: { name: "thing", description: "A thing.", commands: [] },
  version: "1.2.3",
  family: SERVICES,
});

/** The output of the command with these arguments and this environment. */
async function healthcheck(args: string[], env: Record<string, string> = {}): Promise<string> {
  const task = readCommandLine(executable, { args: ["healthcheck", ...args], env, home: "/nonexistent" });
  assert.equal(task.do, "subcommand");
  if (task.do !== "subcommand") return "";
  let said = "";
  const terminal = { write: (text: string) => void (said += text), read: () => Promise.resolve("") } as Terminal;
  await task.subcommand.run(task.resolved.values, terminal, task.line);
  return said;
}

/** Runs `use` while a service gives this response. */
async function withService(answers: Record<string, [status: number, text: string]>, use: (port: number) => Promise<void>): Promise<void> {
  const server = createServer((request, response) => {
    const [status, text] = answers[request.url!] ?? [404, ""];
    response.writeHead(status, { Connection: "close" }).end(text);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use((server.address() as AddressInfo).port);
  } finally {
    server.close();
  }
}

describe("healthcheck", () => {
  it("prints the response of a healthy service, and fails with that of another", async () => {
    await withService({ "/healthz": [200, "ok\n"], "/readyz": [503, "draining"] }, async (port) => {
      assert.equal(await healthcheck([`--admin.listen-address=127.0.0.1:${port}`]), "ok\n");
      await assert.rejects(healthcheck([`--admin.listen-address=127.0.0.1:${port}`, "--ready"]), /readyz returned 503: draining/);
    });
  });

  it("connects to loopback if the service listens on all addresses or on an address without a host", async () => {
    await withService({ "/healthz": [200, "ok"] }, async (port) => {
      for (const host of ["", "0.0.0.0"]) assert.equal(await healthcheck([`--admin.listen-address=${host}:${port}`]), "ok\n");
    });
  });

  it("reads the address from the environment as the service does", async () => {
    await withService({ "/healthz": [200, "ok"] }, async (port) => {
      assert.equal(await healthcheck([], { REVERSE_HTTP_ADMIN_LISTEN_ADDRESS: `127.0.0.1:${port}` }), "ok\n");
    });
  });

  it("uses no proxy, whatever the environment says", async () => {
    const variables = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "NODE_USE_ENV_PROXY"];
    const before = variables.map((name) => [name, process.env[name]] as const);
    const asked: string[] = [];
    const proxy = createServer((request, response) => {
      asked.push(request.url!);
      response.end("ok of the proxy");
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    try {
      const url = `http://user:secret@127.0.0.1:${(proxy.address() as AddressInfo).port}`;
      for (const name of variables) process.env[name] = name === "NODE_USE_ENV_PROXY" ? "1" : url;
      await withService({ "/healthz": [200, "ok"] }, async (port) => {
        for (const host of ["127.0.0.1", "localhost", ""]) {
          assert.equal(await healthcheck([`--admin.listen-address=${host}:${port}`]), "ok\n");
        }
      });
    } finally {
      for (const [name, value] of before) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
      proxy.close();
    }
    assert.deepEqual(asked, []);
  });

  it("fails if another program responds, or a response does not end", async () => {
    for (const answer of ["SSH-2.0-OpenSSH_9\r\n", "x".repeat(20_000), "HTTP/1.1 200 OK\r\n"]) {
      const server = createTcpServer((socket) => void socket.on("error", () => {}).end(answer));
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const { port } = server.address() as AddressInfo;
      await assert.rejects(healthcheck([`--admin.listen-address=127.0.0.1:${port}`]), /Cannot check http:/).finally(() => server.close());
    }
  });

  it("fails without a response, or without an address", async () => {
    let free = 0;
    await withService({}, (port) => Promise.resolve(void (free = port)));
    await assert.rejects(healthcheck([`--admin.listen-address=127.0.0.1:${free}`]), /Cannot check http:\/\/127\.0\.0\.1:\d+\/healthz/);
    await assert.rejects(healthcheck([]), /--admin\.listen-address is required/);
  });
});
