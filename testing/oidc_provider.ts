// An OpenID Connect provider on loopback, of the package oidc-provider: device login, refresh tokens, client credentials, key rotation and
// back-channel logout. It can be down. `OidcIssuer` is the smaller one, which issues tokens at will.
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { exportJWK, generateKeyPair, type JWK } from "jose";
import Provider from "oidc-provider";

/** The client of people, which is public. */
export const PEOPLES_CLIENT = "reverse-http";

/** Someone with an account. */
export interface Account {
  readonly name: string;
  readonly groups: readonly string[];
}

/** Entities of the provider in memory, which outlive its restarts. */
class Entities {
  static readonly #all = new Map<string, Record<string, unknown>>();

  constructor(private readonly kind: string) {}

  #keyOf(id: string): string {
    return `${this.kind} ${id}`;
  }

  upsert(id: string, payload: Record<string, unknown>): void {
    Entities.#all.set(this.#keyOf(id), payload);
  }

  find(id: string): Record<string, unknown> | undefined {
    return Entities.#all.get(this.#keyOf(id));
  }

  findByUid(uid: string): Record<string, unknown> | undefined {
    return this.#findBy("uid", uid);
  }

  findByUserCode(userCode: string): Record<string, unknown> | undefined {
    return this.#findBy("userCode", userCode);
  }

  #findBy(key: string, value: string): Record<string, unknown> | undefined {
    return [...Entities.#all].find(([id, payload]) => id.startsWith(`${this.kind} `) && payload[key] === value)?.[1];
  }

  consume(id: string): void {
    this.find(id)!.consumed = Math.floor(Date.now() / 1_000);
  }

  destroy(id: string): void {
    Entities.#all.delete(this.#keyOf(id));
  }

  revokeByGrantId(grantId: string): void {
    for (const [id, payload] of Entities.#all) if (payload.grantId === grantId) Entities.#all.delete(id);
  }
}

export class OidcProvider implements AsyncDisposable {
  readonly #server: Server;
  readonly #keys: JWK[] = [];
  #provider?: Provider;
  /** By `sub`. */
  readonly accounts = new Map<string, Account>();
  /** Secrets of clients that are agents. */
  readonly agents = new Map<string, string>();
  /** Where logout tokens are sent. Default: nowhere. */
  #logoutUrl?: string;
  /** It answers 503. */
  isDown = false;
  /** Lifetime of tokens in seconds. */
  lifetimeS = 3_600;
  /** Who signs in next. */
  #person = "";

  private constructor(server: Server) {
    this.#server = server;
  }

  /** @param agents the secrets of clients that are agents */
  static async start(agents: Readonly<Record<string, string>> = {}): Promise<OidcProvider> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const provider = new OidcProvider(server);
    for (const [id, secret] of Object.entries(agents)) provider.agents.set(id, secret);
    server.on("request", (request, response) => void provider.#serve(request, response));
    await provider.rotate({ keep: 0 });
    return provider;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.isDown) return void response.writeHead(503).end();
    if (!request.url!.startsWith("/interaction/")) return this.#provider!.callback()(request, response);
    await this.#provider!.interactionFinished(request, response, { login: { accountId: this.#person } });
  }

  /** Publishes a new key that signs from now on, or with `isNext` later, and keeps as many older ones. */
  async rotate({ keep = 1, isNext = false }: { keep?: number; isNext?: boolean } = {}): Promise<void> {
    const { privateKey } = await generateKeyPair("ES256", { extractable: true });
    const key: JWK = { ...await exportJWK(privateKey), kid: randomUUID(), alg: "ES256", use: "sig" };
    if (isNext) this.#keys.push(key);
    else this.#keys.splice(0, this.#keys.length, key, ...this.#keys.slice(0, keep));
    this.#restart();
  }

  /** Signs with the key that was published last, and keeps the others. */
  useNext(): void {
    this.#keys.unshift(this.#keys.pop()!);
    this.#restart();
  }

  /** Publishes the key alone that signs. */
  removeOld(): void {
    this.#keys.length = 1;
    this.#restart();
  }

  /** Sends logout tokens to this URL from now on. */
  sendLogoutTo(url: string): void {
    this.#logoutUrl = url;
    this.#restart();
  }

  #restart(): void {
    const logoutUrl = this.#logoutUrl;
    const claimsOf = (sub: string) => {
      const { name, groups } = this.accounts.get(sub)!;
      return { sub, preferred_username: name, groups };
    };
    this.#provider = new Provider(this.url, {
      adapter: Entities,
      jwks: { keys: [...this.#keys] },
      cookies: { keys: ["of the test"] },
      clients: [
        {
          client_id: PEOPLES_CLIENT,
          token_endpoint_auth_method: "none",
          grant_types: ["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"],
          response_types: [],
          redirect_uris: [],
          id_token_signed_response_alg: "ES256",
          ...logoutUrl !== undefined && { backchannel_logout_uri: logoutUrl, backchannel_logout_session_required: true },
        },
        ...Array.from(this.agents, ([client_id, client_secret]) => ({
          client_id,
          client_secret,
          grant_types: ["client_credentials"],
          response_types: [],
          redirect_uris: [],
          id_token_signed_response_alg: "ES256",
        })),
      ],
      claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
      conformIdTokenClaims: false,
      scopes: ["openid", "profile", "offline_access"],
      ttl: {
        Session: 3_600,
        Grant: 3_600,
        Interaction: 600,
        RefreshToken: 3_600,
        DeviceCode: 600,
        IdToken: () => this.lifetimeS,
        AccessToken: () => this.lifetimeS,
        ClientCredentials: () => this.lifetimeS,
      },
      features: {
        devInteractions: { enabled: false },
        deviceFlow: { enabled: true },
        clientCredentials: { enabled: true },
        backchannelLogout: { enabled: true },
        revocation: { enabled: true },
        resourceIndicators: {
          enabled: true,
          defaultResource: () => "urn:agents",
          getResourceServerInfo: () => ({ scope: "", audience: "agents", accessTokenFormat: "jwt", jwt: { sign: { alg: "ES256" } } }),
        },
      },
      issueRefreshToken: () => true,
      findAccount: (_: unknown, sub: string) => this.accounts.has(sub) ? { accountId: sub, claims: () => claimsOf(sub) } : undefined,
      interactions: { url: (_: unknown, { uid }: { uid: string }) => `/interaction/${uid}` },
      // people agree to everything
      loadExistingGrant: async (ctx: GrantContext) => {
        const { client, session, provider } = ctx.oidc;
        const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
        grant.addOIDCScope("openid profile offline_access");
        await grant.save();
        return grant;
      },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** Signs a person in, by device login, and returns the tokens. */
  async signIn(sub: string, browser = this.browserOf(sub)): Promise<SignedIn> {
    const scope = "openid profile offline_access";
    const device = await this.#post("/device/auth", { client_id: PEOPLES_CLIENT, scope });
    await browser.approve(device.verification_uri_complete!);
    const tokens = await this.#post("/token", {
      client_id: PEOPLES_CLIENT,
      grant_type: "urn:ietf:params:oauth:grant-type:device_code",
      device_code: device.device_code!,
    });
    return { browser, idToken: tokens.id_token!, refreshToken: tokens.refresh_token! };
  }

  /** A new ID token. */
  async renew(refreshToken: string): Promise<{ readonly idToken: string; readonly refreshToken: string }> {
    const form = { client_id: PEOPLES_CLIENT, grant_type: "refresh_token", refresh_token: refreshToken };
    const { id_token: idToken, refresh_token: next } = await this.#post("/token", form);
    return { idToken: idToken!, refreshToken: next! };
  }

  async #post(path: string, form: Record<string, string>): Promise<Record<string, string | undefined>> {
    const response = await fetch(`${this.url}${path}`, { method: "POST", body: new URLSearchParams(form) });
    if (!response.ok) throw new Error(`${path} responded with ${response.status}: ${await response.text()}`);
    return await response.json() as Record<string, string>;
  }

  /** A browser in which this person signs in. */
  browserOf(sub: string): Browser {
    return new Browser(this.url, () => this.#person = sub);
  }
}

