# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load generator: one scenario per process, a JSON object in (argument), a JSON object out (standard output).

Requests are built once; connections are raw sockets on one epoll, and TLS is done by OpenSSL on the socket itself, not
through memory buffers: about 20 us of one core per request. How far it was from being the limit is told by the runner,
which compares with the same load sent straight to the origin.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Generator
from typing import Any

from measure import cpu_seconds, pss_mib

MARK = b"END\n"  # the last bytes of the 1 KiB file
# A proxy that searches an answer for secrets cannot know its length before, so it may come in chunks.
ENDS = (MARK, MARK + b"\r\n0\r\n\r\n")
SECONDS_EACH = 20.0
CHUNK = 1 << 20
NOTHING = memoryview(bytes(CHUNK))
WAITING = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class LoadError(Exception):
    """A round that failed; one sentence."""


class Target:
    """Where the load goes: ``host``:``port``, over ``tls`` or not, through ``proxy`` (None: straight to ``address``)."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.host, self.port, self.tls = task["host"], task["port"], task["tls"]
        self.proxy = tuple(task["proxy"]) if task["proxy"] else None
        self.connect_to = self.proxy or (task["address"], self.port)
        self.authority = f"{self.host}:{self.port}"
        self.tunnel = self.proxy is not None and (self.tls or task.get("tunnel", False))
        self.connect_head = f"CONNECT {self.authority} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode()
        # The chain is checked once per suite (see run.py); here it would be the client's cost and nobody else's.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def request(self, method: str, path: str, *fields: str) -> bytes:
        absolute = self.proxy is not None and not self.tunnel
        target = f"http://{self.authority}{path}" if absolute else path
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.authority}", "User-Agent: bench", "Accept: */*", *fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def connect(self, alpn: list[str] | None = None) -> socket.socket:
        """A connection that is ready for a request; blocking."""
        sock = socket.create_connection(self.connect_to, SECONDS_EACH)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tunnel:
            sock.sendall(self.connect_head)
            answer = b""
            while b"\r\n\r\n" not in answer:
                piece = sock.recv(1 if answer else 12)
                if not piece:
                    raise LoadError("the proxy closed instead of answering the CONNECT")
                answer += piece
            if b" 200" not in answer[:12]:
                raise LoadError(f"CONNECT was answered with {first_line(answer)!r}")
        if self.tls:
            if alpn:
                self.context.set_alpn_protocols(alpn)
            sock = self.context.wrap_socket(sock, server_hostname=self.host)
        return sock


def first_line(answer: bytes) -> str:
    """As much of the first line of *answer* as a message needs."""
    return answer[:40].partition(b"\r\n")[0].decode("latin-1")


def percentile(values: list[float], part: float) -> float:
    """The value below which *part* (0..1) of *values* lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def summary(done: int, seconds: float, delays: list[float], cpu: float, own: float) -> dict[str, Any]:
    return {
        "per_second": done / seconds,
        "done": done,
        "p50_ms": percentile(delays, 0.5) * 1e3,
        "p99_ms": percentile(delays, 0.99) * 1e3,
        "cpu_us": cpu / max(done, 1) * 1e6,
        "load_cpu_share": own / seconds,
    }


def complete(data: bytes) -> bool:
    """Whether *data* is the whole of the one answer that is expected. Raises :class:`LoadError` for another one."""
    if not data.startswith(b"HTTP/1.1 200 "):
        raise LoadError(f"answered with {data[:60]!r}")
    return data.endswith(ENDS)


