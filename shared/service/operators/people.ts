// Which people of an OpenID Connect issuer are operators.
import { AuthenticationError } from "../../auth/authenticator.ts";
import { printable } from "../../net/printable.ts";
import type { Operator } from "../api/tokens.ts";
import type { OperatorOptions } from "./options.ts";

/** Longest name in a log, in characters. */
const MAX_NAME = 128;

/** @throws {AuthenticationError} for a person in none of the groups */
export function operatorOf(
  { subject, name, groups }: { readonly subject: string; readonly name?: string; readonly groups: readonly string[] },
  { operators, viewers, groupsClaim }: Pick<OperatorOptions["oidc"], "operators" | "viewers" | "groupsClaim">,
): Operator {
  const isIn = (wanted: readonly string[]) => groups.some((group) => wanted.includes(group));
  const role = isIn(operators) ? "operator" : isIn(viewers) ? "viewer" : undefined;
  const who = printable(name ?? subject, MAX_NAME);
  if (role !== undefined) return { name: who, role, subject: printable(subject, MAX_NAME) };
  throw new AuthenticationError(
    "denied",
    `${JSON.stringify(who)} is in none of the groups of --admin.oidc.operators and viewers; ${groupsClaim} has ${
      groups.length === 0 ? "none" : printable(groups.slice(0, 20).join(", "))
    }`,
  );
}
