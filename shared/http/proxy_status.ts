// Parses and writes the Proxy-Status field (RFC 9209): one member per intermediary, the closest to the origin first.
import { isInnerList, type Item, type List, parseList, serializeList, Token } from "structured-headers";
import { printable } from "../net/printable.ts";
import { toErrorType, type TunnelErrorType } from "../tunnel/errors.ts";
import { type Fields, values } from "./head.ts";

/** Names of this program's services in the field. */
export type Intermediary = "reverse-http-agent" | "reverse-http-proxy" | "reverse-http-lb" | "reverse-http-client";

/** The content of a peer's field. */
export interface ProxyStatus {
  /** Members to forward. */
  readonly members: readonly Item[];
  /** The error of the member closest to the origin that has one. */
  readonly error?: TunnelErrorType;
  /** The details of the same member. */
  readonly details?: string;
}

/** Limits on a peer's field: characters, members, and characters of a member's details. */
const MAX_LENGTH = 4_096;
const MAX_MEMBERS = 32;
const MAX_DETAILS = 256;
export const NO_PROXY_STATUS: ProxyStatus = { members: [] };

/** Parses the field. The result is empty if it is missing, malformed or too long; it is then not forwarded. */
export function parseProxyStatus(fields: Fields): ProxyStatus {
  const lines = values(fields, "proxy-status");
  const text = lines.join(", "); // RFC 9110 §5.3
  if (text === "" || text.length > MAX_LENGTH) return NO_PROXY_STATUS;
  const members = parseMembers(text);
  for (const [, parameters] of members) {
    const [error, details] = [parameters.get("error"), parameters.get("details")];
    const known = error instanceof Token ? toErrorType(error.toString()) : undefined;
    if (known) return { members, error: known, details: typeof details === "string" ? details : undefined };
  }
  return { members };
}

/** Empty if the text is malformed. */
function parseMembers(text: string): Item[] {
  let list: List;
  try {
    list = parseList(text);
    serializeList(list); // rejects what cannot be forwarded
  } catch {
    return [];
  }
  if (list.length > MAX_MEMBERS) return [];
  const members: Item[] = [];
  for (const member of list) {
    if (isInnerList(member) || !(member[0] instanceof Token || typeof member[0] === "string")) return [];
    const [name, parameters] = member as Item;
    const details = parameters.get("details");
    members.push([name, typeof details === "string" ? new Map(parameters).set("details", printable(details, MAX_DETAILS)) : parameters]);
  }
  return members;
}

/** Formats the field: `members`, then the member of `by` with its error, if any. */
export function formatProxyStatus(
  members: readonly Item[],
  by: Intermediary,
  { error, details = "" }: { readonly error?: TunnelErrorType; readonly details?: string } = {},
): string {
  const parameters = new Map<string, Token | string>();
  // strings in structured fields are printable ASCII (RFC 9651 §3.3.3)
  if (error) parameters.set("error", new Token(error)).set("details", details.replace(/[^\x20-\x7e]/gu, "?"));
  return serializeList([...members, [new Token(by), parameters]]);
}
