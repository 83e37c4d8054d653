// The secrets that the tests use. Whatever a program of ours says is searched for them when it ends: see `Program` in processes.ts.
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";

/** Shorter ones, and plain words, may be in a log for other reasons. */
const SHORTEST = 8;

/** Secrets by the forms in which they might be shown. */
class Secrets {
  readonly #forms = new Map<string, string>();

  /** `what` it is, is what a failing test says of it. */
  add(what: string, secret: string): void {
    if (secret.length < SHORTEST || /^[a-z]+$/i.test(secret)) return;
    for (const form of formsOf(secret)) this.#forms.set(form, what);
  }

  /** A token, and its signature alone: the rest of it may be guessed. */
  addToken(what: string, token: string): void {
    this.add(what, token.trim());
    this.add(`the signature of ${what}`, token.trim().split(".")[2] ?? "");
  }

  /** The lines of private keys in a text, each by itself. */
  addKeys(what: string, pem: string): void {
    for (const [, body] of pem.matchAll(/-----BEGIN [A-Z ]*PRIVATE KEY-----([^-]*)-----END/g)) {
      for (const line of body!.split(/\s+/).filter((line) => line.length >= 40)) this.add(what, line);
    }
  }

  /** Those that a program is given, by its arguments, its environment and the files that these name. */
  addOf(args: readonly string[], env: Readonly<Record<string, string>>): void {
    const settings = [
      ...args.map((arg) => /^--([\w.-]+)=(.*)$/s.exec(arg)?.slice(1) ?? []),
      ...Object.entries(env).map(([name, value]) => [name.toLowerCase().replace(/^reverse_http_/, "").replaceAll("_", "-"), value]),
    ];
    for (const [name = "", value = ""] of settings) {
      if (/key-password$/.test(name)) this.add("a key's password", value);
      else if (/jwt[.-]token$/.test(name)) this.addToken("an agent's token", value.startsWith("file:") ? contentOf(value.slice(5)) : value);
      else if (/redis[.-]url$/.test(name)) this.add("the password of Redis", /^\w+:\/\/[^:/@]*:(.*)@/.exec(value)?.[1] ?? "");
      else if (/file[.-](?:key|cert)$/.test(name)) this.addKeys("a private key of TLS", contentOf(value));
    }
  }

  /** What of them is in the text. */
  in(text: string): string[] {
    return [...new Set([...this.#forms].filter(([form]) => text.includes(form)).map(([, what]) => what))];
  }
}

/** As it is, and as logs, URLs, headers and dumps of bytes write it. */
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
    return ""; // the test is about that
  }
}

/** Of all tests in this process. */
export const secrets = new Secrets();
