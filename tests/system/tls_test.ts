// TLS with the compiled executables: to clients, and between agent and proxy, with client certificates, revocation, renewal and self-signed
// certificates.
import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import { createPrivateKey } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { promisify } from "node:util";
import { type Authority, makeAuthority } from "../../testing/certificates.ts";
import { type Addresses, AGENT, AGENT_ID, Folder, type Program, PROXY, runToEnd, Site } from "../../testing/programs.ts";
import { Secured } from "../../testing/secured.ts";
import { openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const RENEWED = "certificates reloaded";
const withCurl = { skip: spawnSync("curl", ["--version"]).status === 0 ? false : "there is no curl" };

const TRANSPORTS = ["quic", "tls"] as const;

/** Sends a message through a tunnel, and receives it back. */
async function echo(client: Wire, server: Wire, text = "ping"): Promise<void> {
  await client.write(text);
  assert.equal((await server.read(text.length)).toString(), text);
  await server.write(text);
  assert.equal((await client.read(text.length)).toString(), text);
}

async function answerHttp(wire: Wire): Promise<void> {
  await wire.readUntil("\r\n\r\n");
  wire.finish("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
}

/** The output of curl, or its exit code. */
async function curl(addresses: Addresses, ca: string, args: string[], url: string): Promise<string | number> {
  const port = addresses.clients.split(":").at(-1);
  const proxy = ["--proxytunnel", "--proxy", `https://${AGENT_ID}:x@localhost:${port}`, "--proxy-cacert", ca];
  try {
    return (await promisify(execFile)("curl", ["-sS", "--max-time", "20", ...proxy, ...args, url])).stdout;
  } catch (error) {
    return (error as { code: number }).code;
  }
}

describe("clients over TLS", () => {
  it("reach a server with curl", withCurl, async () => {
    await using secured = await Secured.create(answerHttp);
    const { site, origin } = secured;
    const { addresses } = await site.startProxy(secured.forClients());
    await site.startAgent(addresses);
    assert.equal(await curl(addresses, site.files.ca, [], `http://${origin.authority}/`), "hello\n");
  });

  it(
    "reach a server with curl and a certificate, and not without, with another authority's or with one that is revoked",
    withCurl,
    async () => {
      await using secured = await Secured.create(answerHttp);
      const { site, origin, authority } = secured;
      const issued = {
        good: await authority.issue({ names: ["client"] }),
        strange: await (await makeAuthority("Strangers")).issue({ names: ["client"] }),
        expired: await authority.issue({ names: ["client"], days: -1 }),
        revoked: await authority.issue({ names: ["client"] }),
      };
      await secured.revoke(issued.revoked.serialNumber);
      const { proxy, addresses } = await site.startProxy([...secured.forClients(), ...secured.mutual("http-proxy")]);
      await site.startAgent(addresses);
      const url = `http://${origin.authority}/`;
      const show = (name: keyof typeof issued) => [
        "--proxy-cert",
        secured.write(`${name}-cert.pem`, issued[name].cert),
        "--proxy-key",
        secured.write(`${name}-key.pem`, issued[name].key),
      ];
      assert.equal(await curl(addresses, site.files.ca, show("good"), url), "hello\n");
      const refused = [[[], /no certificate/], [show("strange"), /UnknownIssuer/], [show("expired"), /expired/i], [
        show("revoked"),
        /Revoked/,
      ]] as const;
      for (const [index, [args, reason]] of refused.entries()) {
        assert.equal(typeof await curl(addresses, site.files.ca, [...args], url), "number");
        assert.match(String((await proxy.waitFor("client handshake failed", {}, index + 1)).reason), reason);
      }
    },
  );

  it("are served with an encrypted key, whose password is in the environment and shown nowhere", async () => {
    await using secured = await Secured.create();
    const { site, origin } = secured;
    const encrypted = createPrivateKey(readFileSync(site.files.key)).export({
      type: "pkcs8",
      format: "pem",
      cipher: "aes-256-cbc",
      passphrase: "hunter2",
    });
    const args = [...secured.forClients(), `--http-proxy.tls.file.key=${secured.write("encrypted.pem", String(encrypted))}`];
    const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", REVERSE_HTTP_HTTP_PROXY_TLS_KEY_PASSWORD: "hunter2" };
    const printed = await runToEnd(PROXY, [...site.proxyArgs(), ...args, "--print-config"], { env });
    assert.doesNotMatch(printed.stdout, /hunter2/);
    const proxy = site.start(PROXY, [...site.proxyArgs(), ...args], { env });
    const { agents, clients } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    await site.startAgent(addresses);
    using client = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls() });
    await echo(client, await origin.accept());
  });

  it("keep their half-close", async () => {
    await using secured = await Secured.create();
    const { addresses } = await secured.site.startProxy(secured.forClients());
    await secured.site.startAgent(addresses);
    using client = await openTunnel(addresses.clients, secured.origin.authority, { tls: secured.clientTls() });
    const server = await secured.origin.accept();
    client.finish("question");
    assert.equal((await server.readAll()).toString(), "question");
    server.finish("answer");
    assert.equal((await client.readAll()).toString(), "answer");
  });
});

