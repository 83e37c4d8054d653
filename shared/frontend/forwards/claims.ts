// Claims of agents on ports and names, which proxies share in the store, so that all of them decide alike and lb finds the agents.
import { splitHostPort } from "../../address/host_port.ts";
import { AuthenticationError, checkAgentId } from "../../auth/authenticator.ts";
import { ValueError } from "../../config/option.ts";
import type { PublishRequest } from "../../link/message.ts";
import type { Store } from "../../store/store.ts";
import type { Forward } from "./forwards.ts";
import { publishedForward } from "./published.ts";
import { normalizeName } from "./server_names.ts";
import { normalizePath } from "./virtual_hosts.ts";

/** The key of one claim. No agent has it, because it contains spaces. */
export function claimKey(network: "tcp" | "udp", port: number, name = "", path = ""): string {
  return `reverse-http publish ${network} ${port} ${name} ${path}`;
}

/** The keys of all that a forward takes. */
function claimKeysOf({ network, listen, sni, host, path }: Forward): string[] {
  const { port } = splitHostPort(listen);
  const names = [...sni, ...host].map(normalizeName);
  const prefixes = path.map((path) => normalizePath(path)!.replace(/\/$/, ""));
  return (names.length > 0 ? names : [""]).flatMap((name) =>
    (prefixes.length > 0 ? prefixes : [""]).map((prefix) => claimKey(network === "udp" ? "udp" : "tcp", port, name, prefix))
  );
}

/** A claim in the store: the agent, and its request. */
export function encodeClaim(agent: string, request: PublishRequest): string {
  return JSON.stringify({ agent, request });
}

/** The forward of a claim; `undefined` for a text that no proxy has written. */
export function decodeClaim(text: string | undefined): Forward | undefined {
  if (text === undefined) return undefined;
  try {
    const { agent, request } = JSON.parse(text) as { agent: string; request: PublishRequest };
    return typeof agent === "string" ? publishedForward(request, checkAgentId(agent)) : undefined;
  } catch (error) {
    const isInvalid = error instanceof SyntaxError || error instanceof TypeError || error instanceof ValueError ||
      error instanceof AuthenticationError;
    if (isInvalid) return undefined;
    throw error;
  }
}

/** Another agent has the port or name of a forward. */
export class ClaimedError extends RangeError {
  override readonly name = "ClaimedError";
}

/** The claims of one proxy's agents. The first agent has a name at all proxies, until none of them renews its entry. */
export class ForwardClaims {
  constructor(private readonly store: Pick<Store, "set" | "renew" | "lookup">) {}

  /**
   * Claims the port or the names of a forward, or renews the claim. A changed request of an agent replaces its own claim.
   * @param isNew whether the agent has just asked for it
   * @throws {ClaimedError} if another agent has a part of it
   * @throws {StoreError}
   */
  async hold(forward: Forward, request: PublishRequest, isNew: boolean): Promise<void> {
    const claim = encodeClaim(forward.agent, request);
    for (const key of claimKeysOf(forward)) {
      const own = await this.check(key, forward);
      if (isNew && own !== undefined && own !== claim) await this.store.set(key, claim);
      else await this.store.renew(key, claim);
      await this.check(key, forward); // two may have claimed it at the same time: the entry decides
    }
  }

  /** @throws {ClaimedError | StoreError} */
  async checkAll(forward: Forward): Promise<void> {
    for (const key of claimKeysOf(forward)) await this.check(key, forward);
  }

  /** Returns the entry, if it is the agent's own. */
  private async check(key: string, { agent, listen }: Forward): Promise<string | undefined> {
    const text = await this.store.lookup(key);
    const holder = decodeClaim(text);
    if (holder === undefined || holder.agent === agent) return holder && text;
    const name = key.split(" ").slice(4).join(" ").trim();
    throw new ClaimedError(
      `the agent ${holder.agent} publishes ${name === "" ? listen : `${name} at ${listen}`}, at this proxy or another one`,
    );
  }
}
