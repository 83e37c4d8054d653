// Clients that are known by their certificates: subject, name and groups, what ends them, and how they fit among other providers.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { AuthenticationError, type ClientCredentials, createNoAuth, type Identity } from "../../shared/auth/authenticator.ts";
import { CertificateIdentities, type MtlsOptions } from "../../shared/auth/certificate_identity.ts";
import { checkClientCertificates, createMtlsProvider } from "../../shared/auth/mtls.ts";
import { type ClientProvider, withProviders } from "../../shared/auth/providers.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { subjectsOf } from "../../shared/policy/policy.ts";
import { type Authority, type IssueOptions, makeAuthority, pinOf } from "../../testing/certificates.ts";
import { Folder } from "../../testing/programs.ts";
import { within } from "../conformance/support.ts";

const authority: Promise<Authority> = makeAuthority();
const OPTIONS: MtlsOptions = { subjectFrom: "cn", groupsFrom: "ou" };
const PEER = { address: "192.0.2.1", requestId: "r-1" };
const NO_PASSWORD: ClientCredentials = { scheme: "basic", username: "site-7", password: "" };

async function certificateOf(options: Partial<IssueOptions>): Promise<{ der: Uint8Array; fingerprint: string }> {
  const { cert } = await (await authority).issue({ names: [], commonName: "alice", ...options });
  return { der: new Uint8Array(new X509Certificate(cert).raw), fingerprint: `sha256:${pinOf(cert)}` };
}

describe("a client's certificate", () => {
  it("names its client by the field that the option names, and its groups", async () => {
    const names = ["b.example", "a.example", "spiffe://example/alice", "alice@example.org"];
    const { der, fingerprint } = await certificateOf({ names, commonName: "alice", units: ["dba", "ops"] });
    const subjects = { cn: "alice", dns: "b.example", uri: "spiffe://example/alice", email: "alice@example.org", sha256: fingerprint };
    for (const [subjectFrom, subject] of Object.entries(subjects)) {
      const known = await new CertificateIdentities({ ...OPTIONS, subjectFrom: subjectFrom as MtlsOptions["subjectFrom"] }).of(der);
      const { expiresAt, ...client } = known;
      assert.deepEqual(client, { subject, name: "alice", groups: ["dba", "ops"], tokenId: fingerprint });
      assert.ok(Math.abs(expiresAt - Date.now() - 86_400_000) < 60_000);
    }
    for (const groupsFrom of ["o", "none"] as const) {
      assert.deepEqual((await new CertificateIdentities({ ...OPTIONS, groupsFrom }).of(der)).groups, []);
    }
  });

  it("without such a name is denied, each time", async () => {
    const { der, fingerprint } = await certificateOf({ commonName: "alice" });
    const identities = new CertificateIdentities({ ...OPTIONS, subjectFrom: "email" });
    for (let i = 0; i < 2; i++) {
      await assert.rejects(identities.of(der), {
        kind: "denied",
        message: "The client's certificate has no e-mail address",
        claims: { tokenId: fingerprint },
      });
    }
    await assert.rejects(identities.of(new Uint8Array(10)), /cannot be read/);
  });
});

interface Given {
  readonly onExpiry?: "close" | "keep";
  readonly revocationFile?: string;
  readonly now?: () => number;
}

async function withProvider(given: Given, body: (provider: ClientProvider) => Promise<void>): Promise<void> {
  const provider = await createMtlsProvider(OPTIONS, { log: silentLogger, onExpiry: "keep", ...given });
  try {
    await body(provider);
  } finally {
    provider.close!();
  }
}

