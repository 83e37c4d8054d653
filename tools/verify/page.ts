// Fetches a page through a proxy and an agent that are started in a place, whose folder has their files.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { connect } from "node:net";
import process from "node:process";
import { AGENT_ID, Program } from "../../testing/programs.ts";
import type { Place } from "./place.ts";

const PAGE = "Hello from a server that only the agent can reach!";

/** Sends CONNECT and GET to a proxy, and returns everything it receives. */
function fetchThrough(proxy: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(proxy.split(":").at(-1)), "127.0.0.1");
    const credentials = Buffer.from(`${AGENT_ID}:x`).toString("base64");
    socket.write(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
    socket.write(`GET / HTTP/1.0\r\n\r\n`);
    let text = "";
    socket.on("data", (data) => text += data).on("end", () => resolve(text)).on("error", reject);
  });
}

/**
 * Starts proxy and agent as processes in `place`, fetches a page through them, and checks that both stop cleanly.
 * @param proxyArgs additional arguments of the proxy
 * @param whileRunning called while both run
 */
export async function fetchPage(
  place: Place,
  [proxyName, agentName]: [string[], string[]],
  proxyArgs: readonly string[] = [],
  whileRunning: () => Promise<void> = async () => {},
): Promise<void> {
  const origin = createServer((_, response) => void response.end(PAGE));
  await new Promise<void>((resolve) => origin.listen(0, "127.0.0.1", resolve));
  try {
    const start = ([name, ...command]: string[], args: string[]) => {
      const [file, ...words] = [...place.command(name!), ...command, ...args, "--log.format=json"];
      return new Program(file!, words, { env: { PATH: process.env.PATH!, HOME: "/nonexistent" } });
    };
    await using proxy = start(proxyName, [
      "--agent-server.listen-address=127.0.0.1:0",
      "--http-proxy.listen-address=127.0.0.1:0",
      `--agent-server.tls.file.cert=${place.folder}/cert.pem`,
      `--agent-server.tls.file.key=${place.folder}/key.pem`,
      ...proxyArgs,
    ]);
    const { agents, clients } = await proxy.waitFor("listening");
    await using agent = start(agentName, [
      `--agent-client.server-address=${agents}`,
      `--agent-client.tls.file.root-ca=${place.folder}/ca.pem`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
    ]);
    await agent.waitFor("connected");
    const { port } = origin.address() as { port: number };
    const text = await fetchThrough(String(clients), port);
    assert.match(text, /^HTTP\/1\.1 200 /);
    assert.ok(text.endsWith(PAGE), text);
    await whileRunning();
    for (const program of [agent, proxy]) {
      const { exitCode, signal, stderr } = await program.stop();
      assert.equal(exitCode, 0, `stopped with ${exitCode ?? signal}: ${stderr}`);
    }
  } finally {
    origin.close();
  }
}
