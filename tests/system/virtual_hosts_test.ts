// Web sites whose TLS ends at the proxy or lb, with real clients and servers, through the compiled executables.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { bcrypt } from "hash-wasm";
import { WebSocket } from "ws";
import { NGINX, NginxHttp } from "../../testing/nginx.ts";
import { AGENT, AGENT_ID, type Ended, LB, type Program, PROXY, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { PAGE, Web } from "../../testing/web.ts";

const NAMES = ["app.example", "*.zone.example", "localhost"];

let site: Site;
let web: Web;
let proxy: Program;
let addresses: { agents: string; clients: string };
let port: string;

/** The keys of a certificate for the sites. */
async function tlsKeys(more = ""): Promise<string> {
  const { cert, key } = await site.authority.issue({ names: NAMES });
  return `,cert-file=${site.folder.write("site.pem", cert)},key-file=${site.folder.write("site-key.pem", key)}${more}`;
}

before(async () => {
  site = await Site.create();
  web = await Web.start({ folder: site.folder.path });
  const record = `--forward=listen=127.0.0.1:0,network=https,agent=${AGENT_ID},to=${web.authority}`;
  ({ proxy, addresses } = await site.startProxy([
    `${record},host=app.example,host=localhost${await tlsKeys()}`,
    `${record.replace(web.authority, "127.0.0.1:9")},host=app.example,path=/gone`,
  ]));
  await site.startAgent(addresses);
  port = portOf(await proxy.waitFor("forwarding", { destination: web.authority }));
});

after(async () => {
  await site?.[Symbol.asyncDispose]();
  await web?.[Symbol.asyncDispose]();
});

function portOf({ clients }: { readonly [field: string]: unknown }): string {
  return String(clients).split(":").at(-1)!;
}

/** Runs curl, which finds the sites at a port of this machine. `--next` is followed by the options of the first request again. */
function fetchWith(at: string, ...args: string[]): Promise<Ended> {
  const resolve = ["app.example", "a.zone.example"].flatMap((name) => ["--resolve", `${name}:${at}:127.0.0.1`]);
  const common = ["-sS", "--cacert", site.files.ca, ...resolve];
  return runToEnd("/usr/bin/curl", [...common, ...args.flatMap((arg) => arg === "--next" ? [arg, ...common] : [arg])]);
}

describe("a web site whose TLS ends at the proxy", () => {
  it("serves curl several requests on one connection, each by its host and path", async () => {
    const url = `https://app.example:${port}`;
    const format = "\\n%{http_code} %{num_connects}\\n";
    const { stdout, stderr } = await fetchWith(port, "-w", format, `${url}/`, "-d", "echo", `${url}/`, "--next", "-w", format, `${url}/`);
    assert.equal(stdout, ["echo", "200 1", "echo", "200 0", PAGE, "200 0"].join("\n"), stderr);
    await proxy.waitFor("request", { method: "GET", serverName: "app.example", agent: AGENT_ID, destination: web.authority, status: 200 });
  });

  it("answers curl what it cannot serve", async () => {
    const rows = [[`https://a.zone.example:${port}/`, "404", "destination_not_found"], [
      `https://app.example:${port}/gone/x`,
      "502",
      "connection_refused",
    ]];
    for (const [url, status, error] of rows) {
      const { stdout } = await fetchWith(port, "-w", "%{http_code} %{header_json}", "-o", "/dev/null", url!);
      assert.match(stdout, new RegExp(`^${status} [^]*error=${error}`));
    }
    const plain = await fetchWith(port, "-w", "%{http_code}", "-o", "/dev/null", `http://app.example:${port}/`);
    assert.equal(plain.stdout, "400");
  });

  it("passes WebSockets", async () => {
    const socket = new WebSocket(`wss://localhost:${port}/`, { ca: site.authority.cert });
    const answer = await new Promise<string>((resolve, reject) => {
      socket.on("error", reject);
      socket.on("open", () => socket.send("hello"));
      socket.on("message", (data) => resolve(String(data)));
    });
    socket.close();
    assert.equal(answer, "echo hello");
  });

  it("serves fetch of Node.js with a large body both ways", async () => {
    const script = `
      const body = "x".repeat(3_000_000);
      for (let i = 0; i < 2; i++) {
        const response = await fetch("https://localhost:${port}/", { method: "POST", body });
        process.stdout.write(String(await response.text() === body));
      }`;
    const { stdout, stderr } = await runToEnd("/usr/bin/node", ["--input-type=module", "-e", script], {
      env: { PATH: "/usr/bin:/bin", NODE_EXTRA_CA_CERTS: site.files.ca },
    });
    assert.equal(stdout, "truetrue", stderr);
  });
});

const withNginx = { skip: existsSync(NGINX) ? false : "there is no nginx (tools/requirements.ts)" };

describe("a web site of lb", () => {
  it("lets visitors in who have a certificate and a token, and tells nginx who they are", withNginx, async () => {
    await using cache = await StoreServer.start("memcached");
    await using nginx = await NginxHttp.startPage("$http_host $http_x_forwarded_for $http_x_forwarded_proto [$http_authorization]");
    const key = makeTokenKey();
    const tokens = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`];
    const record = `--forward=listen=127.0.0.1:0,network=https,agent=${AGENT_ID},to=${nginx.address},host=*.zone.example,auth=token`;
    const { lb } = await site.startLb(cache, [
      ...tokens,
      "--http-proxy.proxy-protocol=127.0.0.1",
      record + await tlsKeys(`,client-ca-file=${site.files.ca}`),
    ]);
    const started = await site.startProxy([...storeArgs(cache), ...tokens]);
    const agentArgs = site.agentArgs(started.addresses).filter((arg) => !arg.startsWith("--auth."));
    const agentToken = site.folder.write("agent-token", await key.sign({ role: "agent" }));
    await site.start(AGENT, [...agentArgs, "--auth.type=jwt", `--auth.jwt.token=file:${agentToken}`]).waitFor("connected");
    const at = portOf(await lb.waitFor("forwarding", { destination: nginx.address }));
    const url = `https://a.zone.example:${at}/`;
    const curl = (...args: string[]) => fetchWith(at, "--haproxy-protocol", ...args, url);
    const visitor = await site.authority.issue({ names: ["visitor"] });
    const certificate = [
      "--cert",
      site.folder.write("visitor.pem", visitor.cert),
      "--key",
      site.folder.write("visitor-key.pem", visitor.key),
    ];
    const token = ["-H", `Authorization: Bearer ${await key.sign({ role: "client" })}`];
    const without = await curl(...token);
    assert.match(without.stderr, /alert|certificate required|Connection reset|getpeername/i);
    const anonymous = await curl(...certificate, "-w", "%{http_code}", "-o", "/dev/null");
    assert.equal(anonymous.stdout, "401", anonymous.stderr);
    for (const deadline = performance.now() + 20_000;;) { // until the store has the agent's entry
      const { stdout, stderr } = await curl(...certificate, ...token, "-w", " %{http_code}");
      if (stdout.endsWith(" 502") && performance.now() < deadline) continue;
      assert.equal(stdout, `a.zone.example:${at} 127.0.0.1 https [] 200`, stderr);
      break;
    }
  });
});

describe("a web site with users", () => {
  it("lets those in whose password is right, without a word of the agent", async () => {
    const hash = await bcrypt({ password: "correct-horse", salt: new Uint8Array(16), costFactor: 4, outputType: "encoded" });
    const users = site.folder.write("users", `alice:${hash}\n`);
    const started = await site.startProxy([
      "--auth.clients=htpasswd",
      `--auth.htpasswd.file=${users}`,
      `--forward=listen=127.0.0.1:0,network=http,agent=${AGENT_ID},to=${web.authority},auth=token`,
    ]);
    await site.startAgent(started.addresses);
    const at = portOf(await started.proxy.waitFor("forwarding", { destination: web.authority }));
    for (const [password, status] of [["wrong", "401"], ["correct-horse", "200"]]) {
      const { stdout, stderr } = await fetchWith(
        at,
        "-u",
        `alice:${password}`,
        "-w",
        "%{http_code}",
        "-o",
        "/dev/null",
        `http://app.example:${at}/`,
      );
      assert.equal(stdout, status, stderr);
    }
  });
});

describe("web sites that cannot work", () => {
  it("are refused before anything is opened", async () => {
    const record = "--forward=listen=:443,agent=a,to=b:1,network=https";
    for (
      const [args, message] of [
        [[record], "listen=:443: network=https needs cert-file and key-file, acme, --http-proxy.tls.cert-dir, or --http-proxy.tls.enable"],
        [
          [`${record},cert-file=/nonexistent/c,key-file=/nonexistent/k`],
          "Cannot read --forward key-file /nonexistent/k: the file does not exist",
        ],
        [[`${record},auth=token`], "auth=token: nothing is verified without --auth.type=jwt or --auth.clients"],
      ] as const
    ) {
      for (const program of [PROXY, LB]) {
        const { exitCode, stderr } = await runToEnd(program, args);
        assert.equal(exitCode, 2, stderr);
        assert.ok(stderr.includes(message), stderr);
      }
    }
  });
});
