"""Sends bytes through a tunnel of an https:// proxy, and closes the connection without a close_notify, as programs do that just exit."""
import socket, ssl, sys

port, ca, authority, authorization, size = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
wrapped = ssl.create_default_context(cafile=ca).wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
wrapped.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n\r\n".encode())
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += wrapped.recv(1)
assert head.startswith(b"HTTP/1.1 200 "), head
wrapped.sendall(bytes(size))
wrapped.close()
