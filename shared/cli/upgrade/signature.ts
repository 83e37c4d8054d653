// Verifies the signature of a release: a keyless one of Sigstore, by the workflow that makes releases. Needs no network and no other program: docs/adr/0019-upgrade.md.
import { bundleFromJSON } from "@sigstore/bundle";
import { TrustedRoot } from "@sigstore/protobuf-specs";
import { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";
import { Buffer } from "node:buffer";
import { messageOf } from "../../log/error_message.ts";
import { printable } from "../../net/printable.ts";
import TRUSTED_ROOT from "./trusted_root.json" with { type: "json" };

/** Who must have signed. */
export interface Identity {
  /** The workflow, at the release's tag. */
  readonly workflow: string;
  /** Who vouches for the workflow. */
  readonly issuer: string;
}

/**
 * Checks that `identity` has signed `data`, and that certificate and signature are in the public logs.
 * @param bundle the signature, as `cosign sign-blob --bundle` writes it
 * @param trustedRoot authorities and logs, in the format of Sigstore's trusted_root.json. Default: those at the time of this release.
 * @throws {Error} saying why not
 */
export function verifySignature(data: Uint8Array, bundle: string, identity: Identity, trustedRoot?: string): void {
  const root = TrustedRoot.fromJSON(trustedRoot === undefined ? TRUSTED_ROOT : parse(trustedRoot, "the trusted root"));
  let signer;
  try {
    const entity = toSignedEntity(bundleFromJSON(parse(bundle, "the signature")), Buffer.from(data));
    signer = new Verifier(toTrustMaterial(root)).verify(entity);
  } catch (cause) {
    throw new Error(printable(messageOf(cause), MAX_REASON), { cause });
  }
  const { subjectAlternativeName: workflow = "nobody", extensions: { issuer = "nobody" } = {} } = signer.identity ?? {};
  // the library takes an expected name for a regular expression
  if (workflow !== identity.workflow || issuer !== identity.issuer) {
    throw new Error(printable(`it is of ${workflow}, according to ${issuer}`, MAX_REASON));
  }
}

/** Longest reason in characters. */
const MAX_REASON = 300;

function parse(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Error(`${what} is not JSON`, { cause });
  }
}
