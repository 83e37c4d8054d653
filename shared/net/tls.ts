// Settings of TLS.

/** TLS settings of a server, as PEM texts (not file names). Invalid PEM is an error that names the line. */
export interface ServerTls {
  /** The certificate chain, beginning with the server's certificate. */
  cert: string;
  /** Its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted. */
  key: string;
  /** Require client certificates issued by one of these authorities. Default: none required. */
  clientCa?: string;
  /** Accept clients that present no certificate too; any that is presented must be valid. Default `false`. */
  isClientOptional?: boolean;
  /** Reject client certificates on these revocation lists (RFC 5280 §5). Requires `clientCa`. */
  clientCrl?: string;
  /**
   * Settings for clients that ask a TCP listener for other names (SNI, RFC 6066 §3). An exact name precedes the zone with most labels, and that
   * these settings. Default: all clients get these.
   */
  hosts?: readonly HostTls[];
  /**
   * Certificates by which a TCP listener answers the challenges of an ACME authority (RFC 8737), by name: to a client that offers
   * `acme-tls/1`, and closes its connection. Default: none.
   */
  challenges?: readonly HostTls[];
}

/** TLS settings of a server for some names. */
export interface HostTls {
  /** Names, or `*.zone` for all names below a zone. */
  readonly names: readonly string[];
  /** The settings. Their `hosts` and `challenges` have no meaning. */
  readonly tls: ServerTls;
}

/** TLS settings of a client, as PEM texts. The object must not be modified after its first use. */
export interface ClientTls {
  /**
   * Trust only these certificates: authorities, and server certificates by identity, even with CA:TRUE. Default: the system's authorities, or
   * Mozilla's if the system has none.
   */
  ca?: string;
  /** Trust the system's authorities in addition to `ca`. Default `false`. */
  systemRoots?: boolean;
  /** The client's certificate chain. Default: none. */
  cert?: string;
  /** The private key of `cert`. */
  key?: string;
  /** Accept any certificate. Default `false`. */
  insecureSkipVerify?: boolean;
  /**
   * Accepted pins: `sha256/` and the SHA-256 of the server's public key in base64 (SubjectPublicKeyInfo, RFC 7469 §2.4), or the SHA-256 of
   * its certificate (DER), 64 hexadecimal digits, colons allowed. Without `ca` they replace all other checks.
   */
  pinSha256?: string[];
}
