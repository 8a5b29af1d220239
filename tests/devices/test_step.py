"""What a step can say, on a model of four instructions: embed, kv_write, attention, sample.

Its hidden state is q, k and v alike and its logits are the attention's output, so that every test is small enough to
be checked by hand. Some of it no model uses yet; devices must do it all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from one_op import Array, Bench, Maker, Span, assert_close, each, fill_step, rounded

from dashinfer_lite.devices.step import NO_SWAPS, RAW_LOGPROB
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.program import KvSpec

H = 24
VOCAB = H
BLOCK = 32
BLOCKS = 12
SLOTS = 8
CACHES = ["f32", "bf16", "u8", "u4"]
TABLE = rounded(3 * np.random.default_rng(0).standard_normal((VOCAB, H)), "bf16")


def make(info: Any, cache: Any = "f32", host_blocks: int = 0) -> Maker:
    """The model; slot 0 is the hidden state, slot 1 the attention's output."""
    kv = KvSpec(1, 1, H, cache, BLOCK, BLOCKS, host_blocks)
    maker = Maker(info, tokens=128, tail_rows=4, seqs=SLOTS, vocab=VOCAB, hidden=H, kv=kv)
    cols = maker.pad_head(H)
    x, y, logits = maker.slot(cols), maker.slot(cols), maker.slot(cols, rows="R")
    maker.op("embed", (), (x,), (maker.matrix(VOCAB, H, "bf16", kind="table", group=H),), scale=2.0)
    maker.op("kv_write", (x, x), Hkv=1, D=H)
    maker.op("attention", (x,), (y,), Hq=1, Hkv=1, D=H, scale=0.25)
    maker.tail_op("gather_rows", (y,), (logits,))
    maker.tail_op("sample", (logits,), V=VOCAB)
    return maker


@contextmanager
def models(device: Any, cache: str = "f32", host_blocks: int = 0) -> Iterator[list[Bench]]:
    """The model wherever `each` has it."""
    with each(device, make(device.info, cache, host_blocks)) as benches:
        for bench in benches:
            bench.matrix(0, TABLE)
        yield benches


def forward(bench: Bench, *spans: Span, clear: Sequence[int] = ()) -> Array:
    """The logits [R,V] of a step."""
    step = bench.run(*spans, clear=clear)
    assert step.out_logits is not None
    return step.out_logits[: step.R].copy()


def alone(bench: Bench, tokens: Sequence[int], block: int = BLOCKS - 1) -> Array:
    """The logits of every row of a fresh sequence of at most a block."""
    return forward(bench, Span(len(tokens), tokens=tokens, blocks=(block,), logits=range(len(tokens))), clear=(block,))


