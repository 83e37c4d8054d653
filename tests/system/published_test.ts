// Ports and web sites that an agent asks for, as its token allows, through the compiled executables.
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { it } from "node:test";
import { UdpServer } from "../../testing/masque.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { AGENT, type Program, REVERSE_HTTP, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { dial, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
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

it("lb serves what agents publish at any proxy, and a name belongs to one agent at all of them", async () => {
  await using memcached = await StoreServer.start("memcached");
  await using site = await Site.create();
  await using web = await Web.start({ folder: site.folder.path });
  await using origin = await Origin.start(async (wire) => {
    wire.finish("from the database");
    await wire.readAll();
  });
  const auth = (...args: string[]) => runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: site.folder.path });
  await auth("key", "private");
  await auth("key", "public");
  const [database, sites] = (await Promise.all([freeAddress(), freeAddress()])).map((address) => Number(address.replace(/.*:/, "")));
  for (const id of ["site1", "site2"]) {
    await auth("jwt", "token", `--agent-id=${id}`, "--role=agent", `--publish=:${database},*.site.example:${sites}`, `--out=${id}.jwt`);
  }
  await auth("jwt", "token", "--agents=site*", "--role=client", "--out=lb.jwt");
  const folder = site.folder.path;
  const proxyArgs = [...storeArgs(memcached), "--store.ttl=3s", "--auth.type=jwt", `--auth.jwt.public-key=${folder}/auth-key-public.pem`];
  const one = await site.startProxy(proxyArgs);
  const two = await site.startProxy(proxyArgs);
  const startAgent = async (id: string, addresses: typeof one.addresses, ...publish: string[]) => {
    const agent = site.start(AGENT, [
      ...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth.")),
      "--auth.type=jwt",
      `--auth.jwt.token=file:${folder}/${id}.jwt`,
      ...publish.map((record) => `--agent-client.publish=${record}`),
    ]);
    await agent.waitFor("connected");
    return agent;
  };
  const name = `listen=:${sites},network=http,host=www.site.example,to=${web.authority},allow=all`;
  const first = await startAgent("site2", two.addresses, `listen=:${database},to=${origin.authority},allow=all`, name);
  await two.proxy.waitFor("forwarding", { servers: "www.site.example" });
  await startAgent("site1", one.addresses, name);
  await one.proxy.waitFor("forward of an agent refused", { agent: "site1" });
  const token = `token-file=${folder}/lb.jwt`;
  const { lb } = await site.startLb(memcached, [
    `--published=listen=127.0.0.1:0,network=tcp,port=${database},${token}`,
    `--published=listen=127.0.0.1:0,network=http,port=${sites},${token}`,
  ]);
  const addressOf = async (network: string) => String((await lb.waitFor("serving what agents publish", { network })).clients);
  using client = await dial(await addressOf("tcp"));
  client.finish();
  assert.equal((await client.readAll()).toString(), "from the database");
  const at = await addressOf("http");
  const status = async (host: string) => {
    const args = ["-sS", "-o", "/dev/null", "-H", `Host: ${host}`, "-w", "%{http_code}", `http://${at}/`];
    return (await runToEnd("/usr/bin/curl", args)).stdout;
  };
  assert.deepEqual([await status("www.site.example"), await status("other.site.example")], ["200", "404"]);
  const { agent } = await lb.waitFor("request", { serverName: "www.site.example", status: 200 });
  assert.equal(agent, "site2");
  // it leaves: the agent that waits at the other proxy gets the name
  await first.stop();
  await one.proxy.waitFor("forwarding", { servers: "www.site.example", agent: "site1" });
  while (await status("www.site.example") !== "200");
});

