"""The engine: threads on one side, the core's turns on the other."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dashinfer_lite.engine.admission import bad_word_ids, check_params, check_span, checked_prompt
from dashinfer_lite.engine.core import Core
from dashinfer_lite.engine.draw import Draw
from dashinfer_lite.engine.pooling import KINDS, Pooling
from dashinfer_lite.engine.positions import layout_of
from dashinfer_lite.engine.request import Request
from dashinfer_lite.engine.sample import Sample
from dashinfer_lite.engine.sequence import Sequence
from dashinfer_lite.errors import CapacityError, DashInferError, RequestError
from dashinfer_lite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dashinfer_lite.devices.base import Executable
    from dashinfer_lite.engine.codec import Codec
    from dashinfer_lite.engine.grammar import Grammars, Matcher
    from dashinfer_lite.engine.pooling import Kind
    from dashinfer_lite.graph.program import Program

_log = logging.getLogger("dashinfer_lite")


class Engine:
    """Serves requests with one executable. Any thread may submit and cancel; requests are checked right there.

    The core's turns are taken by the thread of `start`, or by a host that calls `step` itself. Commands reach whoever
    takes them through a queue; without work the thread sleeps in that queue.
    """

    def __init__(
        self,
        executable: Executable,
        program: Program,
        codec: Codec | None = None,
        grammars: Grammars | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        max_context: int | None = None,
        max_queue: int = 1024,
        prefix_cache: bool = True,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        """`max_queue` requests may wait for their first step; `on_stop` is called once when the engine has ended.

        Without a `codec` there is no text, only token ids; without `grammars` no answer is guided.
        """
        room = program.kv.blocks * program.kv.block_tokens
        self.max_context = min(max_context or room, room)
        self.max_queue = max_queue
        self._program = program
        self._codec = codec
        self._grammars = grammars
        self._eos_token_ids = tuple(eos_token_ids)
        self._on_stop = on_stop
        self._room = threading.Semaphore(max_queue)
        self._core = Core(executable, program, self.max_context, prefix_cache, self._room.release)
        self._commands: queue.SimpleQueue[tuple[Callable[..., None], *tuple[Any, ...]]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._turn = threading.Lock()  # held by whoever takes the turns
        self._gate = threading.Lock()  # no request gets in once the engine has stopped
        self._stopped: DashInferError | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def submit(
        self,
        prompt_token_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: int = 0,
        span: int = 0,
        pooling: Kind | None = None,
        block: bool = False,
        owner: object = None,
    ) -> Request:
        """Queue a request and return its handle at once.

        prompt        the text of the tokens, for the output
        priority      lower goes first; among equals the earlier
        cache_salt    prompts share cached prefixes only with those of the same salt
        span          the first so many prompt tokens see each other, where the model has no rule of its own
        pooling       make a vector of the prompt, the request's `embedding`, and no answer: "last" or "mean"
        block         wait while the queue is full, instead of CapacityError
        owner         kept alive until the request is done

        RequestError says what is wrong with prompt or parameters. A grammar that is new is compiled here, within a
        deadline.
        """
        self.check_usable()
        params = params or SamplingParams()
        program = self._program
        ids = checked_prompt(prompt_token_ids, program.vocab_size, self.max_context)
        has_codec, has_grammars = self._codec is not None, self._grammars is not None
        check_params(params, program.vocab_size, program.limits.max_logprobs, has_codec, has_grammars)
        if pooling not in (None, *KINDS):
            raise RequestError(f"pooling is {pooling!r:.40}; it must be {' or '.join(KINDS)}")
        if pooling is not None:
            params = SamplingParams(temperature=0, max_tokens=1)
        layout = layout_of(program, ids, span)
        check_span(layout.span, ids, program.limits.max_tokens)
        words = bad_word_ids(params, self._codec)
        number = next(self._numbers)
        seed = params.seed if params.seed is not None else secrets.randbits(64)
        samples = [Sample(index, params, self._codec, ids) for index in range(params.n)]
        request = Request(self, number, prompt, ids, params, seed, samples, self._codec, owner)
        most = self.max_context if params.max_tokens is None else len(ids) + params.max_tokens
        max_total = min(most, self.max_context)
        history = len(ids) if 0 < program.history_rope < len(ids) else None
        salt: Hashable = (cache_salt, adapter, tuple(ids[: layout.span]), layout.gap, history)
        sequences = []
        for index, sample in enumerate(samples):
            draw = Draw(
                params,
                index,
                seed,
                self._eos_token_ids,
                words,
                len(ids),
                max_total,
                self._matcher(params),
                program.vocab_size,
            )
            order = (priority, number, index)
            pool = Pooling(pooling, len(ids)) if pooling is not None else None
            sequences.append(
                Sequence(request, sample, draw, order, max_total, salt, layout.span, adapter, layout.positions, pool)
            )
        self._enter_queue(block)
        self._send(self._core.begin, request, sequences)
        return request

    def cancel(self, request: Request) -> None:
        """End a request within one step; nothing happens where it is done already."""
        self.check_process()
        if not request.is_done and self._stopped is None:
            self._commands.put((self._core.end, request, "cancelled"))

    def start(self) -> None:
        """Let a thread take the turns from now on. It never keeps the interpreter from exiting."""
        self.check_usable()
        with self._gate:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dashinfer-engine", daemon=True)
                self._thread.start()

    def stop(self, wait: bool = True) -> None:
        """Cancel what is still going on and end the engine for good; `wait` until it has ended."""
        if self._stopped is not None or os.getpid() != self._process:
            return
        self._commands.put((self._shut_down, DashInferError("the engine has been stopped")))
        thread = self._thread
        if thread is None:
            if self._turn.acquire(blocking=wait):  # else whoever takes a turn finds the command
                self._obey()
                self._turn.release()
        elif wait and thread is not threading.current_thread():
            thread.join()

    def step(self) -> bool:
        """Take one turn: submit a step, take in the results of one. Returns whether there is more to do.

        For hosts that pump the engine themselves; DashInferError while another thread takes the turns.
        """
        self.check_usable()
        if not self._turn.acquire(blocking=False):
            raise DashInferError(
                "another thread takes this engine's turns; step() is for engines that were not started"
            )
        try:
            self._take_turn()
        except BaseException as error:
            self._break_down(error)
            raise
        finally:
            self._turn.release()
        return self._stopped is None and not self._is_idle()

    def metrics(self) -> dict[str, int]:
        """Counters and gauges as a plain dict."""
        kv, scheduler = self._core.kv, self._core.scheduler
        return self._core.counters.snapshot(
            preemptions=scheduler.preemptions,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            prefix_queried_tokens=kv.queried_tokens,
            prefix_hit_tokens=kv.hit_tokens,
            prefix_host_hit_tokens=kv.host_hit_tokens,
            kv_block_tokens=kv.block_tokens,
            kv_blocks=kv.allocator.blocks,
            kv_blocks_used=kv.allocator.used,
            kv_blocks_cached=kv.allocator.kept,
            kv_host_blocks=kv.host.blocks,
            kv_host_blocks_used=kv.host.used,
        )

    @property
    def is_pumped(self) -> bool:
        """Whether nobody but a host that calls `step` takes the turns."""
        return self._thread is None

    def check_process(self) -> None:
        """DashInferError in a child process: a fork copies neither the engine's thread nor the device's."""
        if os.getpid() != self._process:
            raise DashInferError(
                "this engine belongs to the process that made it, and this is a fork of that process; "
                "load the model after the fork, or start processes with the method 'spawn'"
            )

    def check_usable(self) -> None:
        """DashInferError where the engine cannot serve any more."""
        self.check_process()
        if self._stopped is not None:
            raise self._stopped

    def _matcher(self, params: SamplingParams) -> Matcher | None:
        if params.guided is None or self._grammars is None:
            return None
        return self._grammars.matcher(params.guided)

    def _enter_queue(self, block: bool) -> None:
        while not self._room.acquire(blocking=block and not self.is_pumped):
            if not block:
                raise CapacityError(f"the queue is full: {self.max_queue} requests wait already; submit it again later")
            self.step()

    def _send(self, function: Callable[..., None], *arguments: object) -> None:
        with self._gate:
            if self._stopped is None:
                self._commands.put((function, *arguments))
                return
        self._room.release()  # for the next one who waits to be told so
        raise self._stopped

    def _is_idle(self) -> bool:
        return self._core.is_idle and self._commands.empty()

    def _run(self) -> None:
        with self._turn:
            try:
                while self._stopped is None:
                    if self._is_idle():
                        self._core.forget()
                        self._obey()  # sleeps until there is a command
                    else:
                        self._take_turn()
            except BaseException as error:
                self._break_down(error)

    def _take_turn(self) -> None:
        while self._stopped is None and not self._commands.empty():
            self._obey()
        if self._stopped is None:
            self._core.turn()

    def _obey(self) -> None:
        function, *arguments = self._commands.get()
        function(*arguments)

    def _break_down(self, error: BaseException) -> None:
        _log.error("the engine broke down", exc_info=error)
        self._shut_down(DashInferError(f"the engine broke down: {type(error).__name__}: {error}"), is_failure=True)

    def _shut_down(self, reason: DashInferError, is_failure: bool = False) -> None:
        """End all requests and the engine; whoever submits from now on is told the reason."""
        with self._gate:
            if self._stopped is not None:
                return
            self._stopped = reason
        while not self._commands.empty():  # requests that came in behind the command to stop
            function, *arguments = self._commands.get()
            if function == self._core.begin:
                function(*arguments)
        if is_failure:
            self._core.end_all("failed", reason)
        else:
            self._core.end_all("cancelled")
        if self._on_stop is not None:
            self._on_stop()
