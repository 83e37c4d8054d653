// A file with a secret that several machines share. Several lines replace a secret: the first one is used, the others are accepted.
import { readText } from "./read.ts";

const MAX_FILE = 16 * 1024;
/** Shortest secret in characters: one of 192 bits in base64. */
const MIN_SECRET = 32;
/** Secrets that are accepted while one replaces another. */
const MAX_SECRETS = 4;

/** @throws {Error} naming the first invalid line, without the secret */
export async function readSharedSecrets(file: string): Promise<readonly Uint8Array<ArrayBuffer>[]> {
  const secrets: Uint8Array<ArrayBuffer>[] = [];
  (await readText(file, MAX_FILE)).split(/\r?\n/).forEach((line, i) => {
    const secret = line.replace(/(?:^|\s)#.*$/, "").trim();
    if (secret === "") return;
    if (!/^[\x21-\x7e]+$/.test(secret) || secret.length < MIN_SECRET) {
      throw new Error(
        `line ${i + 1}: the key has less than ${MIN_SECRET} characters, spaces, or others than ASCII; openssl rand -hex 32 makes one`,
      );
    }
    secrets.push(new TextEncoder().encode(secret));
  });
  if (secrets.length === 0) throw new Error("it has no key; openssl rand -hex 32 makes one");
  if (secrets.length > MAX_SECRETS) throw new Error(`it has ${secrets.length} keys; the limit is ${MAX_SECRETS}`);
  return secrets;
}