describe("an agent of a proxy that requires certificates", () => {
  for (const transport of TRANSPORTS) {
    it(`is accepted over ${transport} with a certificate of the authority, and told what is missing with another one or none`, async () => {
      await using secured = await Secured.create();
      const { site, authority } = secured;
      const revoked = await authority.issue({ names: [AGENT_ID] });
      await secured.revoke(revoked.serialNumber);
      const { proxy, addresses } = await site.startProxy(secured.mutual("agent-server"));
      const over = `--agent-client.transport=${transport}`;
      await site.startAgent(addresses, [over, ...secured.agentCertificate("good", await authority.issue({ names: [AGENT_ID] }))]);
      const strange = await (await makeAuthority("Strangers")).issue({ names: [AGENT_ID] });
      const refused: [args: string[], reason: RegExp][] = [
        [[], /no certificate/],
        [secured.agentCertificate("strange", strange), /UnknownIssuer/],
        [secured.agentCertificate("revoked", revoked), /Revoked/],
      ];
      for (const [args, reason] of refused) {
        const before = proxy.logged("agent handshake failed").length;
        const agent = site.start(AGENT, [...site.agentArgs(addresses, "4712"), over, ...args]);
        const said = await agent.waitFor("not connected");
        assert.match(String(said.reason), /the proxy requires a client certificate that it accepts: set --agent-client\.tls\.file\.cert/);
        agent.signal("SIGKILL");
        await agent.ended;
        assert.match(String((await proxy.waitFor("agent handshake failed", {}, before + 1)).reason), reason);
      }
      assert.equal(proxy.logged("agent connected", { link: transport }).length, 1);
    });
  }

  for (const source of ["san", "cn"] as const) {
    it(`is accepted with the id in its certificate's ${source}, and refused with any other, without a reason`, async () => {
      await using secured = await Secured.create();
      const { site, authority } = secured;
      await secured.revoke();
      const { proxy, addresses } = await site.startProxy([
        ...secured.mutual("agent-server"),
        `--agent-server.tls.agent-id-from=${source}`,
      ]);
      const names = source === "san" ? { names: [AGENT_ID], commonName: "4712" } : { names: ["4712"], commonName: AGENT_ID };
      const certificate = secured.agentCertificate("own", await authority.issue(names));
      await site.startAgent(addresses, certificate);
      const liar = site.start(AGENT, [...site.agentArgs(addresses, "4712"), ...certificate]);
      const { reason } = await liar.waitFor("not connected");
      assert.match(String(reason), /401 authentication failed/);
      assert.doesNotMatch(String(reason), new RegExp(AGENT_ID));
      const logged = await proxy.waitFor("agent refused");
      assert.match(
        String(logged.reason),
        /^The agent's certificate is not for "4712" \((?:subject alternative|common) name: "4711"\)$/,
      );
      assert.equal(proxy.logged("agent connected").length, 1);
    });
  }
});

