"""What a step can ask of the reference device beyond plain text: masks, external rows, positions, moves, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, LIMITS, PROMPTS, Weights, transformer
from stepping import Loop

from dashinfer_lite.devices.base import Device, Executable
from dashinfer_lite.devices.reference import ReferenceDevice, ReferenceExecutable
from dashinfer_lite.devices.reference_ops import AttentionArgs, activation, attention, rounded
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.program import Program
from dashinfer_lite.weights.loader import load_weights


def loaded(model: Any = transformer, **options: Any) -> tuple[ReferenceExecutable, Program]:
    device = ReferenceDevice(**options)
    program = build(model, CONFIG, device.info, dtype="f32", kv_dtype="f32", limits=LIMITS, blocks=8, block_tokens=8)
    executable = device.create(program)
    load_weights(program, Weights().provide(program), executable)
    return executable, program


def test_it_is_a_device() -> None:
    device = ReferenceDevice()
    assert isinstance(device, Device)
    assert isinstance(loaded()[0], Executable)


def dense_attention(q: Any, k: Any, v: Any, args: AttentionArgs, bidirectional: int) -> np.ndarray:
    n, q_heads, _ = q.shape
    y = np.zeros(q.shape)
    for head in range(q_heads):
        keys, values = (x[:, head * k.shape[1] // q_heads].astype(np.float64) for x in (k, v))
        for row in range(n):
            p = len(k) - n + row
            s = keys @ q[row, head].astype(np.float64) * args.scale
            if args.softcap:
                s = args.softcap * np.tanh(s / args.softcap)
            if args.alibi is not None:
                s = s + args.alibi[head] * np.arange(len(k))
            seen = np.arange(len(k)) <= p
            if p < bidirectional:
                seen[:bidirectional] = True
            if args.window:
                seen &= np.arange(len(k)) > p - args.window
            e = np.where(seen, np.exp(s - s[seen].max()), 0)
            total = e.sum()
            if args.sinks is not None:
                total += np.exp(args.sinks[head] - s[seen].max())
            y[row, head] = e @ values / total
    return y


@pytest.mark.parametrize("length", [1, 40, 256, 300, 1100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 7},
        {"softcap": 2.0},
        {"alibi": np.array([-0.5, -0.1, 0.0, 0.2], np.float32)},
        {"sinks": np.array([0.3, -1.0, 2.0, 0.0], np.float32)},
        {"bidirectional": 23},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_attention_against_a_dense_one(length: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(length)
    n = min(length, 37)
    q = rng.standard_normal((n, 4, 10)).astype(np.float32)
    k, v = rng.standard_normal((2, length, 2, 10)).astype(np.float32)
    bidirectional = options.pop("bidirectional", 0) if length == 40 else options.get("bidirectional", 0) * 0
    options = {name: value for name, value in options.items() if name != "bidirectional"}
    args = AttentionArgs(
        **{"scale": 0.4, "softcap": 0.0, "window": 0, "kv_dtype": "f32", "alibi": None, "sinks": None} | options
    )
    got = attention(q, k, v, bidirectional, args)
    np.testing.assert_allclose(got, dense_attention(q, k, v, args, bidirectional), atol=1e-5)


@pytest.mark.parametrize(("code", "function"), [
    (1, lambda x: x / (1 + math.exp(-x))),
    (2, lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    (3, lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
])  # fmt: skip
def test_activations(code: int, function: Any) -> None:
    x = np.linspace(-30, 30, 301, dtype=np.float32)
    np.testing.assert_allclose(activation(x, code), [function(float(value)) for value in x], atol=2e-6)


def test_rounding_to_bf16_is_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7FC00001], np.uint32)
    got = rounded(bits.view(np.float32), "bf16").view(np.uint32)
    assert got[:5].tolist() == [0x3F800000, 0x3F820000, 0x3F810000, 0x7F800000, 0x7F800000]
    assert np.isnan(got[5:].view(np.float32)).all()


def test_an_external_row_replaces_the_token_s_embedding() -> None:
    executable, program = loaded(col_align=32, head_align=32)
    loop = Loop(executable, program)
    table = Weights().provide(program).tensors["embed.weight"]
    plain, external = loop.add(PROMPTS[0], 16), loop.add([0, 1, 0, 1, 0, 0, 0, 0, 0], 16)
    loop.step([(plain, plain.prompt)])
    states = {row: table[token] for row, token in enumerate(PROMPTS[0]) if row not in (1, 3)}
    loop.step([(external, external.prompt)], external=states)
    np.testing.assert_array_equal(np.stack(external.logits), np.stack(plain.logits))


def test_bidirectional_tokens_see_each_other() -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    first, second = (loop.add(tokens, 16) for tokens in ([1, 2, 3, 4, 5], [1, 2, 9, 4, 5]))
    first.bidirectional = second.bidirectional = 3
    loop.step([(first, first.prompt), (second, second.prompt)])
    assert np.abs(first.logits[0] - second.logits[0]).max() > 1e-3
    causal = [loop.add(tokens, 16) for tokens in ([1, 2, 3, 4, 5], [1, 2, 9, 4, 5])]
    loop.step([(s, s.prompt) for s in causal])
    np.testing.assert_array_equal(causal[0].logits[:2], causal[1].logits[:2])


def test_three_position_rows_turn_their_sections() -> None:
    def model(g: Graph, c: Any) -> None:
        x = g.embed("embed", c.vocab, c.hidden)
        rope = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [1, 1, 1]}
        table = g.rope_table(rope, c.size, 64)
        q, k, v = (g.linear(x, name, heads=(2, c.size)) for name in "qkv")
        g.logits(g.linear(g.attention(g.rope(q, table), g.rope(k, table), v), "o", c.hidden), "head", c.vocab)

    executable, program = loaded(model)
    assert program.position_rows == 3
    loop = Loop(executable, program)
    running = np.arange(5)
    results = []
    for positions in (None, [running] * 3, [running, running, running * 2]):
        sequence = loop.add([1, 2, 3, 4, 5], 8)
        loop.step([(sequence, sequence.prompt)], positions=None if positions is None else np.stack(positions))
        results.append(np.stack(sequence.logits))
        loop.free = sequence.blocks + loop.free
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[1] - results[2]).max() > 1e-4


def test_blocks_move_to_the_host_and_back() -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    sequence, other = loop.add(PROMPTS[0], 16), loop.add(PROMPTS[0], 16)
    loop.step([(sequence, PROMPTS[0]), (other, PROMPTS[0])])
    saved = executable.kv_read(sequence.blocks)
    executable.kv_write(sequence.blocks, [bytes(len(block)) for block in saved])
    loop.step([(sequence, [7]), (other, [7])])
    assert np.abs(sequence.logits[-1] - other.logits[-1]).max() > 1e-3
    sequence.length -= 1
    executable.kv_write(sequence.blocks, saved)
    loop.step([(sequence, [7])])
    np.testing.assert_array_equal(sequence.logits[-1], other.logits[-1])


def test_blocks_are_cleared_before_the_step() -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    executable.kv[:] = 7
    sequence = loop.add([1, 2, 3], 16)
    loop.step([(sequence, [1, 2, 3])])
    first, second = sequence.blocks
    assert not (executable.kv[first][:, :, :, :3] == 7).any()
    assert (executable.kv[first][:, :, :, 3:] == 0).all() and (executable.kv[second] == 0).all()
    others = [block for block in range(program.kv.blocks) if block not in sequence.blocks]
    assert (executable.kv[others] == 7).all()


def test_truncating_the_cache_is_running_again_from_there() -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    sequence = loop.add(PROMPTS[0], 16)
    loop.step([(sequence, PROMPTS[0])])
    sequence.length = 4
    loop.step([(sequence, PROMPTS[0][4:])])
    np.testing.assert_allclose(sequence.logits[9:], sequence.logits[4:9], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"T": 0}, "tokens"),
        ({"T": 33}, "exceed"),
        ({"B": 5}, "exceed"),
        ({"q_offset": 1}, "cover"),
        ({"kv_len": 2}, "cover"),
        ({"kv_len": 100}, "valid block"),
        ({"block_table": 8}, "valid block"),
        ({"block_table": -1}, "valid block"),
        ({"tokens": -9}, "sequence slot"),
        ({"logit_row": 9}, "logit row"),
    ],
    ids=str,
)
def test_a_step_that_makes_no_sense_is_refused(change: dict[str, int], words: str) -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    sequence = loop.add(PROMPTS[0], 16)
    loop.step([(sequence, PROMPTS[0])])
    step = loop.step_arrays
    for name, value in change.items():
        if name in ("T", "B"):
            setattr(step, name, value)
        else:
            getattr(step, name)[:1] = value
    with pytest.raises(DeviceError, match=words):
        executable.submit(step)


def test_a_closed_program_says_so() -> None:
    executable, program = loaded()
    loop = Loop(executable, program)
    with pytest.raises(DeviceError, match="ticket 1"):
        executable.wait(1)
    executable.close()
    with pytest.raises(DeviceError, match="closed"):
        executable.submit(loop.step_arrays)
