// nginx as a load balancer for UDP and TCP, and as an HTTP server for WebSockets, in front of several servers. Needs Debian's nginx and
// libnginx-mod-stream.
import { existsSync } from "node:fs";
import { Folder, Program } from "./programs.ts";
import { freePort } from "./store_servers.ts";

export const NGINX = "/usr/sbin/nginx";
export const STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so";

/** As in deploy/nginx, which has the reasons. */
const METHOD = { udp: "hash $remote_addr:$remote_port consistent;", tcp: "least_conn;" };
const LISTEN = { udp: "udp reuseport", tcp: "so_keepalive=60s:10s:6; proxy_half_close on" };
const TIMEOUT = { udp: "30s", tcp: "24h" };

/** An address in front of several servers. */
export interface Balanced {
  readonly transport: "udp" | "tcp";
  /** `host:port` of each server. */
  readonly servers: readonly string[];
  /** Time without a byte after which it closes a connection, in nginx's notation. Default as in deploy/nginx. */
  readonly timeout?: string;
  /** More directives: `proxy_protocol on;`. */
  readonly directives?: string;
}

/** Distributes connections over servers in turn; `await using` ends it. */
export class Nginx implements AsyncDisposable {
  private constructor(readonly program: Program, readonly folder: Folder, readonly addresses: readonly string[]) {}

  /** Listens on a free loopback port for each address; see {@link addresses}. */
  static async start(balanced: readonly Balanced[]): Promise<Nginx> {
    const folder = new Folder();
    const addresses = await Promise.all(balanced.map(() => freeAddress()));
    const blocks = balanced.map(({ transport, servers, timeout = TIMEOUT[transport], directives = "" }, i) => `
      upstream servers${i} { ${METHOD[transport]} ${servers.map((server) => `server ${server} max_fails=0;`).join(" ")} }
      server { listen ${addresses[i]} ${LISTEN[transport]}; proxy_timeout ${timeout}; proxy_pass servers${i}; ${directives} }`);
    const configuration = folder.write(
      "nginx.conf",
      `${existsSync(STREAM_MODULE) ? `load_module ${STREAM_MODULE};` : ""}
      daemon off; pid ${folder.path}/nginx.pid; error_log stderr notice; worker_processes 1;
      events { worker_connections 4096; }
      stream { ${blocks.join("\n")} }`,
    );
    const program = new Program(NGINX, ["-e", "stderr", "-p", folder.path, "-c", configuration]);
    await program.waitForText("start worker process ");
    return new Nginx(program, folder, addresses);
  }

  /** Reloads its configuration: a new worker takes over, and the old one ends with its last connection. */
  reload(): void {
    this.program.signal("SIGHUP");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program.stop(); // SIGKILL would leave its worker behind
    this.folder[Symbol.dispose]();
  }
}

export interface HttpOptions {
  /** `host:port` of each server, which speaks plain HTTP. */
  readonly servers: readonly string[];
  readonly path: string;
  /** Files of a certificate and its key. Default: plain HTTP. */
  readonly tls?: { readonly cert: string; readonly key: string };
}

/** An HTTP server; `await using` ends it. */
export class NginxHttp implements AsyncDisposable {
  private constructor(readonly program: Program, readonly folder: Folder, readonly address: string) {}

  /** Passes WebSockets on, as docs/restricted-networks.md has it, with 192.0.2.7 as the client's address. */
  static async start({ servers, path, tls }: HttpOptions): Promise<NginxHttp> {
    return await NginxHttp.#start((address) => `
      upstream servers { ${servers.map((server) => `server ${server} max_fails=0;`).join(" ")} }
      server {
        listen ${address}${tls ? " ssl" : ""};
        ${tls ? `ssl_certificate ${tls.cert}; ssl_certificate_key ${tls.key};` : ""}
        location = ${path} {
          proxy_pass http://servers;
          proxy_http_version 1.1;
          proxy_set_header Upgrade $http_upgrade;
          proxy_set_header Connection "upgrade";
          proxy_set_header Forwarded "for=192.0.2.7";
          proxy_read_timeout 10s;
        }
      }`);
  }

  /**
   * A web site over TLS, whose page is the server name that the client asked for, and a word.
   * @param tls files of a certificate and its key
   * @param word a variable of nginx, such as $remote_addr
   * @param listen parameters of its listener, besides `ssl`
   */
  static async startSite(tls: { readonly cert: string; readonly key: string }, word: string, listen = ""): Promise<NginxHttp> {
    return await NginxHttp.#start((address) => `
      server {
        listen ${address} ssl ${listen};
        ssl_certificate ${tls.cert}; ssl_certificate_key ${tls.key};
        location / { return 200 "$ssl_server_name ${word}"; }
      }`);
  }

  /** A web site without TLS, whose page is `text`, which may have variables of nginx. */
  static async startPage(text: string): Promise<NginxHttp> {
    return await NginxHttp.#start((address) => `server { listen ${address}; location / { return 200 "${text}"; } }`);
  }

  /** @param blocks the blocks of the configuration for a listener at `address` */
  static async #start(blocks: (address: string) => string): Promise<NginxHttp> {
    const folder = new Folder();
    const address = await freeAddress();
    const configuration = folder.write(
      "nginx.conf",
      `daemon off; pid ${folder.path}/nginx.pid; error_log stderr notice; worker_processes 1;
      events { worker_connections 1024; }
      http {
        access_log off;
        ${["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder.path}/${name};`).join(" ")}
        ${blocks(address)}
      }`,
    );
    const program = new Program(NGINX, ["-e", "stderr", "-p", folder.path, "-c", configuration]);
    await program.waitForText("start worker process ");
    return new NginxHttp(program, folder, address);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program.stop(); // SIGKILL would leave its worker behind
    this.folder[Symbol.dispose]();
  }
}

/** An address whose port is free over TCP and UDP, and stays free while programs restart. */
export async function freeAddress(): Promise<string> {
  return `127.0.0.1:${await freePort()}`;
}
