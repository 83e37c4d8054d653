// A web server for real clients, over HTTP or HTTPS: a page, an echo of request bodies, files, a git repository, a WebSocket.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { join } from "node:path";
import { WebSocketServer } from "ws";

export const PAGE = "<title>page</title>the page of a server that only the agent can reach";

export interface WebOptions {
  /** Served below `/files/`, and as git repositories below `/git/`. */
  folder: string;
  /** Certificate and key for HTTPS. Default: plain HTTP. */
  tls?: { cert: string; key: string };
}

/** Serves on loopback until it is disposed of. */
export class Web implements AsyncDisposable {
  readonly #sockets: WebSocketServer;
  private constructor(readonly server: Server, readonly port: number) {
    this.#sockets = new WebSocketServer({ server });
    this.#sockets.on("connection", (socket) => socket.on("message", (data) => socket.send(`echo ${data}`)));
  }

  static async start({ folder, tls }: WebOptions): Promise<Web> {
    const listener = (request: IncomingMessage, response: ServerResponse) => answer(request, response, folder);
    const server = tls ? createTlsServer(tls, listener) : createServer(listener);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("The web server has no port");
    return new Web(server, address.port);
  }

  get authority(): string {
    return `127.0.0.1:${this.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#sockets.close();
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeAllConnections();
    await closed;
  }
}

function answer(request: IncomingMessage, response: ServerResponse, folder: string): void {
  const { pathname } = new URL(request.url!, "http://web.test");
  if (pathname.startsWith("/git/")) return serveGit(request, response, folder);
  if (pathname.startsWith("/files/")) {
    if (pathname.endsWith(".html")) response.setHeader("Content-Type", "text/html");
    try {
      response.end(readFileSync(join(folder, pathname.slice("/files/".length))));
    } catch {
      response.writeHead(404).end();
    }
    return;
  }
  if (request.method === "POST" || request.method === "PUT") return void request.pipe(response);
  response.setHeader("Content-Type", "text/html");
  response.end(PAGE);
}

/** Serves git's smart HTTP protocol with git's own CGI program. */
function serveGit(request: IncomingMessage, response: ServerResponse, folder: string): void {
  const { pathname, searchParams } = new URL(request.url!, "http://web.test");
  const child = spawn("git", ["http-backend"], {
    env: {
      PATH: "/usr/bin:/bin",
      GIT_PROJECT_ROOT: folder,
      GIT_HTTP_EXPORT_ALL: "1",
      // the user who runs the tests may not own the folder
      GIT_CONFIG_COUNT: "1",
      GIT_CONFIG_KEY_0: "safe.directory",
      GIT_CONFIG_VALUE_0: "*",
      REQUEST_METHOD: request.method!,
      PATH_INFO: pathname.slice("/git".length),
      QUERY_STRING: searchParams.toString(),
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
      HTTP_GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
    },
    stdio: ["pipe", "pipe", "inherit"],
  });
  request.pipe(child.stdin);
  const chunks: Uint8Array[] = [];
  child.stdout.on("data", (chunk: Uint8Array) => chunks.push(chunk));
  child.on("close", () => {
    const output = Buffer.concat(chunks);
    const end = output.indexOf("\r\n\r\n");
    for (const line of output.toString("latin1", 0, end).split("\r\n")) {
      const colon = line.indexOf(":");
      if (/^status:/i.test(line)) response.statusCode = Number(line.slice(colon + 1).trim().slice(0, 3));
      else response.setHeader(line.slice(0, colon), line.slice(colon + 1).trim());
    }
    response.end(output.subarray(end + 4));
  });
}
