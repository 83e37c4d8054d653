// A small OpenID Connect issuer on loopback: discovery, a JWKS whose keys rotate, and signed tokens. It can be down.
import { randomUUID } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { calculateJwkThumbprint, exportJWK, generateKeyPair, type JWK, type JWTPayload, SignJWT } from "jose";

interface IssuerKey {
  readonly kid: string;
  readonly alg: string;
  readonly privateKey: CryptoKey;
  readonly jwk: JWK;
}

export class OidcIssuer implements AsyncDisposable {
  readonly #server: Server;
  readonly #keys: IssuerKey[] = [];
  /** Entries of the JWKS besides its keys. */
  foreign: object[] = [];
  /** It answers 503. */
  isDown = false;
  /** Requests for any document, and for the JWKS. */
  requests = 0;
  fetches = 0;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(alg = "ES256"): Promise<OidcIssuer> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const issuer = new OidcIssuer(server);
    server.on("request", ({ url }, response) => {
      issuer.requests++;
      if (url === "/jwks") issuer.fetches++;
      const body = issuer.isDown ? undefined : url === "/jwks" ? { keys: [...issuer.foreign, ...issuer.#keys.map(({ jwk }) => jwk)] } : {
        issuer: issuer.url,
        jwks_uri: issuer.jwksUrl,
      };
      response.writeHead(body === undefined ? 503 : 200, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    });
    await issuer.rotate({ alg });
    return issuer;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get jwksUrl(): string {
    return `${this.url}/jwks`;
  }

  /** The public keys. */
  get jwks(): readonly JWK[] {
    return this.#keys.map(({ jwk }) => jwk);
  }

  /** Adds a key, which signs from now on, and keeps as many older ones. */
  async rotate({ alg = "ES256", keep = 0, kid }: { alg?: string; keep?: number; kid?: string } = {}): Promise<void> {
    const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true });
    const jwk = await exportJWK(publicKey);
    const id = kid ?? await calculateJwkThumbprint(jwk);
    this.#keys.unshift({ kid: id, alg, privateKey, jwk: { ...jwk, kid: id, alg, use: "sig" } });
    this.#keys.length = Math.min(this.#keys.length, keep + 1);
  }

  /** Signs a token of alice for the audience `proxy`, valid for an hour. Claims that are `undefined` are left out. */
  async sign(claims: JWTPayload = {}, { header = {}, with: at = 0 }: { header?: object; with?: number } = {}): Promise<string> {
    const seconds = Math.floor(Date.now() / 1000);
    const { kid, alg, privateKey } = this.#keys[at]!;
    const payload: JWTPayload = {
      iss: this.url,
      aud: "proxy",
      sub: "u-1",
      preferred_username: "alice",
      groups: ["ops"],
      iat: seconds,
      exp: seconds + 3600,
      jti: randomUUID(),
      ...claims,
    };
    return await new SignJWT(payload).setProtectedHeader({ alg, kid, ...header }).sign(privateKey, { crit: { "x-unknown": true } });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
