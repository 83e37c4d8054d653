// The names in certificates of agents and clients. Binds agent ids to them: with mutual TLS, an agent's id can be required to be one.
import type { Logger } from "../log/logger.ts";
import { loadX509 } from "../tls/x509.ts";
import { AuthenticationError, type Authenticator, identifyAgent, type Peer } from "./authenticator.ts";

/** The part of a certificate that names the agent: a subject alternative name (RFC 5280 §4.2.1.6), or the common name of the subject. */
export type NameSource = "san" | "cn";

/**
 * Wraps `authenticator`: denies agents whose certificate does not contain the authenticated id, where `source` says. Subject alternative names of the types DNS
 * name, URI and e-mail address are compared, byte by byte.
 */
export function bindToCertificate(authenticator: Authenticator, source: () => NameSource | "none", log: Logger): Authenticator {
  return {
    async authenticateAgent(credentials, peer) {
      const identity = await identifyAgent(authenticator, credentials, peer, log);
      const names = source();
      if (names === "none") return identity;
      try {
        await checkNames(peer, names, identity.agentId);
        return identity;
      } catch (error) {
        identity.release?.();
        throw error;
      }
    },
    authenticateClient: (credentials, peer) => authenticator.authenticateClient(credentials, peer),
  };
}

async function checkNames({ certificate }: Peer, source: NameSource, agentId: string): Promise<void> {
  if (certificate === undefined) throw new AuthenticationError("denied", "The agent sent no certificate");
  const { cn, dns, uri, email } = await readCertificateNames(certificate);
  const names = source === "cn" ? cn : [...dns, ...uri, ...email];
  if (names.includes(agentId)) return;
  const has = names.length === 0 ? "none" : names.map((name) => JSON.stringify(name)).join(", ");
  const what = source === "san" ? "subject alternative name" : "common name";
  throw new AuthenticationError("denied", `The agent's certificate is not for ${JSON.stringify(agentId)} (${what}: ${has})`);
}

/** The names in a certificate: fields of the subject, and subject alternative names (RFC 5280 §4.2.1.6), each in its order. */
export interface CertificateNames {
  readonly cn: readonly string[];
  readonly o: readonly string[];
  readonly ou: readonly string[];
  readonly dns: readonly string[];
  readonly uri: readonly string[];
  readonly email: readonly string[];
  /** The end of its validity, in milliseconds since 1970. */
  readonly expiresAt: number;
}

/**
 * Reads a certificate, DER.
 * @throws {Error} if it is none
 */
export async function readCertificateNames(der: Uint8Array): Promise<CertificateNames> {
  const x509 = await loadX509();
  const certificate = new x509.X509Certificate(new Uint8Array(der));
  const { subjectName: subject, notAfter } = certificate;
  const alternatives = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  const ofType = (wanted: string) => alternatives.filter(({ type }) => type === wanted).map(({ value }) => value);
  return {
    cn: subject.getField("CN"),
    o: subject.getField("O"),
    ou: subject.getField("OU"),
    dns: ofType("dns"),
    uri: ofType("url"),
    email: ofType("email"),
    expiresAt: notAfter.getTime(),
  };
}
