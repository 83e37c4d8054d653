// The secrets of the tests. When one of the project's programs ends, its output is searched for them: see `Program` in programs.ts.
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";

/** Shorter secrets and plain words may be in a log for other reasons. */
const SHORTEST = 8;

/** Secrets in all forms in which a log could contain them. */
class Secrets {
  readonly #forms = new Map<string, string>();

  /** @param what describes the secret in the message of a failing test */
  add(what: string, secret: string): void {
    if (secret.length < SHORTEST || /^[a-z]+$/i.test(secret)) return;
    for (const form of formsOf(secret)) this.#forms.set(form, what);
  }

  /** Adds a token, and its signature alone, because the rest can be guessed. */
  addToken(what: string, token: string): void {
    this.add(what, token.trim());
    this.add(`the signature of ${what}`, token.trim().split(".")[2] ?? "");
  }

  /** Adds each line of the private keys in a text. */
  addKeys(what: string, pem: string): void {
    for (const [, body] of pem.matchAll(/-----BEGIN [A-Z ]*PRIVATE KEY-----([^-]*)-----END/g)) {
      for (const line of body!.split(/\s+/).filter((line) => line.length >= 40)) this.add(what, line);
    }
  }

  /** Adds the secrets in a program's arguments, its environment, and the files that these name. */
  addOf(args: readonly string[], env: Readonly<Record<string, string>>): void {
    const settings = [
      ...args.map((arg) => /^--([\w.-]+)=(.*)$/s.exec(arg)?.slice(1) ?? []),
      ...Object.entries(env).map(([name, value]) => [name.toLowerCase().replace(/^reverse_http_/, "").replaceAll("_", "-"), value]),
    ];
    for (const [name = "", value = ""] of settings) {
      if (/key-password$/.test(name)) this.add("a key's password", value);
      else if (/jwt[.-]token$/.test(name)) this.addToken("an agent's token", value.startsWith("file:") ? contentOf(value.slice(5)) : value);
      else if (/redis[.-]url$/.test(name)) this.add("the password of Redis", /^\w+:\/\/[^:/@]*:(.*)@/.exec(value)?.[1] ?? "");
      else if (/proxy$/.test(name)) {
        this.add("the password of an outbound proxy", decodeURIComponent(/^\w+:\/\/[^:/@]*:([^@]*)@/.exec(value)?.[1] ?? ""));
      } else if (/file[.-](?:key|cert)$/.test(name)) this.addKeys("a private key of TLS", contentOf(value));
    }
  }

  /** The secrets in a text. */
  in(text: string): string[] {
    return [...new Set([...this.#forms].filter(([form]) => text.includes(form)).map(([, what]) => what))];
  }
}

/** The secret itself, and as in logs, URLs, header fields and byte dumps. */
function formsOf(secret: string): string[] {
  const bytes = Buffer.from(secret);
  const base64 = bytes.toString("base64").replace(/=+$/, "");
  const decimals = [...bytes.subarray(0, 32)].join(", ");
  return [secret, JSON.stringify(secret).slice(1, -1), encodeURIComponent(secret), base64.slice(0, -2), bytes.toString("hex"), decimals];
}

function contentOf(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return ""; // a test of unreadable files
  }
}

/** The secrets of all tests in this process. */
export const secrets = new Secrets();
