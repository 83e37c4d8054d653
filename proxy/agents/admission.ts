// Checks a connection before the proxy registers its agent: credentials, credit for tunnels, and the hello.
import { AuthenticationError, type Authenticator, identifyAgent, type Identity } from "../../shared/auth/authenticator.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import type { ConnectionPermit } from "../../shared/limits/connection_limiter.ts";
import { Control } from "../../shared/link/control.ts";
import type { FrameReader } from "../../shared/link/frame.ts";
import { type Accept, CloseCode, hasControl, receiveCredentials, receiveHello } from "../../shared/link/link.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import { VERSION } from "../../shared/version.ts";
import type { AgentOperations } from "./operations.ts";
import { CreditError } from "./refusal.ts";
import type { ConnectedAgent } from "./registry.ts";

/** What decides whether an agent is admitted. */
export interface AdmissionRules {
  readonly authenticator: Authenticator;
  readonly operations: Pick<AgentOperations, "checkMayConnect">;
  readonly log: Logger;
}

/** An agent that may be registered. */
export interface Admitted {
  readonly agent: ConnectedAgent;
  /** Tells the agent that it is accepted. */
  readonly accept: Accept;
  /** The rest of its control stream, if it has one. */
  readonly frames?: FrameReader;
}

/** Time in milliseconds in which an agent that only checks its credentials closes the connection after the answer. */
const CHECKED_TIMEOUT_MS = 1_000;

/** Authenticates the agent. `accept` sends it the confirmation. */
async function authenticateAgent(
  connection: AgentSession,
  permit: ConnectionPermit | undefined,
  { authenticator, log }: AdmissionRules,
): Promise<{ identity: Identity; credentials: Uint8Array; accept: Accept }> {
  permit?.checkLockout();
  const { credentials, accept } = await receiveCredentials(connection);
  permit?.checkLockout(); // other connections of the address may have failed meanwhile
  const identity = await identifyAgent(authenticator, credentials, { certificate: connection.peerCertificate }, log).catch((error) => {
    if (error instanceof AuthenticationError && error.kind !== "unavailable") permit?.recordFailure(credentials);
    throw error;
  });
  return { identity, credentials, accept };
}

/** Tells an agent whether its credentials are accepted; it is not registered. */
export async function checkCredentials(
  connection: AgentSession,
  permit: ConnectionPermit | undefined,
  rules: AdmissionRules,
): Promise<void> {
  const { identity, accept } = await authenticateAgent(connection, permit, rules);
  identity.release?.();
  rules.log.debug("credentials checked", { agent: identity.agentId, remote: connection.remote });
  await accept({ version: `reverse-http/${VERSION}`, time: Date.now() }).catch(() => {}); // the agent does not wait for it
  await withTimeout(CHECKED_TIMEOUT_MS, connection.closed);
  connection.close(CloseCode.shutdown, "");
}

/** Authenticates the agent, and receives its hello. The caller releases its identity. */
export async function admit(
  connection: AgentSession,
  permit: ConnectionPermit | undefined,
  rules: AdmissionRules,
): Promise<Admitted> {
  const { identity, credentials, accept } = await authenticateAgent(connection, permit, rules);
  let received;
  try {
    rules.operations.checkMayConnect(identity.agentId);
    checkCredit(connection);
    received = hasControl(connection) ? await receiveHello(connection) : undefined;
  } catch (error) {
    identity.release?.();
    throw error;
  }
  const id = crypto.randomUUID();
  const agent: ConnectedAgent = {
    id,
    connection,
    via: { address: connection.remote, connection: id, link: connection.transport },
    identity,
    credentials,
    since: new Date(),
    hello: received?.hello,
    control: received && new Control(connection, received.stream),
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
  };
  return { agent, accept, frames: received?.frames };
}

/**
 * Each tunnel is a stream that the proxy opens. Without credit for streams, every tunnel would time out.
 * @throws {CreditError}
 */
function checkCredit(connection: AgentSession): void {
  const credit = connection.peerCredit();
  if (!credit) return; // closed: its end is reported
  const refuse = (parameter: string, what: string, least: number): never => {
    throw new CreditError(`Cannot ${what}: the agent's transport parameter ${parameter} is 0. Set it to ${least} or more`);
  };
  if (credit.streams === 0) refuse("initial_max_streams_bidi", "open streams for tunnels", 100);
  if (credit.streamBytes === 0) refuse("initial_max_stream_data_bidi_remote", "send on streams for tunnels", 65_536);
}