describe("a certificate as openssl req -x509 makes it, for a server and as its own authority", () => {
  /** With CA:TRUE. */
  const make = async (site: Site): Promise<{ cert: string; key: string }> => {
    const file = (name: string) => join(site.folder.path, name);
    const names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    const made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", names];
    await promisify(execFile)("openssl", ["req", "-x509", ...made, "-keyout", file("own-key.pem"), "-out", file("own.pem")]);
    return { cert: file("own.pem"), key: file("own-key.pem") };
  };

  it("works from the client over the proxy to the agent, and the proxy logs who trusts it", async () => {
    await using secured = await Secured.create();
    const { site, origin } = secured;
    const { cert, key } = await make(site);
    const files = ["agent-server", "http-proxy"].flatMap((group) => [`--${group}.tls.file.cert=${cert}`, `--${group}.tls.file.key=${key}`]);
    const { proxy, addresses } = await site.startProxy(["--http-proxy.tls.enable", ...files]);
    assert.match(
      String(proxy.logged("certificate may be unusable")[0]!.reason),
      /is a CA certificate \(CA:TRUE\): agents and lb accept it only/,
    );
    await site.startAgent(addresses, [`--agent-client.tls.file.root-ca=${cert}`]);
    using client = await openTunnel(addresses.clients, origin.authority, { tls: { ca: readFileSync(cert, "utf8") } });
    await echo(client, await origin.accept());
  });

  it("is refused if it is another one with the same name", async () => {
    await using secured = await Secured.create();
    const { site } = secured;
    const shown = await make(site);
    const args = [`--agent-server.tls.file.cert=${shown.cert}`, `--agent-server.tls.file.key=${shown.key}`];
    const { addresses } = await site.startProxy(args);
    const own = readFileSync(shown.cert, "utf8");
    await make(site); // in its place: the proxy has read the one before
    assert.notEqual(readFileSync(shown.cert, "utf8"), own);
    const agent = site.start(AGENT, [...site.agentArgs(addresses), `--agent-client.tls.file.root-ca=${shown.cert}`]);
    assert.match(String((await agent.waitFor("not connected")).reason), /certificate/);
  });
});

describe("an agent that does not trust the proxy's certificate", () => {
  const cases: [what: string, issued: Parameters<Authority["issue"]>[0], reason: RegExp][] = [
    [
      "that is not valid yet",
      { names: ["127.0.0.1"], days: 3, startsIn: 2 },
      /not valid yet: the clock of this machine is at 2[\d-]+T[\d:.]+Z, and the certificate is not valid before 2[\d-]+T.*set the clock of this machine$/,
    ],
    [
      "for another name",
      { names: ["proxy.example"] },
      /only valid for DnsName\("proxy\.example"\); use a name of the certificate in --agent-client\.server-address/,
    ],
  ];
  for (const [what, issued, reason] of cases) {
    it(`${what} says so, and what to do`, async () => {
      await using secured = await Secured.create();
      const { site } = secured;
      const { cert, key } = await site.authority.issue(issued);
      const { addresses } = await site.startProxy([
        `--agent-server.tls.file.cert=${secured.write("early.pem", cert)}`,
        `--agent-server.tls.file.key=${secured.write("early-key.pem", key)}`,
      ]);
      assert.match(String((await site.start(AGENT, site.agentArgs(addresses)).waitFor("not connected")).reason), reason);
    });
  }
});

