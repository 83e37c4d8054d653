// The most likely mistakes during a first setup: the messages say what is wrong and what to do.
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { describe, it } from "node:test";
import { makeAuthority } from "../../testing/certificates.ts";
import { AGENT, AGENT_ID, Folder, LB, PROXY, runToEnd, Site } from "../../testing/programs.ts";
import { ask, connectHead } from "../../testing/sockets.ts";

/** The line, without the program's name, that a program writes before it exits with code 2. */
async function refusal(file: string, args: readonly string[], env?: Record<string, string>): Promise<string> {
  const { exitCode, stdout, stderr } = await runToEnd(file, args, env && { env: { HOME: "/nonexistent", ...env } });
  assert.equal(exitCode, 2, stderr);
  assert.equal(stdout, "");
  const [, line] = /^reverse-http-\w+: (.*)\n$/.exec(stderr) ?? [];
  assert.ok(line !== undefined, `more than a line, or none:\n${stderr}`);
  return line;
}

const ID = `--auth.noauth.agent-id=${AGENT_ID}`;

describe("a mistake", () => {
  it("in the port is explained by the agent: no program responds there, and what to check", async () => {
    await using site = await Site.create();
    // a port that is taken, so that no proxy is there, and never answers
    const silent = createSocket("udp4");
    await new Promise<void>((resolve) => silent.bind(0, "127.0.0.1", resolve));
    const agents = `127.0.0.1:${silent.address().port}`;
    try {
      const agent = site.start(AGENT, site.agentArgs({ agents, clients: "" }));
      // before anything is known: it is not stuck
      assert.equal((await agent.waitFor("connecting")).proxy, agents);
      const { reason, retryInMs } = await agent.waitFor("not connected");
      assert.equal(
        reason,
        `Cannot connect to ${agents}: no response within 10000 ms; is the proxy running there, and do firewalls allow UDP or TCP to ${agents}?`,
      );
      assert.ok(Number(retryInMs) > 0);
    } finally {
      silent.close();
    }
  });

  it("in the agent id, or a missing agent, is explained in the client's response and the proxy's log", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    await site.startAgent(addresses);
    const { status, fields, body } = await ask(addresses.clients, connectHead("127.0.0.1:1", "4712"));
    assert.equal(status, 502);
    assert.match(fields["proxy-status"]!, /error=destination_unavailable;details="The agent is not connected to this proxy"/);
    assert.match(body, /^The agent is not connected to this proxy \(request [\w-]+\)\n$/);
    const entry = await proxy.waitFor("request", { agent: "4712" });
    assert.equal(entry.reason, "The agent is not connected to this proxy");
  });

  it("of listening everywhere without credentials and allow-list is logged by proxy and lb: everyone can use every agent", async () => {
    const warning = "everyone who can reach this address can use every agent, for any destination";
    await using site = await Site.create();
    const every = "--http-proxy.listen-address=[::]:0";
    const memcached = ["--store.type=memcached", "--store.memcached.address=127.0.0.1:1", "--log.format=json"];
    const agents = ["--agent-server.listen-address=[::]:0", `--state-dir=${site.folder.path}`, "--log.format=json"];
    for (const [file, args] of [[PROXY, agents], [LB, memcached]] as const) {
      const program = site.start(file, [every, ...args]);
      const { address, remedy, level } = await program.waitFor(warning);
      assert.match(String(address), /^\[::\]:[0-9]+$/);
      assert.equal(level, "WARN");
      assert.match(String(remedy), /--auth\.type=jwt, --http-proxy\.host-whitelist/);
      const listed = site.start(file, [every, "--http-proxy.host-whitelist=127.0.0.1", ...args]);
      await listed.waitFor("listening");
      assert.deepEqual(listed.logged(warning), []);
      if (file === LB) continue;
      const { options, note } = await program.waitFor("using a self-signed certificate, which agents trust with these options");
      assert.match(String(options), /^--agent-client\.server-address=\S+:[0-9]+ --agent-client\.tls\.pin-sha256=[0-9a-f]{64}$/);
      assert.match(String(note), /is a guess, an address of this machine|this machine has no other address/);
      assert.match(String(note), /--agent-server\.public-address says how others reach it$/);
    }
  });

  it("in a certificate's name is explained with its names and the expected one", async () => {
    await using site = await Site.create();
    const authority = await makeAuthority();
    const { cert, key } = await authority.issue({ names: ["other.example"] });
    const own = {
      cert: site.folder.write("other-cert.pem", cert),
      key: site.folder.write("other-key.pem", key),
      ca: site.folder.write("other-ca.pem", authority.cert),
    };
    const { addresses } = await site.startProxy([`--agent-server.tls.file.cert=${own.cert}`, `--agent-server.tls.file.key=${own.key}`]);
    const agent = site.start(AGENT, [...site.agentArgs(addresses), `--agent-client.tls.file.root-ca=${own.ca}`]);
    const { reason } = await agent.waitFor("not connected");
    for (const said of ["127.0.0.1", "other.example", "--agent-client.server-address"]) {
      assert.ok(String(reason).includes(said), String(reason));
    }
  });

  it("in a certificate's authority is explained with the option for trusted ones", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const ca = site.folder.write("other-ca.pem", (await makeAuthority("Other CA")).cert);
    const agent = site.start(AGENT, [...site.agentArgs(addresses), `--agent-client.tls.file.root-ca=${ca}`]);
    const { reason } = await agent.waitFor("not connected");
    assert.match(String(reason), /UnknownIssuer.*--agent-client\.tls\.file\.root-ca/);
  });

  it("in a pattern is explained with the pattern and the valid forms", async () => {
    const forms =
      "valid patterns are host, *.zone, 10.0.0.0/8 and [2001:db8::1], each optionally with :port or :first-last, or all or none alone";
    assert.equal(
      await refusal(PROXY, ["--http-proxy.host-whitelist=localhost:80,10.0.0.1/99"]),
      `Cannot use --http-proxy.host-whitelist: the pattern "10.0.0.1/99": /99 is longer than 32 bits; ${forms}`,
    );
    assert.equal(
      await refusal(AGENT, [ID, "--agent-client.host-whitelist=*.example.com:http"]),
      `Cannot use --agent-client.host-whitelist: the pattern "*.example.com:http": "http" is not a port or a range of ports from 1 to 65535; ${forms}`,
    );
  });

  it("in a list, which is empty or matches nothing, is reported before anything starts", async () => {
    const nothing = "it is empty; write all for every destination, or none";
    assert.equal(await refusal(PROXY, ["--http-proxy.host-whitelist="]), `Cannot use --http-proxy.host-whitelist: ${nothing}`);
    assert.equal(
      await refusal(AGENT, [ID], { REVERSE_HTTP_AGENT_CLIENT_HOST_DENYLIST: "" }),
      `Cannot use --agent-client.host-denylist (REVERSE_HTTP_AGENT_CLIENT_HOST_DENYLIST): ${nothing}`,
    );
    assert.match(
      await refusal(PROXY, [], { REVERSE_HTTP_AUTH_TYPE: "" }),
      /^Cannot use --auth\.type \(REVERSE_HTTP_AUTH_TYPE\): it is empty/,
    );
    assert.match(
      await refusal(AGENT, [ID, "--agent-client.host-denylist=127.0.0.1-127.0.0.9"]),
      /a range of addresses is written as networks/,
    );
    assert.match(await refusal(PROXY, ["--limits.exempt-addresses=lb.example"]), /only addresses and networks are valid here/);
    using folder = new Folder();
    const config = folder.write("config.yaml", "http-proxy:\n  host-whitelist:\n");
    assert.equal(await refusal(PROXY, [`--config=${config}`]), `Cannot use --http-proxy.host-whitelist (${config}:2): ${nothing}`);
  });

  it("in the name of an option, variable or key is explained with the most similar name", async () => {
    assert.equal(
      await refusal(PROXY, ["--http-proxy.listen-adress=:3128"]),
      "unknown option '--http-proxy.listen-adress'; did you mean --http-proxy.listen-address?",
    );
    assert.equal(
      await refusal(AGENT, [ID], { REVERSE_HTTP_AGENT_CLIENT_SERVER_ADRESS: "a:1" }),
      "Unknown environment variable REVERSE_HTTP_AGENT_CLIENT_SERVER_ADRESS; did you mean REVERSE_HTTP_AGENT_CLIENT_SERVER_ADDRESS?",
    );
    using folder = new Folder();
    const config = folder.write("config.yaml", "log:\n  level: info\n  fromat: json\n");
    assert.equal(
      await refusal(AGENT, [ID, `--config=${config}`]),
      `Unknown key log.fromat (${config}:3); did you mean log.format?`,
    );
  });

  it("in the program of an option is explained with the right program", async () => {
    assert.equal(
      await refusal(AGENT, [ID, "--http-proxy.listen-address=:3128"]),
      "unknown option '--http-proxy.listen-address'; it is an option of proxy and lb",
    );
  });

  it("in an address, which is in use, is explained with its option and the remedy", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const { exitCode, stderr } = await runToEnd(PROXY, site.proxyArgs({ ...addresses, agents: "127.0.0.1:0" }));
    assert.equal(exitCode, 1);
    assert.match(stderr, new RegExp(`^reverse-http-proxy: Cannot listen on ${addresses.clients}: [^\n]*in use[^\n]*\n$`, "m"));
    assert.ok(
      stderr.endsWith("; another program uses it: stop that program or choose another address with --http-proxy.listen-address\n"),
      stderr,
    );
  });

  it("in the name of a file is explained with its option", async () => {
    assert.equal(
      await refusal(AGENT, [ID, "--agent-client.tls.file.root-ca=/nonexistent/ca.pem"]),
      "Cannot read --agent-client.tls.file.root-ca /nonexistent/ca.pem: the file does not exist",
    );
    assert.equal(
      await refusal(AGENT, [ID, "--config=/nonexistent/config.yaml"]),
      "Cannot read the configuration file /nonexistent/config.yaml: the file does not exist",
    );
    await using site = await Site.create();
    assert.equal(
      await refusal(PROXY, [...site.proxyArgs(), "--agent-server.tls.file.key=/nonexistent/key.pem"]),
      "Cannot read --agent-server.tls.file.key /nonexistent/key.pem: the file does not exist",
    );
  });

  it("in the configuration file, a tab, is explained with its line", async () => {
    using folder = new Folder();
    const config = folder.write("config.yaml", "log:\n  level: info\nagent-client:\n\tserver-address: a:1\n");
    assert.equal(
      await refusal(AGENT, [`--config=${config}`]),
      `Cannot read ${config}:4: it is indented with a tab; YAML allows only spaces`,
    );
  });

  it("in a duration, a missing unit, is explained with the right notation", async () => {
    assert.equal(
      await refusal(PROXY, ["--agent-server.agent.dial-timeout=10"]),
      'Cannot use --agent-server.agent.dial-timeout: "10" has no unit: write for example 10s or 10ms',
    );
    assert.equal(
      await refusal(PROXY, [], { REVERSE_HTTP_AGENT_SERVER_AGENT_DIAL_TIMEOUT: "10" }),
      'Cannot use --agent-server.agent.dial-timeout (REVERSE_HTTP_AGENT_SERVER_AGENT_DIAL_TIMEOUT): "10" has no unit: write for example 10s or 10ms',
    );
  });

  it("in an address, a missing port or a surplus part, is explained with the right notation", async () => {
    assert.match(await refusal(PROXY, ["--http-proxy.listen-address=3128"]), /; write :3128$/);
    assert.match(await refusal(AGENT, [ID, "--agent-client.server-address=proxy.example"]), /; its port is missing$/);
    assert.match(
      await refusal(AGENT, [ID, "--agent-client.server-address=https://proxy.example:4242"]),
      /; write proxy\.example:4242 alone$/,
    );
  });

  it("in an address is reported by the start and by --check-config with the same message", async () => {
    const wrong: [file: string, option: string, said: RegExp][] = [
      [AGENT, "--agent-client.server-address=[zz]:4242", /no valid IPv6 address/],
      [AGENT, "--agent-client.server-address=a/b:4242", /an address has no path/],
      [AGENT, "--agent-client.server-address=user@host:1", /write host:1 without a user/],
      [AGENT, "--agent-client.server-address=::1:4242", /an IPv6 address in brackets/],
      [AGENT, "--agent-client.server-address=0x7f000001:4242", /an IPv4 address has four decimal numbers/],
      [AGENT, "--agent-client.server-address=0.0.0.0:4242", /0\.0\.0\.0:4242 is the wildcard address; write 127\.0\.0\.1/],
      [AGENT, "--agent-client.labels=a=1,a=2", /--agent-client\.labels: a name has two values/],
      [AGENT, "--auth.jwt.token=file:agent.jwt", /--auth\.jwt\.token: --auth\.type=jwt is not set/],
      [PROXY, "--store.http-proxy-address=host:0", /has no host or no port/],
      [PROXY, "--store.http-proxy-address=0.0.0.0:3128", /0\.0\.0\.0:3128 is the wildcard address, to which lb cannot connect/],
      [PROXY, "--store.http-proxy-address=[::]:3128", /\[::\]:3128 is the wildcard address/],
      [PROXY, "--auth.jwt.revocation-file=revoked", /--auth\.jwt\.revocation-file: no token is verified without --auth\.type=jwt/],
      [PROXY, "--http-proxy.listen-address=junk", /its port is missing/],
    ];
    for (const [file, option, said] of wrong) {
      const id = file === AGENT ? [ID] : [];
      const [started, checked] = [await refusal(file, [...id, option]), await refusal(file, [...id, option, "--check-config"])];
      assert.match(started, said);
      assert.equal(checked, started);
    }
    await using site = await Site.create();
    const agent = site.start(AGENT, site.agentArgs({ agents: "[fe80::1%lo]:4242", clients: "" }));
    assert.equal((await agent.waitFor("connecting")).proxy, "[fe80::1%lo]:4242");
    assert.equal((await agent.stop()).exitCode, 0);
  });

  it("in a file is reported by --check-config without opening a socket", async () => {
    await using site = await Site.create();
    const other = await makeAuthority();
    const key = site.folder.write("other-key.pem", other.key);
    const args = [...site.proxyArgs(), `--agent-server.tls.file.key=${key}`, "--check-config"];
    assert.match(await refusal(PROXY, args), /^Cannot use --agent-server\.tls\.file\.key .*the key does not belong to the certificate/);
    const { exitCode, stdout } = await runToEnd(PROXY, [...site.proxyArgs(), "--check-config"]);
    assert.deepEqual([exitCode, stdout], [0, "The configuration is valid"]);
    assert.match(
      await refusal(AGENT, [ID, `--agent-client.tls.file.root-ca=${key}`, "--check-config"]),
      /^Cannot use --agent-client\.tls\.file\.root-ca .*no CERTIFICATE/,
    );
  });
});
