#!/usr/bin/env bash
# A 1xx response before the 200 to a CONNECT ends the tunnel in four of six clients.
#
# Versions: https-proxy-agent 7.0.6, @grpc/grpc-js 1.14.4 (Node.js 20), httpx 0.28.1, requests 2.34.2, websocket-client 1.9.2,
#   aiohttp 3.14.5 (Python 3.11).
# Behaviour: RFC 9110 section 15.2 requires clients to parse any number of 1xx responses before the final one. A proxy that sends
#   `103 Early Hints` (or 102, to show that it is still dialling) and then `200` loses https-proxy-agent, grpc-js, requests (urllib3 over
#   http.client) and websocket-client: they take the interim response for the final one. httpx and aiohttp go on to the 200. curl 7.88
#   gives up as well ("CONNECT tunnel failed, response 103"), and is not run here.
# Output seen: "httpx: tunnel" and "aiohttp: tunnel", every other line "<client>: no tunnel". Without the 103 all six use the tunnel.
# Why users care: a proxy in front of, or behind, another one must never pass on or make up an interim response to CONNECT, however long
#   the dial takes, and a gateway that adds Early Hints breaks CONNECT for these programs only.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${proxy:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund https-proxy-agent@7.0.6 @grpc/grpc-js@1.14.4
python3 -m venv python
python/bin/pip install --quiet httpx==0.28.1 requests==2.34.2 websocket-client==1.9.2 aiohttp==3.14.5

# A proxy that answers 103, then 200, and counts the connections on which anything follows: that is a tunnel in use.
cat > proxy.py << 'PY'
import asyncio, os

async def serve(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        if os.path.exists("interim"):
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)  # a segment of its own
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        if await reader.read(1):
            with open("used", "a") as used:
                used.write("x")
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with open("port", "w") as port:
        port.write(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()

asyncio.run(main())
PY
python3 proxy.py &
proxy=$!
for _ in $(seq 50); do [ -s port ] && break; sleep 0.1; done
PROXY="http://127.0.0.1:$(cat port)"
export PROXY

status=0
run() { # COMMAND...
  rm -f used
  timeout 20 "$@" > /dev/null 2>&1 || true
  sleep 0.2
  if [ -s used ]; then echo tunnel; else echo "no tunnel"; fi
}
expect() { # NAME, tunnel|no tunnel, COMMAND...
  local name=$1 expected=$2 seen without
  shift 2
  touch interim
  seen=$(run "$@")
  rm interim
  without=$(run "$@")
  echo "$name: $seen (without the 103: $without)"
  [ "$seen, $without" = "$expected, tunnel" ] || { echo "CHANGED: $name was: $expected"; status=1; }
}

expect https-proxy-agent "no tunnel" node --input-type=module -e '
  import https from "node:https"; import { HttpsProxyAgent } from "https-proxy-agent";
  https.get("https://service.example/", { agent: new HttpsProxyAgent(process.env.PROXY) }).on("error", () => {});'
expect grpc-js "no tunnel" env grpc_proxy="$PROXY" node -e '
  const grpc = require("@grpc/grpc-js");
  const client = new grpc.Client("service.example:443", grpc.credentials.createSsl());
  client.waitForReady(Date.now() + 3000, () => client.close());'
expect httpx "tunnel" python/bin/python -c 'import os, httpx; httpx.get("https://service.example/", proxy=os.environ["PROXY"])'
expect requests "no tunnel" python/bin/python -c 'import os, requests; requests.get("https://service.example/", proxies={"https": os.environ["PROXY"]})'
expect websocket-client "no tunnel" env http_proxy="$PROXY" python/bin/python -c 'import websocket; websocket.create_connection("ws://service.example/", timeout=3)'
expect aiohttp "tunnel" python/bin/python -c '
import aiohttp, asyncio, os
async def main():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(3)) as session:
        await session.get("https://service.example/", proxy=os.environ["PROXY"])
asyncio.run(main())'
exit $status
