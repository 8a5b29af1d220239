"""Registers, shared memory and spills of each CUDA kernel, as the assembler reports them, stay within kernels.json."""

from __future__ import annotations

import pytest
from emulated_kernels import SHARED_KIB
from kernel_budgets import Use, budgets, kernels, measure, parse, sources

MOST_REGISTERS = 255
QUICK = ("experts", "norm", "pointwise", "quantize")  # all files and architectures are the full matrix


def test_the_log_is_understood() -> None:
    log = (
        "ptxas info    : 8 bytes gmem\nptxas info    : Compiling entry function 'rms_norm' for 'sm_90a'\n"
        "ptxas info    : Function properties for rms_norm\n"
        "ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 26 registers, used 1 barriers, 128 bytes smem\n"
    )
    assert parse(log) == {"rms_norm": Use(26, 128, 16, 12)}


@pytest.mark.parametrize("architecture", ["sm_70", "sm_90a"])
def test_budgets(architecture: str) -> None:
    check(QUICK, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", kernels.ARCHITECTURES)
def test_all_budgets(architecture: str) -> None:
    found = check(sources(), architecture)
    assert found == {kernel for kernel, each in budgets().items() if architecture in each}


def check(names: list[str] | tuple[str, ...], architecture: str) -> set[str]:
    """No kernel spills, has a stack, or needs more than its budget; returns the kernels."""
    if kernels.find_nvrtc() is None:
        pytest.skip("needs the compiler: pip install nvidia-cuda-nvrtc-cu12")
    found = measure(names, architecture)
    limits = budgets()
    shared = SHARED_KIB[int(architecture[3:5])] * 1024
    for kernel, use in found.items():
        assert use.stack == 0 and use.spilled == 0, f"{kernel} for {architecture} spills: {use}"
        registers, static = limits[kernel][architecture]
        assert use.registers <= min(registers, MOST_REGISTERS), f"{kernel} for {architecture}: {use}"
        assert use.shared <= min(static, shared), f"{kernel} for {architecture}: {use}"
    return set(found)
