// Two lists of the third-party components in the executables: notices with all licence texts, and a bill of materials in CycloneDX.
import { createHash } from "node:crypto";
import type { Component } from "./components.ts";

/** All copyrights and licence texts. */
export function notices(components: readonly Component[]): string {
  const parts = components.map(({ name, version, license, texts }) => {
    const own = texts.length > 0
      ? texts.join("\n\n")
      : `Its package carries no text of its own: see https://spdx.org/licenses/${license}.html`;
    return `${"=".repeat(78)}\n${name} ${version}: ${license}\n${"=".repeat(78)}\n\n${own}\n`;
  });
  return `reverse-http is made with the following, each under its own licence.\n\n${parts.join("\n")}`;
}

/** The product that contains the components. */
interface Product {
  readonly version: string;
  /** The URL of its repository. */
  readonly home: string;
}

/** CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/, in JSON. The same components give the same document. */
export function billOfMaterials({ version, home }: Product, date: Date, components: readonly Component[]): string {
  const digest = createHash("sha256").update(JSON.stringify([version, date, components.map(({ purl }) => purl)])).digest("hex");
  const serial = `${digest.slice(0, 8)}-${digest.slice(8, 12)}-4${digest.slice(13, 16)}-8${digest.slice(17, 20)}-${digest.slice(20, 32)}`;
  const itself = `pkg:generic/reverse-http@${version}`;
  const document = {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    serialNumber: `urn:uuid:${serial}`,
    version: 1,
    metadata: {
      timestamp: date.toISOString(),
      component: {
        "type": "application",
        "bom-ref": itself,
        name: "reverse-http",
        version,
        purl: itself,
        licenses: [{ license: { id: "Apache-2.0" } }],
        externalReferences: [{ type: "website", url: home }, { type: "vcs", url: `${home}.git` }],
      },
    },
    components: components.map(({ name, version, license, purl, hash }) => ({
      "type": "library",
      "bom-ref": purl,
      name,
      version,
      purl,
      licenses: license === "" ? undefined : [{ expression: license }],
      hashes: hash && [hash],
    })),
    dependencies: [{ ref: itself, dependsOn: components.map(({ purl }) => purl) }],
  };
  return `${JSON.stringify(document, null, 2)}\n`;
}
