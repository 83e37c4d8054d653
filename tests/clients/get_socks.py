"""Gets a page over http through a SOCKS proxy with PySocks, with names resolved by the proxy, and prints it."""
import http.client
import sys
from urllib.parse import urlsplit

import socks

host, port, username, password, url = sys.argv[1:]
parts = urlsplit(url)
connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
connection.sock = socks.socksocket()
connection.sock.settimeout(20)
connection.sock.set_proxy(socks.SOCKS5, host, int(port), True, username, password)
connection.sock.connect((parts.hostname, parts.port))
connection.request("GET", parts.path)
print(connection.getresponse().read().decode(), end="")