describe("invalid files", () => {
  it("are refused by --check-config with the same message as at the start, with option, file and line", async () => {
    await using secured = await Secured.create();
    const { site } = secured;
    const { cert, key } = site.files;
    const text = readFileSync(cert, "utf8");
    const weak = join(site.folder.path, "weak.pem");
    await promisify(execFile)("openssl", [
      "req",
      "-x509",
      "-newkey",
      "rsa:1024",
      "-nodes",
      "-subj",
      "/CN=a",
      "-keyout",
      weak,
      "-out",
      `${weak}.cert`,
    ]);
    const mistakes: [args: Record<string, string>, message: RegExp][] = [
      [
        { cert: secured.write("cut.pem", text + text.slice(0, 200)) },
        /file\.cert \S+cut\.pem: line \d+: the block of CERTIFICATE has no END line$/,
      ],
      [{ cert: `${weak}.cert`, key: weak }, /file\.key \S+weak\.pem: its RSA key has 1024 bits; at least 2048 are required$/],
      [{ "client-ca": key }, /file\.client-ca \S+key\.pem: it has no CERTIFICATE in PEM, but PRIVATE KEY$/],
      [
        { "client-ca": secured.write("bundle.pem", `x ${text}${text}`) },
        /file\.client-ca \S+bundle\.pem: line 1: a BEGIN or END line must be/,
      ],
    ];
    for (const [files, message] of mistakes) {
      const args = [...site.proxyArgs(), ...Object.entries(files).map(([name, file]) => `--agent-server.tls.file.${name}=${file}`)];
      const [checked, started] = [await runToEnd(PROXY, [...args, "--check-config"]), await runToEnd(PROXY, args)];
      assert.match(checked.stderr.trim(), message);
      assert.deepEqual([checked.exitCode, checked.stderr], [2, started.stderr]);
      assert.equal(started.exitCode, 2);
    }
    const mark = secured.write("mark.pem", `\ufeff${text}`);
    const { exitCode } = await runToEnd(PROXY, [...site.proxyArgs(), `--agent-server.tls.file.cert=${mark}`, "--check-config"]);
    assert.equal(exitCode, 0);
    await site.startAgent((await site.startProxy([`--agent-server.tls.file.cert=${mark}`])).addresses);
  });
});

describe("a revoked certificate", () => {
  for (const transport of TRANSPORTS) {
    it(`is refused after a refresh, from clients and agents over ${transport}, while open connections continue`, async () => {
      const over = `--agent-client.transport=${transport}`;
      await using secured = await Secured.create();
      const { site, authority, origin } = secured;
      await secured.revoke();
      const { proxy, addresses } = await site.startProxy([
        ...secured.forClients(),
        ...secured.mutual("http-proxy"),
        ...secured.mutual("agent-server"),
      ]);
      const [agent, client, other] = [
        await authority.issue({ names: [AGENT_ID] }),
        await authority.issue({ names: ["client"] }),
        await authority.issue({ names: ["other"] }),
      ];
      await site.startAgent(addresses, [over, ...secured.agentCertificate("agent", agent)]);
      using open = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls(client) });
      const server = await origin.accept();
      await echo(open, server);

      await secured.revoke(agent.serialNumber, client.serialNumber);
      for (const group of ["agent-server", "http-proxy"]) await proxy.waitFor(RENEWED, { options: `--${group}.tls` });

      await assert.rejects(openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls(client) }));
      assert.match(String((await proxy.waitFor("client handshake failed")).reason), /Revoked/);
      const again = site.start(AGENT, [...site.agentArgs(addresses), over, ...secured.agentCertificate("agent", agent)]);
      assert.match(String((await again.waitFor("not connected")).reason), /Revoked/);
      assert.match(String((await proxy.waitFor("agent handshake failed")).reason), /Revoked/);

      await echo(open, server, "still here");
      using _another = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls(other) });
      assert.equal(proxy.logged("agent disconnected").length, 0);
    });
  }
});

