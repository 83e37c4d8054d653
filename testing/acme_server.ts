// A small ACME authority (RFC 8555, RFC 9773) for unit tests: it verifies what a client signs, and asks the test whether challenges are met.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { webcrypto } from "node:crypto";
import { createServer, type Server } from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import { flattenedVerify, importJWK, type JWK } from "jose";
import type { AddressInfo } from "node:net";
import { makeAuthority } from "./certificates.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const crypto = webcrypto as unknown as Crypto;

/** What a test decides. */
export interface AcmeBehaviour {
  /** Returns what is found for a challenge: over HTTP, or in DNS. */
  look: (challenge: { type: string; name: string; token: string }) => Promise<string | undefined>;
  /** The expected answer, computed from the key authorization. Default: it itself. */
  expect?: (keyAuthorization: string) => Promise<string>;
  /** Validity of certificates, in milliseconds since 1970. */
  validity: () => { notBefore: Date; notAfter: Date };
  /** The window of renewal information; `undefined` if there is none. */
  window?: (id: string) => { start: string; end: string } | undefined;
  /** Refuses orders with this status and these seconds of Retry-After. */
  refuse?: { status: number; type: string; retryAfter: number };
  /** Key of the external account that is required, base64url. */
  externalKey?: string;
}

interface Order {
  status: string;
  readonly names: string[];
  certificate?: string;
  readonly payload: Record<string, unknown>;
}

/** A running authority. */
export class AcmeServer {
  readonly orders: Order[] = [];
  readonly accounts: { payload: Record<string, unknown>; jwk: JWK }[] = [];
  /** Requests that were sent with a nonce that was refused. */
  badNonces = 0;
  readonly #nonces = new Set<string>();
  #count = 0;

