#!/usr/bin/env bash
# pproxy and proxy.py drop a response that comes after the client has half-closed; proxy-chain and proxy deliver it.
#
# Versions: pproxy 2.7.9, proxy.py 2.4.10 (Python 3.11), proxy-chain 3.0.1, proxy 4.1.0 (Node.js 20).
# Behaviour: in a CONNECT tunnel each direction ends separately (TCP half-close). A client sends 100,000 bytes, shuts its sending side down
#   and waits for the result, as `ssh host 'cat > file'`, `nc -N` and many line protocols do. pproxy and proxy.py close both directions
#   when the first one ends, and the result never arrives. The client sees a clean end without data.
# Output seen: "pproxy: nothing", "proxy.py: nothing", "proxy-chain: received 100000", "proxy: received 100000".
# Why users care: an upload through such a proxy in front of a tunnel ends without an error and without a result. Debian's tinyproxy 1.11.1
#   and privoxy 3.0.34 do the same, and are not run here.
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

# A destination that answers with a count once its peer has ended; prints what the client gets.
cat > client.py <<'PY'
import socket, sys, threading, time

def answer(listener):
    connection, _ = listener.accept()
    count = 0
    while data := connection.recv(65536):
        count += len(data)
    time.sleep(0.5)  # the work that the result takes
    try:
        connection.sendall(b"received %d" % count)
    except OSError:
        pass
    connection.close()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=answer, args=(listener,), daemon=True).start()
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.settimeout(10)
authority = "127.0.0.1:%d" % listener.getsockname()[1]
client.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
head = b""
while b"\r\n\r\n" not in head:
    head += client.recv(1) or sys.exit("no tunnel")
client.sendall(b"x" * 100_000)
client.shutdown(socket.SHUT_WR)
result = b""
while data := client.recv(99):
    result += data
print(result.decode() or "nothing")
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
expect pproxy "nothing" python/bin/pproxy -l http://127.0.0.1:PORT
expect proxy.py "nothing" python/bin/proxy --hostname 127.0.0.1 --port PORT --num-workers 1
expect proxy-chain "received 100000" node proxy.mjs proxy-chain PORT
expect proxy "received 100000" node proxy.mjs proxy PORT
exit $status