it("visitors and clients of lb with certificates are known by them at the proxy, whose policy applies, and UDP passes", async () => {
  await using memcached = await StoreServer.start("memcached");
  await using site = await Site.create();
  await using web = await Web.start({ folder: site.folder.path });
  await using names = await UdpServer.start(() => new TextEncoder().encode("from the name server"));
  const folder = site.folder.path;
  const auth = (...args: string[]) => runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: folder });
  await auth("key", "private");
  await auth("key", "public");
  const [sites, dns] = (await Promise.all([freeAddress(), freeAddress()])).map((address) => Number(address.replace(/.*:/, "")));
  await auth("jwt", "token", "--agent-id=4711", "--role=agent", `--publish=udp:${dns},*.site.example:${sites}`, "--out=agent.jwt");
  await auth("jwt", "token", "--agents=47*", "--role=client", "--out=lb.jwt");
  const people = ["--auth.type=jwt", `--auth.jwt.public-key=${folder}/auth-key-public.pem`, "--auth.clients=jwt,mtls"];
  const tls = [
    "--http-proxy.tls.enable",
    `--http-proxy.tls.file.cert=${site.files.cert}`,
    `--http-proxy.tls.file.key=${site.files.key}`,
    `--http-proxy.tls.file.client-ca=${site.files.ca}`,
    "--http-proxy.tls.client-auth=optional",
  ];
  const policy = `rules:\n  - allow: dba\n    subjects: ["group:dba"]\n  - allow: names\n    destinations: ["udp:${names.authority}"]\n`;
  const proxyArgs = [
    ...storeArgs(memcached),
    ...people,
    ...tls,
    "--auth.mtls.trust-client-cert",
    "--http-proxy.trusted-proxies=127.0.0.1",
    `--auth.policy-file=${site.folder.write("policy.yaml", policy)}`,
  ];
  await site.startProxy(proxyArgs); // the agent is at the other one
  const { proxy, addresses } = await site.startProxy(proxyArgs);
  const agent = site.start(AGENT, [
    ...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth.")),
    "--auth.type=jwt",
    `--auth.jwt.token=file:${folder}/agent.jwt`,
    "--drain.timeout=0s",
    `--agent-client.publish=listen=:${sites},network=https,host=staff.site.example,to=${web.authority},auth=mtls`,
    `--agent-client.publish=listen=:${dns},network=udp,to=${names.authority},allow=all`,
  ]);
  await agent.waitFor("connected");
  await proxy.waitFor("forwarding", { servers: "staff.site.example" });
  await proxy.waitFor("forwarding", { network: "udp" });
  const token = `token-file=${folder}/lb.jwt`;
  const { lb, clients } = await site.startLb(memcached, [
    ...people,
    ...tls,
    "--http-connector.tls.enable",
    `--http-connector.tls.file.root-ca=${site.files.ca}`,
    `--published=listen=127.0.0.1:0,network=https,port=${sites},${token}`,
    `--published=listen=127.0.0.1:0,network=udp,port=${dns},${token}`,
  ]);
  const portOf = async (network: string) =>
    Number(String((await lb.waitFor("serving what agents publish", { network })).clients).split(":").at(-1));
  const issue = async (name: string, unit: string) => {
    const { cert, key } = await site.authority.issue({ names: [], commonName: name, units: [unit] });
    return [site.folder.write(`${name}.pem`, cert), site.folder.write(`${name}-key.pem`, key)] as const;
  };
  const [alice, mallory] = [await issue("alice", "dba"), await issue("mallory", "sales")];
  const curl = async (...args: string[]) => {
    const common = ["-sSk", "-o", "/dev/null", "-w", "%{http_connect} %{http_code}"];
    return (await runToEnd("/usr/bin/curl", [...common, ...args])).stdout;
  };
  const stolen = `Client-Cert: :${readFileSync(alice[0], "latin1").replace(/-----.*-----|\s/g, "")}:`;
  const certificate = ([cert, key]: readonly [string, string], option = "") => [`--${option}cert`, cert, `--${option}key`, key];
  const connect = (...args: string[]) =>
    curl(
      "--proxytunnel",
      "--proxy",
      `https://4711:@${clients}`,
      "--proxy-insecure",
      "--proxy-header",
      stolen,
      ...args,
      `http://${web.authority}/`,
    );
  assert.equal(await connect(...certificate(alice, "proxy-")), "200 200");
  const { sub, groups, client } = await proxy.waitFor("request", { method: "CONNECT", sub: "alice" });
  assert.deepEqual([sub, groups, String(client).startsWith("127.0.0.1:")], ["alice", "dba", true]);
  assert.match(await connect(...certificate(mallory, "proxy-")), /^403/);
  assert.match(await connect(), /^407/);
  const https = await portOf("https");
  const visit = (...args: string[]) =>
    curl("--resolve", `staff.site.example:${https}:127.0.0.1`, "-H", stolen, ...args, `https://staff.site.example:${https}/`);
  assert.equal(await visit(...certificate(alice)), "000 200");
  assert.equal(await visit(...certificate(mallory)), "000 403");
  assert.equal(await visit(), "000 403");
  await lb.waitFor("request", { method: "GET", serverName: "staff.site.example", sub: "alice", status: 200 });
  const socket = createSocket("udp4");
  socket.connect(await portOf("udp"), "127.0.0.1");
  await once(socket, "connect");
  socket.send("who?");
  const [answer] = await once(socket, "message");
  socket.close();
  assert.equal(String(answer), "from the name server");
});
