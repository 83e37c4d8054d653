// node:http and node:https through tunnels: an agent whose connections openTunnel opens. Libraries that take an agent work with it too.
//   deno run -A examples/http_agent.ts 127.0.0.1:3128 alice 'correct horse' http://127.0.0.1:8080/hello
import { Agent, type ClientRequestArgs, get as getHttp, type IncomingMessage } from "node:http";
import { get as getHttps } from "node:https";
import process from "node:process";
import type { Duplex } from "node:stream";
import { connect as connectTls } from "node:tls";
import { type ClientOptions, openTunnel } from "@reverse-http/reverse-http";

class TunnelAgent extends Agent {
  readonly protocol: string;
  readonly #options: ClientOptions;

  constructor(protocol: "http:" | "https:", options: ClientOptions) {
    super();
    this.protocol = protocol;
    this.#options = options;
  }

  override createConnection({ host, port }: ClientRequestArgs, done: (error: Error | null, stream: Duplex) => void): undefined {
    this.#connect(String(host), Number(port)).then((stream) => done(null, stream), (error) => done(error, undefined!));
  }

  async #connect(host: string, port: number): Promise<Duplex> {
    const stream = await openTunnel({ ...this.#options, destination: host.includes(":") ? `[${host}]:${port}` : `${host}:${port}` });
    return this.protocol === "https:" ? connectTls({ socket: stream, servername: host }) : stream;
  }
}

const [proxy, user, password, url] = process.argv.slice(2);
if (url === undefined) throw new Error("Usage: http_agent.ts PROXY USER PASSWORD URL");
const protocol = new URL(url).protocol === "https:" ? "https:" : "http:";
const agent = new TunnelAgent(protocol, { proxy, agentId: user, token: password });
const show = (response: IncomingMessage) => void response.pipe(process.stdout);
const request = protocol === "https:" ? getHttps(url, { agent }, show) : getHttp(url, { agent }, show);
request.once("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
