// Warnings ahead of the end of certificates, and what is not ready afterwards.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Health } from "../../shared/service/health.ts";
import { CertificateExpiry } from "../../shared/service/certificate_expiry.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { LogBook } from "../../testing/network.ts";

const [HOUR_MS, DAY_MS] = [3_600_000, 86_400_000];

describe("the end of a certificate", () => {
  it("is announced once a day, then it is an error and nothing is ready, until there is a new one", async () => {
    const authority = await makeAuthority();
    const log = new LogBook();
    const health = new Health();
    let [now, { cert }] = [Date.now(), await authority.issue({ names: ["a"], days: 100 })];
    const expiry = new CertificateExpiry(log, health, () => now);
    expiry.watch("agents", () => cert);
    expiry.watch("clients", () => undefined);
    now += 85 * DAY_MS;
    expiry.check();
    assert.deepEqual(log.entries, []);
    for (let hours = 0; hours < 60; hours++) {
      now += HOUR_MS;
      expiry.check();
    }
    const warnings = log.logged("certificate expires soon");
    assert.equal(warnings.length, 2);
    assert.equal(warnings[0]!.for, "agents");
    assert.equal(health.problems.size, 0);
    now += 13 * DAY_MS;
    expiry.check();
    expiry.check();
    assert.equal(log.logged("certificate has expired").length, 1);
    assert.deepEqual([...health.problems], [["certificate-expired", "the certificate for agents has expired"]]);
    ({ cert } = await authority.issue({ names: ["a"], days: 200 }));
    expiry.check();
    assert.equal(health.problems.size, 0);
    expiry.close();
  });

  it("of a certificate of one of many sites is an error, and everything else stays ready", async () => {
    const log = new LogBook();
    const health = new Health();
    let now = Date.now();
    const { cert } = await (await makeAuthority()).issue({ names: ["a"], days: 8 });
    const expiry = new CertificateExpiry(log, health, () => now);
    expiry.watch("a.example", () => cert, false);
    now += 9 * DAY_MS;
    expiry.check();
    assert.deepEqual(log.logged("certificate has expired").map(({ for: use }) => use), ["a.example"]);
    assert.equal(health.problems.size, 0);
    expiry.close();
  });

  it("of a certificate of a few days is announced when a quarter of them is left", async () => {
    const log = new LogBook();
    let now = Date.now();
    const { cert } = await (await makeAuthority()).issue({ names: ["a"], days: 8, startsIn: 0 });
    const expiry = new CertificateExpiry(log, new Health(), () => now);
    expiry.watch("agents", () => cert);
    now += 5.9 * DAY_MS;
    expiry.check();
    assert.deepEqual(log.entries, []);
    now += 0.2 * DAY_MS;
    expiry.check();
    assert.equal(log.logged("certificate expires soon").length, 1);
    expiry.close();
  });
});
