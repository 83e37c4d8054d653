// Listeners of one service that need the same port.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ConfigError } from "../../shared/config/option.ts";
import { checkListenAddresses, type ListenAddressOptions } from "../../shared/frontend/listen_addresses.ts";

const options = (given: Partial<ListenAddressOptions>): ListenAddressOptions => ({
  httpProxy: { listenAddress: ":3128" },
  socks: {},
  admin: {},
  forward: [],
  ...given,
});
const tcp = (listen: string) => ({ listen, network: "tcp" }) as const;

describe("the addresses of listeners", () => {
  it("must differ: the error names both, and says what to do", () => {
    const refused: [given: Partial<ListenAddressOptions>, message: string][] = [
      [{ forward: [tcp("127.0.0.1:3128")] }, "Cannot listen on 127.0.0.1:3128 for --forward: --http-proxy.listen-address is :3128"],
      [{ published: [tcp(":3128")] }, "Cannot listen on :3128 for --published: --http-proxy.listen-address is :3128"],
      [{ forward: [tcp(":443")], published: [tcp(":443")] }, "Cannot listen on :443 for --published: --forward is :443"],
      [
        { published: [{ listen: "127.0.0.1:53", network: "udp" }, { listen: ":53", network: "udp" }] },
        "Cannot listen on :53 for --published: --published is 127.0.0.1:53",
      ],
      [
        { admin: { listenAddress: "[::]:3128" } },
        "Cannot listen on [::]:3128 for --admin.listen-address: --http-proxy.listen-address is :3128",
      ],
      [
        { httpProxy: { listenAddress: "127.0.0.1:1", http2ListenAddress: "127.0.0.1:2" }, socks: { listenAddress: "0.0.0.0:2" } },
        "Cannot listen on 0.0.0.0:2 for --socks.listen-address: --http-proxy.http2-listen-address is 127.0.0.1:2",
      ],
    ];
    for (const [given, message] of refused) {
      assert.throws(() => checkListenAddresses(options(given)), new ConfigError(`${message}; give one of them another port`));
    }
  });

  it("differ by address, by port, and where the system chooses the port; forwards share them with each other, and UDP with TCP", () => {
    const accepted: Partial<ListenAddressOptions>[] = [
      { httpProxy: { listenAddress: "127.0.0.1:1" }, admin: { listenAddress: "127.0.0.2:1" } },
      { httpProxy: { listenAddress: ":0", http2ListenAddress: ":0" }, forward: [tcp(":0")] },
      { forward: [tcp(":1"), tcp(":1"), { listen: ":3128", network: "udp" }] },
      { published: [tcp(":0"), tcp(":0"), tcp("127.0.0.1:1"), tcp("127.0.0.2:1"), { listen: ":1", network: "udp" }] },
    ];
    for (const given of accepted) assert.doesNotThrow(() => checkListenAddresses(options(given)));
  });
});
