// HAProxy as a load balancer for TCP, which closes connections that are silent for a while. Needs Debian's haproxy.
import { existsSync } from "node:fs";
import { freeAddress } from "./nginx.ts";
import { Folder, Program } from "./programs.ts";
import { dial } from "./sockets.ts";

const HAPROXY = "/usr/sbin/haproxy";
/** `skip` of tests that need it. */
export const withHaproxy = existsSync(HAPROXY) ? false : "there is no haproxy";

/** `await using` ends it. */
export class Haproxy implements AsyncDisposable {
  private constructor(readonly program: Program, readonly folder: Folder, readonly addresses: readonly string[]) {}

  /**
   * Listens on a free loopback port for each of `servers`, `host:port`; see {@link addresses}.
   * @param silenceMs time without a byte after which it closes a connection, in milliseconds
   */
  static async start(servers: readonly string[], silenceMs: number): Promise<Haproxy> {
    const folder = new Folder();
    const addresses = await Promise.all(servers.map(() => freeAddress()));
    const proxies = servers.map((server, i) => `listen p${i}\n  bind ${addresses[i]}\n  server s ${server}`);
    const configuration = folder.write(
      "haproxy.cfg",
      `defaults\n  mode tcp\n  timeout connect 5s\n  timeout client ${silenceMs}ms\n  timeout server ${silenceMs}ms\n${
        proxies.join("\n")
      }\n`,
    );
    const program = new Program(HAPROXY, ["-db", "-f", configuration]);
    const haproxy = new Haproxy(program, folder, addresses);
    for (const address of addresses) await reach(address, program);
    return haproxy;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

/** Resolves when `program` listens there; some programs do not say when they do. */
export async function reach(address: string, program: Program): Promise<void> {
  let hasEnded = false;
  void program.ended.then(() => hasEnded = true);
  for (;;) {
    const wire = await dial(address).catch(() => undefined);
    wire?.[Symbol.dispose]();
    if (wire) return;
    if (hasEnded) throw new Error(`The program has ended: ${program.said}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
