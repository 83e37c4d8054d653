// Options that change while tunnels are open: listeners move, and only what the new options forbid is cut. Over the network in memory.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { startProxy, type UpdatableProxy } from "../../proxy/proxy.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import type { Net } from "../../shared/net/net.ts";
import { ask, connectTo, LogBook, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { makeTokenKey, type TokenKey } from "../../testing/tokens.ts";
import { bytes, listenTcp, readToError, type TcpServer, within } from "../conformance/support.ts";
import { AGENT_ID, checkTunnel, openTunnel, type Tunnel } from "./tunnels.ts";

type Choices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>;

interface Running {
  readonly net: Net;
  readonly proxy: UpdatableProxy;
  readonly log: LogBook;
  readonly origin: TcpServer;
  readonly folder: Folder;
  update(choices: Choices): ReturnType<UpdatableProxy["update"]>;
  connectAgent(address: string): Promise<void>;
}

function optionsOf({ httpProxy, agentServer, ...given }: Choices) {
  return withDefaults(proxyOptions, {
    ...given,
    agentServer: { listenAddress: "127.0.0.1:0", ...agentServer },
    httpProxy: { listenAddress: "127.0.0.1:0", ...httpProxy },
  });
}

/** Runs a proxy with an agent; `token` is the agent's. */
function withProxy(
  body: (running: Running) => Promise<void>,
  given: (folder: Folder) => Choices = () => ({}),
  token?: () => Promise<string>,
): Promise<void> {
  return withNet(async (net) => {
    using folder = new Folder();
    const log = new LogBook();
    const proxy = await startProxy(optionsOf(given(folder)), { net, log });
    const agents: { close(): Promise<void> }[] = [];
    const connectAgent = async (address: string) => {
      const auth = token === undefined
        ? { noauth: { agentId: AGENT_ID } }
        : { type: "jwt" as const, jwt: { token: `file:${folder.write("agent-token", await token())}` } };
      const options = withDefaults(agentOptions, { agentClient: { serverAddress: [address] }, auth });
      const agentLog = new LogBook();
      agents.push(await startAgent(options, { net, log: agentLog, random: () => 0 }));
      await agentLog.waitFor("connected");
    };
    await connectAgent(proxy.agentAddress);
    const update = (choices: Choices) => proxy.update(optionsOf(choices));
    await body({ net, proxy, log, origin: await listenTcp(net), folder, update, connectAgent });
    for (const agent of agents) await agent.close();
    await proxy.close();
  });
}

/** Checks that the tunnel is cut, and why. */
async function checkCut({ client }: Tunnel, log: LogBook, reason: RegExp): Promise<void> {
  await readToError(client, "reset");
  const { reason: logged, error } = await log.waitFor("request", { error: "connection_terminated" });
  assert.match(String(logged), reason);
  assert.equal(error, "connection_terminated");
}

describe("listeners whose addresses change", () => {
  it("open at the new address and close at the old one, and their tunnels go on", () =>
    withProxy(async ({ net, proxy, log, origin, update }) => {
      const tunnel = await openTunnel(net, proxy, origin);
      const before = proxy.clientAddress;
      await update({ httpProxy: { listenAddress: "127.0.0.1:7001" }, socks: { listenAddress: "127.0.0.1:7002" } });
      assert.deepEqual([proxy.clientAddress, proxy.socksAddress], ["127.0.0.1:7001", "127.0.0.1:7002"]);
      await assert.rejects(connectTo(net, before), { code: "refused" });
      await checkTunnel(tunnel);
      await checkTunnel(await openTunnel(net, proxy, origin));
      await update({ httpProxy: { listenAddress: "127.0.0.1:7001" } });
      assert.equal(proxy.socksAddress, undefined);
      await assert.rejects(connectTo(net, "127.0.0.1:7002"), { code: "refused" });
      assert.equal(log.logged("listener closed").length, 2);
      await checkTunnel(tunnel);
    }));

  it("stay as they are if one of the new ones cannot be opened", () =>
    withProxy(async ({ net, proxy, origin, update }) => {
      const [before, tunnel] = [proxy.clientAddress, await openTunnel(net, proxy, origin)];
      const other = await net.listenTcp({ address: "127.0.0.1:7003" });
      const wanted = { listenAddress: "127.0.0.1:7001", http2ListenAddress: "127.0.0.1:7003", hostWhitelist: ["none"] };
      await assert.rejects(update({ httpProxy: wanted, admin: { listenAddress: "127.0.0.1:7004" } }), { code: "address-in-use" });
      assert.equal(proxy.clientAddress, before);
      for (const closed of ["127.0.0.1:7001", "127.0.0.1:7004"]) await assert.rejects(connectTo(net, closed), { code: "refused" });
      await checkTunnel(tunnel);
      await checkTunnel(await openTunnel(net, proxy, origin));
      other.close();
    }));

  it("for agents keep the agents that they have until these go", () =>
    withProxy(async ({ net, proxy, origin, update, connectAgent }) => {
      const before = proxy.agentAddress;
      const tunnel = await openTunnel(net, proxy, origin);
      await update({ agentServer: { listenAddress: "127.0.0.1:7005", agent: { multiple: true } } });
      assert.deepEqual([proxy.agentAddress, proxy.agentTcpAddress], ["127.0.0.1:7005", "127.0.0.1:7005"]);
      assert.notEqual(before, proxy.agentAddress);
      await connectAgent(proxy.agentAddress);
      await checkTunnel(tunnel);
      await checkTunnel(await openTunnel(net, proxy, origin));
    }));

  it("for operators serve what has changed, and only that is opened", () =>
    withProxy(async ({ net, proxy, update, folder }) => {
      const token = "t".repeat(32);
      const get = async (address: string, path: string) =>
        (await ask(net, address, `GET ${path} HTTP/1.1\r\nHost: ${address}\r\nAuthorization: Bearer ${token}\r\n\r\n`)).status;
      await update({ admin: { listenAddress: "127.0.0.1:7006" } });
      assert.equal(await get(proxy.adminAddress!, "/healthz"), 200);
      const tokenFile = folder.write("tokens", `viewer anna ${token}\n`);
      assert.equal(await get("127.0.0.1:7006", "/api/v1/status"), 401);
      await update({ admin: { listenAddress: "127.0.0.1:7006", tokenFile } });
      assert.equal(await get("127.0.0.1:7006", "/api/v1/status"), 200);
      await update({});
      await assert.rejects(connectTo(net, "127.0.0.1:7006"), { code: "refused" });
    }));
});

describe("an open tunnel that a new rule forbids", () => {
  it("is cut, and no other: by the allow-list", () =>
    withProxy(async ({ net, proxy, log, origin, update }) => {
      const other = await listenTcp(net);
      const [tunnel, staying] = [await openTunnel(net, proxy, origin), await openTunnel(net, proxy, other)];
      const { tunnelsCut } = await update({ httpProxy: { hostWhitelist: [`127.0.0.1:${other.port}`] } });
      assert.equal(tunnelsCut, 1);
      await checkCut(tunnel, log, /^cut: 127\.0\.0\.1:\d+ is not on the allow-list of this proxy$/);
      await checkTunnel(staying);
    }));

  it("stays open if reload.forbidden is keep", () =>
    withProxy(async ({ net, proxy, origin, update }) => {
      const tunnel = await openTunnel(net, proxy, origin);
      assert.equal((await update({ httpProxy: { hostWhitelist: ["none"] }, reload: { forbidden: "keep" } })).tunnelsCut, 0);
      await checkTunnel(tunnel);
    }));

  it("is cut when its forward is removed, and stays when that leads elsewhere", () =>
    withProxy(async ({ net, proxy, log, origin, update }) => {
      const forward = (listen: string, to: string, more = {}) => ({ listen, agent: AGENT_ID, to, ...more });
      const to = `127.0.0.1:${origin.port}`;
      const open = async (address: string): Promise<Tunnel> => {
        const client = await connectTo(net, address);
        await client.write(bytes("GET / HTTP/1.1\r\n\r\n"));
        return { client, server: (await within(origin.request())).stream };
      };
      await update({ forward: [forward("127.0.0.1:7001", to), forward("127.0.0.1:7002", to), forward("127.0.0.1:7003", to)] });
      const [removed, kept, denied] = [await open("127.0.0.1:7001"), await open("127.0.0.1:7002"), await open("127.0.0.1:7003")];
      const next = [forward("127.0.0.1:7002", "b:2"), forward("127.0.0.1:7003", to, { allow: ["192.0.2.1"] })];
      assert.equal((await update({ forward: next })).tunnelsCut, 2);
      await checkCut(removed, log, /^cut: The forward was removed$/);
      await readToError(denied.client, "reset");
      await checkTunnel(kept);
      assert.equal(proxy.forwardAddresses.length, 2);
    }));

  it("is cut by a policy that is added, and by one that is changed", () =>
    withProxy(async ({ net, proxy, log, origin, update, folder }) => {
      const tunnel = await openTunnel(net, proxy, origin);
      const rules = (port: number) => `rules: [{ allow: one, destinations: ["127.0.0.1:${port}"] }]\n`;
      const policyFile = folder.write("policy.yaml", rules(origin.port));
      assert.equal((await update({ auth: { policyFile } })).tunnelsCut, 0);
      await checkTunnel(tunnel);
      const other = folder.write("other.yaml", rules(1));
      assert.equal((await update({ auth: { policyFile: other } })).tunnelsCut, 1);
      await checkCut(tunnel, log, /^cut: The policy does not allow /);
    }));
});

describe("an agent whose options change", () => {
  const agentOptionsOf = (address: string, agentClient: object = {}, more: object = {}) =>
    withDefaults(agentOptions, {
      agentClient: { serverAddress: [address], ...agentClient },
      auth: { noauth: { agentId: AGENT_ID } },
      ...more,
    });

  it("connects again with what needs that, and ends earlier connections when their tunnels have ended", () =>
    withNet(async (net) => {
      const [log, agentLog] = [new LogBook(), new LogBook()];
      const proxy = await startProxy(optionsOf({}), { net, log });
      const agent = await startAgent(agentOptionsOf(proxy.agentAddress), { net, log: agentLog, random: () => 0 });
      await agentLog.waitFor("connected");
      const origin = await listenTcp(net);
      const tunnel = await openTunnel(net, proxy, origin);
      // what cannot be used changes nothing, and where no proxy is the earlier connection stays
      await assert.rejects(agent.update(agentOptionsOf(proxy.agentAddress, { tls: { file: { rootCa: "/none" } } })), {
        name: "ConfigError",
      });
      await agent.update(agentOptionsOf("127.0.0.1:1"));
      await checkTunnel(await openTunnel(net, proxy, origin));
      await agent.update(agentOptionsOf(proxy.agentAddress, { labels: ["site=berlin"] }));
      await log.waitFor("agent connected", { labels: "site=berlin" });
      await log.waitFor("agent is draining");
      await checkTunnel(tunnel);
      await checkTunnel(await openTunnel(net, proxy, origin));
      assert.equal(log.logged("agent disconnected").length, 0);
      tunnel.client.close();
      tunnel.server.close();
      assert.equal(log.logged("agent replaced").length, 0);
      await agent.close();
      await proxy.close();
    }));

  it("cuts tunnels to destinations that are denied now, and no other", () =>
    withNet(async (net) => {
      const agentLog = new LogBook();
      const proxy = await startProxy(optionsOf({}), { net, log: new LogBook() });
      const agent = await startAgent(agentOptionsOf(proxy.agentAddress), { net, log: agentLog, random: () => 0 });
      await agentLog.waitFor("connected");
      const [origin, other] = [await listenTcp(net), await listenTcp(net)];
      const [tunnel, staying] = [await openTunnel(net, proxy, origin), await openTunnel(net, proxy, other)];
      const lists = { hostDenylist: [`127.0.0.1:${origin.port}`] };
      assert.deepEqual(await agent.update(agentOptionsOf(proxy.agentAddress, lists, { reload: { forbidden: "keep" } })), { tunnelsCut: 0 });
      await checkTunnel(tunnel);
      assert.deepEqual(await agent.update(agentOptionsOf(proxy.agentAddress, { hostWhitelist: [`127.0.0.1:${other.port}`] })), {
        tunnelsCut: 1,
      });
      await readToError(tunnel.client, "reset");
      assert.match(
        String((await agentLog.waitFor("tunnel", { destination: `127.0.0.1:${origin.port}` })).reason),
        /^cut: .* allow-list of the agent$/,
      );
      await checkTunnel(staying);
      assert.equal(agentLog.logged("connected").length, 1);
      await agent.close();
      await proxy.close();
    }));
});

describe("authentication that changes", () => {
  const forKey = (folder: Folder, ...keys: TokenKey[]): Choices => ({
    auth: {
      type: "jwt",
      jwt: { publicKey: keys.map(({ publicPem }, i) => folder.write(`${i}-${publicPem.slice(60, 70).replace(/\W/g, "")}.pem`, publicPem)) },
    },
  });
  const openWith = async ({ net, proxy, origin }: Running, token: string): Promise<Tunnel> => {
    const client = await connectTo(net, proxy.clientAddress);
    const credentials = `Proxy-Authorization: Basic ${btoa(`${AGENT_ID}:${token}`)}`;
    await client.write(bytes(`CONNECT 127.0.0.1:${origin.port} HTTP/1.1\r\nHost: a\r\n${credentials}\r\n\r\nGET / HTTP/1.1\r\n\r\n`));
    const { stream: server } = await within(origin.request());
    return { client, server };
  };

  it("keeps tunnels and agents whose credentials are still accepted, and ends the others", () => {
    const [agents, staying, leaving] = [makeTokenKey(), makeTokenKey(), makeTokenKey()];
    return withProxy(
      async (running) => {
        const { update, folder, log, proxy } = running;
        const [kept, cut] = [await openWith(running, await staying.sign()), await openWith(running, await leaving.sign())];
        for (const { client } of [kept, cut]) assert.match(new TextDecoder().decode((await client.read())!), /^HTTP\/1\.1 200 /);
        assert.deepEqual(await update(forKey(folder, agents, staying)), { tunnelsCut: 1, agentsClosed: 0 });
        await readToError(cut.client, "reset");
        await checkTunnel(kept);
        assert.deepEqual(await update(forKey(folder, staying)), { tunnelsCut: 0, agentsClosed: 1 });
        await log.waitFor("agent disconnected");
        assert.equal(proxy.agents, 0);
      },
      (folder) => forKey(folder, agents, staying, leaving),
      () => agents.sign({ role: "agent" }),
    );
  });

  it("ends what is revoked later by a file that a reload has named", () => {
    const key = makeTokenKey();
    return withProxy(
      async (running) => {
        const { update, folder, log } = running;
        const token = await key.sign();
        const tunnel = await openWith(running, token);
        await tunnel.client.read();
        const { auth } = forKey(folder, key);
        const revocationFile = folder.write("revoked", "");
        await update({ auth: { ...auth, jwt: { ...auth!.jwt, revocationFile } } });
        await checkTunnel(tunnel);
        folder.write("revoked", JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString()).jti);
        await checkCut(tunnel, log, /^cut: The token is revoked/);
      },
      (folder) => forKey(folder, key),
      () => key.sign({ role: "agent" }),
    );
  });
});
