// Options as the engine takes them: PEM becomes DER, and defaults are filled in.
import { Buffer } from "node:buffer";
import { NetError } from "../errors.ts";
import type { AddressLimit, HeadOptions } from "../listener.ts";
import { PemError, type PemKind, readPem } from "../pem.ts";
import type { SessionSettings } from "../session.ts";
import type { ClientTls, HostTls, ServerTls } from "../tls.ts";
import type { EngineClientTls, EngineHostTls, EngineServerTls, Handshakes, Heads, PerAddress } from "./engine.ts";

/** Default limit on a head, in bytes. */
export const HEAD_LIMIT = 16_384;

/** @throws {NetError} `tls` */
export function toEngineServerTls({ cert, key, clientCa, clientCrl, isClientOptional, hosts, challenges }: ServerTls): EngineServerTls {
  return {
    cert: derOf("certificate", cert, "chain"),
    key: derOf("private key", key, "private key")[0]!,
    clientCa: clientCa === undefined ? undefined : derOf("client CA", clientCa, "authorities"),
    clientCrl: clientCrl === undefined ? undefined : derOf("client CRL", clientCrl, "revocation lists"),
    isClientOptional,
    hosts: hosts?.map(toEngineHostTls),
    challenges: challenges?.map(toEngineHostTls),
  };
}

function toEngineHostTls({ names, tls }: HostTls): EngineHostTls {
  return { names, tls: toEngineServerTls(tls) };
}

/** Cache of parsed client settings, because one is used for many connections. */
export class ClientSettings {
  readonly #parsed = new WeakMap<ClientTls, EngineClientTls>();

  /** @throws {NetError} `tls` */
  get(tls: ClientTls): EngineClientTls {
    const { ca, cert, key, pinSha256, ...others } = tls;
    const parsed = this.#parsed.get(tls) ?? {
      ...others,
      pinSha256: pinSha256?.map(toEnginePin),
      ca: ca === undefined ? undefined : derOf("CA", ca, "authorities"),
      cert: cert === undefined ? undefined : derOf("client certificate", cert, "chain"),
      key: key === undefined ? undefined : derOf("private key", key, "private key")[0],
    };
    this.#parsed.set(tls, parsed);
    return parsed;
  }
}

/** A key's hash in hexadecimal digits, as the engine takes it; anything else is left to its check. */
function toEnginePin(pin: string): string {
  const [, base64] = /^sha256\/([A-Za-z0-9+/]{43}=)$/.exec(pin) ?? [];
  return base64 === undefined ? pin : `sha256/${Buffer.from(base64, "base64").toString("hex")}`;
}

function derOf(what: string, pem: string, kind: PemKind): Uint8Array[] {
  try {
    return readPem(pem, kind).map(({ der }) => der);
  } catch (cause) {
    if (!(cause instanceof PemError)) throw cause;
    throw new NetError("tls", `Cannot read the ${what}: ${cause.message}`, { cause });
  }
}

export function heads(options: HeadOptions, each?: AddressLimit, proxyProtocol: readonly string[] = []): Heads {
  return {
    limit: options.headLimit ?? HEAD_LIMIT,
    timeoutMs: options.headTimeoutMs ?? 10_000,
    maxPending: options.maxPendingHeads ?? 4_096,
    proxyProtocol,
    ...perAddress(each),
  };
}

/** @param retryThreshold see {@link ListenQuicOptions.retryThreshold}. Default 256 */
export function handshakes(options: Omit<SessionSettings, "transport">, retryThreshold = 256): Handshakes {
  return {
    timeoutMs: options.handshakeTimeoutMs ?? 10_000,
    maxPending: options.maxPendingHandshakes ?? 4_096,
    retryThreshold,
    ...perAddress(options.pendingHandshakesPerAddress),
  };
}

function perAddress(limit: AddressLimit | undefined): PerAddress {
  return { maxPendingPerAddress: limit?.max ?? 0, exempt: limit?.exempt ?? [] };
}
