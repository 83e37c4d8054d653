// A client that opens a tunnel with node:http alone: CONNECT first, then requests on the tunnel's socket.
//   node examples/client.ts http://alice:correct%20horse@127.0.0.1:3128 http://127.0.0.1:8080/hello
import { Buffer } from "node:buffer";
import { get, request } from "node:http";
import type { Socket } from "node:net";
import process from "node:process";
import { connect as connectTls } from "node:tls";

/** Opens a tunnel to `target` through `proxy`, whose URL contains the credentials. */
function openTunnel(proxy: URL, target: URL): Promise<Socket> {
  const port = target.port || (target.protocol === "https:" ? "443" : "80");
  const credentials = Buffer.from(`${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`).toString("base64");
  return new Promise((resolve, reject) => {
    const connecting = request({
      host: proxy.hostname,
      port: proxy.port,
      method: "CONNECT",
      path: `${target.hostname}:${port}`,
      headers: { "Proxy-Authorization": `Basic ${credentials}` },
    });
    connecting.once("error", reject);
    connecting.once("connect", (response, socket, head) => {
      if (response.statusCode !== 200) {
        socket.destroy();
        // the reason (RFC 9209)
        return reject(new Error(`${response.statusCode} ${response.headers["proxy-status"]}`));
      }
      if (head.length > 0) socket.unshift(head); // data from a destination that speaks first
      resolve(socket as Socket);
    });
    connecting.end();
  });
}

const [proxy, url] = process.argv.slice(2).map((text) => new URL(text));
if (proxy === undefined || url === undefined) throw new Error("Usage: client.ts http://user:password@proxy:port URL");
try {
  const tunnel = await openTunnel(proxy, url);
  const socket = url.protocol === "https:" ? connectTls({ socket: tunnel, servername: url.hostname }) : tunnel;
  get(url.href, { createConnection: () => socket, headers: { Connection: "close" } }, (response) => {
    response.pipe(process.stdout);
    response.once("end", () => tunnel.destroy());
  });
} catch (error) {
  console.error(`Cannot open a tunnel: ${(error as Error).message}`);
  process.exitCode = 1;
}