describe("certificates that are replaced", () => {
  const REPLACEMENTS = 100;

  /** A proxy whose certificates for agents and clients are in one file. */
  const startReplaceable = async (secured: Secured) => {
    await secured.replace();
    const file = join(secured.site.folder.path, "both.pem");
    const options = ["agent-server", "http-proxy"].flatMap((group) => [
      `--${group}.tls.file.cert=${file}`,
      `--${group}.tls.file.key=${file}`,
      `--${group}.tls.refresh=5ms`,
    ]);
    return await secured.site.startProxy(["--http-proxy.tls.enable", ...options]);
  };

  it(`${REPLACEMENTS} times under load cost no request and no agent`, async () => {
    await using secured = await Secured.create(async (wire) => {
      for (let data; (data = await wire.next()) !== null;) await wire.write(data);
      wire.finish();
    });
    const { site, origin } = secured;
    const { proxy, addresses } = await startReplaceable(secured);
    const agent = await site.startAgent(addresses);
    let over = false;
    let requests = 0;
    const work = async () => {
      while (!over) {
        using client = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls() });
        const text = `request ${requests++}`;
        client.finish(text);
        assert.equal((await client.readAll()).toString(), text);
      }
    };
    using lasting = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls() });
    const working = Promise.all(Array.from({ length: 8 }, work));
    const replacing = (async () => {
      for (let count = 1; count <= REPLACEMENTS; count++) {
        await secured.replace();
        for (const group of ["agent-server", "http-proxy"]) await proxy.waitFor(RENEWED, { options: `--${group}.tls` }, count);
        if (count % 25 === 0) await site.startAgent(addresses, [], `new-${count}`);
      }
    })();
    try {
      await Promise.race([replacing, working]);
      await lasting.write("still here");
      assert.equal((await lasting.read(10)).toString(), "still here");
    } finally {
      over = true;
    }
    await Promise.all([replacing, working]);
    assert.ok(requests > REPLACEMENTS, `there were ${requests} requests`);
    assert.equal(agent.logged("not connected").length, 0);
    assert.equal(proxy.logged("agent disconnected").length, 0);
    assert.equal(proxy.logged("client handshake failed").length, 0);
    assert.equal(proxy.logged("certificate reload failed; keeping the previous certificates").length, 0);
  });

  for (const transport of TRANSPORTS) {
    it(`are presented to agents over ${transport} from then on`, async () => {
      await using secured = await Secured.create();
      const { site } = secured;
      const { proxy, addresses } = await startReplaceable(secured);
      const over = `--agent-client.transport=${transport}`;
      const agent = await site.startAgent(addresses, [over]);
      const next = await makeAuthority("Next CA");
      const { cert, key } = await next.issue({ names: ["127.0.0.1"] });
      secured.write("both.pem", cert + key);
      await proxy.waitFor(RENEWED, { options: "--agent-server.tls" });
      await site.startAgent(addresses, [over, `--agent-client.tls.file.root-ca=${secured.write("next.pem", next.cert)}`], "4712");
      const { reason } = await site.start(AGENT, [...site.agentArgs(addresses, "4713"), over]).waitFor("not connected");
      assert.match(String(reason), /issued by "CN=Next CA"/);
      assert.equal(agent.logged("not connected").length, 0);
    });
  }

  it("by invalid ones stay in force, which is logged once", async () => {
    await using secured = await Secured.create();
    const { site, origin } = secured;
    const { proxy, addresses } = await startReplaceable(secured);
    await site.startAgent(addresses);
    const kept = "certificate reload failed; keeping the previous certificates";
    secured.write("both.pem", "half of a certi");
    for (const group of ["agent-server", "http-proxy"]) {
      const { reason } = await proxy.waitFor(kept, { options: `--${group}.tls` });
      assert.match(String(reason), /file\.cert \S+both\.pem: it has no CERTIFICATE in PEM/);
    }
    using client = await openTunnel(addresses.clients, origin.authority, { tls: secured.clientTls() });
    await echo(client, await origin.accept());
    await site.startAgent(addresses, [], "4712");
    await secured.replace();
    for (const group of ["agent-server", "http-proxy"]) await proxy.waitFor(RENEWED, { options: `--${group}.tls` });
    assert.equal(proxy.logged(kept).length, 2);
  });

  it("by invalid ones stay in force for an agent too, whenever it connects", async () => {
    await using secured = await Secured.create();
    const { site, authority } = secured;
    await secured.revoke();
    const first = await site.startProxy(secured.mutual("agent-server"));
    const agent = await site.startAgent(first.addresses, secured.agentCertificate("agent", await authority.issue({ names: [AGENT_ID] })));
    secured.write("agent-key.pem", "half of a k");
    await first.proxy.stop();
    await site.startProxy(secured.mutual("agent-server"), first.addresses);
    await agent.waitFor("connected", {}, 2);
    const { reason } = await agent.waitFor("certificate reload failed; keeping the previous certificates", {
      options: "--agent-client.tls",
    });
    assert.match(String(reason), /file\.key \S+agent-key\.pem: it has no PRIVATE KEY in PEM/);
  });

  it("on an agent are presented at its next connection, without a restart", async () => {
    await using secured = await Secured.create();
    const { site, authority } = secured;
    const [old, renewed] = [await authority.issue({ names: [AGENT_ID] }), await authority.issue({ names: [AGENT_ID] })];
    await secured.revoke();
    const first = await site.startProxy(secured.mutual("agent-server"));
    const agent = await site.startAgent(first.addresses, secured.agentCertificate("agent", old));
    await first.proxy.stop();
    await secured.revoke(old.serialNumber);
    secured.agentCertificate("agent", renewed);
    await site.startProxy(secured.mutual("agent-server"), first.addresses);
    await agent.waitFor("connected", {}, 2);
  });
});

