// A proxy that identifies agents and clients itself: users have passwords, and each may use one agent for some destinations.
//   deno run -A examples/proxy.ts [address for agents] [address for clients]
// key.pem and cert.pem in the working directory are its certificate; README.md in this folder makes one.
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
    authenticate: (who) => {
      // an agent that everybody can reach shows more than an id: a client certificate, which is in who.certificate
      if (who.role === "agent") return AGENTS.has(who.credentials) ? who.credentials : undefined;
      const user = who.scheme === "basic" ? USERS.get(who.username) : undefined;
      if (user === undefined || who.scheme !== "basic" || !isSame(user.password, who.password)) return undefined;
      return { agentId: user.agentId, allowList: createAllowList(user.destinations) };
    },
    log: createLogger({ format: "text", level: "info", write: (line) => process.stderr.write(line) }),
  },
);

for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void proxy.drain());
