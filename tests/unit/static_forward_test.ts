// Forwards: whom a listener lets in, and which request each connection becomes.
import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { AuthenticationError, type Authenticator, type ClientCredentials } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { type Forward, ForwardGroup, forwardOptions, groupForwards } from "../../shared/frontend/forwards/forwards.ts";
import type { FrontendOptions } from "../../shared/frontend/server.ts";
import { checkForwards } from "../../shared/frontend/forwards/listeners.ts";
import { createForwardProtocol, createStaticForward } from "../../shared/frontend/forwards/static_forward.ts";
import { ClientLimits } from "../../shared/limits/client_limits.ts";
import { LimitReporter } from "../../shared/limits/limit.ts";
import type { Net } from "../../shared/net/net.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import { connectTo, LogBook, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { refusal } from "../../testing/refusal.ts";
import { RecordingTracer, TRACE_ID } from "../../testing/tracer.ts";
import { bytes, readText, readTextExactly, within } from "../conformance/support.ts";
import { type FrontendBench, withFrontend } from "./tunnels.ts";

const DATABASE = { listen: "127.0.0.1:0", agent: "db:site", to: "127.0.0.1:5432" };

type Given = NonNullable<Parameters<typeof withDefaults<typeof forwardOptions>>[1]["forward"]>;

function forwardsOf(...forward: Given): Forward[] {
  return withDefaults(forwardOptions, { forward }).forward;
}

function withBench(
  given: Partial<Given[number]>,
  options: Partial<FrontendOptions>,
  body: (bench: FrontendBench) => Promise<void>,
): Promise<void> {
  return withNet(async (net) => {
    const group = new ForwardGroup(DATABASE.listen, "tcp", forwardsOf({ ...DATABASE, ...given }));
    const protocol = createStaticForward(() => group);
    const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble: protocol.preamble });
    await withFrontend(net, { listener, protocol }, options, body);
  });
}

/** Fails unless the connection is reset, without a byte of a response. */
async function assertReset(net: Net, address: string): Promise<void> {
  const client = await connectTo(net, address);
  await assert.rejects(within(client.read()), { code: "reset" });
  client.close();
}

describe("a port that forwards look up", () => {
  it("resets clients while nothing is published, and sends them no alert of TLS", () =>
    withNet(async (net) => {
      const protocol = createForwardProtocol("none", () => Promise.resolve(new ForwardGroup(":1", "tcp", [])));
      const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble: protocol.preamble });
      await withFrontend(net, { listener, protocol }, {}, async ({ log }) => {
        await assertReset(net, listener.address);
        await log.waitFor("request", { error: "destination_not_found", reason: "No forward is for this port now" });
      });
    }));
});

