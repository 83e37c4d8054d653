// The listeners of the clients' side: certificates that they share are renewed on all of them, and their expiry is reported.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ServiceFrontend } from "../../shared/frontend/service_frontend.ts";
import { createHttpProxy } from "../../shared/frontend/http_proxy.ts";
import type { ServerTls } from "../../shared/net/tls.ts";
import { startService } from "../../shared/service/runtime.ts";
import { ReloadableTls } from "../../shared/tls/reloadable_tls.ts";
import { makeSelfSignedAuthority } from "../../testing/certificates.ts";
import { instead, LogBook, netWith, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const EXPIRY = 'reverse_http_certificate_expiry_timestamp_seconds{use="clients"}';

describe("the clients' side", () => {
  it("applies a renewed certificate to all listeners that share it, and reports its expiry beside a listener without TLS", () =>
    withNet(async (net) => {
      using folder = new Folder();
      const [before, after] = await Promise.all([1, 2].map((days) => makeSelfSignedAuthority({ names: ["proxy.test"], days })));
      const file = folder.write("cert.pem", before!.cert);
      const renewed: string[] = [];
      const watched = netWith(net, {
        listenTcp: async ({ tls: _, ...options }) => {
          const listener = await net.listenTcp(options);
          return instead(listener, { setTls: ({ cert }) => void renewed.push(`${listener.address} ${cert}`) });
        },
      });
      const log = new LogBook();
      const check = (pems: Readonly<Record<string, { text: string } | undefined>>) =>
        Promise.resolve({ tls: { cert: pems.cert!.text, key: "" } satisfies ServerTls, warnings: [] });
      const tls = await ReloadableTls.open<ServerTls>({ group: "http-proxy.tls", files: { cert: file } }, check, log);
      const runtime = await startService("lb", { net: watched, log }, (runtime) => Promise.resolve(runtime));
      const options = withDefaults(lbOptions, {});
      const clients = new ServiceFrontend(runtime, options, { descriptors: 2, hasOwnAuthenticator: false });
      const protocol = createHttpProxy("reverse-http-lb");
      const listen = (tls?: ReloadableTls<ServerTls>) =>
        clients.listen({ option: "http-proxy.listen-address", address: "127.0.0.1:0", tls, protocol });
      const sharing = [await listen(tls), await listen(tls)];
      await listen();
      clients.serve({ authenticator: createNoAuth(), dial: () => Promise.reject(new Error("no tunnel")) });
      const expiry = async () => (await runtime.metrics.registry.metrics()).split("\n").find((line) => line.startsWith(EXPIRY));
      const ends = (cert: string) => `${EXPIRY} ${Date.parse(new X509Certificate(cert).validTo) / 1_000}`;
      assert.equal(await expiry(), ends(before!.cert));
      folder.write("cert.pem", after!.cert);
      await runtime.reload();
      assert.deepEqual(renewed, sharing.map(({ address }) => `${address} ${after!.cert}`));
      assert.equal(log.logged("certificates reloaded").length, 1);
      assert.equal(await expiry(), ends(after!.cert));
      await runtime.close();
    }));
});
