// Checks passwords against hashes of bcrypt and argon2, in threads of their own: one check takes up to seconds of CPU time.
import { Worker } from "node:worker_threads";
import { readLibraries } from "./password_libraries.ts";

export interface PasswordChecker {
  /** Whether the password has the hash. A call that is pending when the checker closes rejects. */
  check(password: string, hash: string): Promise<boolean>;
  close(): void;
}

/** Runs in the thread. A second message comes only after the answer to the first. */
const PROGRAM = `
const { parentPort, workerData } = require("node:worker_threads");
const libraries = {};
for (const code of workerData) new Function("exports", "module", code)(libraries, { exports: libraries });
parentPort.on("message", async ({ password, hash }) => {
  const verify = hash.startsWith("$2") ? libraries.bcryptVerify : libraries.argon2Verify;
  try {
    parentPort.postMessage({ isRight: await verify({ password, hash }) });
  } catch (error) {
    parentPort.postMessage({ error: String(error) });
  }
});
`;

interface Answer {
  readonly isRight?: boolean;
  readonly error?: string;
}

/** A thread, and the check that it is busy with. */
class Checker {
  readonly #worker: Worker;
  #pending?: { readonly resolve: (isRight: boolean) => void; readonly reject: (error: Error) => void };
  hasEnded = false;

  constructor(libraries: readonly string[]) {
    this.#worker = new Worker(PROGRAM, { eval: true, workerData: libraries });
    this.#worker.unref();
    const end = (error: Error) => {
      this.hasEnded = true;
      this.#pending?.reject(error);
    };
    this.#worker.on("error", end);
    this.#worker.on("exit", () => end(new Error("The thread that checks passwords has ended")));
    this.#worker.on("message", ({ isRight = false, error }: Answer) => {
      this.#worker.unref();
      if (error === undefined) this.#pending?.resolve(isRight);
      else this.#pending?.reject(new Error(`The password cannot be checked: ${error}`));
    });
  }

  check(password: string, hash: string): Promise<boolean> {
    return new Promise((resolve, reject) => {
      this.#pending = { resolve, reject };
      this.#worker.ref(); // a check keeps the process alive, an idle thread does not
      this.#worker.postMessage({ password, hash });
    });
  }

  close(): void {
    this.#worker.terminate().catch(() => {}); // it has ended already
  }
}

/** Starts no thread until one is needed. The caller bounds the checks that run at once, each of which has a thread. */
export function startPasswordChecker(): PasswordChecker {
  const [idle, all] = [new Set<Checker>(), new Set<Checker>()];
  let isClosed = false;

  const take = async (): Promise<Checker> => {
    for (const checker of idle) {
      idle.delete(checker);
      if (!checker.hasEnded) return checker;
      all.delete(checker);
    }
    const checker = new Checker(await readLibraries());
    all.add(checker);
    return checker;
  };

  return {
    async check(password, hash) {
      const checker = await take();
      if (isClosed) checker.close();
      const isRight = await checker.check(password, hash);
      idle.add(checker);
      return isRight;
    },
    close() {
      isClosed = true;
      for (const checker of all) checker.close();
    },
  };
}