  private constructor(
    readonly behaviour: AcmeBehaviour,
    private readonly server: Server,
    /** PEM of the authority that the client must trust for HTTPS. */
    readonly ca: string,
    private readonly issuer: { certificate: x509.X509Certificate; key: CryptoKey },
  ) {
    server.on("request", (request, response) => {
      this.#serve(request, response).catch((error) => {
        response.statusCode = 500;
        response.end(JSON.stringify({ detail: String(error) }));
      });
    });
  }

  static async start(behaviour: AcmeBehaviour): Promise<AcmeServer> {
    const authority = await makeAuthority("HTTPS");
    const { cert, key } = await authority.issue({ names: ["127.0.0.1", "localhost"] });
    const server = createServer({ cert, key });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      name: "CN=ACME test",
      keys,
      signingAlgorithm: ALGORITHM,
      extensions: [new x509.BasicConstraintsExtension(true, 1, true), await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)],
    }, crypto);
    return new AcmeServer(behaviour, server, authority.cert, { certificate, key: keys.privateKey });
  }

  get directory(): string {
    return `${this.#base}/directory`;
  }

  get #base(): string {
    return `https://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const nonce = `nonce-${++this.#count}`;
    if (this.#count % 3 !== 0) this.#nonces.add(nonce); // each third one is refused, as pebble does
    response.setHeader("Replay-Nonce", nonce);
    const answer = (status: number, value?: unknown, location?: string) => {
      response.statusCode = status;
      if (location !== undefined) response.setHeader("Location", location);
      response.end(value === undefined ? undefined : typeof value === "string" ? value : JSON.stringify(value));
    };
    const problem = (status: number, type: string, detail: string) =>
      answer(status, { type: `urn:ietf:params:acme:error:${type}`, detail });
    const path = request.url!;
    const base = this.#base;
    if (path === "/directory") {
      return answer(200, {
        newNonce: `${base}/nonce`,
        newAccount: `${base}/account`,
        newOrder: `${base}/order`,
        ...this.behaviour.window ? { renewalInfo: `${base}/renewal` } : {},
        meta: { termsOfService: "https://authority.example/terms" },
      });
    }
    if (path === "/nonce") return answer(200);
    if (path.startsWith("/renewal/")) {
      const suggestedWindow = this.behaviour.window?.(path.slice("/renewal/".length));
      return suggestedWindow ? answer(200, { suggestedWindow }) : problem(404, "malformed", "unknown certificate");
    }
    let body = "";
    for await (const part of request) body += part;
    const jws = JSON.parse(body);
    const header = JSON.parse(Buffer.from(jws.protected, "base64url").toString()) as Record<string, unknown> & { jwk?: JWK };
    const jwk = header.jwk ?? this.accounts[Number(String(header.kid).split("/").at(-1))]?.jwk;
    const { payload: bytes } = await flattenedVerify(jws, await importJWK(jwk!, "ES256"));
    if (header.url !== `${base}${path}`) return problem(401, "unauthorized", "wrong url");
    if (!this.#nonces.delete(String(header.nonce))) {
      this.badNonces++;
      return problem(400, "badNonce", "use another one");
    }
    const text = new TextDecoder().decode(bytes);
    const payload = text === "" ? {} : JSON.parse(text);
    const [, kind, number = "0", item = "0"] = path.split("/");
    const order = this.orders[Number(number)];
    switch (kind) {
      case "account": {
        const { externalKey } = this.behaviour;
        if (externalKey !== undefined) {
          if (!payload.externalAccountBinding) return problem(403, "externalAccountRequired", "bind it");
          await flattenedVerify(payload.externalAccountBinding, Buffer.from(externalKey, "base64url"));
        }
        const known = this.accounts.findIndex(({ jwk: { x } }) => x === jwk!.x);
        const index = known >= 0 ? known : this.accounts.push({ payload, jwk: jwk! }) - 1;
        return answer(known >= 0 ? 200 : 201, { status: "valid" }, `${base}/accounts/${index}`);
      }
      case "order": {
        if (number !== "0" || path.split("/").length > 2) return answer(200, this.#describe(order!, Number(number)));
        const { refuse } = this.behaviour;
        if (refuse) {
          response.setHeader("Retry-After", String(refuse.retryAfter));
          return problem(refuse.status, refuse.type, "too many");
        }
        const names = payload.identifiers.map(({ value }: { value: string }) => value);
        const index = this.orders.push({ status: "pending", names, payload }) - 1;
        return answer(201, this.#describe(this.orders[index]!, index), `${base}/order/${index}`);
      }
      case "authorization":
        return answer(200, {
          status: order!.status === "pending" ? "pending" : order!.status === "invalid" ? "invalid" : "valid",
          identifier: { type: "dns", value: order!.names[Number(item)]!.replace("*.", "") },
          challenges: ["http-01", "tls-alpn-01", "dns-01"].map((type) => ({
            type,
            token: `token-${number}-${item}`,
            url: `${base}/challenge/${number}/${item}?${type}`,
            ...order!.status === "invalid" ? { error: { type: "urn:ietf:params:acme:error:unauthorized", detail: "not\nfound" } } : {},
          })),
        });
      case "challenge": {
        const [index = "0", type = ""] = item.split("?");
        const token = `token-${number}-${index}`;
        const thumbprint = `${token}.${await thumbprintOf(jwk!)}`;
        const expected = await this.behaviour.expect?.(thumbprint) ?? thumbprint;
        const found = await this.behaviour.look({ type, name: order!.names[Number(index)]!, token });
        order!.status = found === expected ? "ready" : "invalid";
        return answer(200, { status: "processing" });
      }
      case "finalize":
        order!.certificate = await this.#issue(new x509.Pkcs10CertificateRequest(Buffer.from(payload.csr, "base64url")));
        order!.status = "valid";
        return answer(200, this.#describe(order!, Number(number)));
      case "certificate":
        return answer(200, order!.certificate);
    }
    problem(404, "malformed", path);
  }

  #describe({ status, names, certificate }: Order, index: number): object {
    const base = this.#base;
    return {
      status,
      authorizations: names.map((_, i) => `${base}/authorization/${index}/${i}`),
      finalize: `${base}/finalize/${index}`,
      ...certificate === undefined ? {} : { certificate: `${base}/certificate/${index}` },
    };
  }

  async #issue(request: x509.Pkcs10CertificateRequest): Promise<string> {
    const names = request.getExtension("2.5.29.17")!; // subject alternative names
    const { certificate, key } = this.issuer;
    const issued = await x509.X509CertificateGenerator.create({
      issuer: certificate.subject,
      publicKey: request.publicKey,
      signingKey: key,
      signingAlgorithm: ALGORITHM,
      ...this.behaviour.validity(),
      extensions: [names, await x509.AuthorityKeyIdentifierExtension.create(certificate)],
    }, crypto);
    return `${issued.toString("pem")}\n${certificate.toString("pem")}\n`;
  }
}

async function thumbprintOf({ kty, crv, x, y }: JWK): Promise<string> {
  const json = new TextEncoder().encode(JSON.stringify({ crv, kty, x, y }));
  return Buffer.from(await crypto.subtle.digest("SHA-256", json)).toString("base64url");
}