def keep_alive(task: dict[str, Any]) -> dict[str, Any]:
    """Requests per second over kept connections, one request under way on each."""
    target = Target(task)
    request = target.request("GET", task["path"])
    poll = select.epoll()
    connections: dict[int, socket.socket] = {}
    for _ in range(task["connections"]):
        sock = target.connect()
        sock.setblocking(False)
        connections[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    clock = time.perf_counter
    partial = dict.fromkeys(connections, b"")
    sent = dict.fromkeys(connections, clock())
    delays: list[float] = []
    begin, end = clock() + task["warm_up"], None
    unserved = set(connections)  # a first answer may cost the proxy a connection to the origin: it is no part of this
    cpu, own = 0.0, 0.0
    for sock in connections.values():
        sock.send(request)
    last = clock()
    while end is None or clock() < end:
        now = clock()
        if end is None and not unserved and now >= begin:
            cpu, own = cpu_seconds(task["pids"]), time.process_time()
            delays.clear()
            begin, end = now, now + task["seconds"]
        ready = poll.poll(1.0)
        if ready:
            last = now
        elif now - last > SECONDS_EACH:
            raise LoadError("no answer came")
        for number, _ in ready:
            try:
                data = connections[number].recv(65536)
            except WAITING:
                continue
            if not data:
                raise LoadError("a kept connection was closed")
            if partial[number]:
                data = partial[number] + data
            if complete(data):
                partial[number] = b""
                now = clock()
                delays.append(now - sent[number])
                unserved.discard(number)
                sent[number] = now
                connections[number].send(request)
            else:
                partial[number] = data
    seconds = clock() - begin
    return summary(len(delays), seconds, delays, cpu_seconds(task["pids"]) - cpu, time.process_time() - own)


def one_fresh(target: Target, request: bytes) -> Generator[tuple[int, int], None, None]:
    """One connection from SYN to the answer's last byte; yields (descriptor, epoll events) where it must wait."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.connect_ex(target.connect_to)
        yield sock.fileno(), select.EPOLLOUT
        if target.tunnel:
            sock.send(target.connect_head)
            answer = b""
            while b"\r\n\r\n" not in answer:
                yield sock.fileno(), select.EPOLLIN
                piece = sock.recv(4096)
                answer += piece
                if not piece or b" 200" not in answer[:12]:
                    raise LoadError(f"CONNECT was answered with {first_line(answer)!r}")
        sock = target.context.wrap_socket(sock, server_hostname=target.host, do_handshake_on_connect=False)
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield sock.fileno(), select.EPOLLIN
        sock.send(request)
        data = b""
        while not data or not complete(data):
            yield sock.fileno(), select.EPOLLIN
            try:
                piece = sock.recv(65536)
            except WAITING:
                continue
            if not piece:
                raise LoadError("the connection was closed before the answer")
            data += piece
    finally:
        sock.close()


def fresh(task: dict[str, Any]) -> dict[str, Any]:
    """New connections per second: TCP, CONNECT, TLS, one request, closed."""
    target = Target(task)
    request = target.request("GET", task["path"], "Connection: close")
    poll = select.epoll()
    running: dict[int, tuple[Generator[tuple[int, int], None, None], float]] = {}
    clock = time.perf_counter
    delays: list[float] = []
    begin, own, cpu = clock(), time.process_time(), cpu_seconds(task["pids"])
    end = begin + task["seconds"]

    def advance(one: Generator[tuple[int, int], None, None], started: float) -> None:
        while True:
            step = next(one, None)
            if step is not None:
                poll.register(step[0], step[1] | select.EPOLLONESHOT)
                running[step[0]] = (one, started)
                return
            delays.append(clock() - started)
            if clock() >= end:
                return
            one, started = one_fresh(target, request), clock()

    for _ in range(task["connections"]):
        advance(one_fresh(target, request), clock())
    while running:
        ready = poll.poll(SECONDS_EACH)
        if not ready:
            raise LoadError("no answer came")
        for number, _ in ready:
            poll.unregister(number)
            advance(*running.pop(number))
    seconds = clock() - begin
    return summary(len(delays), seconds, delays, cpu_seconds(task["pids"]) - cpu, time.process_time() - own)


def read_head(sock: socket.socket) -> tuple[dict[str, str], bytes]:
    """(fields, what of the body came with it) of a 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise LoadError("the connection was closed before an answer")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if lines[0].split(" ")[1] not in ("200", "101"):
        raise LoadError(f"answered with {lines[0]!r}")
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}, rest


def bulk(task: dict[str, Any]) -> dict[str, Any]:
    """MiB/s of one download (``path``) or, with ``upload``, of one request body; ``times`` in a row."""
    target = Target(task)
    size, times = task["bytes"], task.get("times", 1)
    buffer = bytearray(CHUNK)
    peak = 0.0
    begin = time.perf_counter()
    cpu, own = cpu_seconds(task["pids"]), time.process_time()
    for _ in range(times):
        sock = target.connect()
        if task["upload"]:
            sock.sendall(target.request("POST", task["path"], f"Content-Length: {size}"))
            for start in range(0, size, CHUNK):
                sock.sendall(NOTHING[: min(CHUNK, size - start)])
            fields, rest = read_head(sock)
            if int(rest or sock.recv(64)) != size:
                raise LoadError("the origin did not get all of the upload")
        else:
            sock.sendall(target.request("GET", task["path"]))
            fields, rest = read_head(sock)
            # a proxy that streams may say "chunked" instead: then the framing is in what is counted
            total = int(fields["content-length"]) if "content-length" in fields else size
            got, turns = len(rest), 0
            while got < total:
                count = sock.recv_into(buffer)
                if not count:
                    raise LoadError(f"the download stopped after {got} of {total} bytes")
                got += count
                turns += 1
                if task.get("memory") and turns % 4096 == 0:
                    peak = max(peak, pss_mib(task["pids"]))
            if total < size:
                raise LoadError("the download was too short")
        sock.close()
    seconds = time.perf_counter() - begin
    used = cpu_seconds(task["pids"]) - cpu
    gib = size * times / (1 << 30)
    answer = {"mib_per_second": size * times / (1 << 20) / seconds, "cpu_s_per_gib": used / gib}
    return {**answer, "load_cpu_share": (time.process_time() - own) / seconds, "peak_pss_mib": peak}


