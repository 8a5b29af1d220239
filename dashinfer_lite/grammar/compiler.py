"""Compiling grammars beside the engine, within bounds of size, time and memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.errors import CapacityError, DashInferError, RequestError
from dashinfer_lite.grammar.matcher import Matcher, check_matcher
from dashinfer_lite.grammar.source import source
from dashinfer_lite.grammar.vocabulary import vocabulary

if TYPE_CHECKING:
    import numpy as np

    from dashinfer_lite.guided import Guided
    from dashinfer_lite.text import Tokenizer

DEADLINE_S: Final = 2.0
WORKERS: Final = 2
MAX_KEPT: Final = 128
MAX_KEPT_SOURCE: Final = 1 << 20
STACK_BYTES: Final = 64 << 20  # the library recurses along chains of rules
_TICK_S: Final = 0.1


class Grammar:
    """A compiled grammar; every answer that follows it gets a matcher of its own."""

    def __init__(self, ll_matcher: Any, first_mask: np.ndarray) -> None:
        self._matcher = ll_matcher
        self._first_mask = first_mask

    def matcher(self) -> Matcher:
        return Matcher(self._matcher.deep_copy(), self._first_mask)


class GrammarCompiler:
    """Compiles what answers must look like, and keeps what was asked for last. Any thread may use it.

    A compilation cannot be interrupted. So each runs in a thread of its own; who waits for longer than the deadline is
    told so, and the thread counts as busy until it is done. No more than `WORKERS` are busy at a time.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, deadline_s: float = DEADLINE_S) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ticks = max(1, round(deadline_s / _TICK_S))
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._workers = threading.Semaphore(WORKERS)
        self._jobs: dict[Guided, _Job] = {}
        self._kept: OrderedDict[Guided, Grammar | DashInferError] = OrderedDict()
        self._kept_source = 0
        self._vocabulary: Any = None
        self._vocabulary_lock = threading.Lock()

    def matcher(self, guided: Guided) -> Matcher:
        """A matcher at the start of an answer; see `engine.grammar.Grammars`."""
        return self.compile(guided).matcher()

    def compile(self, guided: Guided) -> Grammar:
        """The grammar of `guided`; waits where it is new.

        RequestError for what is broken, not supported, too large, or not compiled within the deadline; CapacityError
        where others are being compiled for as long.
        """
        result = self._look_up(guided)
        if result is None:
            self._load_vocabulary()
            result = self._job(guided).wait(self._ticks)
        if result is None:
            error = RequestError(
                f"the {guided.kind} could not be compiled within {self._deadline_s:g} seconds; make it simpler"
            )
            self._keep(guided, error)
            raise error
        if isinstance(result, DashInferError):
            raise type(result)(str(result))  # its own one each time: a kept error must not gather tracebacks
        return result

    def _look_up(self, guided: Guided) -> Grammar | DashInferError | None:
        with self._lock:
            if guided in self._kept:
                self._kept.move_to_end(guided)
            return self._kept.get(guided)

    def _keep(self, guided: Guided, result: Grammar | DashInferError) -> None:
        """Keep a result; what was not asked for for longest goes. A refusal for lateness stays."""
        with self._lock:
            if guided in self._kept:
                return
            self._kept[guided] = result
            self._kept_source += _size(guided)
            while len(self._kept) > MAX_KEPT or self._kept_source > MAX_KEPT_SOURCE:
                gone, _ = self._kept.popitem(last=False)
                self._kept_source -= _size(gone)

    def _job(self, guided: Guided) -> _Job:
        """The compilation of `guided`: one that is under way, or a new one once a worker is free."""
        for _ in range(self._ticks):
            has_worker = self._workers.acquire(timeout=_TICK_S)
            with self._lock:
                known = self._jobs.get(guided)
                if guided in self._kept:  # done since it was looked up
                    known = _Job(self._kept[guided])
                if known is None and has_worker:
                    job = self._jobs[guided] = _Job()
                    self._start(guided, job)
                    return job
            if has_worker:
                self._workers.release()
            if known is not None:
                return known
        raise CapacityError("other grammars are being compiled; submit the request again later")

    def _start(self, guided: Guided, job: _Job) -> None:
        """Let a thread with a large stack do a job."""
        thread = threading.Thread(target=self._work, args=(guided, job), name="dashinfer-grammar", daemon=True)
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:
            del self._jobs[guided]
            self._workers.release()
            raise CapacityError(f"no thread can be started to compile a grammar: {error}") from error
        finally:
            threading.stack_size(before)

    def _work(self, guided: Guided, job: _Job) -> None:
        try:
            result: Grammar | DashInferError = self._compile(guided)
        except DashInferError as error:
            result = error
        except BaseException as error:  # a panic of the library arrives as one of its own
            result = RequestError(f"the {guided.kind} could not be compiled: {error!s:.200}")
        self._keep(guided, result)
        with self._lock:
            del self._jobs[guided]
        job.finish(result)
        self._workers.release()

    def _compile(self, guided: Guided) -> Grammar:
        import numpy as np
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=500_000, max_lexer_states=50_000, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary, source(guided, LLMatcher), log_level=0, limits=limits)
        check_matcher(matcher, guided.kind)
        mask = np.zeros(self._vocab_size // 32 + 1, np.uint32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        check_matcher(matcher, guided.kind)
        if not mask.any():
            raise RequestError(f"no token of this model can begin what the {guided.kind} asks for")
        mask.setflags(write=False)
        return Grammar(matcher, mask)

    def _load_vocabulary(self) -> None:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary(self._tokenizer, self._vocab_size)


class _Job:
    """One compilation, and those who wait for it."""

    def __init__(self, result: Grammar | DashInferError | None = None) -> None:
        self._done = threading.Event()
        self._result = result
        if result is not None:
            self._done.set()

    def finish(self, result: Grammar | DashInferError) -> None:
        self._result = result
        self._done.set()

    def wait(self, ticks: int) -> Grammar | DashInferError | None:
        """The result, or None after so many ticks. Counting them forgives a process that was suspended."""
        any(self._done.wait(_TICK_S) for _ in range(ticks))
        return self._result


def _size(guided: Guided) -> int:
    return sum(map(len, guided.choice)) if guided.choice else len(str(getattr(guided, guided.kind)))
