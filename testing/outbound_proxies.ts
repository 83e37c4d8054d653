// Real outbound proxies: Squid for HTTP, microsocks for SOCKS 5. Needs Debian's packages of these names.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync } from "node:fs";
import { freeAddress } from "./nginx.ts";
import { Folder, Program } from "./programs.ts";

/** The only user. */
export const USER = { name: "alice", password: "p@ss:w/rd#1" };

/** The user and the password in a URL. */
export const USER_IN_URL = `${USER.name}:${encodeURIComponent(USER.password)}`;

const REALM = "test";
const HELPERS = "/usr/lib/squid";

/** Directives and files of each scheme. The NTLM helper accepts everybody, but only with NTLM. */
const SCHEMES = {
  basic: (folder: Folder) => {
    const { stdout } = spawnSync("openssl", ["passwd", "-apr1", USER.password], { encoding: "utf8" });
    return `auth_param basic program ${HELPERS}/basic_ncsa_auth ${folder.write("basic", `${USER.name}:${stdout}`)}`;
  },
  digest: (folder: Folder) => {
    const hash = createHash("md5").update(`${USER.name}:${REALM}:${USER.password}`).digest("hex");
    const file = folder.write("digest", `${USER.name}:${REALM}:${hash}\n`);
    return `auth_param digest program ${HELPERS}/digest_file_auth -c ${file}\nauth_param digest realm ${REALM}`;
  },
  ntlm: () => `auth_param ntlm program ${HELPERS}/ntlm_fake_auth`,
};

/** Squid on a free port of loopback; `await using` ends it. */
export class Squid implements AsyncDisposable {
  private constructor(readonly folder: Folder, readonly address: string, readonly program: Program) {}

  /**
   * @param schemes what it asks for; without any, it lets everybody through
   * @param names those that it resolves to 127.0.0.1
   */
  static async start(schemes: readonly (keyof typeof SCHEMES)[] = [], names: readonly string[] = []): Promise<Squid> {
    const folder = new Folder();
    const address = await freeAddress();
    const hosts = folder.write("hosts", names.map((name) => `127.0.0.1 ${name}\n`).join(""));
    const parameters = schemes.map((scheme) => SCHEMES[scheme](folder));
    const configuration = folder.write(
      "squid.conf",
      `http_port ${address}
      ${parameters.join("\n")}
      ${schemes.length > 0 ? "acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all" : "http_access allow all"}
      hosts_file ${hosts}
      pid_filename none
      cache deny all
      cache_log /dev/null
      access_log none
      netdb_filename none
      pinger_enable off
      shutdown_lifetime 0 seconds
      visible_hostname squid.test`.replaceAll(/^ +/gm, ""),
    );
    // started by root, it becomes another user
    chmodSync(folder.path, 0o755);
    for (const file of [hosts, ...parameters.map((text) => / (\/\S+\/(?:basic|digest))$/m.exec(text)?.[1])]) {
      if (file) chmodSync(file, 0o644);
    }
    const program = new Program("/usr/sbin/squid", ["-N", "-d", "1", "-f", configuration]);
    await program.waitForText("Accepting HTTP Socket connections");
    return new Squid(folder, address, program);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program.stop();
    this.folder[Symbol.dispose]();
  }
}

/** microsocks on a free port of loopback, which asks for the user's password; `await using` ends it. */
export class Microsocks implements AsyncDisposable {
  private constructor(readonly address: string, readonly program: Program) {}

  static async start(): Promise<Microsocks> {
    const address = await freeAddress();
    const { hostname, port } = new URL(`tcp://${address}`);
    const program = new Program("/usr/bin/microsocks", ["-i", hostname, "-p", port, "-u", USER.name, "-P", USER.password]);
    return new Microsocks(address, program);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program.stop();
  }
}
