"""The load generator: what it sends, how it reads answers of every kind, and its arithmetic."""

from __future__ import annotations

import asyncio
import json
import math
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashinfer_lite.cli.bench_serve_http import HttpError, Server
from dashinfer_lite.cli.bench_serve_load import Outcome, arrivals, run_load
from dashinfer_lite.cli.bench_serve_plot import timeline_svg
from dashinfer_lite.cli.bench_serve_result import Result, peak, percentile
from dashinfer_lite.cli.bench_serve_work import CHAT, COMPLETE, Job, file_jobs, random_jobs
from dashinfer_lite.errors import DashInferError, RequestError

WAIT_S = 100  # only a hang reaches it
JOB = Job(COMPLETE, {"prompt": "x"})
OK = b"HTTP/1.1 200 OK\r\n"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """The program with `bench serve`."""
    command = [sys.executable, "-P", "-m", "dashinfer_lite.cli", "bench", "serve", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, cwd="/", check=False)


# ---- over a socket, against answers written by hand ----------------------------------------------------------------


def against(
    answer: bytes | Callable[[bytes], bytes], work: Callable[[Server], Coroutine[Any, Any, Any]], cut: int = 1 << 16
) -> Any:
    """What `work` returns where all requests are answered with these bytes, `cut` at a time, and a closed socket."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            request = head + (await reader.readexactly(int(length[1])) if length else b"")
            data = answer(request) if callable(answer) else answer
            for begin in range(0, len(data), cut):
                writer.write(data[begin : begin + cut])
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(WAIT_S):
            port = server.sockets[0].getsockname()[1]
            return await work(Server(f"http://127.0.0.1:{port}/v1/", "key", WAIT_S))

    return asyncio.run(both())


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def events(*objects: Any) -> list[bytes]:
    """Server-sent events with a comment among them, and [DONE]."""
    return [b": ping\n\n", *(b"data: %s\n\n" % json.dumps(each).encode() for each in objects), b"data: [DONE]\n\n"]


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": None}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}
STREAM = (
    OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*events(piece("a"), piece("b"), piece("c", "stop"), USAGE))
)


async def one(server: Server) -> Outcome:
    (outcome,) = await run_load(server, [JOB], [0.0], True, None, lambda *_: None)
    return outcome


@pytest.mark.parametrize(("chunk", "cut"), [(1, 1 << 16), (7, 1), (7, 2), (1 << 16, 7), (1 << 16, 1 << 16)])
def test_a_stream_is_read_however_it_is_cut(chunk: int, cut: int) -> None:
    """Three pieces in order, the server's counts, and nothing for the comment or the usage."""
    body = b"".join(events(piece("a"), piece("b"), piece("c", "stop"), USAGE))
    pieces = chunked(*(body[begin : begin + chunk] for begin in range(0, len(body), chunk)))
    outcome = against(OK + b"Transfer-Encoding: chunked\r\n\r\n" + pieces, one, cut)
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (7, 2, 3)
    assert len(outcome.pieces) == 3
    assert 0 < outcome.pieces[0] <= outcome.pieces[1] <= outcome.pieces[2] <= outcome.end


