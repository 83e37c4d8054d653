// The command for clients that an agent logs: from what its proxy says of itself, which is not to be trusted.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { clientAdvice } from "../../agent/client_advice.ts";
import { type ClientAccess, decodeMessage, encodeMessage, type Message } from "../../shared/link/message.ts";

const PIN = "1c".repeat(32);
const PLAIN: ClientAccess = { address: ":3128", tls: false, token: false };

/** What an agent makes of a proxy's hello. */
function received(clients: unknown): ClientAccess | undefined {
  const hello = { version: "reverse-http/1", instance: "1", host: "", labels: {}, clients } as Extract<Message, { type: "hello" }>["hello"];
  const message = decodeMessage(encodeMessage({ type: "hello", hello }));
  assert.equal(message?.type, "hello");
  return message.hello.clients;
}

describe("the command for clients", () => {
  it("has the host at which the agent reaches the proxy, if the proxy knows only a port", () => {
    assert.deepEqual(clientAdvice(PLAIN, "site7", "[2001:db8::1]:4242"), {
      command: "reverse-http connect '--proxy=[2001:db8::1]:3128' --agent-id=site7 HOST:PORT",
    });
    const { command } = clientAdvice({ ...PLAIN, address: "lb.example:80" }, "site7", "proxy.example:4242");
    assert.equal(command, "reverse-http connect --proxy=lb.example:80 --agent-id=site7 HOST:PORT");
  });

  it("has what TLS needs, and says where a token comes from", () => {
    const { command, note } = clientAdvice({ ...PLAIN, tls: true, pin: PIN, token: true }, "site7", "proxy.example:4242");
    assert.equal(
      command,
      `reverse-http connect --proxy=proxy.example:3128 --tls.enable --tls.pin-sha256=${PIN} --agent-id=site7 HOST:PORT`,
    );
    assert.match(note!, /at the proxy, reverse-http invite --client --agent-id=site7 prints one/);
  });

  it("quotes an agent's id for the shell", () => {
    const { command } = clientAdvice(PLAIN, "a'; rm -rf /", "proxy.example:4242");
    assert.equal(command, "reverse-http connect --proxy=proxy.example:3128 '--agent-id=a'\\''; rm -rf /' HOST:PORT");
  });
});

describe("a proxy's hello", () => {
  it("keeps what it says of clients", () => {
    for (const clients of [PLAIN, { address: "proxy.example:1", tls: true, token: true, pin: PIN }]) {
      assert.deepEqual(received(clients), clients);
    }
  });

  it("is accepted without, and with anything that cannot be used, which is left out", () => {
    const bad = [undefined, null, 1, [], {}, { ...PLAIN, tls: "yes" }, { ...PLAIN, token: 1 }, { ...PLAIN, pin: "abcd" }, {
      ...PLAIN,
      pin: null,
    }];
    const addresses = ["$(reboot):1", "a b:1", "a", "x".repeat(300), "a:1\x1b[2J", "a;b:1"].map((address) => ({ ...PLAIN, address }));
    for (const clients of [...bad, ...addresses]) assert.equal(received(clients), undefined, JSON.stringify(clients));
  });
});
