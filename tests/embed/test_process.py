"""A guest in somebody else's process: light to import, silent when idle, harmless at forks and at the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from dashinfer_lite import LLM, SamplingParams

Run = Callable[[str], subprocess.CompletedProcess[str]]
Make = Callable[..., LLM]
HEAD = """
from dashinfer_lite import LLM, SamplingParams, DashInferError
llm = LLM(GOLDEN + '/qwen2_5', device={device!r}, **SMALL)
greedy = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
"""
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def test_import_is_light(run_python: Run) -> None:
    """Neither the package nor its parameters load NumPy, a tokenizer or the template engine."""
    code = """
import sys
before = set(sys.modules)
import dashinfer_lite
dashinfer_lite.SamplingParams(temperature=0)
heavy = {"numpy", "tokenizers", "jinja2", "sentencepiece", "safetensors", "asyncio", "dashinfer_lite._native"}
found = heavy & set(sys.modules) - before
assert not found, found
print(len(set(sys.modules) - before))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80


def test_public_names() -> None:
    import dashinfer_lite

    assert set(dashinfer_lite.__all__) <= set(dir(dashinfer_lite))
    for name in dashinfer_lite.__all__:
        if name != "devices":
            assert getattr(dashinfer_lite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dashinfer_lite.nonsense  # noqa: B018


FORK = """
import os, sys
request = llm.submit([1, 2, 3], greedy)
finished = llm.generate([1], SamplingParams(max_tokens=2))[0]
child = os.fork()
if child == 0:
    failures = 0
    uses = [request.result, request.cancel, request.output, llm.engine.step, llm.engine.start]
    uses += [lambda: request.text, lambda: list(request), lambda: list(request.tokens())]
    uses += [lambda: llm.generate("a"), lambda: llm.submit("a")]
    for use in uses:
        try:
            use()
        except DashInferError as error:
            failures += "fork" in str(error)
    llm.close()
    assert finished.text is not None
    sys.exit(0 if failures == 10 else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert len(request.result().outputs[0].token_ids) == 200
llm.close()
print("well")
"""


def test_fork(run_python: Run, device: str) -> None:
    """The child gets a clear error from everything and exits at once; the parent goes on."""
    done = run_python(HEAD.format(device=device) + FORK)
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


EXITS = {
    "idle": "",
    "busy": "r = llm.submit([1, 2], greedy)\nnext(iter(r.tokens()))",
    "dropped": "llm.generate([1], SamplingParams(max_tokens=1))\ndel llm",
    "reading": "import threading\nr = llm.submit([1], greedy)\nthreading.Thread(target=r.result, daemon=True).start()",
    "error": "1 / 0",
}


@pytest.mark.parametrize("how", EXITS)
def test_exit_without_close(run_python: Run, device: str, how: str) -> None:
    """The interpreter ends whatever the engine is doing, with nothing to say."""
    done = run_python(HEAD.format(device=device) + EXITS[how])
    assert done.returncode == (1 if how == "error" else 0), done.stderr
    assert done.stdout == ""
    assert done.stderr == "" or how == "error"
    assert "dashinfer-engine" not in done.stderr


def test_a_dropped_model_ends_its_engine(device: str) -> None:
    """Without close(), dropping the last reference ends the thread; a handle that is not done keeps its model alive."""
    llm = LLM(Path(__file__).parent.parent / "golden" / "qwen2_5", device=device, kv_memory="16MiB", max_context=256)
    thread = llm.engine._thread
    assert thread is not None
    request = llm.submit([1, 2], LONG)
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert len(request.result().outputs[0].token_ids) == 200
    gc.collect()
    thread.join()
    assert gone() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_idle_takes_no_processor_time(make_llm: Make) -> None:
    """Between requests none of the process's threads but this one is scheduled even once."""
    llm = make_llm()
    llm.generate([1, 2], LONG)
    turns = llm.engine.metrics()["turns"]
    time.sleep(0.1)  # until the device's threads have parked
    before = _switches()
    time.sleep(0.3)
    assert _switches() == before
    assert llm.engine.metrics()["turns"] == turns


def test_no_output_and_no_signal_handlers(run_python: Run, device: str) -> None:
    code = """
import signal
before = [signal.getsignal(number) for number in signal.valid_signals()]
""" + HEAD.format(device=device) + """
llm.generate([1, 2], SamplingParams(max_tokens=3))
llm.close()
assert before == [signal.getsignal(number) for number in signal.valid_signals()]
"""  # fmt: skip
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _switches() -> dict[str, str]:
    """Context switches and processor time of every other thread."""
    own = str(threading.get_native_id())
    counts = {}
    for task in Path("/proc/self/task").iterdir():
        if task.name != own:
            status = (task / "status").read_text()
            counts[task.name] = status[status.index("voluntary_ctxt_switches") :]
    return counts
