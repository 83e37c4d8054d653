// Certificates by ACME for web sites, of the operator and of an agent, through the compiled executables and a small authority.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { it } from "node:test";
import { connect } from "node:tls";
import { AcmeServer } from "../../testing/acme_server.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { AGENT, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";

const DAY_MS = 86_400_000;

it("a proxy obtains certificates for its own web sites and for those of agents, as their tokens allow, and for no other name", async () => {
  await using site = await Site.create();
  const [sites, challenges] = await Promise.all([freeAddress(), freeAddress()]);
  await using server = await AcmeServer.start({
    look: async ({ token, name }) => {
      const response = await fetch(`http://${challenges}/.well-known/acme-challenge/${token}`, { headers: { Host: name } });
      return await response.text();
    },
    validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
  });
  const auth = (...args: string[]) => runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: site.folder.path });
  await auth("key", "private");
  await auth("key", "public");
  const port = `:${sites!.split(":").at(-1)}`;
  await auth("jwt", "token", "--agent-id=4711", "--role=agent", `--publish=*.site.example${port}`, "--out=agent.jwt");
  const { proxy, addresses } = await site.startProxy([
    "--auth.type=jwt",
    `--auth.jwt.public-key=${site.folder.path}/auth-key-public.pem`,
    `--state-dir=${site.folder.path}`,
    `--forward=listen=${port},network=https,host=own.example,acme=true,agent=4711,to=127.0.0.1:9,allow=all`,
    "--acme.published",
    `--acme.directory=${server.directory}`,
    `--acme.file.root-ca=${site.folder.write("acme-ca.pem", server.ca)}`,
    `--acme.http-listen-address=${challenges}`,
  ]);
  site.start(AGENT, [
    ...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth.")),
    "--auth.type=jwt",
    `--auth.jwt.token=file:${site.folder.path}/agent.jwt`,
    `--agent-client.publish=listen=${port},network=https,host=www.site.example,to=127.0.0.1:9,allow=all`,
    `--agent-client.publish=listen=${port},network=https,host=www.other.example,to=127.0.0.1:9,allow=all`,
  ]);
  await proxy.waitFor("certificates of published names", { names: "own.example" });
  await proxy.waitFor("certificates of published names", { names: "own.example,www.site.example" });
  const shown = async (servername: string) => {
    const socket = connect({ host: "127.0.0.1", port: Number(port.slice(1)), servername, rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const { raw } = socket.getPeerCertificate();
    socket.destroy();
    return new X509Certificate(raw).subjectAltName;
  };
  for (const name of ["own.example", "www.site.example"]) assert.equal(await shown(name), `DNS:${name}`);
  // asking for a name orders nothing
  assert.notEqual(await shown("www.other.example"), "DNS:www.other.example");
  assert.deepEqual(server.orders.map(({ names }) => names), [["own.example"], ["www.site.example"]]);
});
