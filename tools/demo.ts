// The demo: an HTTP server, a proxy and an agent as separate processes, and curl that fetches a page and a large file through them.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { makeAuthority } from "../testing/certificates.ts";

const root = join(import.meta.dirname!, "..");
const keep = process.argv.includes("--keep");
const children: ChildProcess[] = [];
const folder = mkdtempSync(join(tmpdir(), "reverse-http-demo-"));

const FILE_BYTES = 1024 ** 3;
const AGENT_ID = "4711";

function say(text: string): void {
  console.log(text);
}

/** Starts a process and waits for the log line (JSON) with `message`. */
async function start(command: string[], message: string): Promise<Record<string, string>> {
  const child = spawn(command[0]!, command.slice(1), { stdio: ["ignore", "ignore", "pipe"] });
  children.push(child);
  const said: string[] = [];
  for await (const line of createInterface({ input: child.stderr! })) {
    said.push(line);
    const entry = line.startsWith("{") ? JSON.parse(line) as Record<string, string> : {};
    if (entry.message !== message) continue;
    child.stderr!.resume();
    return entry;
  }
  throw new Error(`${command[0]} has stopped: ${said.join("\n")}`);
}

/** Its own process, so that the speeds are those of the tunnel: the page, and a file of zeros. */
const ORIGIN = `
  import { createServer } from "node:http";
  const chunk = new Uint8Array(1 << 20);
  const server = createServer((request, response) => {
    if (request.url !== "/file") return response.end("Hello from a server that only the agent can reach!\\n");
    response.writeHead(200, { "Content-Length": ${FILE_BYTES} });
    let left = ${FILE_BYTES};
    const send = () => {
      while (left > 0) {
        left -= chunk.length;
        if (!response.write(chunk)) return response.once("drain", send);
      }
      response.end();
    };
    send();
  });
  server.listen(0, "127.0.0.1", () => console.error(JSON.stringify({ message: "listening", port: String(server.address().port) })));
`;

interface Fetched {
  status: number;
  bytes: number;
  seconds: number;
  text?: string;
}

const hasCurl = spawnSync("curl", ["--version"], { stdio: "ignore" }).status === 0;

function fetchWithCurl(url: string, proxy: string, keepText: boolean): Fetched {
  const args = [
    "-sS",
    "--proxytunnel",
    "--proxy",
    `http://${AGENT_ID}:demo@${proxy}`,
    "-w",
    "%{stderr}%{http_code} %{size_download} %{time_total}",
  ];
  const result = spawnSync("curl", [...args, "-o", keepText ? "-" : "/dev/null", url], { encoding: "utf8" });
  const [status, bytes, seconds] = result.stderr.trim().split(" ").map(Number);
  if (result.status !== 0) throw new Error(`curl failed: ${result.stderr}`);
  return { status: status!, bytes: bytes!, seconds: seconds!, text: result.stdout };
}

/** The same without curl: CONNECT, then GET with HTTP/1.0. */
function fetchWithSocket(url: string, proxy: string, keepText: boolean): Promise<Fetched> {
  const { host, pathname } = new URL(url);
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const socket = connect(Number(proxy.split(":").at(-1)), "127.0.0.1");
    const credentials = Buffer.from(`${AGENT_ID}:demo`).toString("base64");
    socket.write(`CONNECT ${host} HTTP/1.1\r\nHost: ${host}\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
    socket.write(`GET ${pathname} HTTP/1.0\r\nHost: ${host}\r\n\r\n`);
    const parts: Uint8Array[] = [];
    let heads = "";
    let [status, bytes] = [0, 0];
    socket.on("data", (data: Uint8Array) => {
      if (status !== 0) {
        bytes += data.length;
        if (keepText) parts.push(data);
        return;
      }
      heads += Buffer.from(data).toString("latin1");
      const end = /^[^]*?\r\n\r\n(HTTP\/1\.[01] (\d+)[^]*?\r\n\r\n)/.exec(heads);
      if (!end) return;
      status = Number(end[2]);
      const rest = Buffer.from(heads.slice(end[0].length), "latin1");
      bytes = rest.length;
      if (keepText) parts.push(rest);
    });
    socket.on("error", reject);
    socket.on(
      "end",
      () => resolve({ status, bytes, seconds: (performance.now() - started) / 1000, text: Buffer.concat(parts).toString() }),
    );
  });
}

async function demo(): Promise<void> {
  const authority = await makeAuthority("Demo CA");
  const server = await authority.issue({ names: ["localhost", "127.0.0.1"] });
  const files = { ca: authority.cert, cert: server.cert, key: server.key };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, `${name}.pem`), text, { mode: 0o600 });
  writeFileSync(join(folder, "origin.mjs"), ORIGIN);

  const origin = await start([join(root, "node_modules", ".bin", "bun"), join(folder, "origin.mjs")], "listening");
  say(`A web server runs on 127.0.0.1:${origin.port}. Pretend that only the agent can reach it.`);
  const proxy = await start([
    join(root, "dist", "reverse-http-proxy"),
    "--agent-server.listen-address=127.0.0.1:0",
    "--http-proxy.listen-address=127.0.0.1:0",
    `--agent-server.tls.file.cert=${join(folder, "cert.pem")}`,
    `--agent-server.tls.file.key=${join(folder, "key.pem")}`,
    "--log.format=json",
  ], "listening");
  say(`The proxy takes agents on ${proxy.agents} (QUIC over UDP) and clients on ${proxy.clients} (HTTP CONNECT over TCP).`);
  await start([
    join(root, "dist", "reverse-http-agent"),
    `--agent-client.server-address=${proxy.agents}`,
    `--agent-client.tls.file.root-ca=${join(folder, "ca.pem")}`,
    `--auth.noauth.agent-id=${AGENT_ID}`,
    "--log.format=json",
  ], "connected");
  say(`The agent ${AGENT_ID} has dialled out to the proxy and keeps that one connection.`);

  const fetchThrough = hasCurl ? fetchWithCurl : fetchWithSocket;
  const site = `http://127.0.0.1:${origin.port}`;
  say(`\nFetching ${site}/ through the proxy with ${hasCurl ? "curl" : "a client of its own, for there is no curl"}:`);
  const page = await fetchThrough(`${site}/`, proxy.clients!, true);
  say(`  ${page.status}: ${page.text!.trim()}`);
  say(`Fetching 1 GiB, from the server to the agent, over QUIC to the proxy, and to the client:`);
  const file = await fetchThrough(`${site}/file`, proxy.clients!, false);
  if (page.status !== 200 || file.status !== 200 || file.bytes !== FILE_BYTES) {
    throw new Error(`Got status ${file.status} and ${file.bytes} bytes instead of ${FILE_BYTES}`);
  }
  say(`  ${file.status}: ${file.bytes} bytes in ${file.seconds.toFixed(1)} s, ${(file.bytes / file.seconds / 1e6).toFixed(0)} MB/s`);
  if (!keep) return;
  say(`\nTry it yourself, and press Ctrl-C to stop:\n  curl --proxytunnel --proxy http://${AGENT_ID}:demo@${proxy.clients} ${site}/`);
  await new Promise((resolve) => process.once("SIGINT", resolve).once("SIGTERM", resolve));
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  await exited;
}

try {
  await demo();
  say("\nThat was it: everything is stopped and removed.");
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  for (const child of children.reverse()) await stop(child);
  rmSync(folder, { recursive: true, force: true });
}
