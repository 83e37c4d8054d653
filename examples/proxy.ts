// A proxy with custom authentication: users have passwords, and each may reach some destinations through one agent.
//   deno run -A examples/proxy.ts [address for agents] [address for clients]
// key.pem and cert.pem in the working directory are its certificate; README.md in this directory shows how to create one.
import { createHash, timingSafeEqual } from "node:crypto";
import process from "node:process";
import { createAllowList, createLogger, startProxy } from "@reverse-http/reverse-http";

const [agents = "127.0.0.1:4242", clients = "127.0.0.1:3128"] = process.argv.slice(2);

const AGENTS = new Set(["shop"]);
const USERS = new Map([
  ["alice", { password: "correct horse", agentId: "shop", destinations: ["127.0.0.1"] }],
  ["bob", { password: "battery staple", agentId: "shop", destinations: ["*.example:443"] }],
]);

function isSame(a: string, b: string): boolean {
  const hash = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(hash(a), hash(b));
}

const proxy = await startProxy(
  { agentServer: { listenAddress: agents, tls: { file: { key: "key.pem", cert: "cert.pem" } } }, httpProxy: { listenAddress: clients } },
  {
    authenticate: (request) => {
      // in production, verify more than an id: the agent's client certificate is in request.certificate
      if (request.role === "agent") return AGENTS.has(request.credentials) ? request.credentials : undefined;
      const user = request.scheme === "basic" ? USERS.get(request.username) : undefined;
      if (user === undefined || request.scheme !== "basic" || !isSame(user.password, request.password)) return undefined;
      return { agentId: user.agentId, allowList: createAllowList(user.destinations) };
    },
    log: createLogger({ format: "text", level: "info", write: (line) => process.stderr.write(line) }),
  },
);

for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void proxy.drain());
