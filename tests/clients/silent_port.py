"""A port that answers no connection: its queue is full. Prints it, and holds it until standard input ends."""
import socket, sys

listener = socket.create_server(("127.0.0.1", 0), backlog=0)
waiting = []
for _ in range(8):
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
    waiting.append(client)
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
