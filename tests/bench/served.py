"""A server in a process of its own, and a client that costs little beside it: one thread, one poll, raw bytes."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENT = b"data: {"
LIMIT_S = 600


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is ready; processor times are those since it began, in seconds."""

    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """Of all threads."""
        return _cpu_s(Path(f"/proc/{self.pid}/stat"))

    @property
    def loop_s(self) -> float:
        """Of the thread with the event loop."""
        return _cpu_s(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))

    def metrics(self) -> dict[str, float]:
        """The figures at /metrics that have no labels but the model's."""
        text = self.get("/metrics").decode()
        return {name: float(value) for name, value in re.findall(r"^\w+:(\w+)\{model_name=\S+\} (\S+)$", text, re.M)}

    def get(self, path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.read().partition(b"\r\n\r\n")[2]


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    """`dashinfer-lite serve` with these options, on a port of its own."""
    command = [sys.executable, "-P", "-m", "dashinfer_lite.cli", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as server:
        try:
            assert server.stdout is not None
            ports = (re.search(r"API +http://\S+:(\d+)/v1", line) for line in server.stdout)
            port = next((int(found[1]) for found in ports if found), None)
            if port is None:
                raise SystemExit("the server did not start")
            yield Served(port, server.pid)
        finally:
            server.send_signal(signal.SIGTERM)


@dataclass(slots=True)
class Visit:
    """A POST request whose answer is streamed: when it is to go out, and what came back when, in seconds."""

    body: dict[str, Any]
    begin: float = 0.0
    status: int = 0
    events: int = 0
    first: float | None = None
    end: float | None = None
    tail: bytes = b""
    connection: socket.socket = field(default_factory=socket.socket)

    @property
    def is_complete(self) -> bool:
        return self.status == 200 and b"data: [DONE]\n\n" in self.tail

    def take(self, data: bytes, now: float) -> None:
        """Count the events in what came; the cut may be anywhere."""
        if not self.status and data.startswith(b"HTTP/1.1 "):
            self.status = int(data[9:12])
        new = (self.tail[-len(EVENT) + 1 :] + data).count(EVENT)
        if new and self.first is None:
            self.first = now
        self.events += new
        self.tail = (self.tail + data)[-64:]


def visit(port: int, visits: Sequence[Visit], path: str = "/v1/completions") -> float:
    """Send all requests at their times and read all answers; seconds until the last one has ended."""
    poll, zero = selectors.DefaultSelector(), time.perf_counter()
    waiting, under_way = sorted(visits, key=lambda one: -one.begin), 0
    while waiting or under_way:
        now = time.perf_counter() - zero
        if now > LIMIT_S:
            raise SystemExit(f"{under_way} answers did not end")
        while waiting and waiting[-1].begin <= now:
            one = waiting.pop()
            one.connection.connect(("127.0.0.1", port))
            one.connection.sendall(_message(path, one.body))
            poll.register(one.connection, selectors.EVENT_READ, one)
            under_way += 1
        for key, _ in poll.select(max(0.0, waiting[-1].begin - now) if waiting else 1.0):
            one = key.data
            data = one.connection.recv(1 << 16)
            now = time.perf_counter() - zero
            if data:
                one.take(data, now)
                continue
            one.end = now
            poll.unregister(one.connection)
            one.connection.close()
            under_way -= 1
    return time.perf_counter() - zero


def _message(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + data


def _cpu_s(stat: Path) -> float:
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