describe("a proxy without a certificate", () => {
  const SELF_SIGNED = "using a self-signed certificate, which agents trust with these options";

  const start = async (site: Site, args: string[], env?: Record<string, string>) => {
    const proxy = site.start(PROXY, [
      "--agent-server.listen-address=127.0.0.1:0",
      "--http-proxy.listen-address=127.0.0.1:0",
      "--log.format=json",
      ...args,
    ], env && { env });
    const { agents, clients } = await proxy.waitFor("listening");
    return { proxy, addresses: { agents: String(agents), clients: String(clients) } };
  };
  const pinOf = ({ entries }: Program) =>
    /pin-sha256=([0-9a-f]{64})$/.exec(String(entries.find(({ message }) => message === SELF_SIGNED)!.options))![1]!;
  const agentOf = (site: Site, args: string[]) => site.start(AGENT, [...args, `--auth.noauth.agent-id=${AGENT_ID}`, "--log.format=json"]);

  it("creates one, and logs all options that an agent needs: a tunnel with two commands", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { proxy, addresses } = await start(site, [`--state-dir=${join(site.folder.path, "state")}`]);
    const { options } = await proxy.waitFor(SELF_SIGNED);
    await agentOf(site, String(options).split(" ")).waitFor("connected");
    using client = await openTunnel(addresses.clients, origin.authority);
    await echo(client, await origin.accept());
  });

  it("keeps it, so that agents trust it after a restart too", async () => {
    await using site = await Site.create();
    const state = join(site.folder.path, "state");
    const first = await start(site, [], { STATE_DIRECTORY: state });
    const agent = agentOf(site, String(first.proxy.logged(SELF_SIGNED)[0]!.options).split(" "));
    await agent.waitFor("connected");
    await first.proxy.stop();
    assert.deepEqual(readdirSync(state), ["agent-server.pem"]);
    assert.equal(statSync(join(state, "agent-server.pem")).mode & 0o777, 0o600);
    const second = await start(site, [`--agent-server.listen-address=${first.addresses.agents}`], { STATE_DIRECTORY: state });
    assert.equal(pinOf(second.proxy), pinOf(first.proxy));
    await agent.waitFor("connected", {}, 2);
  });

  it("runs without a place to store it, and warns that the pin changes", async () => {
    await using site = await Site.create();
    const { proxy } = await start(site, [], { STATE_DIRECTORY: "/proc/nowhere" });
    await proxy.waitFor("self-signed certificate cannot be stored, so its pin changes with every start; set --state-dir");
    assert.equal(pinOf(proxy).length, 64);
  });

  it("is not trusted without the pin or with another one, and the agent says what to do", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await start(site, [`--state-dir=${site.folder.path}`]);
    const address = `--agent-client.server-address=${addresses.agents}`;
    const advice: [args: string[], reason: RegExp][] = [
      [[address], /set --agent-client\.tls\.pin-sha256, which a proxy with a self-signed certificate logs on startup/],
      [
        [address, `--agent-client.tls.pin-sha256=${"0".repeat(64)}`],
        new RegExp(
          `certificate: its SHA-256 is ${pinOf(proxy)}, and .* does not match --agent-client\\.tls\\.pin-sha256`,
        ),
      ],
      [[address, `--agent-client.tls.file.root-ca=${site.files.ca}`], /issued by an authority of --agent-client\.tls\.file\.root-ca/],
    ];
    for (const [args, reason] of advice) assert.match(String((await agentOf(site, args).waitFor("not connected")).reason), reason);
    assert.equal(proxy.logged("agent connected").length, 0);
    const colons = pinOf(proxy).toUpperCase().replace(/..(?=.)/g, "$&:");
    await agentOf(site, [address, `--agent-client.tls.pin-sha256=${"0".repeat(64)},${colons}`]).waitFor("connected");
  });
});

