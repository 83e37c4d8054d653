// Expands a join string to options of an agent.
import { readJoin } from "../shared/config/join.ts";

/**
 * The options, by name, that the value of `--join` stands for.
 * @throws {ConfigError} for a string or a file that cannot be used
 */
export function expandJoin(value: string): Record<string, string> {
  const { servers, agentId, pin, token } = readJoin(value, "agent");
  return {
    "agent-client.server-address": servers.join(","),
    ...pin === undefined ? {} : { "agent-client.tls.pin-sha256": pin },
    ...token === undefined ? { "auth.type": "noauth", "auth.noauth.agent-id": agentId } : { "auth.type": "jwt", "auth.jwt.token": token },
  };
}