def oracle(tokens: Sequence[int]) -> Array:
    """The same in float64, for an fp32 cache."""
    x = 2.0 * TABLE[list(tokens)].astype(np.float64)
    scores = np.where(np.tri(len(x), dtype=bool), 0.25 * x @ x.T, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ x


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def test_the_model_itself(device: Any) -> None:
    tokens = tokens_of(20)
    with models(device) as benches:
        for bench in benches:
            assert_close(alone(bench, tokens), oracle(tokens), 1e-4)


def test_several_logit_rows_of_several_sequences(device: Any) -> None:
    """In any order, over several tiles of the tail; each row is that of its token."""
    a, b = tokens_of(9, 1), tokens_of(11, 2)
    with models(device) as benches:
        for bench in benches:
            spans = [
                Span(9, tokens=a, blocks=(1,), logits=(8, 0, 3)),
                Span(11, tokens=b, blocks=(0,), logits=(10, 9, 8, 7, 0)),
            ]
            got = forward(bench, *spans, clear=(0, 1))
            expected = np.concatenate([alone(bench, a)[[8, 0, 3]], alone(bench, b)[[10, 9, 8, 7, 0]]])
            np.testing.assert_array_equal(got, expected)


def test_steps_without_logits(device: Any) -> None:
    """A chunk in the middle of a prompt wants none."""
    tokens = tokens_of(30, 3)
    with models(device) as benches:
        for bench in benches:
            whole = alone(bench, tokens)
            forward(bench, Span(17, tokens=tokens[:17], blocks=(4,)), clear=(4,))
            assert bench.step.R == 0
            np.testing.assert_array_equal(forward(bench, Span(13, 17, tokens[17:], (4,), logits=range(13))), whole[17:])


@pytest.mark.parametrize("cache", CACHES)
def test_truncation(device: Any, cache: str) -> None:
    """A cache may end earlier than it did and be written anew: rejected tokens leave no trace."""
    kept, rejected, instead = tokens_of(40, 4), tokens_of(25, 5), tokens_of(18, 6)
    blocks = (3, 7, 5)
    with models(device, cache) as benches:
        for bench in benches:
            forward(bench, Span(58, tokens=kept + instead, blocks=(0, 1), logits=range(58)), clear=(0, 1))
            expected = bench.step.out_logits[40:58].copy()  # type: ignore[index]
            forward(bench, Span(40, tokens=kept, blocks=blocks), clear=blocks)
            forward(bench, Span(25, 40, rejected, blocks, logits=(24,)))
            np.testing.assert_array_equal(forward(bench, Span(18, 40, instead, blocks, logits=range(18))), expected)


def test_clear_blocks(device: Any) -> None:
    """Blocks are handed out as zeros, whatever was in them: here NaN in every byte."""
    tokens = tokens_of(40, 7)
    for cache in CACHES:
        with models(device, cache) as benches:
            bench = benches[0]
            expected = forward(bench, Span(40, tokens=tokens, blocks=(0, 1), logits=range(40)), clear=(0, 1))
            (size,) = {len(data) for data in bench.executable.kv_read([2, 3])}
            bench.executable.kv_write([2, 3, 4], [b"\xff" * size] * 3)
            got = forward(bench, Span(40, tokens=tokens, blocks=(3, 2), logits=range(40)), clear=(2, 3, 4))
            np.testing.assert_array_equal(got, expected)
            assert bench.executable.kv_read([4]) == [bytes(size)]


def test_blocks_move_to_the_host_and_back(device: Any) -> None:
    """What was computed in one block continues in another one after a round trip."""
    tokens = tokens_of(50, 8)
    for cache in CACHES:
        with models(device, cache) as benches:
            for bench in benches:
                expected = forward(bench, Span(50, tokens=tokens, blocks=(0, 1), logits=range(50)), clear=(0, 1))[45:]
                forward(bench, Span(45, tokens=tokens[:45], blocks=(2, 3)), clear=(2, 3))
                saved = bench.executable.kv_read([2, 3])
                forward(bench, Span(1, tokens=tokens[:1], blocks=(2,)), clear=(2, 3))
                bench.executable.kv_write([6, 5], saved)
                assert bench.executable.kv_read([6, 5]) == saved
                np.testing.assert_array_equal(
                    forward(bench, Span(5, 45, tokens[45:], (6, 5), logits=range(5))), expected
                )


@pytest.mark.parametrize("cache", CACHES)
def test_swaps(device: Any, cache: str) -> None:
    """A step copies blocks to the host, fills others from there, then clears: what left goes on in other blocks."""
    if device.info.unified_memory and device.info.name != "reference":
        with pytest.raises(DeviceError, match="3 host blocks; the KV cache lies in host memory as it is"):
            device.create(make(device.info, cache, 3).program())
        return
    tokens, others = tokens_of(70, 17), tokens_of(70, 18)
    with models(device, cache, host_blocks=3) as benches:
        for bench in benches:
            texts = [Span(70, tokens=ids, blocks=blocks) for ids, blocks in ((tokens, (0, 1, 2)), (others, (3, 4, 5)))]
            forward(bench, texts[0], clear=(0, 1, 2))
            forward(bench, texts[1], clear=(3, 4, 5))
            kept = bench.executable.kv_read([0, 1, 3])
            # Both leave, and one returns, into blocks that are free, that just left, or that are cleared for another.
            bench.step.swap_out = np.array([(0, 2), (1, 0), (3, 1)], np.int32)
            bench.step.swap_in = np.array([(3, 2), (6, 0), (0, 1)], np.int32)
            forward(bench, Span(1, tokens=[1], blocks=(1,)), clear=(1, 7))
            assert bench.executable.kv_read([3, 6, 0]) == kept
            bench.step.swap_out = bench.step.swap_in = NO_SWAPS
            got = forward(bench, Span(6, 64, tokens[64:], (3, 6, 8), logits=range(6)), clear=(8,))
            expected = forward(bench, Span(70, tokens=tokens, blocks=(9, 10, 11), logits=range(70)), clear=(9, 10, 11))
            np.testing.assert_array_equal(got, expected[64:])
            for swap in ((BLOCKS, 0), (-1, 0), (0, 3), (0, -1)):
                for name in ("swap_out", "swap_in"):
                    setattr(bench.step, name, np.array([swap], np.int32))
                    with pytest.raises(DeviceError, match="swapped block does not exist"):
                        forward(bench, Span(1, tokens=[1], blocks=(1,)))
                    setattr(bench.step, name, NO_SWAPS)
            np.testing.assert_array_equal(alone(bench, tokens[:20], block=1), expected[:20])


def test_tokens_that_stay_on_the_device(device: Any) -> None:
    """-1 - s is the last token drawn for slot s, from whichever step and sequence."""
    first, second = tokens_of(6, 9), tokens_of(3, 10)
    with models(device) as benches:
        for bench in benches:
            spans = [
                Span(6, tokens=first, blocks=(0,), logits=(2, 5), slot=15),
                Span(3, tokens=second, blocks=(1,), logits=(2,), slot=0),
            ]
            step = bench.run(*spans, clear=(0, 1))
            drawn = step.out_token[:3].tolist()
            assert drawn[1:] == [alone(bench, first)[5].argmax(), alone(bench, second)[2].argmax()]
            spans = [Span(1, 3, [-1], (1,), logits=(0,), slot=0), Span(1, 6, [-16], (0,), logits=(0,), slot=15)]
            got = forward(bench, *spans)
            np.testing.assert_array_equal(
                got, [alone(bench, [*second, drawn[2]])[3], alone(bench, [*first, drawn[1]])[6]]
            )


def test_slots_keep_their_token(device: Any) -> None:
    """A scored row and a row that cannot be sampled draw nothing, and so change no slot."""
    tokens = tokens_of(4, 11)
    with models(device) as benches:
        for bench in benches:
            drawn = int(bench.run(Span(4, tokens=tokens, blocks=(0,), logits=(3,), slot=2), clear=(0,)).out_token[0])
            for field, value in (("target", (drawn + 1) % VOCAB), ("mask", np.zeros(1, np.uint32).ctypes.data)):
                zeros = np.zeros(1, np.uint32)
                step = fill_step(bench.step, [Span(4, tokens=tokens, blocks=(1,), logits=(3,), slot=2)], (1,))
                step.sample[field][0] = zeros.ctypes.data if field == "mask" else value
                bench.submit(step)
                got = forward(bench, Span(1, 4, [-3], (0,), logits=(0,)))
                np.testing.assert_array_equal(got, alone(bench, [*tokens, drawn])[4:])


def test_external_hidden_states(device: Any) -> None:
    """Rows of images or audio bring their hidden state along, unscaled; their tokens are not read."""
    rng = np.random.default_rng(12)
    for rows in (1, 5, 33, 70):
        given = sorted(rng.choice(rows, min(rows, 4), replace=False).tolist())
        states = rounded(rng.standard_normal((len(given), H)), "f32")
        tokens = np.asarray(tokens_of(rows, 13))
        expected = 2 * TABLE[tokens]
        expected[given] = states
        tokens[given] = VOCAB + 1000
        with models(device) as benches:
            for bench in benches:
                step = fill_step(bench.step, [Span(rows, tokens=tokens.tolist(), blocks=(0, 1, 2))], (0, 1, 2))
                step.n_external, step.external = len(given), states
                step.external_row[: len(given)] = given
                bench.poison(0, rows)
                bench.submit(step)
                got = bench.get(0, rows)
                np.testing.assert_array_equal(got[:, :H], expected)
                assert not got[:, H:].any()


def test_adapters_are_ignored(device: Any) -> None:
    """No program has adapters yet: an id changes nothing."""
    tokens = tokens_of(7, 14)
    with models(device) as benches:
        for bench in benches:
            got = forward(bench, Span(7, tokens=tokens, blocks=(0,), logits=range(7), adapter=3), clear=(0,))
            np.testing.assert_array_equal(got, alone(bench, tokens))


def test_bidirectional_spans(device: Any) -> None:
    """The head of a sequence sees itself as a whole; its neighbours in the step and its own tail are causal."""
    tokens, span = tokens_of(12, 15), 5
    x = 2.0 * TABLE[tokens].astype(np.float64)
    seen = np.tri(12, dtype=bool)
    seen[:span, :span] = True
    scores = np.where(seen, 0.25 * x @ x.T, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    with models(device) as benches:
        for bench in benches:
            spans = [Span(12, tokens=tokens, blocks=(b,), logits=range(12), bidirectional=b * span) for b in (0, 1)]
            got = forward(bench, *spans, clear=(0, 1))
            assert_close(got[:12], oracle(tokens), 1e-4)
            assert_close(got[12:], p / p.sum(-1, keepdims=True) @ x, 1e-4)


def test_tokens_outside_the_vocabulary(device: Any) -> None:
    """They cannot come from a request; a device reads no other memory for them."""
    with models(device) as benches:
        for bench in benches:
            assert np.isfinite(alone(bench, [0, 2**31 - 1, VOCAB])).all()


def test_reports_of_several_tiles(device: Any) -> None:
    """Each tile of the tail fills its own rows of the results."""
    tokens = tokens_of(30, 16)
    with models(device) as benches:
        for bench in benches:
            step = fill_step(bench.step, [Span(30, tokens=tokens, blocks=(0,), logits=range(30))], (0,))
            step.sample["flags"][:30], step.sample["n_top"][:30] = RAW_LOGPROB, 1
            bench.submit(step)
            assert step.out_logits is not None
            np.testing.assert_array_equal(step.out_top_ids[:30, 0], step.out_logits[:30].argmax(-1))
            np.testing.assert_array_equal(step.out_token[:30], step.out_top_ids[:30, 0])
            assert (step.out_rank[:30] == 1).all()


def test_statistics(device: Any) -> None:
    """Memory is counted by what is in use: weights at once, KV by the blocks that were handed out."""
    with models(device) as benches:
        bench = benches[0]
        before = bench.executable.stats()
        assert before["weight_bytes"] >= TABLE.size * 2 and before["arena_bytes"] > 0 and before["kv_bytes"] == 0
        alone(bench, [1, 2], block=4)
        alone(bench, [1, 2], block=4)
        forward(bench, Span(1, tokens=[1], blocks=(2,)), clear=(2, 3))
        (size,) = {len(data) for data in bench.executable.kv_read([4])}
        assert bench.executable.stats()["kv_bytes"] == 3 * size
        bench.executable.profile(True)
        alone(bench, [1, 2])
        bench.executable.profile(False)
        timed = {name for name, value in bench.executable.stats().items() if name.startswith("ns_") and value > 0}
        assert timed >= {"ns_embed", "ns_kv_write", "ns_attention", "ns_gather_rows", "ns_sample"}
