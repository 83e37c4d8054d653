// Ports and web sites that an agent asks for, as its token allows, through the compiled executables.
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { it } from "node:test";
import { UdpServer } from "../../testing/masque.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { AGENT, type Program, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { dial, Origin } from "../../testing/sockets.ts";
import { PAGE, Web } from "../../testing/web.ts";

it("an agent has a proxy publish what its token allows, until it leaves", async () => {
  await using site = await Site.create();
  await using web = await Web.start({ folder: site.folder.path });
  await using origin = await Origin.start(async (wire) => {
    wire.finish("from the database");
    await wire.readAll();
  });
  await using names = await UdpServer.start(() => new TextEncoder().encode("from the name server"));
  const [database, sites] = (await Promise.all([freeAddress(), freeAddress()])).map((address) => address.replace(/.*:/, ":"));
  const auth = (...args: string[]) => runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: site.folder.path });
  await auth("key", "private");
  await auth("key", "public");
  const patterns = `${database},udp${database},*.site.example${sites}`;
  await auth("jwt", "token", "--agent-id=4711", "--role=agent", `--publish=${patterns}`, "--out=agent.jwt");
  const tokens = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.path}/auth-key-public.pem`];
  const { proxy, addresses } = await site.startProxy([
    ...tokens,
    `--forward=listen=${sites},network=http,agent=operator,to=127.0.0.1:9,allow=all`,
  ]);
  const agentArgs = [
    ...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth.")),
    "--auth.type=jwt",
    `--auth.jwt.token=file:${site.folder.path}/agent.jwt`,
    "--drain.timeout=0s", // a UDP flow has no end to wait for
    `--agent-client.publish=listen=${database},to=${origin.authority},allow=all`,
    `--agent-client.publish=listen=${database},network=udp,to=${names.authority},allow=all`,
    `--agent-client.publish=listen=${sites},network=http,host=www.site.example,to=${web.authority},allow=all`,
    `--agent-client.publish=listen=${sites},network=http,host=other.example,to=${web.authority},allow=all`,
  ];
  const start = async (): Promise<Program> => {
    const agent = site.start(AGENT, agentArgs);
    await agent.waitFor("connected");
    return agent;
  };
  const status = async (host: string) => {
    const url = `http://${host}${sites}/`;
    const args = ["-sS", "--resolve", `${host}${sites}:127.0.0.1`, "-w", " %{http_code}", url];
    return (await runToEnd("/usr/bin/curl", args)).stdout;
  };
  const readDatabase = async () => {
    using client = await dial(`127.0.0.1${database}`);
    client.finish();
    return (await client.readAll()).toString();
  };
  const askNames = async () => {
    const socket = createSocket("udp4");
    socket.connect(Number(database!.slice(1)), "127.0.0.1");
    await once(socket, "connect");
    socket.send("who?");
    const [answer] = await once(socket, "message");
    socket.close();
    return String(answer);
  };
  const agent = await start();
  await proxy.waitFor("forward of an agent refused", {
    agent: "4711",
    reason: `the agent's token does not allow other.example at ${sites}`,
  });
  assert.equal(await readDatabase(), "from the database");
  assert.equal(await askNames(), "from the name server");
  assert.equal(await status("www.site.example"), `${PAGE} 200`);
  assert.match(await status("other.example"), / 502$/);
  await agent.stop();
  await proxy.waitFor("forward withdrawn", { agent: "4711", destination: origin.authority });
  await proxy.waitFor("forward withdrawn", { agent: "4711", destination: names.authority });
  await proxy.waitFor("forward withdrawn", { agent: "4711", destination: web.authority });
  await assert.rejects(dial(`127.0.0.1${database}`), { code: "ECONNREFUSED" });
  assert.match(await status("www.site.example"), / 502$/);
  await start();
  await proxy.waitFor("forwarding", { destination: names.authority }, 2);
  assert.equal(await readDatabase(), "from the database");
  assert.equal(await askNames(), "from the name server");
});