describe("a forward", () => {
  it("has a span for each of its connections", () => {
    const tracer = new RecordingTracer();
    return withBench({}, { tracer }, async ({ net, address, dialled, log }) => {
      const client = await connectTo(net, address);
      const { request, far } = await dialled.next();
      assert.equal(request.trace?.context.traceId, TRACE_ID);
      far.closeWrite();
      client.closeWrite();
      await log.waitFor("request", { trace_id: TRACE_ID });
      assert.deepEqual(tracer.ends.map(({ name }) => name), ["forward"]);
      client.close();
    });
  });

  it("opens its tunnel before the client has sent a byte, so that a server may speak first", () =>
    withBench({}, {}, async ({ net, address, dialled, log }) => {
      const client = await connectTo(net, address);
      const { request, far } = await dialled.next();
      const { agentId, destination, credentials, network } = request;
      assert.deepEqual({ agentId, destination, credentials, network }, {
        agentId: "db:site",
        destination: { host: "127.0.0.1", port: 5432 },
        credentials: { scheme: "basic", username: "db%3Asite", password: "" },
        network: "tcp",
      });
      await far.write(bytes("220 ready"));
      assert.equal(await readTextExactly(client, 9), "220 ready");
      client.closeWrite();
      assert.equal(await readText(far), "");
      await far.write(bytes("bye"));
      far.close();
      assert.equal(await readText(client), "bye");
      await log.waitFor("request", {
        method: "FORWARD",
        agent: "db:site",
        destination: "127.0.0.1:5432",
        status: 200,
        sent: 0,
        received: 12,
      });
      client.close();
    }));

  it("resets a client at once whose agent is not connected, and logs the reason", () => {
    const dial = () => Promise.reject(new TunnelError("destination_unavailable", "The agent is not connected to this proxy"));
    return withBench({}, { dial }, async ({ net, address, log }) => {
      await assertReset(net, address);
      await log.waitFor("request", { agent: "db:site", status: 502, reason: "The agent is not connected to this proxy" });
    });
  });

  it("obeys the list of destinations of its service", () =>
    withBench({}, { allowList: createAllowList(["10.0.0.0/8"]) }, async ({ net, address, log }) => {
      await assertReset(net, address);
      await log.waitFor("request", { status: 403, reason: "127.0.0.1:5432 is not on the allow-list of this proxy" });
    }));

  for (const [allow, isAllowed] of [[["127.0.0.0/8"], true], [["all"], true], [["none"], false], [["10.0.0.0/8", "::1"], false]] as const) {
    it(`with allow=${allow} ${isAllowed ? "serves" : "resets"} a client on loopback`, () =>
      withBench({ allow: [...allow] }, {}, async ({ net, address, log, dialled }) => {
        if (!isAllowed) {
          await assertReset(net, address);
          await log.waitFor("request", { status: 403, agent: undefined });
          return;
        }
        const client = await connectTo(net, address);
        (await dialled.next()).far.close();
        client.close();
      }));
  }

  const tokens = (accepted: string): Authenticator => ({
    authenticateAgent: () => "",
    authenticateClient: (given: ClientCredentials) => {
      if (given.scheme !== "basic" || given.password !== accepted) throw new AuthenticationError("denied", "The token has expired");
      return { agentId: given.username === "db%3Asite" ? "db:site" : "another", tokenId: "4" };
    },
  });

  it("with a token uses what its file has at that moment, and a bad one is not the client's failure", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const tokenFile = folder.write("token", "old\n");
      const log = new LogBook();
      const { limits: values } = withDefaults(lbOptions, {});
      const reports = new LimitReporter({ log, count: () => {} });
      const limits = new ClientLimits({ ...values, authFailures: 1, exemptAddresses: [] }, 1, {
        log,
        reports,
        createRate: (rate) => net.createRate(rate),
      });
      await withBench({ tokenFile }, { authenticator: tokens("new"), limits }, async ({ net, address, log, dialled }) => {
        for (let i = 1; i <= 3; i++) {
          folder.write("token", `old ${i}\n`);
          await assertReset(net, address);
          await log.waitFor("request", { status: 407, reason: "The credentials are not accepted: The token has expired" }, i);
        }
        folder.write("token", "new\n");
        const client = await connectTo(net, address);
        const { request: { credentials, identity }, far } = await dialled.next();
        assert.deepEqual(credentials, { scheme: "basic", username: "db%3Asite", password: "new" });
        assert.equal(identity.tokenId, "4");
        far.close();
        client.close();
      });
      limits.close();
    }));

  it("refuses its clients while its token cannot be read, or is another agent's", async () => {
    using folder = new Folder();
    const missing = join(folder.path, "missing");
    await withBench({ tokenFile: missing }, {}, async ({ net, address, log }) => {
      await assertReset(net, address);
      await log.waitFor("request", { reason: `The token of the forward cannot be read: ${missing}: the file does not exist` });
    });
    const tokenFile = folder.write("token", "t");
    await withBench({ agent: "b", tokenFile }, { authenticator: tokens("t") }, async ({ net, address, log }) => {
      await assertReset(net, address);
      await log.waitFor("request", { status: 407, reason: "The token of the forward is not for the agent b" });
    });
  });
});

