"""Clients that come without end and cost little: one thread, connections that stay, messages encoded beforehand."""

from __future__ import annotations

import json
import random
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TICK_S = 0.002  # so often they look: whoever woke for each packet would take the server's processors from it
IDLE_S = 3.0  # the server closes connections that were idle for longer
STREAM_END = b"\r\n0\r\n\r\n"  # the last chunk
EVENT = b"data: {"


def message(path: str, body: dict[str, Any], stays: bool = True) -> bytes:
    """A POST request; the connection stays open behind it, or not."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + (b"" if stays else b"\r\nConnection: close") + b"\r\n\r\n" + data


@dataclass(slots=True)
class Tally:
    """What happened during a while."""

    cpu_s: float = 0.0  # of the clients
    sent: int = 0
    answered: int = 0
    ttft_s: list[float] = field(default_factory=list)
    refusal_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    connection: socket.socket
    begin: float
    got: bytes = b""
    is_stream: bool = False
    has_event: bool = False


class Crowd:
    """Sends streamed requests to one server; who is refused with 429 stays away, who is let in stays to the end."""

    def __init__(self, port: int, next_message: Callable[[], bytes], stays: bool = True) -> None:
        """`stays`: connections are used again and again, as clients with a pool do; else each request opens one."""
        self._address = ("127.0.0.1", port)
        self._next_message = next_message
        self._stays = stays
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._calls: dict[int, _Call] = {}
        self._poll = select.epoll()
        self._tally = Tally()

    def keep(self, under_way: int, seconds: float) -> Tally:
        """For so long there are always so many requests under way."""
        return self._go(seconds, lambda now: under_way - len(self._calls))

    def come(self, rate: float, seconds: float, seed: int) -> Tally:
        """For so long they come at random, `rate` a second, whatever became of those before."""
        draw, due = random.Random(seed), time.perf_counter()

        def count(now: float) -> int:
            nonlocal due
            came = 0
            while due <= now:
                came += 1
                due += draw.expovariate(rate)
            return came

        return self._go(seconds, count)

    def end(self) -> None:
        """Wait for all answers."""
        while self._calls:
            self._listen()

    def _go(self, seconds: float, count: Callable[[float], int]) -> Tally:
        tally = self._tally = Tally()
        end, cpu_s = time.perf_counter() + seconds, time.process_time()
        while (now := time.perf_counter()) < end:
            for _ in range(count(now)):
                self._send()
            self._listen()
        tally.cpu_s = time.process_time() - cpu_s
        return tally

    def _send(self) -> None:
        begin = time.perf_counter()
        connection = self._connection(begin)
        connection.sendall(self._next_message())
        self._calls[connection.fileno()] = _Call(connection, begin)
        self._tally.sent += 1

    def _connection(self, now: float) -> socket.socket:
        while self._idle:
            connection, since = self._idle.popleft()
            if now - since < IDLE_S:
                return connection
            connection.close()
        connection = socket.create_connection(self._address)
        self._poll.register(connection, select.EPOLLIN)
        return connection

    def _listen(self) -> None:
        """What has come by the next tick."""
        time.sleep(TICK_S)
        now = time.perf_counter()
        for number, _ in self._poll.poll(0):
            if number in self._calls:  # else the server closes a connection that was idle
                self._read(self._calls[number], now)

    def _read(self, call: _Call, now: float) -> None:
        data = call.connection.recv(1 << 18)
        if not data:
            raise SystemExit("an answer broke off")
        call.got += data
        call.is_stream = call.is_stream or call.got.startswith(b"HTTP/1.1 200")
        if not call.is_stream:
            if _is_whole(call.got):
                self._tally.refusal_s.append(now - call.begin)
                self._leave(call, now)
            return
        if not call.has_event and EVENT in call.got:
            call.has_event = True
            self._tally.ttft_s.append(now - call.begin)
        if call.got.endswith(STREAM_END):
            if b"data: [DONE]" not in call.got:
                raise SystemExit("an answer ended with an error")
            self._tally.answered += 1
            self._leave(call, now)
        call.got = call.got[-64:]

    def _leave(self, call: _Call, now: float) -> None:
        del self._calls[call.connection.fileno()]
        if self._stays:
            self._idle.append((call.connection, now))
        else:
            call.connection.close()


def _is_whole(refusal: bytes) -> bool:
    """Whether all of a refusal is there; SystemExit for another answer."""
    head, mark, body = refusal.partition(b"\r\n\r\n")
    if not mark:
        return False
    length = re.search(rb"content-length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 429") or length is None:
        raise SystemExit(refusal.decode(errors="replace"))
    return len(body) == int(length[1])
