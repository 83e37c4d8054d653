// Agent ids bound to certificates: alternative names and common names compared with the claimed id.
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { describe, it } from "node:test";
import { AuthenticationError, type Authenticator, createNoAuth } from "../../shared/auth/authenticator.ts";
import { bindToCertificate, type NameSource } from "../../shared/auth/certificate_names.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { type Authority, type IssueOptions, makeAuthority } from "../../testing/certificates.ts";

const authority: Promise<Authority> = makeAuthority();

async function certificateOf(options: IssueOptions): Promise<Uint8Array> {
  return new Uint8Array(new X509Certificate((await (await authority).issue(options)).cert).raw);
}

/** The accepted id, or the reason for the refusal. */
async function claim(source: NameSource, id: string, certificate: Uint8Array | undefined): Promise<string> {
  try {
    const identity = await bindToCertificate(createNoAuth(), () => source, silentLogger).authenticateAgent(new TextEncoder().encode(id), {
      certificate,
    });
    return typeof identity === "string" ? identity : identity.agentId;
  } catch (error) {
    if (!(error instanceof AuthenticationError)) throw error;
    return `${error.kind}: ${error.message}`;
  }
}

describe("an agent's certificate", () => {
  it("is valid for each of its alternative names: DNS name, URI or e-mail address", async () => {
    const names = ["4711", "agent.example", "spiffe://example/agent/4711", "agent@example.org"];
    const certificate = await certificateOf({ names: [...names, "10.0.0.1"], commonName: "common" });
    for (const id of names) assert.equal(await claim("san", id, certificate), id);
    for (const id of ["4712", "471", "47110", "Agent.example", "example", "common", "10.0.0.1", "spiffe://example/agent/4712"]) {
      assert.match(
        await claim("san", id, certificate),
        /^denied: The agent's certificate is not for ".*" \(subject alternative name: "4711", /,
      );
    }
  });

  it("is valid for its common name if that is configured", async () => {
    const certificate = await certificateOf({ names: ["4711"], commonName: "agent, 1" });
    assert.match(await claim("cn", "4711", certificate), /^denied: .* \(common name: /);
    const plain = await certificateOf({ names: ["other"], commonName: "4711" });
    assert.equal(await claim("cn", "4711", plain), "4711");
    assert.match(await claim("cn", "other", plain), /^denied: .* is not for "other" \(common name: "4711"\)$/);
  });

  it("without alternative names is valid for no id", async () => {
    const certificate = await certificateOf({ names: [], commonName: "4711" });
    assert.equal(
      await claim("san", "4711", certificate),
      `denied: The agent's certificate is not for "4711" (subject alternative name: none)`,
    );
  });

  it("is required", async () => {
    assert.equal(await claim("san", "4711", undefined), "denied: The agent sent no certificate");
  });

  it("cannot give an invalid id", async () => {
    assert.match(await claim("san", "a b", await certificateOf({ names: ["4711"] })), /^agent-id: /);
  });

  it("of another agent releases what its credentials acquired", async () => {
    let released = 0;
    const inner: Authenticator = {
      authenticateAgent: () => ({ agentId: "4711", release: () => released++ }),
      authenticateClient: () => "4711",
    };
    const bound = bindToCertificate(inner, () => "san", silentLogger);
    const credentials = new Uint8Array();
    await assert.rejects(async () => await bound.authenticateAgent(credentials, { certificate: await certificateOf({ names: ["4712"] }) }));
    assert.equal(released, 1);
    await bound.authenticateAgent(credentials, { certificate: await certificateOf({ names: ["4711"] }) });
    assert.equal(released, 1);
    assert.equal(await bound.authenticateClient({ scheme: "bearer", token: "x" }, { address: "192.0.2.1", requestId: "r-1" }), "4711");
  });
});
