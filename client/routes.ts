// Which agent the destinations of a local proxy are behind, where neither their name nor the program says it.
import { type AllowList, createAllowList } from "../shared/address/allow_list.ts";
import type { Authority } from "../shared/address/authority.ts";
import { AuthenticationError, checkAgentId } from "../shared/auth/authenticator.ts";

/** Destinations that are behind one agent. */
export interface Route {
  readonly destinations: AllowList;
  readonly agentId: string;
}

/**
 * Parses `PATTERN=AGENT`, with a pattern of an allow-list.
 * @throws {RangeError} saying what is wrong
 */
export function parseRoute(text: string): Route {
  const [, pattern, agentId] = /^([^=]+)=(.+)$/.exec(text) ?? [];
  if (pattern === undefined || agentId === undefined) {
    throw new RangeError(`${JSON.stringify(text)} is not PATTERN=AGENT, such as *.corp=site7`);
  }
  try {
    return { destinations: createAllowList([pattern]), agentId: checkAgentId(agentId) };
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new RangeError(`${JSON.stringify(text)}: ${cause.message.replace("Cannot use the agent id: it", "the agent id")}`, { cause });
  }
}

/** The agent of the first route that matches; `undefined` without one. */
export function findAgent(routes: readonly Route[], destination: Authority): string | undefined {
  return routes.find(({ destinations }) => destinations.allows(destination))?.agentId;
}