def sse(task: dict[str, Any]) -> dict[str, Any]:
    """Delay of each server-sent event, from the origin's clock reading (CLOCK_MONOTONIC, in the event) to its arrival."""
    target = Target(task)
    sock = target.connect()
    sock.sendall(target.request("GET", f"{task['path']}?count={task['events']}", "Accept: text/event-stream"))
    fields, rest = read_head(sock)
    del fields
    data, delays = rest, []
    while len(delays) < task["events"]:
        while b"\n\n" in data:
            event, _, data = data.partition(b"\n\n")
            delays.append(time.monotonic() - float(event[event.index(b"data: ") + 6 :]))
        if len(delays) < task["events"]:
            piece = sock.recv(65536)
            if not piece:
                raise LoadError("the event stream stopped")
            data += piece
    # the first events come with the head, while both sides are still being set up
    return {"p50_ms": percentile(delays[5:], 0.5) * 1e3, "p99_ms": percentile(delays[5:], 0.99) * 1e3}


def hold(task: dict[str, Any]) -> dict[str, Any]:
    """Open ``connections`` that stay: one request each, a bare tunnel, or a WebSocket; PSS with all of them open."""
    target = Target(task)
    held = []
    for _ in range(task["connections"]):
        sock = target.connect()
        if task["kind"] == "websocket":
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            sock.sendall(target.request("GET", task["path"], *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
            read_head(sock)
        elif task["kind"] == "request":
            sock.sendall(target.request("GET", task["path"]))
            data = b""
            while not data or not complete(data):
                data += sock.recv(65536)
        held.append(sock)
    time.sleep(task["settle"])  # what is measured is the state of rest, which nothing announces
    cpu, begin = cpu_seconds(task["pids"]), time.perf_counter()
    time.sleep(task["settle"])
    idle = (cpu_seconds(task["pids"]) - cpu) / (time.perf_counter() - begin)
    return {"pss_mib": pss_mib(task["pids"]), "connections": len(held), "idle_cpu_share": idle}


def overflow(task: dict[str, Any]) -> dict[str, Any]:
    """Open connections until one more is not served; how many were, and what the next one sees."""
    target, held = Target(task), []
    for _ in range(task["connections"]):
        try:
            held.append(target.connect())
        except (LoadError, OSError) as error:
            return {"served": len(held), "then": f"{type(error).__name__}: {error}"}
    return {"served": len(held), "then": ""}


class Calls:
    """One HTTP/2 connection of the load. ``streams`` unary calls in the frames of gRPC are under way on it.

    Its frames are made once and what comes is read by frame headers (RFC 9113, 4.1) and hpack alone: the state machines of
    the h2 library took longer for a call than the proxy that was to be measured.
    """

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
    ACK = END_STREAM = 1
    END_HEADERS = 4
    MESSAGE = b"\0\0\0\0\x10" + b"x" * 16

    def __init__(self, target: Target, path: str) -> None:
        import hpack

        sock = target.connect(["h2"])
        if not isinstance(sock, ssl.SSLSocket) or sock.selected_alpn_protocol() != "h2":
            raise LoadError("HTTP/2 was not agreed on")
        self.sock = sock
        head = [(":method", "POST"), (":scheme", "https"), (":authority", target.authority), (":path", path),
                ("content-type", "application/grpc"), ("te", "trailers")]  # fmt: skip
        encoder = hpack.Encoder()
        self.first_head, self.head = encoder.encode(head), encoder.encode(head)  # the second is all references
        self.decoder = hpack.Decoder()
        self.received, self.window, self.next_stream = b"", 65_535, 1
        self.under_way: dict[int, float] = {}  # stream → when its call was made
        self.delays: list[float] = []
        self.to_send = [
            self.PREFACE,
            self.frame(self.SETTINGS, 0, 0),
            self.frame(self.WINDOW_UPDATE, 0, 0, (0x7FFF_FFFF - 65_535).to_bytes(4, "big")),
        ]

    @staticmethod
    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload

    def call(self) -> None:
        """Puts one call among what is to be sent."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        head = self.head if stream > 1 else self.first_head
        self.window -= len(self.MESSAGE)
        if self.window < 0:
            raise LoadError("the other side reads calls and does not open its window")
        self.under_way[stream] = time.perf_counter()
        self.to_send += (
            self.frame(self.HEADERS, self.END_HEADERS, stream, head),
            self.frame(self.DATA, self.END_STREAM, stream, self.MESSAGE),
        )

    def send(self) -> None:
        if self.to_send:
            self.sock.sendall(b"".join(self.to_send))
            self.to_send.clear()

    def receive(self) -> int:
        """Reads what is there; how many calls ended by it. Raises :class:`LoadError` for an answer that is not as it should be."""
        piece = self.sock.recv(65_536)
        if not piece:
            raise LoadError("the HTTP/2 connection ended")
        data, start, ended = self.received + piece, 0, 0
        while len(data) - start >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data, start)
            end = start + 9 + (high << 8 | low)
            if end > len(data):
                break
            ended += self.take(kind, flags, stream, data[start + 9 : end])
            start = end
        self.received = data[start:]
        return ended

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        """One frame; whether it ended a call."""
        if kind == self.HEADERS:
            if not flags & self.END_HEADERS or flags & ~(self.END_HEADERS | self.END_STREAM):
                raise LoadError("a head came in a way that the load does not read")
            fields = dict(self.decoder.decode(payload))
            if flags & self.END_STREAM:
                if fields.get("grpc-status") != "0":
                    raise LoadError(f"a call was ended by {fields}")
                self.delays.append(time.perf_counter() - self.under_way.pop(stream))
                return True
            if fields.get(":status") != "200":
                raise LoadError(f"a call was answered with {fields}")
        elif kind in (self.RST_STREAM, self.GOAWAY) or (kind == self.DATA and flags & self.END_STREAM):
            raise LoadError(f"a call was ended by a frame of type {kind}")
        elif kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
            self.to_send.append(self.frame(kind, self.ACK, 0, payload if kind == self.PING else b""))
        elif kind == self.WINDOW_UPDATE and not stream:
            self.window += int.from_bytes(payload, "big")
        return False


def h2_calls(task: dict[str, Any]) -> dict[str, Any]:
    """Unary calls per second in the frames of gRPC, with ``streams`` of them under way on each of the connections.

    On one connection the three processes would take turns: each would have all calls or none to do.
    """
    target = Target(task)
    poll = select.epoll()
    connections: dict[int, Calls] = {}
    for _ in range(task["connections"]):
        one = Calls(target, task["path"])
        connections[one.sock.fileno()] = one
        poll.register(one.sock.fileno(), select.EPOLLIN)
    clock = time.perf_counter
    begin, own, cpu = clock(), time.process_time(), cpu_seconds(task["pids"])
    end = begin + task["seconds"]
    for one in connections.values():
        for _ in range(task["streams"]):
            one.call()
        one.send()
    while any(one.under_way for one in connections.values()):
        ready = poll.poll(SECONDS_EACH)
        if not ready:
            raise LoadError("no answer came")
        for number, _ in ready:
            one = connections[number]
            more = one.receive()
            while one.sock.pending():
                more += one.receive()
            if clock() < end:
                for _ in range(more):
                    one.call()
            one.send()
    seconds = clock() - begin
    delays = [delay for one in connections.values() for delay in one.delays]
    return summary(len(delays), seconds, delays, cpu_seconds(task["pids"]) - cpu, time.process_time() - own)


def verify(task: dict[str, Any]) -> dict[str, Any]:
    """With the certificate checked against ``trust``: does the origin get the injected header?

    The origin only says yes or no: a value that it sent back would be taken out of its answer by ours.
    """
    target = Target(task)
    target.context = ssl.create_default_context(cafile=task["trust"])
    with target.connect() as sock:
        sock.sendall(target.request("GET", "/injected", "Connection: close"))
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 403 ")):
        raise LoadError(f"answered with {answer[:60]!r}")
    return {"injected": answer.startswith(b"HTTP/1.1 200 ")}


SCENARIOS = {
    "verify": verify,
    "keep_alive": keep_alive, "fresh": fresh, "bulk": bulk, "sse": sse, "hold": hold, "overflow": overflow,
    "h2_calls": h2_calls,
}  # fmt: skip


def main() -> int:
    task = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {task["core"]})
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # whose limit is found must be the proxy's
    try:
        answer = SCENARIOS[task["scenario"]](task)
    except (LoadError, OSError, ValueError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