describe("the provider mtls", () => {
  it("knows a client by its certificate, with the agent of its user name or without any credentials, whatever its password", () =>
    withProvider({}, async (provider) => {
      const { der: certificate, fingerprint } = await certificateOf({ units: ["dba"] });
      const { signal, release, expiresAt, ...identity } = await provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate });
      assert.equal(identity.agentId, "site-7");
      assert.equal(identity.agents?.allows("any"), true);
      assert.deepEqual(subjectsOf(identity), ["sub:alice", "name:alice", `token:${fingerprint}`, "group:dba"]);
      assert.ok(expiresAt && signal && release);
      assert.equal((await provider.authenticateClient({ ...NO_PASSWORD, password: "x" }, { ...PEER, certificate })).subject, "alice");
      const anonymous = await provider.anonymous!({ ...PEER, certificate });
      assert.equal(anonymous?.agentId, "");
      for (const { certificate: passedOn } of [identity, anonymous!]) assert.equal(passedOn, certificate);
    }));

  it("knows no client without one", () =>
    withProvider({}, async (provider) => {
      await assert.rejects(provider.authenticateClient(NO_PASSWORD, PEER), { kind: "denied", message: "The client sent no certificate" });
      assert.equal(await provider.anonymous!(PEER), undefined);
    }));

  it("is asked in its turn, and alone for clients without credentials", async () => {
    await withProvider({}, async (provider) => {
      const { der: certificate } = await certificateOf({});
      const staff: ClientProvider = {
        name: "htpasswd",
        authenticateClient: ({ scheme }) =>
          scheme === "bearer" ? Promise.resolve({ agentId: "", subject: "bob" }) : Promise.reject(new AuthenticationError("denied", "no")),
      };
      const bearer: ClientCredentials = { scheme: "bearer", token: "t" };
      const subjectOf = async (providers: ClientProvider[], credentials: ClientCredentials) =>
        (await withProviders(createNoAuth(), providers).authenticateClient(credentials, { ...PEER, certificate }) as Identity).subject;
      assert.equal(await subjectOf([staff, provider], bearer), "bob");
      assert.equal(await subjectOf([provider, staff], bearer), "alice");
      assert.equal(await subjectOf([staff, provider], NO_PASSWORD), "alice");
      const both = withProviders(createNoAuth(), [staff, provider]);
      assert.equal((await both.anonymous!({ ...PEER, certificate }))?.subject, "alice");
      assert.equal(await both.anonymous!(PEER), undefined);
      assert.equal(withProviders(createNoAuth(), [staff]).anonymous, undefined);
    });
  });

  it("refuses a certificate that has expired since its handshake, and then closes what it has opened if that is configured", async () => {
    const { der: certificate } = await certificateOf({});
    let now = Date.now();
    await withProvider({ onExpiry: "close", now: () => now }, async (provider) => {
      const { signal } = await provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate });
      now += 2 * 86_400_000;
      await assert.rejects(provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate }), { kind: "ended", message: /expired/ });
      await within(new Promise((resolve) => signal!.addEventListener("abort", resolve)));
    });
    now = Date.now();
    await withProvider({ now: () => now }, async (provider) => {
      const { signal } = await provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate });
      now += 2 * 86_400_000;
      await provider.reload!();
      assert.equal(signal!.aborted, false);
    });
  });

  it("refuses revoked subjects, names and fingerprints, and ends what they have opened", async () => {
    using folder = new Folder();
    const revocationFile = folder.write("revoked", "");
    const { der: certificate, fingerprint } = await certificateOf({});
    await withProvider({ revocationFile }, async (provider) => {
      for (const line of ["sub:alice", "name:alice", fingerprint]) {
        folder.write("revoked", "");
        await provider.reload!();
        const { signal } = await provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate });
        folder.write("revoked", `${line}\n`);
        await provider.reload!();
        assert.equal(signal!.aborted, true, line);
        await assert.rejects(provider.authenticateClient(NO_PASSWORD, { ...PEER, certificate }), { kind: "ended" });
      }
    });
  });

  it("needs authorities at the clients' port, or a trusted proxy in front that has them", () => {
    const check = (clients: string[], enable: boolean, clientCa?: string, trustedProxies: string[] = [], trustClientCert = false) =>
      checkClientCertificates({
        auth: { clients, mtls: { trustClientCert } },
        httpProxy: { trustedProxies, tls: { enable, file: { clientCa } } },
      });
    check(["jwt"], false);
    check(["jwt", "mtls"], true, "ca.pem");
    for (const [enable, clientCa] of [[true, undefined], [false, "ca.pem"]] as const) {
      assert.throws(() => check(["mtls"], enable, clientCa), /mtls needs --http-proxy\.tls\.enable and --http-proxy\.tls\.file\.client-ca/);
    }
    check(["mtls"], false, undefined, ["10.0.0.0/8"], true);
    assert.throws(() => check(["mtls"], false, undefined, [], true), /trust-client-cert: --http-proxy\.trusted-proxies names no proxy/);
    assert.throws(() => check(["jwt"], true, "ca.pem", ["10.0.0.1"], true), /trust-client-cert: --auth\.clients does not name mtls/);
    assert.throws(() => check(["mtls"], false, undefined, ["10.0.0.0/8"]), /or behind lb --auth\.mtls\.trust-client-cert/);
  });
});
