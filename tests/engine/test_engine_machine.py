"""A state machine drives an engine with a tiny pool: blocks stay sound, and answers are the oracle's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import hypothesis.strategies as st
from fake import EOS, POISON, oracle
from fake_codec import full_text
from fake_engine import build_engine
from fake_grammar import following, joined
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from dashinfer_lite.engine import Engine, Request
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.guided import Guided
from dashinfer_lite.sampling_params import SamplingParams

BLOCK = 4


@dataclass
class Job:
    """A request, and what it was asked."""

    request: Request
    prompt: list[int]
    params: SamplingParams
    options: dict[str, Any]


# Some that continue others, one that is long, one that no tokens can finish.
CHOICES = ("bcd", "bcdef", "a d e", "hijklhijkl", "b c")

prompts = st.one_of(
    # Prompts that share beginnings, and some that do not.
    st.builds(
        lambda head, tail: [*range(head), *tail],
        st.integers(0, 16),
        st.lists(st.integers(0, 3), min_size=1, max_size=4),
    ),
    st.lists(st.integers(0, POISON - 1), min_size=1, max_size=20),
    st.just([1, 2, POISON, 4]),
)
parameters = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    temperature=st.sampled_from([0, 0.7]),
    seed=st.integers(0, 3),
    max_tokens=st.integers(1, 14),
    ignore_eos=st.booleans(),
    presence_penalty=st.sampled_from([0, 0, 1.5]),
    min_tokens=st.sampled_from([0, 0, 1]),
    stop=st.sampled_from([(), (), "a", "b c"]),
    logprobs=st.sampled_from([None, None, 2]),
    prompt_logprobs=st.sampled_from([None, None, None, 1]),
    guided=st.sampled_from([None, None, None, Guided(choice=CHOICES), Guided(grammar="refuse 2")]),
)


class EngineMachine(RuleBasedStateMachine):
    """Submits, cancels and steps in any order."""

    jobs = Bundle("jobs")

    @initialize(
        delay=st.integers(0, 2),
        blocks=st.integers(6, 14),
        host_blocks=st.sampled_from([0, 1, 3, 8, 40]),
        seqs=st.integers(1, 4),
        history_rope=st.booleans(),
        cache=st.booleans(),
    )
    def make(self, delay: int, blocks: int, host_blocks: int, seqs: int, history_rope: bool, cache: bool) -> None:
        self.history_rope = history_rope
        limits = Limits(max_tokens=8, tail_rows=4, max_seqs=seqs, max_logprobs=4)
        program = {"blocks": blocks, "block_tokens": BLOCK, "limits": limits, "history_rope": history_rope}
        program["host_blocks"] = host_blocks
        self.engine: Engine = build_engine(delay, (), program, prefix_cache=cache)
        self.all: list[Job] = []
        self.started: list[Request] = []

    @rule(
        target=jobs,
        prompt=prompts,
        params=parameters,
        priority=st.integers(-1, 1),
        salt=st.sampled_from([None, "s"]),
        span=st.integers(0, 8),
    )
    def submit(self, prompt: list[int], params: SamplingParams, priority: int, salt: str | None, span: int) -> Job:
        options = {"span": min(span, len(prompt)) if span > 4 else 0}
        job = Job(
            self.engine.submit(prompt, params, priority=priority, cache_salt=salt, **options), prompt, params, options
        )
        self.all.append(job)
        job.priority = priority  # type: ignore[attr-defined]
        return job

    @rule(job=jobs)
    def cancel(self, job: Job) -> None:
        job.request.cancel()

    @rule(job=jobs)
    def read(self, job: Job) -> None:
        """Reading in the middle changes nothing."""
        job.request.output()

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            waiting = [job for job in self.all if job.request.status == "queued"]
            self.engine.step()
            for job in waiting:  # first come, first served within a priority
                if job.request.status not in ("queued", "cancelled"):
                    assert all(
                        (other.priority, other.request.id) > (job.priority, job.request.id)  # type: ignore[attr-defined]
                        or other.request.status != "queued"
                        for other in waiting
                    )
            self.check_finished()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.step():
            pass
        self.check_finished()
        assert all(job.request.is_done for job in self.all)
        assert self.engine.metrics()["kv_blocks_used"] == 0
        self.engine.stop()

    @invariant()
    def blocks_are_sound(self) -> None:
        """Users are counted right, no block is lost, and none that may still be written is shared."""
        if not hasattr(self, "engine"):
            return
        core = self.engine._core
        allocator, kv, running = core.kv.allocator, core.kv, core.scheduler.running
        users = [0] * allocator.blocks
        for blocks in [seq.blocks for seq in running] + [blocks for _, blocks in kv._held]:
            for block in blocks:
                users[block] += 1
        assert users == allocator.users
        assert allocator.used + allocator.clean + allocator.kept == allocator.blocks
        for block, count in enumerate(users):
            if count == 0:
                assert bool(allocator._is_kept[block]) == (block in kv.prefixes)
        for seq in running:
            assert len(seq.blocks) == kv.blocks_for(seq.computed)
            assert all(users[block] == 1 for block in seq.blocks[seq.computed // BLOCK :])
        assert len({seq.slot for seq in running} - {-1}) == len(running)
        assert [seq.order for seq in core.scheduler.waiting] == sorted(seq.order for seq in core.scheduler.waiting)
        assert all(not seq.blocks and seq.slot == -1 for seq in core.scheduler.waiting)

    @invariant()
    def host_blocks_are_sound(self) -> None:
        """Each is free, on its way with one step, or holds one entry's copy; every entry is somewhere."""
        if not hasattr(self, "engine"):
            return
        kv = self.engine._core.kv
        host, entries = kv.host, kv.prefixes._entries.values()
        leaving = [each for step in [host._planned, *host._leaving.values()] for each in step]
        assert sorted([*host._free, *host._saved, *(swap.host for _, swap in leaving)]) == list(range(host.blocks))
        assert len({swap.block for _, swap in host._planned}) == len(host._planned)
        for at, entry in host._saved.items():
            assert (entry.host, entry.is_saved) == (at, True)
        for entry, swap in leaving:
            assert (entry.host, entry.is_saved) == (swap.host, False)
        assert set(host._leaving) <= {number for number, _, _ in self.engine._core._flights}
        owners = {id(entry) for entry in [*host._saved.values(), *(entry for entry, _ in leaving)]}
        assert owners == {id(entry) for entry in entries if entry.host >= 0}
        assert all(entry.block >= 0 or entry.host >= 0 for entry in entries)
        assert {entry.block: id(entry) for entry in entries if entry.block >= 0} == {
            block: id(entry) for block, entry in kv.prefixes._of_block.items()
        }

    def check_finished(self) -> None:
        for job in self.all:
            if job.request.is_done:
                self.check(job)
        self.all = [job for job in self.all if not job.request.is_done or job.request.status == "cancelled"]

    def check(self, job: Job) -> None:
        out = job.request.output()
        guided = job.params.guided
        expected = [
            oracle(
                job.prompt,
                job.params,
                index,
                out.seed,
                self.engine.max_context,
                history_rope=self.history_rope,
                following=partial(following, guided) if guided is not None and guided.choice else None,
                **job.options,
            )
            for index in range(job.params.n)
        ]
        fails = any(answer.finish_reason in ("nan", "empty", "early") for answer in expected)
        if guided is not None and guided.grammar:  # which breaks at the second token that it sees
            fails |= any(len(answer.token_ids) - (answer.finish_reason == "stop") >= 2 for answer in expected)
        if job.request.status == "failed":
            assert fails
            return
        if job.request.status == "finished":
            assert not fails or job.params.stop
            if job.params.prompt_logprobs is not None:
                assert out.prompt_logprobs is not None and len(out.prompt_logprobs) == len(job.prompt)
        for output, answer in zip(out.outputs, expected, strict=True):
            assert output.token_ids == answer.token_ids[: len(output.token_ids)]
            if output.finish_reason in ("length", "stop") and not job.params.stop:
                assert (output.token_ids, output.finish_reason) == (answer.token_ids, answer.finish_reason)
            if output.finish_reason == "length":
                assert output.token_ids == answer.token_ids
            if output.logprobs is not None:
                assert [next(iter(entry)) for entry in output.logprobs] == output.token_ids
            if guided is not None and guided.choice and output.finish_reason == "stop" and not job.params.stop:
                assert joined([token for token in output.token_ids if token != EOS]).decode() in guided.choice
            whole = full_text(output.token_ids)
            assert whole.startswith(output.text)
            if output.finish_reason == "stop" and isinstance(output.stop_reason, str):
                assert whole.startswith(output.text + output.stop_reason)
            else:
                assert output.text == whole
            if output.finish_reason != "stop" and job.params.stop and job.params.min_tokens == 0:
                assert str(job.params.stop[0]) not in output.text


EngineMachine.TestCase.settings = settings(stateful_step_count=40, max_examples=settings.default.max_examples)
TestEngineMachine = EngineMachine.TestCase