describe("the option forward", () => {
  const parse = (record: object) => refusal(() => forwardsOf(record as Given[number]));

  it("refuses what cannot work, and says which record it is", () => {
    assert.match(parse({ ...DATABASE, agent: "a b" }), /^Cannot use --forward: record 1: agent: it has white space or control characters$/);
    assert.match(parse({ ...DATABASE, to: ":5432" }), /record 1: to: ":5432" has no host or no port to connect to/);
    assert.match(parse({ ...DATABASE, allow: ["example.org"] }), /record 1: allow: the pattern "example.org": only addresses and networks/);
    const twice = [{ ...DATABASE, listen: ":1" }, { ...DATABASE, listen: ":1" }];
    assert.equal(refusal(() => forwardsOf(...twice)), "Cannot use --forward: two records without sni listen on :1");
    const sharing = [{ ...DATABASE, listen: ":1", sni: ["a.example"] }, { ...DATABASE, listen: ":1", sni: ["b.example", "A.Example."] }];
    assert.equal(refusal(() => forwardsOf(...sharing)), "Cannot use --forward: two records that listen on :1 have sni=a.example");
    assert.equal(
      refusal(() => forwardsOf({ ...DATABASE, listen: ":1", network: "udp", sni: ["a.example"] })),
      "Cannot use --forward: the record that listens on :1 has sni and network=udp",
    );
    assert.equal(
      refusal(() => forwardsOf({ ...DATABASE, listen: ":1", network: "udp", proxyProtocol: "v1" })),
      "Cannot use --forward: the record that listens on :1 has proxy-protocol and network=udp",
    );
    for (const sni of ["*", "a.*.example", "*.", "192.0.2.1", "::1", "a b", "a..b", "https://a"]) {
      assert.match(parse({ ...DATABASE, sni: [sni] }), /^Cannot use --forward: record 1: sni: "/, sni);
    }
  });

  it("has an exact name precede the longest zone, and that a record without names", () => {
    const [listen, to] = [":443", "x:1"];
    const [group] = groupForwards(forwardsOf(
      { listen, to, agent: "exact", sni: ["a.site.example", "münchen.example"] },
      { listen, to, agent: "zone", sni: ["*.site.example"] },
      { listen, to, agent: "deeper", sni: ["*.deep.site.example"] },
      { listen, to, agent: "rest" },
      { listen: ":444", to, agent: "elsewhere" },
    ));
    const matches: [name: string | undefined, agent: string, pattern?: string][] = [
      ["a.site.example", "exact", "a.site.example"],
      ["A.SITE.example.", "exact", "a.site.example"],
      ["xn--mnchen-3ya.example", "exact", "münchen.example"],
      ["b.site.example", "zone", "*.site.example"],
      ["b.a.site.example", "zone", "*.site.example"],
      ["deep.site.example", "zone", "*.site.example"],
      ["x.deep.site.example", "deeper", "*.deep.site.example"],
      ["site.example", "rest"],
      ["notsite.example", "rest"],
      ["example", "rest"],
      [undefined, "rest"],
    ];
    for (const [name, agent, pattern] of matches) {
      const match = (group as ForwardGroup).match(name);
      assert.deepEqual([name, match?.forward.agent, match?.pattern], [name, agent, pattern]);
    }
    const [named] = groupForwards(forwardsOf({ listen, to, agent: "exact", sni: ["a.example"] }));
    assert.deepEqual([(named as ForwardGroup).match("b.example"), (named as ForwardGroup).match()], [undefined, undefined]);
  });

  it("needs a token at a load balancer whose proxies verify tokens, and takes none where the proxies verify none", async () => {
    using folder = new Folder();
    const tokenFile = folder.write("token", "t");
    const check = (given: Partial<Given[number]>, authType: string | undefined, isAuthenticatedAgain: boolean) =>
      checkForwards(forwardsOf({ ...DATABASE, listen: ":1", ...given }), { authType, isAuthenticatedAgain });
    await check({}, "noauth", true);
    await check({}, "jwt", false);
    await check({}, undefined, true);
    await check({ tokenFile }, "jwt", true);
    await check({ tokenFile }, undefined, true);
    const refused = (message: RegExp) => (error: unknown) => error instanceof ConfigError && message.test(error.message);
    await assert.rejects(
      check({}, "jwt", true),
      refused(
        /^Cannot use --forward listen=:1: with --auth.type=jwt it needs token-file, a file with a client's token for the agent db:site$/,
      ),
    );
    await assert.rejects(
      check({ tokenFile }, "noauth", false),
      refused(/^Cannot use --forward listen=:1: token-file: no token is verified without --auth.type=jwt$/),
    );
    await assert.rejects(
      check({ tokenFile: join(folder.path, "missing") }, "jwt", true),
      refused(/token-file: .*missing: the file does not exist$/),
    );
    await assert.rejects(check({ tokenFile: folder.write("empty", "\n") }, "jwt", true), refused(/empty: the file is empty$/));
    const site = forwardsOf({ ...DATABASE, listen: ":1", network: "https", auth: "mtls" });
    const again = { authType: "jwt", isAuthenticatedAgain: true };
    await checkForwards(site, { ...again, knowsCertificates: true });
    await assert.rejects(checkForwards(site, again), refused(/it needs token-file/));
    await assert.rejects(
      checkForwards(forwardsOf({ ...DATABASE, listen: ":1" }), { ...again, knowsCertificates: true }),
      refused(/token-file/),
    );
  });
});
