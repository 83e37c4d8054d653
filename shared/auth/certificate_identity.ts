// Who a client is by its certificate, which the TLS handshake has verified: the subject, name and groups that logs and the policy know.
import { createHash } from "node:crypto";
import { RecentKeys } from "../limits/counters.ts";
import { readCertificateNames } from "./certificate_names.ts";
import { AuthenticationError, type Identity } from "./authenticator.ts";

/** Where the subject is: the common name, the first subject alternative name of a type (RFC 5280 §4.2.1.6), or the fingerprint. */
export type SubjectSource = "cn" | "dns" | "uri" | "email" | "sha256";
/** Where the groups are: organizational units, organizations, or nowhere. */
export type GroupSource = "ou" | "o" | "none";

export interface MtlsOptions {
  readonly subjectFrom: SubjectSource;
  readonly groupsFrom: GroupSource;
  /** Whether the proxies in front are trusted to report certificates that they have verified. Default `false`. */
  readonly trustClientCert?: boolean;
}

/** The identity of a client by its certificate. `tokenId` is its fingerprint, `sha256:` and 64 hexadecimal digits. */
export type CertificateIdentity = Required<Pick<Identity, "subject" | "groups" | "tokenId" | "expiresAt">> & Pick<Identity, "name">;

/** Reads certificates. Each is read once while it is in use. */
export class CertificateIdentities {
  readonly #options: MtlsOptions;
  readonly #known = new RecentKeys<CertificateIdentity | AuthenticationError>();

  constructor(options: MtlsOptions) {
    this.#options = options;
  }

  /**
   * @param certificate DER, verified
   * @throws {AuthenticationError} `denied` if it has no such subject
   */
  async of(certificate: Uint8Array): Promise<CertificateIdentity> {
    const fingerprint = createHash("sha256").update(certificate).digest("hex");
    const known = this.#known.get(fingerprint) ?? await this.#read(certificate, fingerprint);
    this.#known.set(fingerprint, known);
    if (known instanceof AuthenticationError) throw known;
    return known;
  }

  async #read(certificate: Uint8Array, fingerprint: string): Promise<CertificateIdentity | AuthenticationError> {
    const { subjectFrom, groupsFrom } = this.#options;
    const tokenId = `sha256:${fingerprint}`;
    try {
      const names = await readCertificateNames(certificate);
      const subject = subjectFrom === "sha256" ? tokenId : names[subjectFrom][0];
      if (subject === undefined || subject === "") {
        return new AuthenticationError("denied", `The client's certificate has no ${SUBJECT_NAMES[subjectFrom]}`, { tokenId });
      }
      const groups = groupsFrom === "none" ? [] : names[groupsFrom];
      return { subject, name: names.cn[0], groups, tokenId, expiresAt: names.expiresAt };
    } catch (cause) {
      return new AuthenticationError("denied", `The client's certificate cannot be read: ${cause}`, { tokenId });
    }
  }
}

const SUBJECT_NAMES: Readonly<Record<SubjectSource, string>> = {
  cn: "common name",
  dns: "DNS name",
  uri: "URI",
  email: "e-mail address",
  sha256: "fingerprint",
};
