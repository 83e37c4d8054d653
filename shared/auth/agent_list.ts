// Lists of agents that one credential is for, by patterns of their ids.

/** Decides which agents a client may reach. */
export interface AgentList {
  /** Whether any pattern matches the id. */
  allows(agentId: string): boolean;
}

/** Every agent. */
export const ALL_AGENTS: AgentList = { allows: () => true };

/**
 * Creates a list of agents. A pattern is an agent id in which one `*` stands for any characters, also none; letter case matters. An empty list
 * allows none.
 * @throws {RangeError} naming the first invalid pattern
 * @example
 * ```ts
 * import { createAgentList } from "@reverse-http/reverse-http";
 *
 * const list = createAgentList(["site-*", "4711"]);
 * console.log(list.allows("site-7"), list.allows("4711"), list.allows("4712"));
 * // prints: true true false
 * ```
 */
export function createAgentList(patterns: readonly string[]): AgentList {
  const parsed = patterns.map((pattern) => {
    checkAgentPattern(pattern);
    const [start = "", end] = pattern.split("*");
    return [start, end] as const; // without a *, the id alone
  });
  return {
    allows: (id) =>
      parsed.some(([start, end]) =>
        end === undefined ? id === start : id.length >= start.length + end.length && id.startsWith(start) && id.endsWith(end)
      ),
  };
}

/** @throws {RangeError} for an invalid pattern */
export function checkAgentPattern(pattern: string): void {
  const fail = (why: string) => new RangeError(`Cannot use the agent pattern ${JSON.stringify(pattern)}: ${why}`);
  if (pattern === "") throw fail("it is empty; * matches every agent");
  // deno-lint-ignore no-control-regex -- what an agent id cannot contain
  if (/[\s\x00-\x1f\x7f-\x9f]/.test(pattern)) throw fail("an agent id has no white space and no control characters");
  if (pattern.indexOf("*") !== pattern.lastIndexOf("*")) throw fail("it has more than one *");
}
