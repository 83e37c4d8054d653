// Agents that renew their token while they are connected, over the network in memory.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { renameSync } from "node:fs";
import { describe, it } from "node:test";
import { startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { AuthenticationError, type Authenticator, createNoAuth, type Identity } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import type { Net } from "../../shared/net/net.ts";
import { LogBook, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { AGENT_ID, checkTunnel, openTunnel } from "./tunnels.ts";
import { listenTcp } from "../conformance/support.ts";

/** A token without a valid signature: the proxy of these tests reads only its name. */
const tokenOf = (name: string, agentId = AGENT_ID) =>
  ['{"alg":"none"}', JSON.stringify({ agent_id: agentId, role: "agent", jti: name, exp: 4_000_000_000 }), "signature"]
    .map((part) => Buffer.from(part).toString("base64url")).join(".");

/** Accepts tokens until they are ended by name. */
class Tokens implements Authenticator {
  readonly authenticateClient = createNoAuth().authenticateClient;
  readonly ends = new Map<string, AbortController>();
  readonly released: string[] = [];

  authenticateAgent(credentials: Uint8Array): Identity {
    const { jti, agent_id: agentId } = JSON.parse(
      Buffer.from(new TextDecoder().decode(credentials).split(".")[1]!, "base64url").toString(),
    );
    if (jti === "bad") throw new AuthenticationError("denied", "The token is bad");
    const end = new AbortController();
    this.ends.set(jti, end);
    return { agentId, tokenId: jti, signal: end.signal, release: () => void this.released.push(jti) };
  }

  end(name: string): void {
    this.ends.get(name)!.abort(new Error(`${name} has ended`));
  }
}

/** A proxy and an agent whose token is in a file. */
async function start(net: Net, folder: Folder) {
  const tokens = new Tokens();
  const [proxyLog, agentLog] = [new LogBook(), new LogBook()];
  const forProxy = withDefaults(proxyOptions, {
    agentServer: { listenAddress: "127.0.0.1:0" },
    httpProxy: { listenAddress: "127.0.0.1:0" },
  });
  const proxy = await startProxy(forProxy, { net, log: proxyLog, authenticator: tokens });
  /** Replaces the file as programs do that renew it. */
  const write = (token: string) => renameSync(folder.write("token.new", token), file);
  const file = folder.write("token", tokenOf("first"));
  const forAgent = withDefaults(agentOptions, { auth: { type: "jwt", jwt: { token: `file:${file}` } } });
  forAgent.agentClient.serverAddress = [proxy.agentAddress];
  const agent = await startAgent(forAgent, { net, log: agentLog, tokenIntervalMs: 5 });
  await agentLog.waitFor("connected");
  return { proxy, agent, tokens, proxyLog, agentLog, write };
}

describe("an agent whose token is renewed", () => {
  it("keeps its connection and its tunnels when the old token ends", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const { proxy, agent, tokens, proxyLog, write } = await start(net, folder);
      const origin = await listenTcp(net);
      const tunnel = await openTunnel(net, proxy, origin);
      write(tokenOf("second"));
      await proxyLog.waitFor("agent renewed its credentials");
      assert.deepEqual(tokens.released, ["first"]);
      tokens.end("first");
      await checkTunnel(tunnel);
      assert.equal(proxyLog.logged("agent disconnected").length, 0);
      tokens.end("second"); // now this one counts
      await proxyLog.waitFor("agent disconnected");
      await agent.close();
      await proxy.close();
      assert.ok(tokens.released.includes("second"));
    }));

  it("keeps the old one if the new one is refused, or is for another agent", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const { proxy, agent, tokens, proxyLog, write } = await start(net, folder);
      write(tokenOf("bad"));
      await proxyLog.waitFor("renewed credentials refused", {}, 1);
      write(tokenOf("other", "other"));
      await proxyLog.waitFor("renewed credentials refused", {}, 2);
      assert.deepEqual(tokens.released, ["other"]);
      tokens.end("other");
      assert.equal(proxy.agents, 1);
      tokens.end("first");
      await proxyLog.waitFor("agent disconnected");
      await agent.close();
      await proxy.close();
    }));

  it("says once that the file cannot be read, and goes on", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const { proxy, agent, proxyLog, agentLog, write } = await start(net, folder);
      write("no token");
      await agentLog.waitFor("credentials cannot be read again");
      write(tokenOf("second"));
      await proxyLog.waitFor("agent renewed its credentials");
      assert.equal(agentLog.logged("credentials cannot be read again").length, 1);
      await agent.close();
      await proxy.close();
    }));
});
