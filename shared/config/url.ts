// URLs of identity providers and webhooks in options: credentials and keys pass through them.

/** Longest URL in characters. */
const MAX_URL = 2_048;

/** Returns why credentials and keys must not pass through `text`, or `undefined` for an https URL, or an http URL of this machine. */
export function urlProblem(text: string): string | undefined {
  const url = text.length <= MAX_URL && URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined) return "it is not a URL, as https://login.example is";
  if (url.username !== "" || url.password !== "") return "it has a user or a password, which would be in logs";
  if (url.hash !== "") return `it has a fragment, ${url.hash}`;
  if (url.protocol === "https:" || (url.protocol === "http:" && isThisMachine(url.hostname))) return undefined;
  return `${JSON.stringify(url.protocol.slice(0, -1))} is not safe for ${
    url.hostname || "it"
  }: only https, or http to localhost, 127.0.0.1 and [::1]`;
}

function isThisMachine(host: string): boolean {
  return host === "localhost" || host === "[::1]" || /^127(?:\.[0-9]{1,3}){3}$/.test(host);
}
