// mitmproxy as a middlebox that inspects TLS: it terminates it with a certificate of its own authority. Needs Debian's mitmproxy.
import { existsSync } from "node:fs";
import { reach } from "./haproxy.ts";
import { freeAddress } from "./nginx.ts";
import { Folder, Program } from "./programs.ts";

const MITMDUMP = "/usr/bin/mitmdump";
/** `skip` of tests that need it. */
export const withMitmproxy = existsSync(MITMDUMP) ? false : "there is no mitmproxy";

/** `await using` ends it. */
export class Mitmproxy implements AsyncDisposable {
  private constructor(readonly program: Program, readonly folder: Folder, readonly address: string) {}

  /** @param mode `regular` for a proxy of clients, or `reverse:https://HOST:PORT` for a middlebox in front of a server */
  static async start(mode: string): Promise<Mitmproxy> {
    const folder = new Folder();
    const address = await freeAddress();
    const [host, port] = address.split(":");
    const settings = [`confdir=${folder.path}`, "ssl_insecure=true"].flatMap((setting) => ["--set", setting]);
    const args = ["--mode", mode, "--listen-host", host!, "--listen-port", port!, ...settings];
    const program = new Program(MITMDUMP, args, { env: { PATH: "/usr/bin:/bin", HOME: folder.path } });
    await reach(address, program);
    return new Mitmproxy(program, folder, address);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}
