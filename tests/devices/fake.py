"""A device that computes nothing but notices everything: its next token is a hash of what its paged KV cache holds.

A wrong block table, a stale block, a wrong position, a wrong prefix or a wrong sampling record changes the token; what
cannot be right in any case is asserted. `oracle` says what must come out, from the prompt alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dashinfer_lite.devices.base import DeviceInfo
from dashinfer_lite.devices.step import HIDDEN, RAW_LOGPROB, STATUS_EMPTY, STATUS_NAN, STATUS_OK, Step
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.program import KvSpec, Limits, Program
from dashinfer_lite.sampling_params import SamplingParams

VOCAB = 64
EOS = 3
POISON = 63  # a text with this token has logits that are not numbers; it is never drawn
MASK = (1 << 61) - 1


def fake_program(
    blocks: int = 64,
    block_tokens: int = 4,
    host_blocks: int = 0,
    limits: Limits | None = None,
    history_rope: bool = False,
    position_rows: int = 1,
) -> Program:
    """A program without instructions."""
    return Program(
        slots=(),
        body=(),
        tail=(),
        weights=(),
        kv=KvSpec(1, 1, 8, "f32", block_tokens, blocks, host_blocks),
        limits=limits or Limits(max_tokens=16, tail_rows=4, max_seqs=4, max_logprobs=8),
        arena_bytes=0,
        vocab_size=VOCAB,
        hidden_size=8,
        history_rope=history_rope,
        position_rows=position_rows,
    )


class FakeExecutable:
    """The hashing model over a paged cache.

    Steps whose number is in `failing` fail as a whole, those in `refused` already while they are submitted.
    """

    def __init__(self, program: Program, failing: Iterable[int] = ()) -> None:
        self.info = DeviceInfo("fake", "fake", "", 1, 1, 1, 1, True, 0, 0)
        self.program = program
        self.failing = set(failing)
        self.refused: set[int] = set()
        self.steps = 0
        self.rows = 0
        self.ran_ahead = 0  # tokens that were taken from the device's memory
        self.spans: list[tuple[int, int]] = []  # (first position, tokens) of chunks that touch a bidirectional span
        self._cells: list[list[int | None]] = [[None] * program.kv.block_tokens for _ in range(program.kv.blocks)]
        self._host: list[list[int | None] | None] = [None] * program.kv.host_blocks
        self._last = [0] * program.limits.max_seqs
        self.closed = False

    def submit(self, step: Step) -> int:
        ticket = self.steps
        self.steps += 1
        assert 0 < step.T <= self.program.limits.max_tokens
        assert 0 < step.B <= self.program.limits.max_seqs
        self.rows += step.T
        self._swap(step)
        if ticket in self.refused:
            raise DeviceError("the fake device was told to refuse this step, half done")
        for block in step.clear_blocks[: step.n_clear].tolist():
            self._cells[block] = [None] * self.program.kv.block_tokens
        digests = self._write(step)
        for row in range(step.R):
            self._draw(step, row, digests[int(step.logit_row[row])])
        return ticket

    def wait(self, ticket: int) -> None:
        if ticket in self.failing:
            raise DeviceError("the fake device was told to fail this step")

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.closed = True

    def _swap(self, step: Step) -> None:
        """Copy blocks out and in; only full ones are worth it, and none is cleared that was just brought in."""
        out, in_ = step.swap_out.tolist(), step.swap_in.tolist()
        assert len({block for block, _ in out}) == len({host for _, host in out}) == len(out)
        assert len({block for block, _ in in_}) == len(in_)
        assert not {block for block, _ in in_} & set(step.clear_blocks[: step.n_clear].tolist())
        wrong = self.steps - 1 in self.failing | self.refused
        for block, host in out:
            assert None not in self._cells[block], "a block is saved that was not full"
            self._host[host] = [value + wrong for value in self._cells[block] if value is not None]
        for block, host in in_:
            cells = self._host[host]
            assert cells is not None, "a host block is read that nobody wrote"
            self._cells[block] = [value + wrong for value in cells if value is not None]

    def _write(self, step: Step) -> list[int]:
        """Store the step's tokens; the digest of everything each row sees."""
        size = self.program.kv.block_tokens
        digests: list[int] = []
        written: set[int] = set()
        tokens = [self._last[-1 - t] if t < 0 else t for t in step.tokens[: step.T].tolist()]
        self.ran_ahead += int((step.tokens[: step.T] < 0).sum())
        assert step.q_offset[0] == 0 and step.q_offset[step.B] == step.T
        for b in range(step.B):
            first, end = int(step.q_offset[b]), int(step.q_offset[b + 1])
            count, kv_len, prompt_len = end - first, int(step.kv_len[b]), int(step.prompt_len[b])
            span, start = int(step.bidirectional[b]), int(step.kv_len[b]) - count
            assert 0 < count <= kv_len
            blocks = step.block_table[b, : -(-kv_len // size)].tolist()
            assert len(set(blocks)) == len(blocks)
            if start < span:
                self.spans.append((start, count))
            # A span that is cut sees only its part, and its cells differ from the oracle's.
            seen = fold(tokens[first : first + max(0, span - start)]) if start < span else 0
            for i in range(first, end):
                position = start + i - first
                for axis in range(step.position_rows):
                    assert step.positions[axis, i] == position
                assert 0 <= tokens[i] < VOCAB
                base = max(prompt_len, position + 1) if self.program.history_rope else 0
                block, offset = blocks[position // size], position % size
                assert self._cells[block][offset] is None, "a cell was written twice, or its block was not cleared"
                written.add(block)
                value = cell(tokens[i], position, seen if position < span else 0, base, int(step.adapter[b]))
                # A step that fails leaves wrong values behind.
                self._cells[block][offset] = value + (self.steps - 1 in self.failing)
            digest = START
            for position in range(kv_len):
                value = self._cells[blocks[position // size]][position % size]
                assert value is not None, "a cell is read that nobody wrote"
                digest = fold_one(digest, value)
                if position >= start:
                    digests.append(digest)
        for b in range(step.B):  # no block that one sequence writes is seen by another
            kv_len = int(step.kv_len[b])
            own = {int(x) for x in step.block_table[b, : -(-kv_len // size)]}
            first_block = (kv_len - int(step.q_offset[b + 1] - step.q_offset[b])) // size
            writes = {int(x) for x in step.block_table[b, first_block : -(-kv_len // size)]}
            assert not (own - writes) & written
            written -= writes
        return digests

    def _draw(self, step: Step, row: int, digest: int) -> None:
        record = step.sample[row]
        target = int(record["target"])
        if target < 0:
            self._last[int(record["slot"])] = 0  # a row that fails leaves some token that the model has
        if record["flags"] & HIDDEN:
            assert step.out_hidden is not None
            step.out_hidden[row] = hidden(digest)
            return
        if is_poisoned(digest):
            step.out_status[row] = STATUS_NAN
            return
        history = _ints(record["history"], record["history_len"])
        if record["history"]:
            assert len(history) == record["position"]
        token = target
        if target < 0:
            bias = tuple(
                zip(
                    _ints(record["bias_ids"], record["n_bias"]),
                    _floats(record["bias_values"], record["n_bias"]),
                    strict=True,
                )
            )
            banned = _ints(record["banned_ids"], record["n_banned"])
            assert list(banned) == sorted(set(banned)) or len(banned) > 1
            banned += _masked(record["mask"])
            knobs = Knobs(
                *(float(record[name]) for name in Knobs._fields[:6]),
                int(record["top_k"]),
                int(record["no_repeat_ngram"]),
                bias,
                int(record["seed"]) if record["temperature"] > 0 else 0,
                int(record["sample_index"]) if record["temperature"] > 0 else 0,
                int(record["position"]),
            )
            picked = pick(digest, knobs, set(banned), history if record["history"] else ())
            if picked is None:
                step.out_status[row] = STATUS_EMPTY
                return
            token = picked
            assert 0 <= record["slot"] < self.program.limits.max_seqs
            self._last[int(record["slot"])] = token
        else:
            assert record["slot"] == -1
        step.out_status[row] = STATUS_OK
        step.out_token[row] = token
        if record["flags"] & RAW_LOGPROB:
            step.out_logprob[row], step.out_rank[row] = score(digest, token)
            n_top = int(record["n_top"])
            step.out_top_ids[row], step.out_top_logprobs[row] = -1, 0
            step.out_top_ids[row, :n_top], step.out_top_logprobs[row, :n_top] = top(digest, n_top)


def hidden(digest: int) -> list[float]:
    """The hidden state after a text: eight numbers that fp32 holds exactly."""
    return [np.nan if is_poisoned(digest) else float(fold_one(digest, i) % 4096) for i in range(8)]


class Knobs(NamedTuple):
    """What a draw depends on beside the text."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    top_k: int
    no_repeat_ngram: int
    bias: tuple[tuple[int, float], ...]
    seed: int
    sample_index: int
    position: int


START = 7
POISON_BIT = 1 << 62


def cell(token: int, position: int, seen: int, base: int, adapter: int) -> int:
    """What the cache holds for a token."""
    return fold((token, position, seen, base, adapter)) | (POISON_BIT if token == POISON else 0)


def fold_one(digest: int, value: int) -> int:
    return (((digest & MASK) * 1_000_003 + (value & MASK) * 2_654_435_761 + 12_345) % MASK) | (
        (digest | value) & POISON_BIT
    )


def fold(values: Sequence[int]) -> int:
    digest = 11
    for value in values:
        digest = fold_one(digest, value + 1)
    return digest


def is_poisoned(digest: int) -> bool:
    return bool(digest & POISON_BIT)


def pick(digest: int, knobs: Knobs, banned: set[int], history: Sequence[int]) -> int | None:
    """The next token: some hash of everything that it may depend on."""
    allowed = [token for token in range(POISON) if token not in banned]
    if not allowed:
        return None
    numbers = [int(np.float32(x) * 1000) for x in knobs[:6]] + [knobs.top_k, knobs.no_repeat_ngram]
    for token, value in knobs.bias:
        numbers += [token, int(np.float32(value) * 1000)]
    numbers += [knobs.seed, knobs.sample_index, knobs.position, *history]
    return allowed[fold_one(digest, fold([number & MASK for number in numbers])) % len(allowed)]


def score(digest: int, token: int) -> tuple[float, int]:
    """A log probability that fp32 holds exactly, and a rank."""
    value = fold_one(digest, token)
    return -(value % 1024) / 64 - 1, value % VOCAB + 1


def top(digest: int, count: int) -> tuple[list[int], list[float]]:
    return [(digest + i) % VOCAB for i in range(count)], [-(1 + i) / 8 for i in range(count)]


class Expected(NamedTuple):
    """What must come out of one answer."""

    token_ids: list[int]
    finish_reason: str  # "stop", "length", "nan", "empty", or "early": complete before min_tokens
    digests: list[int]  # of the text before each token


def oracle(
    prompt: Sequence[int],
    params: SamplingParams,
    index: int = 0,
    seed: int = 0,
    max_context: int = 10**9,
    span: int = 0,
    history_rope: bool = False,
    adapter: int = 0,
    following: Callable[[list[int]], tuple[set[int], bool]] | None = None,
) -> Expected:
    """One answer, one token after the other; without stop strings and bad words of several tokens.

    `following` says which tokens of a grammar may follow an answer, and whether its text is complete.
    """
    tokens = list(prompt)
    answer: list[int] = []
    digests: list[int] = []
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    singles = {word[0] for word in params.bad_words if not isinstance(word, str)}
    reads_history = params.repetition_penalty != 1 or bool(
        params.presence_penalty or params.frequency_penalty or params.no_repeat_ngram_size
    )
    digest = prompt_digest(prompt, span, history_rope, adapter)[-1]
    while True:
        if is_poisoned(digest):
            return Expected(answer, "nan", digests)
        digests.append(digest)
        knobs = Knobs(
            *(getattr(params, name) for name in Knobs._fields[:6]),
            max(params.top_k, 0),
            params.no_repeat_ngram_size,
            tuple((params.logit_bias or {}).items()),
            seed if params.temperature > 0 else 0,
            index if params.temperature > 0 else 0,
            len(tokens),
        )
        banned = singles | (stops if len(answer) < params.min_tokens else set())
        if following is not None:
            more, is_complete = following(answer)
            banned |= set(range(VOCAB)) - (more | stops if is_complete else more)
        token = pick(digest, knobs, banned, tokens if reads_history else ())
        if token is None:
            return Expected(answer, "empty", digests)
        base = max(len(prompt), len(tokens) + 1) if history_rope else 0
        digest = fold_one(digest, cell(token, len(tokens), 0, base, adapter))
        tokens.append(token)
        answer.append(token)
        if token in stops:
            return Expected(answer, "stop", digests)
        if following is not None and following(answer) == (set(), True):
            return Expected(answer, "stop" if len(answer) >= params.min_tokens else "early", digests)
        if len(answer) == params.max_tokens or len(tokens) >= max_context:
            return Expected(answer, "length", digests)


def prompt_digest(prompt: Sequence[int], span: int = 0, history_rope: bool = False, adapter: int = 0) -> list[int]:
    """The digest after each token of a prompt."""
    seen = fold(prompt[:span]) if span else 0
    digest, digests = START, []
    for position, token in enumerate(prompt):
        base = max(len(prompt), position + 1) if history_rope else 0
        digest = fold_one(digest, cell(token, position, seen if position < span else 0, base, adapter))
        digests.append(digest)
    return digests


def _ints(address: int, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_int32 * int(count)).from_address(int(address))) if count else ()


def _masked(address: int) -> tuple[int, ...]:
    """The tokens that a mask forbids."""
    if not address:
        return ()
    words = (ctypes.c_uint32 * -(-VOCAB // 32)).from_address(int(address))
    return tuple(token for token in range(VOCAB) if not words[token // 32] >> token % 32 & 1)


def _floats(address: int, count: int) -> tuple[float, ...]:
    return tuple((ctypes.c_float * int(count)).from_address(int(address))) if count else ()
