// Expands a join string to options of a client.
import { readJoin } from "../shared/config/join.ts";

/**
 * The options, by name, that the value of `--join` stands for.
 * @throws {ConfigError} for a string or a file that cannot be used
 */
export function expandJoin(value: string): Record<string, string> {
  const { servers: [proxy], agentId, tls, pin, token, isHttp2 } = readJoin(value, "client");
  return {
    "proxy": proxy!,
    "agent-id": agentId,
    "tls.enable": String(tls),
    ...isHttp2 ? { "http2": "true" } : {},
    ...pin === undefined ? {} : { "tls.pin-sha256": pin },
    ...token === undefined ? {} : { "token": token },
  };
}
