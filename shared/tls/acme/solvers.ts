// Answers the challenges of an ACME authority: by HTTP, on every proxy that shares a store, or by a command that writes DNS records.
import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { promisify } from "node:util";
import { describeFileError } from "../../files/read.ts";
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import { printable } from "../../net/printable.ts";
import type { Store } from "../../store/store.ts";
import { type Challenge, dnsValueOf, type Solver } from "./client.ts";

/** A store that several proxies share. */
export interface SharedStore {
  readonly store: Pick<Store, "set" | "lookup" | "renew">;
  /** Lifetime in milliseconds of an entry that is not renewed. */
  readonly ttlMs: number;
}

/** Where clients of HTTP-01 ask (RFC 8555 §8.3). */
const PATH = /^\/\.well-known\/acme-challenge\/([\w-]{1,256})$/;

/** HTTP-01. What it presents must be answered at port 80 of each name. */
export class HttpSolver implements Solver {
  readonly type = "http-01";
  readonly #answers = new Map<string, string>();
  readonly #renewals = new Map<string, ReturnType<typeof setInterval>>();

  /** @param shared with the proxies that answer for each other. Default: none */
  constructor(private readonly log: Logger, private readonly shared?: SharedStore) {}

  async present({ token, keyAuthorization }: Challenge): Promise<void> {
    this.#answers.set(token, keyAuthorization);
    const { shared } = this;
    if (shared === undefined) return;
    const publish = async () => {
      try {
        await shared.store.set(keyOf(token), keyAuthorization);
      } catch (error) {
        this.log.debug("the challenge cannot be stored for other proxies", { reason: messageOf(error) });
      }
    };
    await publish();
    this.#renewals.set(token, setInterval(() => void publish(), shared.ttlMs / 3)); // never rejects
  }

  remove({ token }: Challenge): Promise<void> {
    clearInterval(this.#renewals.get(token));
    this.#renewals.delete(token);
    this.#answers.delete(token);
    return Promise.resolve();
  }

  /** The answer for a path, of this process or of another one that shares the store; `undefined` for none. Never rejects. */
  async answer(path: string): Promise<string | undefined> {
    const [, token] = PATH.exec(path) ?? [];
    if (token === undefined) return undefined;
    const own = this.#answers.get(token);
    if (own !== undefined) return own;
    const found = await this.shared?.store.lookup(keyOf(token)).catch(() => undefined);
    return found?.startsWith(`${token}.`) ? found : undefined;
  }
}

/** No agent has such an id, because it contains a space. */
function keyOf(token: string): string {
  return `acme challenge ${token}`;
}

/**
 * Checks that a command can be executed. One without a slash is looked for in PATH, when it is called.
 * @throws {Error} saying why it cannot
 */
export async function checkCommand(command: string): Promise<void> {
  if (!command.includes("/")) return;
  const isDirectory = await stat(command).then((stats) => stats.isDirectory(), (cause) => {
    throw new Error(describeFileError(cause), { cause });
  });
  if (isDirectory) throw new Error("it is a directory");
  await access(command, constants.X_OK).catch((cause) => {
    throw new Error("this user may not execute it", { cause });
  });
}

/** Time for the command, in milliseconds: it may wait until all name servers have the record. */
const COMMAND_TIMEOUT_MS = 15 * 60_000;
/** Limit on the command's output, in bytes. */
const MAX_OUTPUT = 64 * 1024;

/**
 * DNS-01 by a program, which is called as `COMMAND present NAME VALUE` and `COMMAND cleanup NAME VALUE`, without a shell. `NAME` is that of
 * the TXT record, with a dot at the end.
 */
export function createCommandSolver(command: string, log: Logger, signal: AbortSignal): Solver {
  const call = async (action: "present" | "cleanup", challenge: Challenge): Promise<void> => {
    const args = [action, `_acme-challenge.${challenge.name}.`, await dnsValueOf(challenge)];
    try {
      await promisify(execFile)(command, args, { timeout: COMMAND_TIMEOUT_MS, maxBuffer: MAX_OUTPUT, signal });
    } catch (cause) {
      const { code, stderr, message } = cause as { code?: number | string; stderr?: string; message: string };
      const [said = ""] = (stderr ?? "").trim().split("\n");
      const why = said !== "" ? said : typeof code === "number" ? `exit code ${code}` : message;
      throw new Error(`${command} ${action} has failed: ${printable(why)}`, { cause });
    }
  };
  return {
    type: "dns-01",
    present: (challenge) => call("present", challenge),
    remove: (challenge) =>
      call("cleanup", challenge).catch((error) => log.warn("the record of a challenge cannot be removed", { reason: messageOf(error) })),
  };
}
