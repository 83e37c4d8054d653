// Challenges of TLS-ALPN-01: the certificate that answers, while it does, and for whom.
import "reflect-metadata";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash, createPrivateKey, X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import * as x509 from "@peculiar/x509";
import { createMemoryStore } from "../../shared/store/memory.ts";
import type { SharedStore } from "../../shared/tls/acme/solvers.ts";
import { createChallengeCertificate, TlsAlpnSolver } from "../../shared/tls/acme/tls_alpn.ts";
import type { HostTls } from "../../shared/net/tls.ts";
import { LogBook, Queue } from "../../testing/network.ts";
import { within } from "../conformance/support.ts";

/** What a certificate proves (RFC 8737 §3): the digest of a key authorization. */
function digestOf(cert: string): string {
  const extension = new x509.X509Certificate(cert).getExtension("1.3.6.1.5.5.7.1.31");
  assert.ok(extension?.critical);
  const value = Buffer.from(extension.value);
  assert.deepEqual([...value.subarray(0, 2)], [0x04, 32]);
  return value.subarray(2).toString("hex");
}

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

interface Process extends AsyncDisposable {
  readonly solver: TlsAlpnSolver;
  /** What it sets, one after the other. */
  readonly used: Queue<readonly HostTls[]>;
}

function start(shared?: SharedStore): Process {
  const [used, stopping] = [new Queue<readonly HostTls[]>(), new AbortController()];
  const names = () => ["proxy.example"];
  const solver = new TlsAlpnSolver({ names, use: (all) => used.push(all), shared, log: new LogBook(), signal: stopping.signal });
  const running = solver.run();
  return {
    solver,
    used,
    async [Symbol.asyncDispose]() {
      stopping.abort();
      await within(running);
    },
  };
}

const CHALLENGE = { name: "proxy.example", token: "token", keyAuthorization: "token.thumbprint" };

describe("a challenge of TLS-ALPN-01", () => {
  it("is answered by a certificate for its name alone, with the digest of the key authorization", async () => {
    const { cert, key } = await createChallengeCertificate("proxy.example", "token.thumbprint");
    const certificate = new X509Certificate(cert);
    assert.equal(certificate.subjectAltName, "DNS:proxy.example");
    assert.ok(certificate.checkPrivateKey(createPrivateKey(key)));
    assert.equal(digestOf(cert), sha256("token.thumbprint"));
    assert.notEqual((await createChallengeCertificate("proxy.example", "token.thumbprint")).key, key);
  });

  it("is answered until it is removed", async () => {
    await using process = start();
    await process.solver.present(CHALLENGE);
    const [host, ...others] = await process.used.next();
    assert.deepEqual([host!.names, others], [["proxy.example"], []]);
    assert.equal(digestOf(host!.tls.cert), sha256(CHALLENGE.keyAuthorization));
    await process.solver.remove(CHALLENGE);
    assert.deepEqual(await process.used.next(), []);
  });

  it("is answered by other proxies that share a store too, before the authority is told, and until it is removed", async () => {
    const shared = { store: createMemoryStore(), ttlMs: 30_000 };
    await using orderer = start(shared);
    await using other = start(shared);
    const presenting = orderer.solver.present(CHALLENGE);
    const [host] = await within(other.used.next());
    assert.equal(digestOf(host!.tls.cert), sha256(CHALLENGE.keyAuthorization));
    await within(presenting);
    await orderer.solver.remove(CHALLENGE);
    assert.deepEqual(await within(other.used.next()), []);
    // with the next order it has another answer
    void orderer.solver.present({ ...CHALLENGE, keyAuthorization: "next" }).catch(() => {}); // stopped at the end
    const [next] = await within(other.used.next());
    assert.equal(digestOf(next!.tls.cert), sha256("next"));
  });
});
