// The proxy configuration for browsers (PAC) at /proxy.pac: a JavaScript function that tells them which names go through this proxy.
import { Buffer } from "node:buffer";
import { formatAuthority, parseAuthority } from "../../address/authority.ts";
import { splitHostPort } from "../../address/host_port.ts";
import { encodeHead, HeadError, type RequestHead, values } from "../../http/head.ts";
import { ProxyError } from "../../http/status.ts";

/** The contents of the configuration. */
export interface ProxyAutoConfig {
  /** Whether this port takes TLS. */
  readonly tls: boolean;
  /** Port of a listener for SOCKS 5 on the same host. Default: none. */
  readonly socksPort?: number;
  /** Suffix of the names that go through the proxy, in any letter case. Default: all names do. */
  readonly suffix?: string;
}

/** What proxy and lb serve, by their options; `undefined` for nothing. */
export function autoConfigOf({ httpProxy: { pac, agentSuffix, tls }, socks }: AutoConfigOptions): ProxyAutoConfig | undefined {
  if (!pac) return undefined;
  // a browser falls back to it if the port with TLS fails, and anyone in between can make that fail
  const port = tls.enable || socks.listenAddress === undefined ? 0 : splitHostPort(socks.listenAddress).port;
  return { tls: tls.enable, suffix: agentSuffix, socksPort: port || undefined };
}

/** The options of proxy and lb that matter. */
interface AutoConfigOptions {
  readonly httpProxy: { readonly pac: boolean; readonly agentSuffix?: string; readonly tls: { readonly enable: boolean } };
  readonly socks: { readonly listenAddress?: string };
}

const PATH = "/proxy.pac";

/** Whether a request is for the configuration, valid or not. */
export function isForAutoConfig({ target }: RequestHead): boolean {
  return target === PATH || target.startsWith(`${PATH}?`);
}

/**
 * The response with the configuration. It names the proxy as the browser does in `Host`.
 * @throws {ProxyError} 405
 * @throws {HeadError} 400 without a usable `Host`
 */
export function encodeAutoConfig({ method, fields }: RequestHead, config: ProxyAutoConfig): Uint8Array {
  if (method !== "GET" && method !== "HEAD") {
    throw new ProxyError(405, "http_request_denied", `${PATH} is served to GET`, [["Allow", "GET, HEAD"]]);
  }
  const [host, ...more] = values(fields, "host");
  if (host === undefined || more.length > 0) throw new HeadError(400, "The request has no Host, which names the proxy");
  const proxy = parseAuthority(host, config.tls ? 443 : 80);
  const { socksPort: port } = config;
  const socks = port === undefined ? [] : [`SOCKS5 ${formatAuthority({ host: proxy.host, port })}`];
  const body = Buffer.from(formatAutoConfig([`${config.tls ? "HTTPS" : "PROXY"} ${formatAuthority(proxy)}`, ...socks], config.suffix));
  const head = encodeHead("HTTP/1.1 200 OK", [
    ["Content-Type", "application/x-ns-proxy-autoconfig"],
    ["Content-Length", String(body.length)],
    ["Cache-Control", "no-store"],
    ["Connection", "close"],
  ]);
  return method === "HEAD" ? head : Buffer.concat([head, body]);
}

/**
 * The text of a configuration for browsers, which try `proxies` in their order. It decides by the host alone, and ends with DIRECT only for
 * names without the suffix: other ways would look up the agents' names elsewhere.
 * @param proxies such as `HTTPS proxy.example:3128`
 */
function formatAutoConfig(proxies: readonly string[], suffix?: string): string {
  const through = `return ${JSON.stringify(proxies.join("; "))};`;
  const body = suffix === undefined ? [through] : [
    `var name = host.toLowerCase().replace(/\\.$/, "");`,
    `var suffix = ${JSON.stringify(suffix.toLowerCase())};`,
    `if (name.slice(-suffix.length) === suffix) ${through}`,
    `return "DIRECT";`,
  ];
  return `function FindProxyForURL(url, host) {\n${body.map((line) => `  ${line}\n`).join("")}}\n`;
}
