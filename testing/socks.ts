// The messages of a SOCKS 5 client, for tests.
import { bytes } from "../tests/conformance/support.ts";

/** The methods that a client offers. */
export function methods(...offered: number[]): Uint8Array {
  return Uint8Array.of(5, offered.length, ...offered);
}

/** User name and password; their lengths modulo 256, as careless clients write them. */
export function credentials(username: string, password: string): Uint8Array {
  const [name, secret] = [new TextEncoder().encode(username), new TextEncoder().encode(password)];
  return Uint8Array.of(1, name.length % 256, ...name, secret.length % 256, ...secret);
}

/** A request for a name, CONNECT by default. */
export function request(host: string, port: number, command = 1): Uint8Array {
  return Uint8Array.of(5, command, 0, 3, host.length, ...bytes(host), port >> 8, port & 0xff);
}

/** A request for an address. */
export function requestOf(address: number[], port: number, command = 1): Uint8Array {
  return Uint8Array.of(5, command, 0, address.length === 4 ? 1 : 4, ...address, port >> 8, port & 0xff);
}

/** A reply with a code. */
export function reply(code: number): number[] {
  return [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
}
