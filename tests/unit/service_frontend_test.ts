// The listeners of the clients' side: certificates that they share are renewed on all of them, and their expiry is reported.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { lbOptions } from "../../lb/options.ts";
import { createNoAuth } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ServiceFrontend } from "../../shared/frontend/service_frontend.ts";
import { createHttpProxy } from "../../shared/frontend/http/proxy.ts";
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

  it("gives names the certificates of a directory at all ports with TLS, and keeps the rest of their settings", () =>
    withNet(async (net) => {
      const applied: ServerTls[] = [];
      const watched = netWith(net, {
        listenTcp: async ({ tls, ...options }) => {
          if (tls) applied.push(tls);
          return instead(await net.listenTcp(options), { setTls: (tls) => void applied.push(tls) });
        },
      });
      const runtime = await startService("lb", { net: watched, log: new LogBook() }, (runtime) => Promise.resolve(runtime));
      const clients = new ServiceFrontend(runtime, withDefaults(lbOptions, {}), { descriptors: 2, hasOwnAuthenticator: false });
      const certified = (name: string) => ({ cert: `${name} cert`, key: `${name} key` });
      const { cert } = await makeSelfSignedAuthority({ names: ["site.test"] });
      const own = (name: string) => ({ cert, key: `own key of ${name}` });
      const directory = (...names: string[]) => ({
        current: names.map((name) => ({ names: [name], tls: own(name) })),
        reload: () => Promise.resolve(),
        poll: () => Promise.resolve(),
      });
      clients.setHosts([{ names: ["a.example"], tls: certified("ordered") }]);
      clients.useDirectory(directory("a.example", "x.closed.example", "exact.example"));
      const current: ServerTls = {
        ...certified("port"),
        hosts: [
          { names: ["*.closed.example"], tls: { ...certified("zone"), clientCa: "members" } },
          { names: ["exact.example"], tls: certified("record") },
        ],
      };
      const tls = { current, reload: () => Promise.resolve(), poll: () => Promise.resolve() };
      await clients.listen({ address: "127.0.0.1:0", tls, protocol: createHttpProxy("reverse-http-lb") });
      await clients.listen({ address: "127.0.0.1:0", protocol: createHttpProxy("reverse-http-lb") });
      assert.equal(applied.length, 1);
      // the last one of a name counts
      const byName = new Map(applied[0]!.hosts!.flatMap(({ names, tls }) => names.map((name) => [name, tls] as const)));
      assert.deepEqual(byName.get("a.example"), own("a.example"));
      assert.deepEqual(byName.get("x.closed.example"), { ...own("x.closed.example"), clientCa: "members" });
      assert.equal(byName.get("exact.example")?.cert, "record cert");
      assert.equal(applied[0]!.cert, "port cert");
      await runtime.close();
    }));
});