/** A session of a person. */
export interface SignedIn {
  readonly browser: Browser;
  readonly idToken: string;
  readonly refreshToken: string;
}

/** What the provider gives to `loadExistingGrant`. */
interface GrantContext {
  readonly oidc: {
    readonly client: { readonly clientId: string };
    readonly session: { readonly accountId: string };
    readonly provider: { readonly Grant: new (of: object) => { addOIDCScope(scope: string): void; save(): Promise<string> } };
  };
}

/** A browser with cookies, which follows redirects and submits the forms of the provider. */
export class Browser {
  readonly #cookies = new Map<string, string>();

  constructor(private readonly url: string, private readonly beforeSignIn: () => void) {}

  /** Signs in for a device, whose URL has the code. */
  async approve(completeUrl: string): Promise<void> {
    this.beforeSignIn();
    const shown = await this.#submit(await this.#get(completeUrl)); // a script would submit it
    const done = await this.#submit(shown);
    if (!/Sign-in Success/.test(done)) throw new Error(`The device was not approved: ${done.slice(0, 2_000)}`);
  }

  /** Signs out at the provider. */
  async signOut(): Promise<void> {
    await this.#submit(await this.#get(`${this.url}/session/end`), { logout: "yes" });
  }

  async #get(url: string, init: RequestInit = {}): Promise<string> {
    for (let next = url, options = init;;) {
      const cookie = Array.from(this.#cookies, ([name, value]) => `${name}=${value}`).join("; ");
      const response = await fetch(next, { ...options, redirect: "manual", headers: { ...options.headers, Cookie: cookie } });
      for (const line of response.headers.getSetCookie()) {
        const [, name, value] = /^([^=]+)=([^;]*)/.exec(line)!;
        if (value === "") this.#cookies.delete(name!);
        else this.#cookies.set(name!, value!);
      }
      const location = response.headers.get("location");
      if (location === null) return await response.text();
      await response.body?.cancel();
      [next, options] = [new URL(location, next).href, {}];
    }
  }

  /** Submits the form of a page with its hidden fields, and others. */
  async #submit(page: string, fields: Record<string, string> = {}): Promise<string> {
    const [form, action] = /<form[^>]* action="([^"]+)".*?<\/form>/s.exec(page) ?? [];
    if (action === undefined) throw new Error(`The page has no form: ${page.slice(0, 2_000)}`);
    const hidden = [...form!.matchAll(/<input type="hidden" name="([^"]+)" value="([^"]*)"/g)].map(([, name, value]) => [name!, value!]);
    const body = new URLSearchParams([...hidden, ...Object.entries(fields)]);
    return await this.#get(new URL(action, this.url).href, { method: "POST", body });
  }
}
