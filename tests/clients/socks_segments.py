"""Opens a SOCKS tunnel to a server that speaks first, and prints in how many segments with data the answers and its greeting have come."""
import socket
import struct
import sys

host, port, agent, to_host, to_port, greeting = sys.argv[1:]
# data_segs_in of struct tcp_info
TCPI_DATA_SEGS_IN = 152

def field(text):
    return bytes([len(text)]) + text.encode()

with socket.create_connection((host, int(port)), timeout=20) as client:
    def expect(answer):
        received = b""
        while len(received) < len(answer):
            received += client.recv(len(answer) - len(received))
        assert received == answer, received

    client.sendall(b"\x05\x01\x02")
    expect(b"\x05\x02")
    client.sendall(b"\x01" + field(agent) + field("x"))
    expect(b"\x01\x00")
    client.sendall(b"\x05\x01\x00\x03" + field(to_host) + struct.pack(">H", int(to_port)))
    # nothing is read before everything has arrived
    everything = 10 + len(greeting)
    while len(client.recv(everything, socket.MSG_PEEK)) < everything:
        pass
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    expect(b"\x05\x00\x00\x01" + bytes(6))
    expect(greeting.encode())
    print(struct.unpack_from("=I", info, TCPI_DATA_SEGS_IN)[0])
