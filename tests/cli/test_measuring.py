"""The scripts of tests/bench: what they count, what they compare, and that they run."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.devices import open_device

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other as neighbours; nobody else shall find them under their short names."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for path in BENCH.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "qwen3-moe-1b"])
@pytest.mark.parametrize("weights", ["bf16", "a16w4-g128"])
def test_instructions_add_up_to_the_step(shape: str, weights: str) -> None:
    """Bytes and operations, instruction by instruction, are those of the roofline's count."""
    from scaling import program_of
    from work import Load, work_of

    program = program_of(shape, weights)
    with closing(open_device("cpu", threads=1)) as device:
        cost = cost_of(program, device.info.head_align)
    code = (*program.body, *program.tail)
    decode = [work_of(program, instr, Load(8, 1, 129)) for instr in code]
    assert sum(work.streamed for work in decode) == pytest.approx(cost.decode_bytes(8, 129))
    prefill = [work_of(program, instr, Load(1, 300, 300)) for instr in code]
    assert sum(work.operations for work in prefill) == pytest.approx(cost.prefill_operations(300))


def test_pieces_bound_the_threads() -> None:
    """No instruction keeps more threads busy than it has pieces, and one thread does all of it."""
    from scaling import LOADS, program_of
    from work import Load, role_of, work_of

    program = program_of("qwen2.5-0.5b", "bf16")
    for load in LOADS.values():
        for instr in (*program.body, *program.tail):
            work = work_of(program, instr, load)
            assert work.parallel(1) == pytest.approx(1)
            for threads in (2, 16, 48, 1000):
                assert 1 <= work.parallel(threads) <= min(threads, work.tasks) + 1e-9
    works = {role_of(program, instr): work_of(program, instr, Load(1, 1, 2049)) for instr in program.body}
    assert works["down"].tasks == 896 // 32
    assert works["down"].parallel(16) == 14  # 28 panels: the busiest of 16 threads has two
    assert works["attention"].tasks == 2 * 3  # KV heads x splits
    assert works["rms_norm"].tasks == 1


def test_more_cores_stop_at_what_is_serial() -> None:
    """A paper machine is never faster than its limit, and its barriers grow while its products shrink."""
    from scaling import LOADS, Core, Machine, predict, program_of

    program, core = program_of("qwen2.5-0.5b", "a16w8"), Core(15e9, 3.4e12, 0.5e-6, 8e9)
    steps = [predict(program, LOADS["decode @128"], core, Machine.parse(text), 2e-4) for text in ("2x30", "96x600")]
    assert all(step.limit < step.seconds for step in steps)
    assert steps[1].seconds < steps[0].seconds
    assert steps[1].spent["barriers"] > steps[0].spent["barriers"] > 0
    assert steps[1].spent["rms_norm"] == steps[0].spent["rms_norm"]  # one row, one thread


@pytest.mark.parametrize("role", ["gate_up", "head", "attention", "quantize", "sample", "rope_kv"])
def test_an_operation_runs_alone(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy has its own weights or layer; the work is counted for one call."""
    import bench_op
    from work import Load

    monkeypatch.setattr(bench_op, "MANY", 16)
    loads = [Load(1, 1, 40), Load(3, 1, 40), Load(1, 40, 40)]
    with closing(bench_op.Opener("tiny", "scalar", 1)) as opener, ExitStack() as stack:
        cases = opener.cases(role, "a16w8", "int8", loads, stack)
        assert len(cases) == len(loads) * (len(bench_op.DRAWS) if role == "sample" else 1)
        for case in cases:
            assert case.copies == (1 if role in ("head", "sample") else 8 if role in ("quantize", "rope_kv") else 16)
            assert case.call() > 0
            assert (case.work.streamed > 0) == (role in ("gate_up", "head", "attention"))
        assert opener.cases("route", "a16w8", "int8", loads, stack) == []  # no experts here


def test_comparison_knows_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More is better for rates, less for times; what is within the spread, or invalid, is no regression."""
    from compare import compare, figures_of

    def line(name: str, unit: str, samples: list[float], **more: Any) -> str:
        return json.dumps({"name": name, "value": samples[0], "unit": unit, "samples": samples, **more})

    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    steady = [100.0, 100.1, 100.2, 100.3]
    slow, wild = [x * 0.9 for x in steady], [60.0, 80.0, 120.0, 140.0]
    before = [
        line("rate", "tokens/s", steady),
        line("time", "s", steady),
        line("wild", "s", wild),
        line("gone", "s", steady),
    ]
    after = [
        line("rate", "tokens/s", slow),
        line("time", "s", slow),
        line("wild", "s", [x * 1.1 for x in wild]),
        line("time", "s", [1e9], valid=False),
    ]
    a.write_text("\n".join(before) + "\n")
    b.write_text("\n".join(after) + "\n")
    rows = {row[0]: row[-1] for row in compare(figures_of(a), figures_of(b))}
    assert rows == {"rate": "REGRESSION", "time": "better", "wild": ""}

    b.write_text('{"name": "rate"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1"):
        figures_of(b)


def test_the_programs_own_results_compare(tmp_path: Path) -> None:
    """`bench --json` writes one document; it stands beside itself without a change."""
    from compare import compare, figures_of

    from dashinfer_lite.cli.main import main

    path = tmp_path / "bench.json"
    assert main(["bench", "--shape", "tiny", "--quick", "--only", "decode @32", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    document["workloads"][0]["valid"] = True
    path.write_text(json.dumps(document))
    figures = figures_of(path)
    rows = compare(figures, figures)
    assert any(row[0] == "decode @32" and row[3] == "tokens/s" and row[4] == "1.000" for row in rows)


def test_requests_through_a_running_engine(tmp_path: Path) -> None:
    """As users call it: a table, and lines that say where they come from."""
    path = tmp_path / "serve.jsonl"
    command = [sys.executable, str(BENCH / "bench_serve.py"), "--shape", "tiny", "--requests", "3", "--samples", "1"]
    done = subprocess.run(
        [*command, "--prompts", "8", "16", "--answers", "4", "8", "--json", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["name"].split(", ")[1] for line in lines} >= {"throughput", "TTFT mean", "TPOT p95"}
    for line in lines:
        assert line["value"] > 0
        assert {"machine", "commit", "date", "tier", "threads", "model", "contention", "valid"} <= line.keys()
