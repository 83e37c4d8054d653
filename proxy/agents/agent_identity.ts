// The identity of a connected agent: how long its connection may stay, and credentials that the agent renews while it is connected.
import { AuthenticationError, type Authenticator, endReason, identifyAgent } from "../../shared/auth/authenticator.ts";
import { CloseCode } from "../../shared/link/link.ts";
import { messageOf } from "../../shared/log/error_message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { ConnectedAgent } from "./registry.ts";

/** Replaces the identities of agents that show newer credentials. */
export class IdentityRenewal {
  readonly #authenticator: Authenticator;
  readonly #log: Logger;
  /** What to do when an agent has a new identity. */
  readonly #watches = new Map<ConnectedAgent, () => void>();
  /** Credentials being verified; newer ones that arrive meanwhile. */
  readonly #running = new Map<ConnectedAgent, { next?: Uint8Array }>();

  constructor(authenticator: Authenticator, log: Logger) {
    this.#authenticator = authenticator;
    this.#log = log;
  }

  /** Waits until the connection has closed, at the latest when the identity that it has then ends. Returns the reason. */
  async untilClosed(agent: ConnectedAgent): Promise<string> {
    const { connection } = agent;
    // the agent does not learn the reason; the log has it
    const close = () => connection.close(CloseCode.unauthorized, "credentials no longer accepted");
    let watched: AbortSignal | undefined;
    const watch = () => {
      watched?.removeEventListener("abort", close);
      watched = agent.identity.signal;
      if (watched?.aborted) close();
      watched?.addEventListener("abort", close, { once: true });
    };
    watch();
    this.#watches.set(agent, watch);
    const { code, reason, cause, remote: byAgent } = await connection.closed;
    this.#watches.delete(agent);
    const { signal, release } = agent.identity;
    signal?.removeEventListener("abort", close);
    release?.();
    if (cause !== "application") return reason;
    if (byAgent) return `closed by the agent: ${code} ${reason}`;
    return `closed by the proxy: ${code} ${code === CloseCode.unauthorized && signal?.aborted ? endReason(signal) : reason}`;
  }

  /**
   * Verifies newer credentials of an agent. The connection gets their identity if they are accepted, and keeps the old one otherwise. Of
   * credentials that arrive while others are verified, the last ones count. Never rejects.
   */
  async renew(agent: ConnectedAgent, credentials: Uint8Array): Promise<void> {
    const running = this.#running.get(agent);
    if (running) {
      running.next = credentials;
      return;
    }
    const turn: { next?: Uint8Array } = { next: credentials };
    this.#running.set(agent, turn);
    for (let next; (next = turn.next) !== undefined && this.#watches.has(agent);) {
      turn.next = undefined;
      await this.#verify(agent, next);
    }
    this.#running.delete(agent);
  }

  /**
   * Verifies the credentials of an agent again, because other ones verify them now, and closes its connection if they are not accepted, unless
   * `keeps` is set. Credentials that cannot be checked now are accepted. Returns whether the connection was closed. Never rejects.
   */
  async recheck(agent: ConnectedAgent, { keeps }: { readonly keeps: boolean }): Promise<boolean> {
    const { connection, identity: old, credentials } = agent;
    let identity;
    try {
      identity = await identifyAgent(this.#authenticator, credentials, { certificate: connection.peerCertificate }, this.#log);
      if (identity.agentId !== old.agentId) throw new AuthenticationError("denied", "The credentials are for another agent now");
    } catch (error) {
      identity?.release?.();
      if (!(error instanceof AuthenticationError) || error.kind === "unavailable" || keeps) return false;
      this.#log.warn("agent is no longer accepted", { agent: old.agentId, remote: connection.remote, reason: error.message });
      connection.close(CloseCode.unauthorized, "credentials no longer accepted");
      return true;
    }
    const watch = this.#watches.get(agent);
    if (watch === undefined || agent.identity !== old) identity.release?.(); // it has gone, or has newer ones
    else {
      agent.identity = identity;
      watch();
      old.release?.();
    }
    return false;
  }

  async #verify(agent: ConnectedAgent, credentials: Uint8Array): Promise<void> {
    const { connection: { remote, peerCertificate: certificate }, identity: old } = agent;
    const refuse = (reason: string) => this.#log.warn("renewed credentials refused", { agent: old.agentId, remote, reason });
    let identity;
    try {
      identity = await identifyAgent(this.#authenticator, credentials, { certificate }, this.#log);
    } catch (error) {
      return refuse(error instanceof AuthenticationError ? error.message : `internal error: ${messageOf(error)}`);
    }
    const watch = this.#watches.get(agent);
    if (watch === undefined || identity.agentId !== old.agentId) {
      identity.release?.();
      if (watch !== undefined) refuse(`they are for the agent ${JSON.stringify(identity.agentId)}`);
      return;
    }
    agent.identity = identity;
    agent.credentials = credentials;
    watch();
    old.release?.();
    this.#log.info("agent renewed its credentials", { agent: identity.agentId, jti: identity.tokenId, remote });
  }
}
