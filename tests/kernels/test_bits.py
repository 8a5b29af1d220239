"""A text's logits are the same bits alone or among others, in any chunks, blocks, threads and tiers, cold or not.

What everything is compared with: the text alone, in one step, on one thread of the scalar tier. Weights are random, so
that two sums in different orders would differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from arrangements import Array, Text, runner, small
from hypothesis import given
from hypothesis import strategies as st
from one_op import examples

Opened = Callable[..., Any]
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": small("qwen3"),
    "qwen2": small("qwen2", head_dim=None, num_attention_heads=6, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": small("mistral", sliding_window=37),
    "qwen2_moe": small("qwen2_moe", head_dim=None),
    "llama": small("llama", num_hidden_layers=1, intermediate_size=4200, attention_bias=True, mlp_bias=True),
}
MODES = {
    "bf16": ("bf16", "bf16"),
    "f16": ("f16", "f32"),
    "f32": ("f32", "f32"),
    "bf16 with an fp32 cache": ("bf16", "f32"),
    "bf16 with an 8-bit cache": ("bf16", "u8"),
    "f32 with a 4-bit cache": ("f32", "u4"),
}
QUANTIZED = ["bf16 with an 8-bit cache", "f32 with a 4-bit cache"]
PRODUCTS = ["bf16", "f16", "f32"]
PAIRS = [(model, mode) for model in MODELS for mode in (PRODUCTS if model == "llama" else MODES)]  # llama: long K alone
CHUNKS = [1, 7, 17, 64]
CHUNK_MODES = ["bf16", "f32", *QUANTIZED]
THREADS = [1, 2, 3, 5]
LENGTHS = (90, 45, 70)
BLOCKS = 16


def tokens_of(length: int, seed: int) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, 131, length).tolist()


def text(seed: int, blocks: list[int] | None = None) -> Text:
    """One of the three texts, in blocks of its own."""
    return Text(
        tokens_of(LENGTHS[seed], seed), blocks if blocks is not None else [3 * seed, 3 * seed + 1, 3 * seed + 2]
    )


@pytest.fixture(scope="module")
def base(opened: Opened) -> Callable[[str, str], list[Array]]:
    """base(model, mode) → the bits of each text: alone, one step, one thread, scalar."""
    known: dict[tuple[str, str], list[Array]] = {}

    def base(model: str, mode: str) -> list[Array]:
        if (model, mode) not in known:
            with runner(opened("scalar", 1), MODELS[model], *MODES[mode]) as alone:
                known[model, mode] = [alone.whole(text(seed)) for seed in range(len(LENGTHS))]
        return known[model, mode]

    return base


def same(got: Array, expected: Array) -> None:
    """Bit for bit."""
    assert got.shape == expected.shape
    different = np.flatnonzero((got != expected).any(-1))
    assert not len(different), f"rows {different.tolist()} of {len(got)} differ"


@pytest.mark.parametrize(("model", "mode"), PAIRS)
def test_tiers(tier: str, opened: Opened, base: Callable[[str, str], list[Array]], model: str, mode: str) -> None:
    """Each tier gives the scalar tier's bits, with another number of threads."""
    with runner(opened(tier, 2), MODELS[model], *MODES[mode]) as mine:
        for seed, expected in enumerate(base(model, mode)):
            same(mine.whole(text(seed)), expected)


