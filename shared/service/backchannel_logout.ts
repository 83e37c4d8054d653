// Sign-out by an identity provider (OpenID Connect Back-Channel Logout 1.0): it posts a logout token, which ends what was opened in the
// session here and at all other members of the cluster, because the provider knows one address: tunnels, and sessions at the dashboard.
import { Gate, GateFull } from "../async/gate.ts";
import { AuthenticationError, RevocationError } from "../auth/authenticator.ts";
import { LogLimit } from "../log/limit.ts";
import { messageOf } from "../log/error_message.ts";
import { signOutHere, type SignOutParts } from "./api/actions.ts";
import { ClusterBusyError } from "./cluster/members.ts";
import { ActionRefused } from "./api/operations.ts";

/** Maximum number of logout tokens that are checked concurrently, and of queued ones: anyone can send some. */
const MAX_CHECKS = 4;
const MAX_WAITING = 64;
/** Who acts, in logs. */
const ISSUER = { name: "issuer", role: "operator" } as const;

/** Serves the requests of a provider, which are authenticated by their token alone. */
export class BackChannelLogout {
  readonly #parts: SignOutParts;
  readonly #gate = new Gate(MAX_CHECKS, MAX_WAITING);
  readonly #refusals: LogLimit;

  constructor(parts: SignOutParts) {
    this.#parts = parts;
    this.#refusals = new LogLimit({ log: parts.operations.log });
  }

  /**
   * Responds with 200 if the session has ended everywhere, with 400 if the token is refused (§2.8), and with 503 if sending it again may help.
   * @param form the body of the request
   */
  async serve(form: string, remote: string): Promise<Response> {
    const { log } = this.#parts.operations;
    const logoutToken = new URLSearchParams(form).get("logout_token") ?? "";
    try {
      if (logoutToken === "") throw new AuthenticationError("denied", "The request has no logout_token");
      const { affected, target } = await this.#gate.run(() => signOutHere(this.#parts, logoutToken, ISSUER, remote));
      const silent = await this.#signOutElsewhere(logoutToken);
      if (silent.length === 0) return respond(200, { affected });
      log.error("a session has not ended at all members of the cluster", { subject: target, members: silent.join(", ") });
      return respond(503, { error: "temporarily_unavailable", error_description: "it has not ended at all members of the cluster" });
    } catch (error) {
      const isKnown = error instanceof AuthenticationError || error instanceof RevocationError || error instanceof ActionRefused ||
        error instanceof GateFull || error instanceof ClusterBusyError;
      if (!isKnown) throw error;
      this.#refusals.warn("logout token refused", { remote, reason: messageOf(error) });
      const isFinal = error instanceof ActionRefused || (error instanceof AuthenticationError && error.kind !== "unavailable");
      return isFinal
        ? respond(400, { error: "invalid_request", error_description: error.message })
        : respond(503, { error: "temporarily_unavailable", error_description: error.message });
    }
  }

  /** Returns the members that have not done it, with the reasons. Those for which it is not have nothing to do. */
  async #signOutElsewhere(logoutToken: string): Promise<string[]> {
    const { cluster } = this.#parts.operations;
    if (cluster === undefined) return [];
    const to = await cluster.others();
    const answers = await cluster.ask({ operator: ISSUER, method: "POST", path: "sessions/end", body: { logoutToken }, to });
    return answers.filter(({ response }) => response?.status !== 200 && response?.status !== 409)
      .map(({ member: { address }, error, response }) => `${address}: ${error ?? `status ${response!.status}`}`);
  }

  close(): void {
    this.#refusals.close();
  }
}

function respond(status: number, body: object): Response {
  return Response.json(body, { status, headers: { "Cache-Control": "no-store" } });
}
