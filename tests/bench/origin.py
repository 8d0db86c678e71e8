# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What nginx does not serve: server-sent events and WebSockets, gRPC's frames, an upload sink, the origin's DNS name.

``origin.py CERTIFICATE ADDRESS``: ports as in world.py. Prints "ready" once all of it listens.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
import struct
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import uvloop
from world import EVENTS_PORT, H2_PORT, SINK_PORT

EVENT_SECONDS = 0.005
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """``GET /events?count=N``: N events that carry the clock; an upgrade to WebSocket: silence until the client ends."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = {
            line.split(b":", 1)[0].lower(): line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if b":" in line
        }
        if key := fields.get(b"sec-websocket-key"):
            accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
            writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            await reader.read()
            return
        count = int(head.split(b" ")[1].partition(b"count=")[2])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(count):
            await asyncio.sleep(EVENT_SECONDS)
            writer.write(b"data: %.9f\n\n" % time.monotonic())
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


class Calls(asyncio.Protocol):
    """Answers every request as a unary gRPC call: header, one message, ``grpc-status: 0`` in the trailer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        transport.write(self.h2.data_to_send())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                self.h2.send_data(event.stream_id, b"\0\0\0\0\x10" + b"y" * 16)
                self.h2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        self.transport.write(self.h2.data_to_send())  # type: ignore[attr-defined]


class Names(asyncio.DatagramProtocol):
    """Answers A questions with the one address there is, and other ones with nothing (RFC 1035, 4.1)."""

    def __init__(self, address: str) -> None:
        self.address = socket.inet_aton(address)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        question = data[12:end]
        asked = struct.unpack(">H", question[-4:-2])[0]
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + self.address if asked == 1 else b""
        head = data[:2] + b"\x85\x80\0\1" + (b"\0\1" if answer else b"\0\0") + b"\0\0\0\0"
        self.transport.sendto(head + question + answer, peer)  # type: ignore[attr-defined]


def sink(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Reads each request's body and answers with its length; one blocking thread per connection, OpenSSL on the socket."""

    def serve(raw: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        try:
            with context.wrap_socket(raw, server_side=True) as sock:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                head, _, early = head.partition(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                got = len(early)
                while got < size and (count := sock.recv_into(buffer)):
                    got += count
                body = b"%d" % got
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
                )
        except (OSError, ValueError):
            raw.close()

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


async def main(certificate: str, address: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    h2_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    h2_context.load_cert_chain(certificate)
    h2_context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    await asyncio.start_server(events, address, EVENTS_PORT, ssl=context, backlog=1024)
    await loop.create_server(Calls, address, H2_PORT, ssl=h2_context)
    await loop.create_datagram_endpoint(lambda: Names(address), (address, 53))
    listener = socket.create_server((address, SINK_PORT), backlog=64)
    threading.Thread(target=sink, args=(listener, context), daemon=True).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