@pytest.mark.in_turn("model")
@pytest.mark.parametrize("model", ["qwen3", "mistral", "qwen2_moe"])
@pytest.mark.parametrize("mode", CHUNK_MODES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks(
    tier: str, opened: Opened, base: Callable[[str, str], list[Array]], model: str, mode: str, chunk: int
) -> None:
    """Prefill in chunks of any size, down to one token a step, which is decode."""
    with runner(opened(tier, 2), MODELS[model], *MODES[mode]) as mine:
        same(mine.whole(text(0), chunk), base(model, mode)[0])


@pytest.mark.parametrize("threads", THREADS)
def test_threads(tier: str, opened: Opened, base: Callable[[str, str], list[Array]], threads: int) -> None:
    """More threads than there are cores, panels or rows, too."""
    for model, mode in (("qwen3", "bf16"), ("llama", "bf16"), ("qwen2", "f16"), ("qwen2_moe", "bf16")):
        with runner(opened(tier, threads), MODELS[model], *MODES[mode]) as mine:
            same(mine.whole(text(0), 33), base(model, mode)[0])
            one_by_one = text(1)
            mine.run((one_by_one, 40))
            for _ in range(5):
                mine.run((one_by_one, 1))
            same(one_by_one.bits(), base(model, mode)[1])


@examples(8)
@given(
    model=st.sampled_from(list(MODELS)),
    mode=st.sampled_from(list(MODES)),
    threads=st.sampled_from(THREADS[:3]),
    order=st.permutations(range(BLOCKS)),
    steps=st.lists(st.tuples(*[st.sampled_from([0, 0, 1, 1, 2, 5, 17, 31, 32, 33, 64])] * 3), max_size=8),
    swap=st.booleans(),
)
def test_arrangements(
    tier: str,
    opened: Opened,
    base: Callable[[str, str], list[Array]],
    model: str,
    mode: str,
    threads: int,
    order: list[int],
    steps: list[tuple[int, ...]],
    swap: bool,
) -> None:
    """Three texts in one batch, each by its own chunks in each step, in any blocks, whoever stands first."""
    texts = [text(seed, order[4 * seed : 4 * seed + 3]) for seed in range(3)]
    with runner(opened(tier, threads), MODELS[model], *MODES[mode]) as mine:
        for counts in [*steps, LENGTHS]:
            work = [(t, min(count, len(t.tokens) - t.done)) for t, count in zip(texts, counts, strict=True)]
            work = [(t, count) for t, count in (work[::-1] if swap else work) if count]
            if work:
                mine.run(*work)
        for t, expected in zip(texts, base(model, mode), strict=True):
            same(t.bits(), expected)


@pytest.mark.parametrize("mode", ["bf16", "f32", *QUANTIZED])
def test_shared_prefixes(tier: str, opened: Opened, mode: str) -> None:
    """A text that reads the first blocks of another one gets what it would compute itself, while the other goes on."""
    common, tail, other_tail = tokens_of(64, 7), tokens_of(20, 8), tokens_of(25, 9)
    with runner(opened(tier, 2), MODELS["qwen3"], *MODES[mode]) as mine:
        cold = mine.whole(Text([*common, *tail], [9, 4, 7]))
        first = Text([*common, *other_tail], [1, 2, 3])
        mine.run((first, 70))
        second = Text([*common, *tail], [1, 2, 5], done=64)
        mine.executable.kv_write([5], [bytes(len(mine.executable.kv_read([5])[0]))])
        mine.run((second, 11), (first, 19))
        mine.run((second, 9))
        same(second.bits(), cold[64:])
        same(first.bits(), mine.whole(Text([*common, *other_tail], [8, 10, 6])))


LONG = 1100


def long_text(device: Any, mode: str, window: int | None, *steps: int) -> Array:
    """The bits of a text beyond a split of 1024 positions, at rows near the ends of softmax steps and splits."""
    config = small(
        "mistral",
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
        max_position_embeddings=4096,
    )
    wanted = [0, 255, 256, 1023, 1024, 1025, *range(LONG - 4, LONG)]
    with runner(device, config, *MODES[mode], tokens=LONG, blocks=24, block_tokens=64) as mine:
        long = Text(tokens_of(LONG, 10), list(range(18)))
        for count in steps:
            mine.run((long, count), wanted=wanted)
        return long.bits()


@pytest.fixture(scope="module")
def long_base(opened: Opened) -> Callable[[str, int | None], Array]:
    """long_base(mode, window) → the long text's bits in one step, on one thread, scalar."""
    return cache(lambda mode, window: long_text(opened("scalar", 1), mode, window, LONG))


@pytest.mark.parametrize("mode", CHUNK_MODES)
@pytest.mark.parametrize("window", [None, 1050, 100])
def test_long_contexts(
    tier: str, opened: Opened, long_base: Callable[[str, int | None], Array], mode: str, window: int | None
) -> None:
    """Beyond a split of 1024 positions: in one step or many, by one thread or several that share a row's splits."""
    expected = long_base(mode, window)
    if tier != "scalar":
        same(long_text(opened(tier, 1), mode, window, LONG), expected)
    same(long_text(opened(tier, 3), mode, window, LONG - 3, 1, 1, 1), expected)
    same(long_text(opened(tier, 2), mode, window, 1023, 50, 3, 20, 1, 3), expected)


def test_rows_of_every_count(tier: str, opened: Opened) -> None:
    """The number of rows of a step picks the way through the product kernels; K spans three segments."""
    rows = 66
    with runner(opened(tier, 2), MODELS["llama"], *MODES["bf16"]) as mine:
        expected = mine.whole(Text(tokens_of(rows, 11), [0, 1, 2, 3]))
        for count in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65):
            same(mine.whole(Text(tokens_of(rows, 11)[:count], [4, 5, 6, 7])), expected[:count])


def test_it_would_show(opened: Opened) -> None:
    """The comparison is not blind: one weight that differs by a unit of its last place changes bits."""
    with runner(opened("scalar", 1), MODELS["qwen3"], *MODES["f32"]) as mine:
        norm = next(at for at, spec in enumerate(mine.program.weights) if "input_layernorm" in spec.name)
        ones = np.ones(mine.program.weights[norm].n, np.float32)
        mine.executable.write_vector(norm, ones)
        before = mine.whole(text(1))
        same(mine.whole(text(1)), before)
        ones[5] = np.nextafter(np.float32(1), np.float32(2))
        mine.executable.write_vector(norm, ones)
        with pytest.raises(AssertionError):
            same(mine.whole(text(1)), before)