describe("an agent without root-ca", () => {
  /** An agent that trusts what the system does, with these variables in the environment. */
  const start = (site: Site, addresses: Addresses, env: Record<string, string>) =>
    site.start(AGENT, [`--agent-client.server-address=${addresses.agents}`, `--auth.noauth.agent-id=${AGENT_ID}`, "--log.format=json"], {
      env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent", ...env },
    });

  it("trusts the authorities in SSL_CERT_FILE", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const other = site.folder.write("other.pem", (await makeAuthority("Other CA")).cert);
    assert.match(String((await start(site, addresses, { SSL_CERT_FILE: other }).waitFor("not connected")).reason), /UnknownIssuer/);
    await start(site, addresses, { SSL_CERT_FILE: site.files.ca }).waitFor("connected");
  });

  it("does not start if the file in SSL_CERT_FILE has no certificate", async () => {
    await using site = await Site.create();
    for (const file of [site.folder.write("garbage.pem", "not a certificate"), join(site.folder.path, "missing.pem")]) {
      const { exitCode, stderr } = await start(site, { agents: "localhost:1", clients: "localhost:2" }, { SSL_CERT_FILE: file }).ended;
      assert.equal(exitCode, 2);
      assert.match(stderr, /SSL_CERT_FILE .*no certificate can be read there/);
    }
  });

  // on macOS the engine does not read it
  it("trusts the authorities in SSL_CERT_DIR", { skip: process.platform === "darwin" && "not on macOS" }, async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const [mine, other] = ["mine", "other"].map((name) => join(site.folder.path, name));
    mkdirSync(mine!);
    mkdirSync(other!);
    // as c_rehash names them
    writeFileSync(join(mine!, "0a1b2c3d.0"), site.authority.cert);
    writeFileSync(join(other!, "0a1b2c3d.0"), (await makeAuthority("Other CA")).cert);
    assert.match(String((await start(site, addresses, { SSL_CERT_DIR: other! }).waitFor("not connected")).reason), /UnknownIssuer/);
    await start(site, addresses, { SSL_CERT_DIR: `${other}:${mine}` }).waitFor("connected");
  });
});

