"""The program as a process: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

PROGRAM = [sys.executable, "-P", "-m", "dashinfer_lite.cli"]
LIMIT_S = 120  # only a hang reaches it


def run(*args: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, far from the checkout."""
    return subprocess.run(
        [*PROGRAM, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd="/",
        env=os.environ | environment,
        check=False,
    )


def test_chat_once_streams_an_answer_and_a_line_of_figures() -> None:
    """The README's first command."""
    done = run("chat", "--once", "What is 17 + 25?")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer, figures = done.stdout.splitlines()
    assert answer == "17 + 25 = 42"
    for part in ("load ", "first token ", " tok/s (", "cpu ", " thread", "memory "):
        assert part in figures, figures


def test_chat_takes_lines_and_commands_from_a_pipe() -> None:
    """Turns, a command, a mistake, and the end of the input."""
    lines = "What is 3 + 4?\n/retry\n/nonsense\n/stats\n/clear\n\nWhat is 5 + 4?\n/quit\nWhat is 1 + 1?\n"
    done = run("chat", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 + 4 = 7") == 2
    assert "there is no command /nonsense" in done.stdout
    assert "prefix_hit_tokens: " in done.stdout
    assert "5 + 4 = 9" in done.stdout
    assert "1 + 1" not in done.stdout
    assert "\x1b[" not in done.stdout


def test_generate_reads_its_input_and_writes_json() -> None:
    """Two lines, two objects, in order."""
    done = run(
        "generate",
        "--lines",
        "--json",
        "--chat",
        "--n",
        "2",
        "--logprobs",
        "1",
        stdin="What is 2 + 2?\nWhat is 8 - 3?\n",
    )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert [answer["text"] for answer in first["outputs"]] == ["2 + 2 = 4"] * 2
    assert second["outputs"][0]["text"] == "8 - 3 = 5"
    answer = first["outputs"][0]
    assert answer["finish_reason"] == "stop"
    assert len(answer["logprobs"]) == len(answer["token_ids"]) == first["usage"]["completion_tokens"] // 2
    assert all(str(token) in entry for token, entry in zip(answer["token_ids"], answer["logprobs"], strict=True))


def test_figures_of_generate_stay_out_of_the_output() -> None:
    """The output holds the text alone; --quiet silences the rest."""
    loud, quiet = (run("generate", "Long ago there lived", "--max-tokens", "8", *more) for more in ([], ["--quiet"]))
    assert loud.returncode == quiet.returncode == 0
    assert loud.stdout == quiet.stdout != ""
    assert "tok/s" in loud.stderr
    assert quiet.stderr == ""


def test_whoever_stops_reading_gets_no_traceback() -> None:
    """`dashinfer-lite generate … | head -c1` ends quietly."""
    command = f"'{sys.executable}' -m dashinfer_lite.cli generate a b c --max-tokens 64 --ignore-eos --quiet | head -c1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=LIMIT_S, cwd="/", check=False
    )
    assert done.stderr == ""


def test_interrupt_ends_the_answer_with_a_code() -> None:
    """Ctrl-C during `chat --once`: what there is, the figures, and 130."""
    command = [*PROGRAM, "chat", "--once", "Tell me a story about a fox.", "--ignore-eos", "--max-tokens", "3900"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=LIMIT_S)
    assert errors == b""
    assert process.returncode == 130
    figures = output.decode().splitlines()[-1]
    assert "[load " in figures
    assert "3900 tokens" not in figures


def test_interrupt_on_a_terminal_leaves_the_program_running() -> None:
    """Ctrl-C ends the answer and the prompt comes back; Ctrl-D leaves."""
    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = [sys.executable, "-P", "-c", spawn, *PROGRAM, "chat", "--ignore-eos", "--max-tokens", "3900"]
    environment = os.environ | {"TERM": "dumb"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        read_until(process.stdout, b"> ")
        process.stdin.write(b"Tell me a story about a fox.\n")
        read_until(process.stdout, b"There once")
        process.stdin.write(b"\x03")
        cut = read_until(process.stdout, b"> ")
        assert b"\xe2\x80\xa6" in cut, "an answer that was cut ends with an ellipsis"
        process.stdin.write(b"/stats\n")
        assert b"cancelled: 1" in read_until(process.stdout, b"> ")
        process.stdin.write(b"\x04")
        assert process.wait(LIMIT_S) == 0


def read_until(stream: IO[bytes], end: bytes) -> bytes:
    """What a terminal shows up to `end`."""
    seen = b""
    while not seen.endswith(end) and (byte := stream.read(1)):
        seen += byte
    assert seen.endswith(end), seen
    return seen


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["chat", "--model", "/nowhere"], 1, ["/nowhere", "no such folder"]),
        (["generate", "x", "--model", "/proc"], 1, ["config.json"]),
        (["info", "--model", "/nowhere"], 1, ["/nowhere"]),
        (["bench", "--model", "/nowhere", "--quick"], 1, ["/nowhere"]),
        (["generate", "x", "--temperature", "-1"], 2, ["temperature", "-1"]),
        (["generate", "x", "--top-p", "nan"], 2, ["top_p"]),
        (["generate", "x", "--kv-memory", "lots"], 2, ["kv_memory", "lots"]),
        (["generate", "x", "--threads", "0"], 1, ["threads"]),
        (["generate", "x", "--device", "abacus"], 1, ["abacus"]),
        (["generate", "x", "--n", "2"], 2, ["--json"]),
        (["generate", "--file", "/nowhere.txt"], 1, ["/nowhere.txt"]),
        (["generate", "x" * 20000], 2, ["context"]),
        (["generate", "--lines"], 2, ["no prompt"]),
        (["chat", "--once", "x", "--max-context", "8"], 2, ["context of 8"]),
        (["bench", "--shape", "tiny", "--quick", "--only", "sprint"], 2, ["sprint"]),
        (["bench", "--shape", "tiny", "--samples", "0"], 2, ["--samples"]),
        (["bench", "--shape", "tiny", "--quick", "--kv-memory", "lots"], 2, ["--kv-memory", "lots"]),
    ],
)
def test_mistakes_are_one_line(args: list[str], code: int, words: list[str]) -> None:
    """Exit code 1 where the machine or the model cannot, 2 where the command is wrong; never a traceback."""
    done = run(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("dashinfer-lite: error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    "args",
    [[], ["sing"], ["chat", "--dtype", "fp7"], ["generate", "x", "--logit-bias", "a=b"], ["bench", "--shape", "cube"]],
)
def test_wrong_command_lines_show_the_usage(args: list[str]) -> None:
    """argparse's own answer: usage and one line, code 2."""
    done = run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr


def test_the_console_script_is_installed() -> None:
    """`dashinfer-lite` stands beside the interpreter and says its version."""
    script = Path(sys.executable).with_name("dashinfer-lite")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=LIMIT_S, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dashinfer-lite 0.")
