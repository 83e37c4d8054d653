// Asks an outbound proxy what it requires, without credentials, for `agent --check-link`.
import { Buffer } from "node:buffer";
import { parseResponseHead, values } from "../shared/http/head.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import { printable } from "../shared/net/printable.ts";
import type { OutboundProxy } from "../shared/net/session.ts";
import type { Duplex } from "../shared/net/stream.ts";

const CONNECT_TIMEOUT_MS = 4_000;
const RESPONSE_TIMEOUT_MS = 4_000;
/** Limit on the response in bytes. */
const MAX_RESPONSE = 16 * 1024;
/** Authentication methods of SOCKS 5 (RFC 1928 §3). */
const SOCKS_METHODS: Readonly<Record<number, string>> = { 0: "no authentication", 2: "a user name and a password", 255: "another method" };

/**
 * Returns the authentication that the proxy requires for a tunnel to `server`, `host:port`.
 * @throws {NetError} if it is not reachable, or does not answer
 */
export async function askOutboundProxy(net: Net, { protocol, host, port }: OutboundProxy, server: string): Promise<string> {
  const stream = await net.connectTcp({ host, port, timeoutMs: CONNECT_TIMEOUT_MS });
  let hasExpired = false;
  const timer = setTimeout(() => {
    hasExpired = true;
    stream.close();
  }, RESPONSE_TIMEOUT_MS);
  try {
    return protocol === "http" ? await askHttp(stream, server) : await askSocks(stream);
  } catch (cause) {
    throw hasExpired ? new NetError("timed-out", `The outbound proxy has not answered within ${RESPONSE_TIMEOUT_MS} ms`, { cause }) : cause;
  } finally {
    clearTimeout(timer);
    stream.close();
  }
}

async function askHttp(stream: Duplex, server: string): Promise<string> {
  await stream.write(Buffer.from(`CONNECT ${server} HTTP/1.1\r\nHost: ${server}\r\n\r\n`));
  const text = await readUntil(stream, (bytes) => bytes.includes("\r\n\r\n"));
  let response;
  try {
    response = parseResponseHead(text.toString("latin1").replace(/\r\n\r\n[^]*$/, "\r\n\r\n"));
  } catch (cause) {
    throw new NetError("reset", "The outbound proxy does not answer in HTTP", { remote: true, cause });
  }
  const { status, reason, fields } = response;
  if (status === 407) return `it offers ${schemesOf(values(fields, "proxy-authenticate")) || "no authentication that it names"}`;
  return status === 200 ? "it asks for no authentication" : `without authentication it answers ${status} ${printable(reason, 64)}`;
}

/** The names of the schemes in challenges (RFC 9110 §11.6.1). */
function schemesOf(challenges: readonly string[]): string {
  const text = challenges.join(", ").replace(/"(?:[^"\\]|\\.)*"/g, '""');
  const names = [...text.matchAll(/(?:^|,)\s*([\w!#$%&'*+.^`|~-]+)(?=\s+[^\s=]|\s*(?:,|$))/g)].map(([, name]) => name!);
  return printable([...new Set(names)].join(", "), 128);
}

async function askSocks(stream: Duplex): Promise<string> {
  await stream.write(new Uint8Array([5, 2, 0, 2]));
  const [version, method] = await readUntil(stream, (bytes) => bytes.length >= 2);
  if (version !== 5) throw new NetError("reset", "The outbound proxy does not answer in SOCKS 5", { remote: true });
  return `it asks for ${SOCKS_METHODS[method!] ?? "another method"}`;
}

async function readUntil(stream: Duplex, isComplete: (bytes: Buffer) => boolean): Promise<Buffer> {
  let bytes = Buffer.alloc(0);
  while (!isComplete(bytes)) {
    const data = await stream.read();
    if (data === null) throw new NetError("reset", "The outbound proxy has closed the connection without an answer", { remote: true });
    bytes = Buffer.concat([bytes, data]);
    if (bytes.length > MAX_RESPONSE) {
      throw new NetError("reset", `The outbound proxy sends more than ${MAX_RESPONSE} bytes`, { remote: true });
    }
  }
  return bytes;
}
