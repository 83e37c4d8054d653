// A small OpenID Connect issuer on loopback: discovery, a JWKS whose keys rotate, signed tokens, and the grants for browsers, devices,
// refresh tokens and clients. It can be down.
import { createHash, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
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
  /** What the discovery document has besides issuer and keys. */
  hasDeviceLogin = true;
  hasRevocation = true;
  /** Lifetime of the tokens that it issues, in seconds, and claims that they have. */
  lifetimeS = 3_600;
  /** Answers of the token endpoint have `expires_in`. */
  saysLifetime = true;
  claims: JWTPayload = {};
  /** The secrets of clients; others are public. */
  readonly secrets = new Map<string, string>();
  /** Answers of the token endpoint to come, before those that it gives by itself: errors. */
  readonly refusals: string[] = [];
  /** Forms that the token endpoint got. */
  readonly asked: Readonly<Record<string, string>>[] = [];
  /** By device code: whether the person has agreed, or not yet. */
  readonly #devices = new Map<string, { readonly userCode: string; answer?: "agreed" | "denied" }>();
  /** Those that are valid. A used one revokes all (RFC 9700 §4.14). */
  readonly #refreshTokens = new Set<string>();
  readonly #usedTokens = new Set<string>();
  #codes = 0;
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
    server.on("request", async (request, response) => {
      issuer.requests++;
      if (request.url === "/jwks") issuer.fetches++;
      if (request.url!.startsWith("/authorize?")) return issuer.#authorize(request.url!, response);
      const [status, body] = issuer.isDown
        ? [503]
        : request.method === "POST"
        ? await issuer.#post(request)
        : [200, issuer.#document(request.url)];
      response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    });
    await issuer.rotate({ alg });
    return issuer;
  }

  /** The person agrees to a device login, or denies it. */
  decide(userCode: string, answer: "agreed" | "denied" = "agreed"): void {
    const device = [...this.#devices.values()].find((device) => device.userCode === userCode);
    if (device === undefined) throw new Error(`There is no code ${userCode}`);
    device.answer = answer;
  }

  /** Ends all sessions: no refresh token is valid any longer. */
  endSessions(): void {
    this.#refreshTokens.clear();
  }

  get sessions(): number {
    return this.#refreshTokens.size;
  }

  #document(path = ""): object {
    if (path === "/jwks") return { keys: [...this.foreign, ...this.#keys.map(({ jwk }) => jwk)] };
    return {
      issuer: this.url,
      jwks_uri: this.jwksUrl,
      id_token_signing_alg_values_supported: [...new Set(this.#keys.map(({ alg }) => alg))],
      authorization_endpoint: `${this.url}/authorize`,
      token_endpoint: `${this.url}/token`,
      ...this.hasDeviceLogin && { device_authorization_endpoint: `${this.url}/device` },
      ...this.hasRevocation && { revocation_endpoint: `${this.url}/revoke` },
    };
  }

  async #post(request: IncomingMessage): Promise<[status: number, body: object]> {
    let text = "";
    for await (const part of request) text += part;
    const form = Object.fromEntries(new URLSearchParams(text));
    const [, basic = ""] = /^Basic (.*)$/.exec(request.headers.authorization ?? "") ?? [];
    const [id = form.client_id!, secret = form.client_secret] = basic === "" ? [] : atob(basic).split(":").map(decodeURIComponent);
    if (form.client_assertion === undefined && this.secrets.get(id) !== secret) return [401, { error: "invalid_client" }];
    if (request.url === "/device") return [200, this.#startDevice()];
    if (request.url === "/revoke") {
      this.#refreshTokens.delete(form.token!);
      return [200, {}];
    }
    this.asked.push(form);
    if (form.grant_type === "authorization_code") return await this.#signedIn(form);
    const error = this.refusals.shift() ?? this.#refusalOf(form);
    if (error !== undefined) return [error === "server_error" ? 500 : 400, { error }];
    const isPerson = form.grant_type !== "client_credentials";
    const refreshToken = randomUUID();
    if (isPerson) this.#refreshTokens.add(refreshToken);
    const exp = Math.floor(Date.now() / 1000) + this.lifetimeS;
    const claims = { exp, ...isPerson ? {} : { sub: id, preferred_username: undefined, groups: undefined }, ...this.claims };
    return [200, {
      token_type: "Bearer",
      expires_in: this.saysLifetime ? this.lifetimeS : undefined,
      access_token: await this.sign(claims),
      ...isPerson && { id_token: await this.sign({ aud: id, ...claims }), refresh_token: refreshToken },
    }];
  }

  async #signedIn({ code = "", code_verifier: verifier = "", redirect_uri: uri }: Record<string, string>): Promise<[number, object]> {
    const begun = this.#signIns.get(code);
    this.#signIns.delete(code);
    const challenge = createHash("sha256").update(verifier).digest("base64url");
    if (begun?.get("code_challenge") !== challenge || begun.get("redirect_uri") !== uri) return [400, { error: "invalid_grant" }];
    const claims = { aud: begun.get("client_id")!, nonce: begun.get("nonce") ?? undefined, ...this.person };
    return [200, { access_token: "x", token_type: "bearer", id_token: await this.sign(claims) }];
  }

  #startDevice(): object {
    const [device, userCode] = [randomUUID(), `CODE-${++this.#codes}`];
    this.#devices.set(device, { userCode });
    const url = `${this.url}/activate`;
    return {
      device_code: device,
      user_code: userCode,
      verification_uri: url,
      verification_uri_complete: `${url}?code=${userCode}`,
      expires_in: 600,
      interval: 1,
    };
  }

  /** Why the token endpoint refuses, if it does. */
  #refusalOf({ grant_type: type, device_code: code = "", refresh_token: token = "" }: Record<string, string>): string | undefined {
    if (type === "client_credentials") return undefined;
    if (type === "refresh_token") {
      if (this.#usedTokens.has(token)) this.endSessions();
      if (!this.#refreshTokens.delete(token)) return "invalid_grant";
      this.#usedTokens.add(token);
      return undefined;
    }
    const device = this.#devices.get(code);
    if (device === undefined) return "expired_token";
    if (device.answer === undefined) return "authorization_pending";
    this.#devices.delete(code);
    return device.answer === "denied" ? "access_denied" : undefined;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Claims of people who sign in. */
  person: JWTPayload = {};
  /** By code: what the sign-in has begun with. */
  readonly #signIns = new Map<string, URLSearchParams>();

  /** Takes everyone for {@link person}, and sends the browser back. */
  #authorize(url: string, response: ServerResponse): void {
    const query = new URL(url, this.url).searchParams;
    const code = randomUUID();
    this.#signIns.set(code, query);
    const target = new URL(query.get("redirect_uri")!);
    target.searchParams.set("code", code);
    target.searchParams.set("state", query.get("state")!);
    response.writeHead(302, { Location: target.href }).end();
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
