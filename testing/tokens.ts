// Keys and tokens for tests, generated at run time.
import { createPublicKey, generateKeyPairSync } from "node:crypto";
import { parsePrivateKey } from "../shared/auth/keys.ts";
import { signTicket } from "../shared/auth/ticket.ts";
import { signToken, type TokenRequest } from "../shared/auth/token.ts";
import { secrets } from "./secrets.ts";

/** A key pair for ES256, PEM. */
export interface TokenKey {
  readonly privatePem: string;
  readonly publicPem: string;
  /** Signs a token for the agent 4711, by default a client's, valid for a day. */
  sign(request?: Partial<TokenRequest>): Promise<string>;
}

/** A ticket of a key for clients of the agent 4711, valid for a day. */
export async function makeTicket({ privatePem }: TokenKey): Promise<string> {
  const { text } = await signTicket(parsePrivateKey(privatePem), { agentId: "4711", durationMs: 86_400_000 });
  secrets.add("a ticket", text);
  return text;
}

export function makeTokenKey(): TokenKey {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const privatePem = String(privateKey.export({ type: "sec1", format: "pem" }));
  secrets.addKeys("a private key of tokens", privatePem);
  return {
    privatePem,
    publicPem: String(createPublicKey(privateKey).export({ type: "spki", format: "pem" })),
    sign: (request = {}) => signToken(parsePrivateKey(privatePem), { agentId: "4711", role: "client", durationMs: 86_400_000, ...request }),
  };
}