def test_pieces_of_a_chat_are_those_with_words() -> None:
    """The role alone is no token; thoughts and calls are."""
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "a"},
        {"tool_calls": [{"index": 0}]},
        {},
    ]
    stream = events(*({"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas), USAGE)
    assert len(against(OK + b"\r\n" + b"".join(stream), one).pieces) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 429 Too Many\r\n\r\n" + b'{"error": {"message": "come later"}}', "429 come later"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\noh\n", "500 oh"),
        (OK + b"Content-Length: 90\r\n\r\ndata: {}", "broke off"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off"),
        (STREAM.replace(b"[DONE]", b'{"":1}'), "without [DONE]"),
        (STREAM[:-6], "broke off"),
        (OK + b"\r\n" + b"".join(events({"error": {"message": "out of blocks"}})), "200 out of blocks"),
        (OK + b"\r\ndata: {\n\n", "broke off"),
        (OK + b"\r\ndata: []\n\n", "no object"),
        (OK + b"\r\n" + b"".join(events({"choices": [7]})), "form"),
        (OK + b"\r\n" + b"".join(events({"choices": 7})), "form"),
        (OK + b"\r\n" + b"".join(events({"usage": {"prompt_tokens": "many"}})), "form"),
    ],
)
def test_a_bad_answer_is_a_failed_request(answer: bytes, words: str) -> None:
    """One line that says what came; never an exception, never a hang."""
    outcome = against(answer, one)
    assert outcome.error is not None and words in outcome.error
    assert "\n" not in outcome.error


def test_a_slow_server_is_left() -> None:
    """The time limit of a request ends it."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)  # until the client leaves
        writer.close()

    async def work(_: Server) -> Outcome:
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as stuck:
            port = stuck.sockets[0].getsockname()[1]
            return await one(Server(f"127.0.0.1:{port}", None, 0.05))

    assert against(b"", work).error == "no end within 0.05 s"


def test_what_is_sent() -> None:
    """The path under the base URL, the key, and the fields of a stream."""
    requests: list[bytes] = []

    def answer(request: bytes) -> bytes:
        requests.append(request)
        return STREAM

    against(answer, one)
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer key\r\n" in head
    assert json.loads(body) == {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}}


def test_never_more_than_the_concurrency() -> None:
    """Eight requests, two at a time: so says what they saw themselves."""

    async def work(server: Server) -> list[Outcome]:
        return await run_load(server, [JOB] * 8, [0.0] * 8, True, 2, lambda *_: None)

    outcomes = against(STREAM, work, cut=1)
    assert all(outcome.error is None for outcome in outcomes)
    assert peak(outcomes) == 2


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:y", "http://x?y", "http://[::1"])
def test_a_bad_url(url: str) -> None:
    with pytest.raises(RequestError, match="--url"):
        Server(url, None, 1)


@pytest.mark.parametrize("listed", [b"{}", b"[]", b'{"data": []}', b'{"data": [{}]}', b"7"])
def test_a_server_without_models(listed: bytes) -> None:
    with pytest.raises(DashInferError, match="models"):
        against(OK + b"\r\n" + listed, Server.first_model)


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_random_prompts_have_their_length_and_are_unlike() -> None:
    """Token ids where the server tells them, as many words where it does not; the same in every run."""
    fields = {"model": "m"}

    def jobs(answer: bytes, as_chat: bool = False) -> list[Job]:
        return against(answer, lambda server: random_jobs(server, 5, 12, fields, as_chat, 3))  # type: ignore[no-any-return]

    exact = jobs(OK + b'\r\n{"tokens": [5, 6, 7, 8, 9]}')
    assert exact == jobs(OK + b'\r\n{"tokens": [5, 6, 7, 8, 9]}')
    prompts = [job.body["prompt"] for job in exact]
    assert all(len(prompt) == 12 and set(prompt) <= {5, 6, 7, 8, 9} for prompt in prompts)
    assert len(set(map(tuple, prompts))) == 5
    for answer in (b"HTTP/1.1 404 No\r\n\r\n{}", OK + b"\r\n{}", OK + b'\r\n{"tokens": ["x"]}'):
        assert all(len(job.body["prompt"].split()) == 12 for job in jobs(answer))
    chat = jobs(OK + b"\r\n{}", as_chat=True)[0]
    assert chat.path == CHAT and len(chat.body["messages"][0]["content"].split()) == 12


def test_prompts_of_a_file(tmp_path: Path) -> None:
    """Lines, or objects that bring fields of their own; fewer than asked for begin again."""
    plain = tmp_path / "prompts.txt"
    plain.write_text("one\n\ntwo\n")
    assert [job.body["prompt"] for job in file_jobs(plain, 3, {}, False)] == ["one", "two", "one"]
    assert file_jobs(plain, None, {}, True)[1].body["messages"] == [{"role": "user", "content": "two"}]
    objects = tmp_path / "prompts.jsonl"
    objects.write_text('{"prompt": [1, 2], "max_tokens": 3}\n{"messages": [], "seed": 1}\n')
    first, second = file_jobs(objects, None, {"max_tokens": 9}, False)
    assert first == Job(COMPLETE, {"max_tokens": 3, "prompt": [1, 2]})
    assert second == Job(CHAT, {"max_tokens": 9, "messages": [], "seed": 1})
    for text in ("", "{", "[]", "{}", '{"prompt": "x", "messages": []}'):
        objects.write_text(text)
        with pytest.raises(RequestError, match=r"prompts\.jsonl"):
            file_jobs(objects, None, {}, False)


def test_arrivals() -> None:
    """Seeded, in order, and with gaps as long as the rate says on average."""
    assert arrivals(3, math.inf, 0) == [0.0] * 3
    times = arrivals(4001, 50.0, 1)
    assert times == arrivals(4001, 50.0, 1) != arrivals(4001, 50.0, 2)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)  # as an exponential distribution has it


# ---- the figures -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_that_of_numpy(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, share)), rel=1e-9, abs=1e-9)


def outcome(begin: float, *pieces: float, tokens: int = 0, error: str | None = None, end: float = 0) -> Outcome:
    return Outcome(begin, end or pieces[-1], list(pieces), 10, 4, tokens or len(pieces), error)


def test_the_figures() -> None:
    """Four requests of which one failed and one has a single token, by hand."""
    result = Result(
        "http://here",
        "m",
        math.inf,
        None,
        {"ttft": 0.2, "tpot": 0.15},
        [
            outcome(0.0, 0.1, 0.2, 0.3),
            outcome(0.5, 0.4, 0.6, 0.8, tokens=5),
            outcome(1.0, 0.2),
            outcome(1.0, end=1.0, error="503 full"),
        ],
    )
    found = result.as_json()
    assert (found["completed"], found["failed"], found["max_concurrent_requests"]) == (3, 1, 3)
    assert found["duration"] == pytest.approx(2.0)
    assert (found["total_input_tokens"], found["total_cached_tokens"], found["total_output_tokens"]) == (30, 12, 9)
    assert found["output_throughput"] == pytest.approx(4.5)
    assert found["total_token_throughput"] == pytest.approx(19.5)
    assert found["mean_ttft_ms"] == pytest.approx(700 / 3)
    assert found["median_ttft_ms"] == pytest.approx(200)
    assert found["mean_tpot_ms"] == pytest.approx(100)  # of two requests: one token has none after the first
    assert found["mean_itl_ms"] == pytest.approx(150)
    assert found["p99_e2el_ms"] == pytest.approx(790)
    assert found["request_goodput"] == pytest.approx(0.5)  # the first one: a limit on what was not measured is not kept
    assert found["errors"] == ["503 full"]
    text = result.text()
    assert re.search(r"Successful requests +3\n", text)
    assert re.search(r"within ttft 200 ms, tpot 150 ms +25\.0%", text)
    assert "failed: 1 x 503 full" in text
    shapes = ElementTree.fromstring(timeline_svg(result))
    assert sum(shape.get("fill") == "#b3261e" for shape in shapes) == 2  # the legend's and the failed request's


@pytest.mark.parametrize("outcomes", [[outcome(0, end=1.0, error="no")], [Outcome(0.0, 1.0, [], 5, 0, 5)]])
def test_figures_of_what_was_not_measured(outcomes: list[Outcome]) -> None:
    """Nothing answered, or nothing streamed: no figure is made up."""
    result = Result("u", "m", 2.0, 1, {}, outcomes)
    assert result.as_json()["mean_ttft_ms"] is None
    assert "Time to First Token" not in result.text()
    ElementTree.fromstring(timeline_svg(result))
    assert json.dumps(result.as_json())


# ---- the program -----------------------------------------------------------------------------------------------------


def test_the_program_measures_a_server(tmp_path: Path) -> None:
    """Tokens are as asked for, no prompt comes from the cache, and the files are written."""
    for extra in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
        pytest.importorskip(extra, reason="needs the extra server")
    from serving import serving

    picture = tmp_path / "load.svg"
    lengths = ["--num-prompts", "6", "--input-len", "20", "--output-len", "9"]
    with serving("--api-key", "k") as url:
        asked = ["--url", url, "--api-key", "k", "--goodput", "ttft:90000", "tpot:90000"]
        done = run(*asked, *lengths, "--request-rate", "100", "--json", "-", "--plot", str(picture))
        refused = run("--url", url)
        chat = run("--url", url, "--api-key", "k", *lengths, "--chat", "--no-stream", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["completed"], found["failed"], found["model_id"]) == (6, 0, "tiny_chat")
    assert (found["total_input_tokens"], found["total_cached_tokens"], found["total_output_tokens"]) == (120, 0, 54)
    assert found["request_goodput"] == found["request_throughput"] > 0
    assert found["mean_tpot_ms"] > 0
    ElementTree.parse(picture)
    assert refused.returncode == 1 and "401" in refused.stderr
    assert chat.returncode == 0, chat.stderr
    assert re.search(r"Total generated tokens +54\n", chat.stdout)
    assert "Time to First Token" not in chat.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--url", "http://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["--url", "nowhere://"], 2, "--url"),
        (["--num-prompts", "0"], 2, "--num-prompts"),
        (["--request-rate", "0"], 2, "--request-rate"),
        (["--request-rate", "nan"], 2, "--request-rate"),
        (["--timeout", "inf"], 2, "--timeout"),
        (["--goodput", "itl:5"], 2, "--goodput"),
        (["--goodput", "ttft:x"], 2, "--goodput"),
        (["--warmup", "-1"], 2, "--warmup"),
    ],
)
def test_mistakes(args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the usual codes."""
    from dashinfer_lite.cli.main import main

    assert main(["bench", "serve", *args]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_all_requests_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """The table says why, and the code that it did not work."""

    def answer(request: bytes) -> bytes:
        return OK + b'\r\n{"data": [{"id": "m"}]}' if b"/models" in request else b"HTTP/1.1 503 No\r\n\r\n{}"

    async def work(server: Server) -> int:
        from dashinfer_lite.cli.main import main

        arguments = ["bench", "serve", "--url", server.url, "--num-prompts", "3"]
        return await asyncio.get_running_loop().run_in_executor(None, main, arguments)

    assert against(answer, work) == 1
    assert "failed: 3 x 503 {}" in capsys.readouterr().out


def test_an_error_is_told_once() -> None:
    with pytest.raises(HttpError, match=r"^404 gone$"):
        against(b"HTTP/1.1 404 x\r\n\r\n" + b'{"error": "gone"}', lambda server: server.ask("GET", "/x"))
