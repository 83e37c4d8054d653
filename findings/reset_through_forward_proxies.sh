#!/usr/bin/env bash
# Four forward proxies end a tunnel cleanly when the destination has reset it.
#
# Versions: pproxy 2.7.9, proxy.py 2.4.10 (Python 3.11), proxy-chain 3.0.1, proxy 4.1.0 (Node.js 20).
# Behaviour: a destination sends 1,000 bytes and then resets its connection (RST), as a crashed or killed server does. RFC 9110 section
#   9.3.6 says that a proxy closes both connections when one side closes; none of the four passes on how it was closed: the client reads
#   1,000 bytes and an ordinary end of the stream. Without the proxy the same read fails with ECONNRESET.
# Output seen: "without a proxy: 1000 bytes, then a reset", and for each proxy "1000 bytes, then a clean end".
# Why users care: protocols whose end is the end of the connection (plain downloads, database dumps, tar over a socket) take a truncated
#   transfer for a complete one behind such a proxy. A checksum or a length in the protocol is needed there.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund proxy-chain@3.0.1 proxy@4.1.0
python3 -m venv python
python/bin/pip install --quiet pproxy==2.7.9 proxy.py==2.4.10

cat > proxy.mjs <<'JS'
const [name, port] = process.argv.slice(2);
if (name === "proxy-chain") {
  const { Server } = await import("proxy-chain");
  await new Server({ host: "127.0.0.1", port: Number(port) }).listen();
} else {
  const { createServer } = await import("node:http");
  const { createProxy } = await import("proxy");
  createProxy(createServer()).listen(Number(port), "127.0.0.1");
}
JS

# A destination that sends some bytes and resets; prints what the client sees. The proxy's port is the argument, 0 for none.
cat > client.py <<'PY'
import socket, struct, sys, threading, time

def answer(listener):
    connection, _ = listener.accept()
    connection.sendall(b"y" * 1000)
    time.sleep(0.5)  # the bytes are through before the reset
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=answer, args=(listener,), daemon=True).start()
port = int(sys.argv[1])
client = socket.create_connection(("127.0.0.1", port or listener.getsockname()[1]))
client.settimeout(10)
if port:
    authority = "127.0.0.1:%d" % listener.getsockname()[1]
    client.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(1) or sys.exit("no tunnel")
count = 0
try:
    while data := client.recv(9999):
        count += len(data)
    print(count, "bytes, then a clean end")
except ConnectionResetError:
    print(count, "bytes, then a reset")
PY

free_port() { python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'; }
status=0
expect() { # NAME, OUTPUT, COMMAND with PORT in it
  local name=$1 expected=$2 port seen
  shift 2
  port=$(free_port)
  "${@//PORT/$port}" > /dev/null 2>&1 &
  server=$!
  for _ in $(seq 100); do (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
  seen=$(python3 client.py "$port" 2>&1)
  kill "$server"
  wait "$server" 2> /dev/null || true
  echo "$name: $seen"
  [ "$seen" = "$expected" ] || { echo "CHANGED: $name was: $expected"; status=1; }
}
seen=$(python3 client.py 0)
echo "without a proxy: $seen"
[ "$seen" = "1000 bytes, then a reset" ] || { echo "CHANGED: without a proxy"; status=1; }
end="1000 bytes, then a clean end"
expect pproxy "$end" python/bin/pproxy -l http://127.0.0.1:PORT
expect proxy.py "$end" python/bin/proxy --hostname 127.0.0.1 --port PORT --num-workers 1
expect proxy-chain "$end" node proxy.mjs proxy-chain PORT
expect proxy "$end" node proxy.mjs proxy PORT
exit $status
