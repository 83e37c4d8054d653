// A proxy that proves its name at its TLS port (TLS-ALPN-01), against a small authority: challenges and clients on one port.
import assert from "node:assert/strict";
import type { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { it } from "node:test";
import { connect } from "node:tls";
import { AcmeServer } from "../../testing/acme_server.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { PROXY, runToEnd, Site } from "../../testing/programs.ts";

const DAY_MS = 86_400_000;

it("the clients' port answers challenges by TLS-ALPN-01 beside clients, and gets the certificate that is issued", async () => {
  await using site = await Site.create();
  const { promise: clients, resolve: setClients } = Promise.withResolvers<string>();
  /** The certificate, DER, and the protocol that a client gets which offers this one. */
  const shown = async (offered: string): Promise<[Buffer, string | false]> => {
    const [host, port] = (await clients).split(":");
    const socket = connect({ host, port: Number(port), servername: "proxy.example", rejectUnauthorized: false, ALPNProtocols: [offered] });
    await once(socket, "secureConnect");
    const shown = [socket.getPeerCertificate().raw, socket.alpnProtocol || false] as [Buffer, string | false];
    socket.destroy();
    return shown;
  };
  let own: Buffer | undefined;
  await using server = await AcmeServer.start({
    look: () => Promise.resolve("answered"),
    expect: async (keyAuthorization) => {
      const [answer, protocol] = await shown("acme-tls/1");
      [own] = await shown("http/1.1");
      const digest = createHash("sha256").update(keyAuthorization).digest();
      return protocol === "acme-tls/1" && answer.includes(digest) && !own!.includes(digest) ? "answered" : "not answered";
    },
    validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
  });
  const args = [
    "--agent-server.listen-address=127.0.0.1:0",
    "--http-proxy.listen-address=127.0.0.1:0",
    "--log.format=json",
    `--state-dir=${site.folder.path}`,
    "--acme.domain=proxy.example",
    `--acme.directory=${server.directory}`,
    `--acme.file.root-ca=${site.folder.write("acme-ca.pem", server.ca)}`,
    "--acme.challenge=tls-alpn-01",
  ];
  const { exitCode, stderr } = await runToEnd(PROXY, args);
  assert.equal(exitCode, 2);
  assert.match(stderr, /Cannot use --acme\.challenge tls-alpn-01: there is no TLS port to answer at/);
  const proxy = site.start(PROXY, [...args, "--http-proxy.tls.enable"]);
  setClients(String((await proxy.waitFor("listening")).clients));
  await proxy.waitFor("certificate issued");
  const [issued] = await shown("http/1.1");
  assert.ok(!issued.equals(own!));
  // there is no challenge any more
  assert.deepEqual((await shown("acme-tls/1"))[1], false);
});

it("in a hand-over the old process stops ordering, and the new one orders at once, when everything has moved", async () => {
  await using site = await Site.create();
  const [{ promise: asked, resolve: ask }, { promise: released, resolve: release }] = [
    Promise.withResolvers<void>(),
    Promise.withResolvers<void>(),
  ];
  const challenges = await freeAddress();
  await using server = await AcmeServer.start({
    look: async ({ token }) => {
      ask();
      await released;
      return await (await fetch(`http://${challenges}/.well-known/acme-challenge/${token}`)).text();
    },
    validity: () => ({ notBefore: new Date(), notAfter: new Date(Date.now() + 90 * DAY_MS) }),
  });
  const args = [
    "--agent-server.listen-address=127.0.0.1:0",
    "--http-proxy.listen-address=127.0.0.1:0",
    "--log.format=json",
    `--state-dir=${site.folder.path}`,
    `--handover.socket=${site.folder.path}/proxy.sock`,
    "--acme.domain=proxy.example",
    `--acme.directory=${server.directory}`,
    `--acme.file.root-ca=${site.folder.write("acme-ca.pem", server.ca)}`,
    `--acme.http-listen-address=${challenges}`,
  ];
  const old = site.start(PROXY, args);
  await asked; // its order is in progress
  const next = site.start(PROXY, args);
  await next.waitFor("taken over", { pid: old.pid });
  assert.equal((await old.ended).exitCode, 0);
  release();
  await next.waitFor("certificate issued");
  assert.deepEqual([server.orders.length, old.logged("ordering a certificate").length, old.logged("certificate issued")], [2, 1, []]);
});
