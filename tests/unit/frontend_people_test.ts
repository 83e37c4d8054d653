// How the frontend uses who a client is: the credentials for the next hop, the policy, the access log, and a provider that gives no answer.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ALL_AGENTS } from "../../shared/auth/agent_list.ts";
import { AuthenticationError, type ClientPeer, type Identity, type TunnelTarget } from "../../shared/auth/authenticator.ts";
import { TrustedProxies } from "../../shared/frontend/client_address.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { connectTo, LogBook, parseAnswer, streamPair, withNet } from "../../testing/network.ts";
import { bytes, readText, within } from "../conformance/support.ts";

const ALICE: Identity = { agentId: "", agents: ALL_AGENTS, subject: "u-1", name: "Alice\nSmith", groups: ["ops", "dev"], user: "alice" };

interface Outcome {
  readonly answer: ReturnType<typeof parseAnswer>;
  readonly dialled: TunnelRequest[];
  readonly line: Readonly<Record<string, unknown>>;
}

/** The outcome of one request, and its line in the log. */
async function ask(
  target: string,
  identify: (peer: ClientPeer) => Identity,
  { fields = "", ...options }: Pick<FrontendOptions, "policy" | "labelsOf" | "trusted"> & { readonly fields?: string } = {},
): Promise<Outcome> {
  const [log, dialled] = [new LogBook(), [] as TunnelRequest[]];
  let text = "";
  await withNet(async (net) => {
    const listener = await net.listenTcp({ address: "127.0.0.1:0" });
    const front = new Frontend({
      ...options,
      net,
      agentSuffix: ".rhttp",
      listeners: [{ listener, protocol: createHttpProxy("reverse-http-proxy") }],
      log,
      allowList: createAllowList([]),
      authenticator: { authenticateAgent: () => "", authenticateClient: (_, peer) => identify(peer) },
      dial: (request) => {
        dialled.push(request);
        const { near, far } = streamPair("session");
        far.close();
        return Promise.resolve({ stream: near });
      },
    });
    const client = await connectTo(net, listener.address);
    await client.write(
      bytes(`CONNECT ${target} HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic ${btoa("alice:secret")}\r\n${fields}\r\n`),
    );
    text = await readText(client).catch(() => "HTTP/1.1 200 OK\r\n\r\n"); // the tunnel has ended with a reset
    await log.waitFor("request");
    front.close();
    await within(front.done);
  });
  return { answer: parseAnswer(text), dialled, line: log.logged("request")[0]! };
}

describe("a client behind lb", () => {
  const fields = "Forwarded: for=192.0.2.7\r\nClient-Cert: :AQID:\r\n";

  it("has the certificate that lb has verified, if lb is trusted with that, and the next hop learns it", async () => {
    const seen: (number[] | undefined)[] = [];
    const identify = ({ certificate }: ClientPeer) => {
      seen.push(certificate && [...certificate]);
      return { ...ALICE, certificate };
    };
    const asked = async (trusted?: TrustedProxies) => await ask("db.site-7.rhttp:1", identify, { fields, trusted });
    const { dialled: [request] } = await asked(new TrustedProxies(["127.0.0.0/8"], [], true));
    assert.deepEqual([...request!.identity.certificate!], [1, 2, 3]);
    for (const trusted of [undefined, new TrustedProxies(["127.0.0.0/8"]), new TrustedProxies(["10.0.0.0/8"], ["127.0.0.0/8"], true)]) {
      await asked(trusted);
    }
    assert.deepEqual(seen, [[1, 2, 3], undefined, undefined, undefined]);
  });

  it("gets 400 for a certificate that cannot be read", async () => {
    const trusted = new TrustedProxies(["127.0.0.1"], [], true);
    const { answer, dialled } = await ask("db.site-7.rhttp:1", () => ALICE, { fields: "Client-Cert: junk\r\n", trusted });
    assert.deepEqual([answer.status, dialled], [400, []]);
  });
});

describe("a person", () => {
  it("keeps the user name towards the next hop, which learns the agent behind it", async () => {
    const { dialled } = await ask("db.site-7.rhttp:5432", () => ALICE);
    assert.deepEqual(dialled.map(({ credentials, agentId }) => ({ credentials, agentId })), [
      { credentials: { scheme: "basic", username: "alice#site-7", password: "secret" }, agentId: "site-7" },
    ]);
  });

  it("is in the access log by sub, name and groups, without control characters", async () => {
    const { line } = await ask("db.site-7.rhttp:5432", () => ALICE);
    assert.deepEqual([line.sub, line.name, line.groups, line.agent], ["u-1", "Alice?Smith", "ops,dev", "site-7"]);
  });

  it("gets 403 for a tunnel that its provider denies, which is asked for agent and destination, and 503 if it cannot be asked", async () => {
    const asked: TunnelTarget[] = [];
    const denying = (kind: "denied" | "unavailable", advice?: string): Identity => ({
      ...ALICE,
      authorize: (target) => {
        asked.push(target);
        return Promise.reject(new AuthenticationError(kind, "The webhook denies it", {}, advice));
      },
    });
    const { answer, dialled, line } = await ask("db.site-7.rhttp:5432", () => denying("denied", "not you"));
    assert.deepEqual([answer.status, dialled, line.reason], [403, [], "db:5432 is not allowed: not you: The webhook denies it"]);
    assert.deepEqual(asked, [{ agentId: "site-7", destination: { host: "db", port: 5432 }, network: "tcp" }]);
    assert.equal((await ask("db.site-7.rhttp:5432", () => denying("unavailable"))).answer.status, 503);
  });

  it("gets 403 for what the policy denies, which is asked for the agent and its labels, and the log has the rule", async () => {
    const asked: unknown[] = [];
    const { answer: { status, body }, dialled, line } = await ask("db.site-7.rhttp:5432", () => ALICE, {
      labelsOf: (agentId) => [[`id=${agentId}`]],
      policy: {
        authorize: ({ name, groups }, request) => {
          asked.push({ name, groups, ...request });
          throw new TunnelError("http_request_denied", "The policy does not allow it", { cause: new Error('rule "a" (policy.yaml:3)') });
        },
      },
    });
    assert.deepEqual([status, dialled], [403, []]);
    assert.doesNotMatch(body, /policy.yaml/);
    assert.match(String(line.reason), /rule "a" \(policy.yaml:3\)/);
    const destination = { host: "db", port: 5432 };
    assert.deepEqual(asked, [
      { name: ALICE.name, groups: ALICE.groups, agentId: "site-7", destination, network: "tcp", labels: [["id=site-7"]] },
    ]);
  });

  it("gets 503 if its provider gives no answer, and the message of a webhook that denies it", async () => {
    const throwing = (error: AuthenticationError) => () => {
      throw error;
    };
    const { answer: open } = await ask("db.site-7.rhttp:1", throwing(new AuthenticationError("unavailable", "The issuer is down")));
    assert.deepEqual([open.status, open.field("retry-after")], [503, "5"]);
    assert.doesNotMatch(open.body, /issuer/);
    const { answer: denied } = await ask(
      "db.site-7.rhttp:1",
      throwing(new AuthenticationError("denied", "inner", {}, "Your trial has ended")),
    );
    assert.equal(denied.status, 407);
    assert.match(denied.body, /^The credentials are not accepted: Your trial has ended/);
  });
});
