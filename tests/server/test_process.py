"""`dashinfer-lite serve` as a process: ready, drained, aborted, and refusing what cannot be."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import WAIT_S, wait_until

from dashinfer_lite.cli.main import main

SMALL = ("--kv-memory", "24MiB", "--max-context", "512", "--max-batch", "4", "--threads", "1")


class Served:
    """A server in a process of its own."""

    def __init__(self, *options: str) -> None:
        strict = ("-P", "-W", "error::ResourceWarning")  # what is left open is told on the error stream
        command = [sys.executable, *strict, "-m", "dashinfer_lite.cli", "serve", "--port", "0", *SMALL, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.port = 0
        self._connections: list[http.client.HTTPConnection] = []

    def wait_until_ready(self) -> Served:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"API +http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
                return self
        raise AssertionError(self.process.communicate()[1])

    def ask(self, receive_buffer: int | None = None, **fields: Any) -> http.client.HTTPResponse:
        """The beginning of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        if receive_buffer is not None:
            connection.sock = socket.socket()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.sock.connect(("127.0.0.1", self.port))
        self._connections.append(connection)
        body = json.dumps({"prompt": "Long ago", "ignore_eos": True, "stream": True, **fields})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        return connection.getresponse()

    def metric(self, name: str) -> float:
        """A figure at /metrics that has no labels but the model's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            found = re.search(rf":{name}\{{.*\}} (\S+)", connection.getresponse().read().decode())
        assert found is not None
        return float(found[1])

    def wait_until_deaf(self) -> None:
        """Until it takes no connections any more."""

        def is_deaf() -> bool:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                return True
            return False

        wait_until(is_deaf)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for connection in self._connections:
            connection.close()

    def end(self, *signals: int) -> tuple[int, str]:
        """Exit code and what was written to the error stream."""
        for number in signals:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, errors


@pytest.fixture
def served() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(*options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(served: Callable[..., Served], number: int) -> None:
    """During decoding, with another request still in its prefill: both finish, nothing new gets in, exit code 0."""
    server = served().wait_until_ready()
    answer = server.ask(max_tokens=150, stream_options={"include_usage": True})
    answer.readline()
    results: list[bytes] = []

    def ask_late() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may come too late
            results.append(server.ask(prompt="a fox and " * 150, max_tokens=3).read())

    late = threading.Thread(target=ask_late)
    late.start()
    server.process.send_signal(number)
    rest = answer.read().decode()
    assert '"completion_tokens":150' in rest and rest.endswith("data: [DONE]\n\n")
    code, errors = server.end()
    late.join(WAIT_S)
    assert code == 0 and errors == ""
    assert not results or results[0].endswith(b"data: [DONE]\n\n") or b"draining" in results[0]
    server.wait_until_deaf()


def test_a_signal_during_prefill(served: Callable[..., Served]) -> None:
    """A prompt of thousands of tokens is on its way, and nothing has been generated: it is answered, then all ends."""
    server = served("--max-context", "4096", "--kv-memory", "64MiB").wait_until_ready()
    answers: list[bytes] = []
    body: dict[str, Any] = {"prompt": "a fox and a bear went " * 600, "max_tokens": 3, "stream": False}
    asking = threading.Thread(target=lambda: answers.append(server.ask(**body).read()))
    asking.start()
    wait_until(lambda: server.metric("num_requests_running") > 0)
    code, errors = server.end(signal.SIGTERM)
    asking.join(WAIT_S)
    assert (code, errors) == (0, "")
    assert json.loads(answers[0])["usage"]["completion_tokens"] == 3


def test_a_second_signal_aborts(served: Callable[..., Served]) -> None:
    server = served("--max-context", "4096", "--kv-memory", "64MiB").wait_until_ready()
    answers = [server.ask(max_tokens=4000) for _ in range(2)]
    for answer in answers:
        answer.readline()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until_deaf()  # or the two signals might become one
    code, _ = server.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    for answer in answers:
        with pytest.raises((OSError, http.client.IncompleteRead)):
            if b"[DONE]" in answer.read():
                raise AssertionError("it was not aborted")


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_draining_has_an_end(served: Callable[..., Served], signals: int) -> None:
    """What takes longer than --drain is cancelled, and its client is told.

    Another client does not read, and more was written to it than all buffers hold: that stays unread, and nevertheless
    everything is closed.
    """
    sizes = ("--max-context", "4096", "--kv-memory", "128MiB", "--max-batch", "8")
    server = served(*sizes, "--drain", "1").wait_until_ready()
    server.ask(max_tokens=4000, n=7, logprobs=20, receive_buffer=4096)
    wait_until(lambda: server.metric("generation_tokens_total") > 4500)
    answer = server.ask(max_tokens=4000)
    answer.readline()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until_deaf()
    if signals == 1:
        last = json.loads(answer.read().decode().removesuffix("\n\n").rpartition("data: ")[2])
        assert last["error"]["code"] == "cancelled" and last["error"]["type"] == "unavailable_error"
    code, errors = server.end(*[signal.SIGTERM] * (signals - 1))
    assert code == (128 + signal.SIGTERM if signals == 2 else 0) and errors == ""


def test_a_signal_while_loading(served: Callable[..., Served]) -> None:
    """Whenever it comes, the process ends soon and says nothing frightening."""
    for delay in (0.1, 0.3, 0.5):
        server = served()
        try:
            server.process.wait(delay)
        except subprocess.TimeoutExpired:
            code, errors = server.end(signal.SIGTERM)
            assert code in (0, -signal.SIGTERM) and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--host", "0.0.0.0"), 2, "give an --api-key, or say --insecure"),
        (("--max-n", "0"), 2, "--max-n is 0"),
        (("--port", "70000"), 2, "from 0 to 65535"),
        (("--max-wait", "nan"), 2, "--max-wait is nan"),
        (("--drain", "0"), 2, "--drain is 0"),
        (("--max-body", "much"), 2, "--max-body is 'much'"),
        (("--metrics-prefix", "a b"), 2, "--metrics-prefix is 'a b'"),
        (("--api-key", " "), 2, "must not be empty"),
        (("--api-key-file", "/nowhere"), 1, "/nowhere"),
    ],
)
def test_what_cannot_be(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, words: str) -> None:
    found = main(["serve", "--port", "0", *SMALL, *options])
    errors = capsys.readouterr().err
    assert found == code and words in errors and len(errors.splitlines()) == 1, errors


@pytest.mark.parametrize(
    ("options", "words"), [(("nowhere",), "nowhere"), (("--max-context", "1000000"), "kv_memory")], ids=repr
)
def test_what_cannot_be_loaded(served: Callable[..., Served], options: tuple[str, ...], words: str) -> None:
    """The port is open already; the process ends all the same."""
    code, errors = served(*options).end()
    assert code == 1 and words in errors and len(errors.splitlines()) == 1, errors


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = main(["serve", *SMALL, "--port", str(taken.getsockname()[1])])
    errors = capsys.readouterr().err
    assert code == 1 and "in use" in errors and len(errors.splitlines()) == 1


def test_a_key_from_the_environment(served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DASHINFER_API_KEY", "k1")
    server = served("--name", "fox", "--log-level", "info", "--access-log").wait_until_ready()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().read().count(b"invalid_api_key") == 1
    connection.request("GET", "/v1/models", headers={"authorization": "Bearer k1"})
    assert json.loads(connection.getresponse().read())["data"][0]["id"] == "fox"
    connection.request("GET", "/health", headers={"host": "evil.example"})
    assert connection.getresponse().status == 403
    connection.close()
    code, errors = server.end(signal.SIGTERM)
    assert code == 0 and "GET /v1/models" in errors and "k1" not in errors


def test_without_the_extra() -> None:
    """One line says what to install."""
    hide = "import sys; sys.modules['starlette'] = None\n"
    hide += "from dashinfer_lite.cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", hide], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 1 and 'pip install "dashinfer-lite[server]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ready_comes_after_health(served: Callable[..., Served]) -> None:
    """Health is answered while the model loads; then both are."""
    port = _free_port()
    server = served("--port", str(port))

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    seen = set()

    def is_ready() -> bool:
        seen.add((status("/health"), status("/ready")))
        return seen >= {(200, 200)}

    wait_until(is_ready)
    assert seen <= {(0, 0), (0, 503), (0, 200), (200, 503), (200, 200)}
    assert server.end(signal.SIGTERM)[0] == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
