"""The engine's core: requests that are alive, and one turn after the other."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dashinfer_lite.devices.step import STATUS_EMPTY, STATUS_OK
from dashinfer_lite.engine.batch import Batch, Drawn, Pooled
from dashinfer_lite.engine.kv_cache import KvCache
from dashinfer_lite.engine.metrics import Counters
from dashinfer_lite.engine.sample import RawLogprobs
from dashinfer_lite.engine.scheduler import Chunk, Scheduler
from dashinfer_lite.errors import DashInferError, DeviceError, ModelError, RequestError

if TYPE_CHECKING:
    from dashinfer_lite.devices.base import Executable
    from dashinfer_lite.engine.request import Request, Status
    from dashinfer_lite.engine.sequence import Sequence
    from dashinfer_lite.graph.program import Program

_log = logging.getLogger("dashinfer_lite")


class Core:
    """All state that changes from turn to turn. It belongs to one thread at a time and knows nothing of others.

    Up to `async_depth` steps are in flight: a sequence runs ahead on the token that the device drew, unless its next
    mask or its end depends on tokens that the host must have seen. What ran ahead of an end is ignored.
    """

    def __init__(
        self,
        executable: Executable,
        program: Program,
        max_context: int,
        prefix_cache: bool,
        dequeued: Callable[[], None],
    ) -> None:
        """`dequeued` is called once for each request, when its first step is planned or it ends before that."""
        limits = program.limits
        self.counters = Counters()
        self.kv = KvCache(program.kv.blocks, program.kv.block_tokens, prefix_cache, program.kv.host_blocks)
        self.scheduler = Scheduler(self.kv, limits.max_tokens, limits.max_seqs)
        self._executable = executable
        self._dequeued = dequeued
        self._live: dict[Request, list[Sequence]] = {}
        self._flights: deque[tuple[int, int, Batch]] = deque()  # number, ticket, and what the results are of
        max_blocks = self.kv.blocks_for(max_context)
        self._batches = [
            Batch(limits, max_blocks, max_context, program.position_rows, program.hidden_size)
            for _ in range(max(1, executable.info.async_depth))
        ]

    @property
    def is_idle(self) -> bool:
        return not self._live and not self._flights

    def begin(self, request: Request, sequences: list[Sequence]) -> None:
        """Take in a request; its further answers wait until the first has put the prompt into the cache."""
        self.counters.requests += 1
        self.counters.prompt_tokens += len(request.prompt_token_ids)
        self._live[request] = sequences
        leader, *leader.followers = sequences
        self.scheduler.add(leader)

    def end(self, request: Request, status: Status, error: Exception | None = None) -> None:
        """End a request with all its answers; nothing happens where it has ended already."""
        sequences = self._live.pop(request, None)
        if sequences is None:
            return
        for seq in sequences:
            self._retire(seq)
        if request.status == "queued":
            self._dequeued()
        self.counters.count_end(status)
        request.settle(status, error)

    def end_all(self, status: Status, error: Exception | None = None) -> None:
        """Wait for what is in flight, then end all requests."""
        for _, ticket, _ in self._flights:
            try:
                self._executable.wait(ticket)
            except Exception as late:
                _log.warning("a step failed while the engine was stopping: %s", late)
        self._flights.clear()
        for request in list(self._live):
            self.end(request, status, error)

    def turn(self) -> None:
        """Plan and submit a step where there is one to plan; take in a step's results where that is due."""
        self.counters.turns += 1
        plan = self.scheduler.schedule()
        if plan:
            self._submit(plan)
        elif self._live and not self._flights:
            raise DashInferError("there are requests but nothing to compute; please report this")
        if self._flights and (not plan or not self._batches):
            self._complete(*self._flights.popleft())

    def forget(self) -> None:
        """Drop the last references to what has ended."""
        for batch in self._batches:
            batch.forget()

    def _submit(self, plan: list[Chunk]) -> None:
        for chunk in plan:
            request = chunk.seq.request
            if request.status == "queued":
                request.begin(chunk.seq.cached_tokens)
                self._dequeued()
        batch = self._batches.pop()
        number = self.counters.steps
        swaps_out = self.kv.begin_step(number)
        batch.fill(plan, swaps_out)
        self.counters.steps += 1
        self.counters.computed_tokens += batch.step.T
        self.counters.kv_blocks_swapped_out += len(swaps_out)
        self.counters.kv_blocks_swapped_in += batch.swapped_in
        try:
            ticket = self._executable.submit(batch.step)
        except Exception as error:
            self._batches.append(batch)
            self.kv.step_failed(number)
            self._fail_step(plan, error)
            return
        for chunk in plan:
            chunk.seq.last_step = number
        self._flights.append((number, ticket, batch))

    def _complete(self, number: int, ticket: int, batch: Batch) -> None:
        """Take in a step's results, in the order of submission."""
        self._batches.append(batch)
        try:
            self._executable.wait(ticket)
        except Exception as error:
            self.kv.step_failed(number)
            self.kv.step_done(number)
            self._fail_step(batch.plan, error)
            return
        self.kv.step_done(number)
        for chunk in batch.plan:
            if chunk.seq.epoch == chunk.epoch and not chunk.seq.done:
                self.kv.register(chunk.seq, chunk.start + chunk.count)
        changed: dict[Request, bool] = {}  # and whether one of its answers has ended
        for drawn in batch.results():
            self._accept(drawn, changed)
        if batch.pooled_rows:
            for pooled in batch.pooled():
                self._pool(pooled, changed)
        for request, has_ended in changed.items():
            request.notify(is_generating=True)
            if has_ended and all(seq.done for seq in self._live.get(request, ())):
                self.end(request, "finished")

    def _accept(self, drawn: Drawn, changed: dict[Request, bool]) -> None:
        """Take in one logit row."""
        seq = drawn.seq
        request = seq.request
        seq.pending -= not drawn.scored
        if seq.done:
            return
        if drawn.status != STATUS_OK:
            self.end(request, "failed", _row_error(drawn, len(seq.tokens)))
            return
        if drawn.scored:
            target = seq.tokens[len(request.raw_prompt_logprobs) + 1]
            request.raw_prompt_logprobs.append(RawLogprobs(target, drawn.logprob, drawn.rank, *drawn.top))
            return
        seq.tokens.append(drawn.token)
        if seq.draw.reports:
            seq.sample.raw_logprobs.append(RawLogprobs(drawn.token, drawn.logprob, drawn.rank, *drawn.top))
        seq.sample.token_ids.append(drawn.token)
        self.counters.generated_tokens += 1
        try:
            self._look_for_end(seq, drawn.token)
        except RequestError as error:
            self.end(request, "failed", error)
            return
        changed[request] = seq.done or changed.get(request, False)
        for follower in seq.followers:
            self.scheduler.add(follower)
        seq.followers = []

    def _pool(self, pooled: Pooled, changed: dict[Request, bool]) -> None:
        """Take in hidden states; the prompt's vector is there with its last token."""
        seq, rows = pooled
        if seq.done or seq.pooling is None:
            return
        seq.pooling.take(rows)
        if not seq.pooling.is_complete:
            return
        vector = seq.pooling.vector()
        if not all(map(math.isfinite, vector)):
            self.end(seq.request, "failed", ModelError("the model's hidden states are not numbers"))
            return
        seq.request.embedding = vector
        seq.sample.finish_reason = "stop"
        self._retire(seq)
        changed[seq.request] = True

    def _look_for_end(self, seq: Sequence, token: int) -> None:
        """Show a new token to readers, and finish the answer where it ends; RequestError where its grammar fails."""
        sample, params = seq.sample, seq.request.params
        count = len(sample.token_ids)
        if token in seq.draw.stop_ids:
            sample.visible = count if params.include_stop_str_in_output else count - 1
            sample.stop_reason = None if token in seq.draw.eos_ids else token
            sample.finish_reason = "stop"
        else:
            sample.visible = count
            if params.stop:
                sample.decode()
            if sample.found_stop is not None:
                sample.stop_reason = sample.found_stop
                sample.finish_reason = "stop"
            elif seq.draw.guide is not None and seq.draw.guide.accept(token):
                sample.finish_reason = "stop"
            elif len(seq.tokens) >= seq.max_total:
                sample.finish_reason = "length"
        if sample.finish_reason is not None:
            self._retire(seq)

    def _retire(self, seq: Sequence) -> None:
        """Take a sequence out of the schedule."""
        if not seq.done:
            seq.done = True
            self.scheduler.remove(seq)

    def _fail_step(self, plan: list[Chunk], error: Exception) -> None:
        """A step failed as a whole: so do its requests, and nobody else."""
        if not isinstance(error, DashInferError):
            error = DeviceError(f"the device failed: {type(error).__name__}: {error}")
        _log.warning("a step of %d sequences failed: %s", len(plan), error)
        for chunk in plan:
            self.end(chunk.seq.request, "failed", error)


def _row_error(drawn: Drawn, position: int) -> DashInferError:
    if drawn.status == STATUS_EMPTY:
        return RequestError(f"no token may come at position {position}: bans, masks and the grammar exclude all")
    return ModelError(
        f"the model's logits at position {position} are not numbers: the weights are broken, or their dtype overflows"
    )
