// A program that listens on loopback only and is reachable through a proxy: it embeds an agent that connects to nothing else.
//   deno run -A examples/agent.ts [address of the proxy] [port to serve on]
// cert.pem in the working directory is the certificate of the proxy or its authority.
import { createServer } from "node:http";
import process from "node:process";
import { createLogger, startAgent } from "@reverse-http/reverse-http";

const [proxy = "127.0.0.1:4242", port = "8080"] = process.argv.slice(2);

const server = createServer((request, response) => response.end(`You asked for ${request.url}\n`));
await new Promise<void>((resolve) => server.listen(Number(port), "127.0.0.1", resolve));

const agent = await startAgent(
  {
    agentClient: { serverAddress: [proxy], hostWhitelist: [`127.0.0.1:${port}`], tls: { file: { rootCa: "cert.pem" } } },
    auth: { noauth: { agentId: "shop" } },
  },
  { log: createLogger({ format: "text", level: "info", write: (line) => process.stderr.write(line) }) },
);

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, async () => {
    await agent.drain(); // lets running requests finish
    server.close();
  });
}
