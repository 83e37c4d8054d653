#!/usr/bin/env bash
# https-proxy-agent hands a proxy's refusal to the program as the response of the https:// server.
#
# Versions: https-proxy-agent 7.0.6, hpagent 1.2.0, tunnel 0.0.6 (Node.js 20).
# Behaviour: the proxy refuses a CONNECT with 503. `https.get` with hpagent or tunnel fails with an error that names the status. With
#   https-proxy-agent it succeeds: the program gets a response with status 503, the proxy's header fields and its body, as though the
#   server had sent them, although no TLS connection was made at all.
# Output seen: "https-proxy-agent: response 503, body: the proxy is busy", "hpagent: error, Bad response: 503",
#   "tunnel: error, tunneling socket could not be established, statusCode=503".
# Why users care: a monitor or a retry policy blames the server for what the proxy said. Only the header fields tell them apart, so a proxy
#   should name itself in every refusal (Proxy-Status, RFC 9209).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund https-proxy-agent@7.0.6 hpagent@1.2.0 tunnel@0.0.6

cat > run.mjs <<'JS'
import { createServer } from "node:http";
import https from "node:https";
import { HttpsProxyAgent } from "https-proxy-agent";
import hpagent from "hpagent";
import tunnel from "tunnel";

const proxy = createServer();
proxy.on("connect", (_request, socket) => {
  socket.on("error", () => {});
  const body = "the proxy is busy";
  socket.end(`HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
});
await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
const { port } = proxy.address();
const url = `http://127.0.0.1:${port}`;
const agents = {
  "https-proxy-agent": new HttpsProxyAgent(url),
  hpagent: new hpagent.HttpsProxyAgent({ proxy: url }),
  tunnel: tunnel.httpsOverHttp({ proxy: { host: "127.0.0.1", port } }),
};
for (const [name, agent] of Object.entries(agents)) {
  console.log(`${name}: ${await new Promise((resolve) => {
    https.get("https://service.example/", { agent }, async (response) => {
      let body = "";
      for await (const chunk of response) body += chunk;
      resolve(`response ${response.statusCode}, body: ${body}`);
    }).on("error", (error) => resolve(`error, ${error.message}`));
  })}`);
}
proxy.close();
JS
cat > expected <<'TEXT'
https-proxy-agent: response 503, body: the proxy is busy
hpagent: error, Bad response: 503
tunnel: error, tunneling socket could not be established, statusCode=503
TEXT
timeout 60 node run.mjs | tee seen
diff expected seen || { echo "CHANGED"; exit 1; }
