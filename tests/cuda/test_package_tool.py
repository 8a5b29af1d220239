"""`python -m dashinfer_cuda` and the device list, with and without a GPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import ROOT, cuda_package, emulator, missing

from dashinfer_lite.devices import devices, open_device, register
from dashinfer_lite.errors import DeviceError


@pytest.fixture
def emulated() -> Any:
    """The device "cuda" on the emulator."""
    if why := missing():
        pytest.skip(why)
    made = emulator()
    made.register()
    return made


def status() -> Any:
    return next(each for each in devices() if each.name == "cuda")


def test_without_a_driver(emulated: Any, tmp_path: Path) -> None:
    """One sentence says why; opening says the same; nothing else is disturbed."""
    emulated.set("driver", str(tmp_path / "libcuda.so.1"))
    try:
        assert not status().usable
        assert "driver's library was not found" in status().reason and "device='cpu'" in status().reason
        with pytest.raises(DeviceError, match="driver's library was not found"):
            open_device("cuda")
        assert next(each for each in devices() if each.name == "cpu").usable
    finally:
        emulated.register()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("DEVICES", "0", "no NVIDIA GPU is visible"), ("ARCH", "61", "compute capability 6.1; 7.0 or newer")],
)
def test_gpus_that_do_not_serve(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    """No GPU, or one that is too old."""
    monkeypatch.setenv(f"DASHINFER_EMU_{variable}", value)
    with pytest.raises(DeviceError, match=reason):
        open_device("cuda")


def test_numbers_of_gpus(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0, cuda:1 and those that are not there."""
    monkeypatch.setenv("DASHINFER_EMU_DEVICES", "2")
    for name in ("cuda", "cuda:0", "cuda:1"):
        open_device(name).close()
    for name in ("cuda:2", "cuda:-1", "cuda:x"):
        with pytest.raises(DeviceError, match="use cuda:0 to cuda:1"):
            open_device(name)


def test_missing_kernels(emulated: Any, tmp_path: Path) -> None:
    """An installation without kernels, and a GPU that needs a compiler which is not there."""
    emulated.set("kernels", str(tmp_path))
    emulated.set("nvrtc", str(tmp_path / "libnvrtc.so"))
    try:
        with pytest.raises(DeviceError, match=r"no kernels in .*incomplete"):
            open_device("cuda")
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "norm.cu").write_text("")
        try:
            open_device("cuda").close()
        except DeviceError as error:
            assert "nvidia-cuda-nvrtc" in str(error) or "do not load" in str(error)
    finally:
        emulated.set("nvrtc", "")
        emulated.register()


def test_a_library_that_is_missing(tmp_path: Path) -> None:
    """A broken installation is a sentence in the list, and no more."""
    package = cuda_package()
    register("cuda", lambda: package.capsule(tmp_path / "none.so"))
    with pytest.raises(OSError, match="is missing: install dashinfer-cuda"):
        package.capsule(tmp_path / "none.so")


def test_the_tool_without_a_gpu() -> None:
    """It prints what it finds and ends with 1."""
    program = (
        f"import runpy, sys; sys.path.append({str(ROOT)!r}); sys.argv[0] = 'x'; "
        "runpy.run_module('dashinfer_cuda', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "nvrtc" in done.stdout and "device " in done.stdout


def test_the_tool_says_why(emulated: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a driver its last line is one sentence, and it ends with 1; with a GPU that fails, with 2."""
    cuda_package()
    tool = importlib.import_module("dashinfer_cuda.__main__")
    emulated.set("driver", str(tmp_path / "libcuda.so.1"))
    try:
        assert tool.main() == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("device     none: the NVIDIA driver's library was not found") and len(last) < 300
    finally:
        emulated.register()
    emulated.control().emu_fail(b"cuMemAlloc_v2", 1)
    assert tool.main() == 2
    assert "device     failed: " in capsys.readouterr().out.splitlines()[-1]
    emulated.control().emu_fail(b"cuMemAlloc_v2", 10**9)


def test_the_self_test(emulated: Any) -> None:
    """It agrees with the CPU, and would say where it does not."""
    cuda_package()
    check = importlib.import_module("dashinfer_cuda._check")
    assert check.self_test(tokens=3) == ""
    assert check.self_test("reference", tokens=2) == ""
    device = open_device("cuda")
    product = check.Product(device, 3, n=64, k=64, repeats=2)
    device.close()
    assert "[3,64] · [64,64]ᵀ bf16" in product.describe() and product.seconds > 0
