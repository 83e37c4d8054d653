// How an agent describes why it could not connect to a proxy.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { describeClose, describeConnectError } from "../../agent/connection_errors.ts";
import { agentOptions } from "../../agent/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { CloseCode, REPLACED_REASON } from "../../shared/link/link.ts";
import { NetError } from "../../shared/net/errors.ts";

const options = (type: "noauth" | "jwt") =>
  withDefaults(agentOptions, { auth: type === "jwt" ? { type, jwt: { token: "a.b.c" } } : { type, noauth: { agentId: "4711" } } });

describe("an agent's description of a failure", () => {
  it("says that a proxy which refuses connections is shutting down or busy", () => {
    const error = new NetError("refused", "Cannot connect to a:1: aborted by peer: the server refused", { remote: true });
    assert.match(
      describeConnectError(error, "a:1", options("noauth")),
      /^a:1 refuses connections: the proxy is shutting down or has too many/,
    );
  });

  it("says what to do about the response of an outbound proxy", () => {
    const describe = (status: string) =>
      describeConnectError(
        new NetError("outbound-proxy", `Cannot connect to a:1 via proxy p:3128: the proxy answers ${status}`),
        "a:1",
        options("noauth"),
      );
    assert.match(describe("403 Forbidden"), /403 Forbidden; its operator must permit CONNECT to a:1$/);
    assert.match(describe("407: it needs a user name and a password"), /password; write them into the URL in --agent-client\.proxy/);
    assert.match(describe("503"), /503; is --agent-client\.proxy right, or HTTPS_PROXY\?$/);
  });

  it("asks whether the proxy is running if its port is closed", () => {
    const error = new NetError("refused", "Cannot connect to a:1: connection refused");
    assert.match(describeConnectError(error, "a:1", options("noauth")), /is the proxy running there\?$/);
  });

  for (const [transport, protocols] of [["auto", "UDP or TCP"], ["quic", "UDP"], ["tls", "TCP"]] as const) {
    it(`asks about firewalls if nothing responds: ${transport}`, () => {
      const given = options("noauth");
      given.agentClient.transport = transport;
      const error = new NetError("timed-out", "Cannot connect to a:1: no response within 10000 ms");
      assert.match(describeConnectError(error, "a:1", given), new RegExp(`do firewalls allow ${protocols} to a:1\\?$`));
    });
  }

  it("names the option of the proxy if TCP is refused with --agent-client.transport=tls", () => {
    const given = options("noauth");
    given.agentClient.transport = "tls";
    const error = new NetError("refused", "Cannot connect to a:1: connection refused", { remote: true });
    assert.match(
      describeConnectError(error, "a:1", given),
      /does its --agent-server\.tcp-listen-address have this port, and do firewalls allow TCP to it\?$/,
    );
  });

  for (
    const [what, url, message, remedy] of [
      [
        "a path that does not exist",
        "ws://proxy/agents",
        "the response to the WebSocket request for /agents is 405 Method Not Allowed",
        /is its path that of/,
      ],
      [
        "plain HTTP to a port for TLS",
        "ws://proxy/agents",
        "the response to the WebSocket request for /agents is 400 Bad Request",
        /write wss: in/,
      ],
      [
        "a port that answers plain HTTP with a TLS alert",
        "WS://proxy/agents",
        "no valid response to the WebSocket request: The head contains the control character 0x15",
        /write wss: in/,
      ],
      ["400 over TLS", "wss://proxy/agents", "the response to the WebSocket request for /agents is 400 Bad Request", /is its path that of/],
    ] as const
  ) {
    it(`has a remedy for the wrong URL of a WebSocket: ${what}`, () => {
      const given = options("noauth");
      given.agentClient.websocketUrl = url;
      const error = new NetError("reset", `Cannot connect to proxy:80: ${message}`, { remote: true });
      assert.match(describeConnectError(error, "a:1", given), remedy);
    });
  }

  it("has a remedy for TLS to a port for plain HTTP", () => {
    const error = new NetError("tls", "Cannot connect to proxy:443 over HTTPS: received corrupt message of type InvalidContentType");
    assert.match(describeConnectError(error, "a:1", options("noauth")), /write ws: in --agent-client\.websocket-url$/);
  });

  for (const alert of ["CertificateRequired", "UnknownCA", "CertificateRevoked"]) {
    it(`asks for a client certificate if the proxy refuses that of the agent: ${alert}`, () => {
      const error = new NetError("tls", `Cannot connect to a:1: aborted by peer: received fatal alert: ${alert}`, { remote: true });
      assert.match(describeConnectError(error, "a:1", options("noauth")), /requires a client certificate that it accepts/);
    });
  }

  for (
    const [type, words] of [["jwt", /it does not accept tokens: set --auth\.type=jwt/], [
      "noauth",
      /it does not accept this agent id$/,
    ]] as const
  ) {
    it(`names what was presented if an agent id is refused: ${type}`, () => {
      const error = new NetError("closed", "bad agent id", { appCode: CloseCode.badAgentId, remote: true });
      assert.match(describeConnectError(error, "a:1", options(type)), words);
    });
  }
});

describe("an agent's description of a refusal with 503", () => {
  const refusal = (why: string) =>
    describeConnectError(new NetError("closed", why, { appCode: CloseCode.limit, remote: true }), "a:1", options("noauth"));

  it("refers to the proxy's log for a limit", () => {
    assert.match(refusal("too many agents"), /; retrying; the proxy's log names the limit$/);
  });

  for (const why of ["disconnected by the operator anna", "an operator keeps the agent away for 60 s"]) {
    it(`names no limit after an action of an operator: ${why}`, () => {
      assert.equal(refusal(why), `the proxy closed the connection: 503 ${why}; retrying`);
    });
  }
});

describe("an agent's description of the end of a connection", () => {
  const end = (reason: string) => describeClose({ code: CloseCode.replaced, reason, remote: true, cause: "application" });

  it("names another agent with its id", () => {
    assert.match(end(REPLACED_REASON), /409 closing old connection; another agent has connected with the same id$/);
  });

  it("names none if the proxy closed a silent connection", () => {
    assert.match(end("it does not answer"), /409 it does not answer$/);
  });
});
