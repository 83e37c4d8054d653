// A function like net.connect whose connections are tunnels, for protocols other than HTTP. Each direction ends on its own, as those of a
// socket: standard input is sent to its end, and the answer printed.
//   printf 'GET / HTTP/1.0\r\n\r\n' | deno run -A examples/connect.ts 127.0.0.1:3128 alice 'correct horse' 127.0.0.1:8080
import process from "node:process";
import { pipeline } from "node:stream/promises";
import { openTunnel, TunnelFailure } from "@reverse-http/reverse-http";

const [proxy, user, password, destination] = process.argv.slice(2);
if (destination === undefined) throw new Error("Usage: connect.ts PROXY USER PASSWORD HOST:PORT");
const connect = (destination: string) => openTunnel({ proxy, agentId: user, token: password, destination });

try {
  const socket = await connect(destination);
  socket.pipe(process.stdout, { end: false });
  await pipeline(process.stdin, socket, { end: true });
} catch (error) {
  console.error(error instanceof TunnelFailure ? `${error.kind}: ${error.message}` : error);
  process.exitCode = 1;
}
