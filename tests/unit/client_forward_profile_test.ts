// A running forward reads its profile for each connection.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { serveForwards } from "../../client/forward.ts";
import { LineMonitor } from "../../client/forward_monitor.ts";
import { parseForward } from "../../client/forwards.ts";
import { clientOptions } from "../../client/options.ts";
import { checkAccess } from "../../client/tunnel.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { NetError } from "../../shared/net/errors.ts";
import { withNet } from "../../testing/network.ts";
import { eventually } from "../../testing/programs.ts";
import { fakeTerminal } from "../../testing/terminal.ts";

describe("a running forward", () => {
  it("asks the proxy and with the token that the profile has at that moment", () =>
    withNet(async (net) => {
      const asked: string[] = [];
      for (const proxy of ["one.test:3128", "two.test:3128"]) {
        const listener = await net.listenTcp({ address: proxy });
        void (async () => {
          for (let batch; (batch = await listener.accept()) !== null;) {
            for (const { stream, head = "" } of batch) {
              if (head === "") continue; // the check of the way to the proxy
              asked.push(`${proxy} ${/^Proxy-Authorization: Bearer (.*)\r$/m.exec(head)?.[1]}`);
              await stream.write(new TextEncoder().encode("HTTP/1.1 403 No\r\n\r\n"));
              stream.close();
            }
          }
        })();
      }
      let profile = { proxy: "one.test:3128", token: "first" };
      const terminal = { ...fakeTerminal(), stopped: () => stopped.promise };
      const stopped = Promise.withResolvers<void>();
      const access = () => checkAccess(withDefaults(clientOptions, { ...profile, connectTimeout: 2_000 }));
      const forwards = [{ ...parseForward("1:db:1"), listen: "local.test:1" }];
      const serving = serveForwards(net, access, { forwards, waitMs: 0 }, new LineMonitor(terminal, true), terminal);
      await eventually(() => terminal.out() !== "", () => "nothing listens");
      for (const next of [{ proxy: "one.test:3128", token: "second" }, { proxy: "two.test:3128", token: "third" }]) {
        const stream = await net.connectTcp({ host: "local.test", port: 1, timeoutMs: 1_000 });
        await assert.rejects(stream.read(), NetError);
        profile = next;
      }
      const last = await net.connectTcp({ host: "local.test", port: 1, timeoutMs: 1_000 });
      await assert.rejects(last.read(), NetError);
      stopped.resolve();
      await serving;
      assert.deepEqual(asked, ["one.test:3128 first", "one.test:3128 second", "two.test:3128 third"]);
    }));
});