describe("exit code 2", () => {
  interface Wrong {
    what: string;
    program: string;
    args: (secured: Secured) => string[] | Promise<string[]>;
    message: RegExp;
  }

  const server = (group: "agent-server" | "http-proxy", { site }: Secured, replaced: Record<string, string> = {}) => [
    ...group === "http-proxy" ? ["--http-proxy.tls.enable"] : [],
    ...Object.entries({ cert: site.files.cert, key: site.files.key, ...replaced }).map(([name, file]) =>
      `--${group}.tls.file.${name}=${file}`
    ),
  ];
  const expired = async (secured: Secured) => {
    const { cert, key } = await secured.authority.issue({ names: ["localhost"], days: -1 });
    return { cert: secured.write("expired.pem", cert), key: secured.write("expired-key.pem", key) };
  };
  const encrypted = (secured: Secured) =>
    secured.write(
      "encrypted.pem",
      String(
        createPrivateKey(readFileSync(secured.site.files.key)).export({
          type: "pkcs8",
          format: "pem",
          cipher: "aes-256-cbc",
          passphrase: "right",
        }),
      ),
    );
  const directory = (secured: Secured) => {
    const path = join(secured.site.folder.path, "directory");
    mkdirSync(path, { recursive: true });
    return path;
  };

  const both = (["agent-server", "http-proxy"] as const).flatMap((group): Wrong[] => {
    const wrong = (what: string, args: Wrong["args"], message: RegExp): Wrong => ({
      what: `${group}: ${what}`,
      program: PROXY,
      args,
      message,
    });
    const option = `Cannot use --${group}\\.tls\\.file\\.`;
    return [
      wrong(
        "a key of another certificate",
        (s) => server(group, s, { key: s.write("other.pem", s.authority.key) }),
        new RegExp(`${option}key .* does not belong`),
      ),
      wrong("an expired certificate", async (s) => server(group, s, await expired(s)), new RegExp(`${option}cert .* expired on`)),
      wrong(
        "a key that is a directory",
        (s) => server(group, s, { key: directory(s) }),
        new RegExp(`Cannot read --${group}\\.tls\\.file\\.key .*it is a directory`),
      ),
      wrong(
        "a certificate that is missing",
        (s) => server(group, s, { cert: "/nonexistent.pem" }),
        /file\.cert \/nonexistent\.pem: the file does not exist/,
      ),
      wrong(
        "an encrypted key without its password",
        (s) => server(group, s, { key: encrypted(s) }),
        new RegExp(`--${group}\\.tls\\.key-password is required`),
      ),
      wrong(
        "a wrong password",
        (s) => [...server(group, s, { key: encrypted(s) }), `--${group}.tls.key-password=wrong`],
        new RegExp(`--${group}\\.tls\\.key-password.* wrong`),
      ),
      wrong(
        "a revocation list without an authority",
        (s) => server(group, s, { "client-crl": s.site.files.ca }),
        /file\.client-ca is required too/,
      ),
      wrong(
        "a revocation list that is a certificate",
        (s) => server(group, s, { "client-ca": s.site.files.ca, "client-crl": s.site.files.ca }),
        new RegExp(`${option}client-crl .* has no X509 CRL in PEM, but CERTIFICATE`),
      ),
      wrong(
        "an authority that is a key",
        (s) => server(group, s, { "client-ca": s.site.files.key }),
        new RegExp(`${option}client-ca .* has no CERTIFICATE`),
      ),
    ];
  });

  const table: Wrong[] = [
    ...both,
    {
      what: "TLS for clients without a certificate",
      program: PROXY,
      args: () => ["--http-proxy.tls.enable"],
      message: /--http-proxy\.tls\.file\.cert are required/,
    },
    {
      what: "files of TLS that is off",
      program: PROXY,
      args: ({ site }) => [`--http-proxy.tls.file.cert=${site.files.cert}`],
      message: /--http-proxy\.tls\.file\.cert: --http-proxy\.tls\.enable is not set/,
    },
    {
      what: "ids from certificates that are not asked for",
      program: PROXY,
      args: () => ["--agent-server.tls.agent-id-from=san"],
      message: /agent-id-from san: --agent-server\.tls\.file\.client-ca is needed too/,
    },
    {
      what: "an expired certificate of the agent",
      program: AGENT,
      args: async (s) => Object.entries(await expired(s)).map(([name, file]) => `--agent-client.tls.file.${name}=${file}`),
      message: /--agent-client\.tls\.file\.cert .* expired on/,
    },
    {
      what: "a certificate of the agent without its key",
      program: AGENT,
      args: ({ site }) => [`--agent-client.tls.file.cert=${site.files.cert}`],
      message: /--agent-client\.tls\.file\.key is required too/,
    },
    {
      what: "a pin that is none",
      program: AGENT,
      args: () => ["--agent-client.tls.pin-sha256=abc"],
      message: /pin-sha256: "abc" is not the SHA-256/,
    },
  ];

  for (const { what, program, args, message } of table) {
    it(`is for ${what}, and --check-config finds it too`, async () => {
      await using secured = await Secured.create();
      const { site } = secured;
      const base = program === PROXY ? site.proxyArgs() : site.agentArgs({ agents: "127.0.0.1:1", clients: "" });
      for (const check of [["--check-config"], []]) {
        const { exitCode, stderr } = await runToEnd(program, [...base, ...await args(secured), ...check]);
        assert.match(stderr, message);
        assert.equal(exitCode, 2, stderr);
        const lines = stderr.trim().split("\n").filter((line) => !line.includes("secret on the command line"));
        assert.equal(lines.length, 1, stderr);
        assert.doesNotMatch(stderr, /password=|MIG/);
      }
    });
  }

  it("is for an unusable state directory", async () => {
    using folder = new Folder();
    const { exitCode, stderr } = await runToEnd(PROXY, [
      "--agent-server.listen-address=127.0.0.1:0",
      "--http-proxy.listen-address=127.0.0.1:0",
      `--state-dir=${join(folder.write("file", ""), "state")}`,
    ]);
    assert.match(stderr, /Cannot use --state-dir \S+state: a part of its path is not a directory/);
    assert.equal(exitCode, 2, stderr);
  });
});
