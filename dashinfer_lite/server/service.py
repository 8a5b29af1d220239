"""What all endpoints share: the model, who may enter, and the threads that put prompts together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from dashinfer_lite.errors import CapacityError, DashInferError
from dashinfer_lite.guided import Guided
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.server.errors import ApiError
from dashinfer_lite.server.metrics import Metrics
from dashinfer_lite.server.overload import WaitingRoom

if TYPE_CHECKING:
    from dashinfer_lite.engine.pooling import Kind as Pooling
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.settings import Settings
    from dashinfer_lite.text import Tokenizer

T = TypeVar("T")

PREPARERS = 2  # threads that render and tokenize; a hostile template can keep one of them busy for a few seconds
STALL_S = 60.0
# Reading the vocabulary for it makes Python stand still for half a second, which nobody's stream should wait for.
FIRST_GRAMMAR = SamplingParams(guided=Guided(json_object=True))


class Service:
    """One model behind HTTP. It belongs to one event loop; before `open` and after `drain` it refuses work with 503."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = settings.name or name
        self.created = int(time.time())
        self.metrics = Metrics(settings.metrics_prefix, self.name)
        self.room = WaitingRoom(1, 1, settings.max_wait_s)
        self.is_draining = False
        self.failure: str | None = None
        self.folder = ""  # the model's, which no client must see
        self.generation_defaults: dict[str, Any] = {}
        self.tokenizer: Tokenizer
        self._llm: LLM | None = None
        self._unmeasured: list[Request] = []
        self._pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix="dashinfer-prepare")
        self._progress = (-1, 0.0)  # the engine's steps when they last changed, and when that was

    def open(self, llm: LLM) -> None:
        """Serve this model from now on; any thread may call it. ModelError where the folder has no tokenizer."""
        settings, info = self.settings, llm.info
        self.room = WaitingRoom(
            settings.max_waiting or 4 * info["max_batch"],
            settings.max_waiting_tokens or 4 * info["kv_tokens"],
            settings.max_wait_s,
        )
        self.tokenizer = llm.tokenizer
        self.metrics.watch(llm, self.room)
        self.folder = info["model"]
        if settings.generation_defaults:
            self.generation_defaults = llm.generation_defaults
        with suppress(DashInferError):  # whoever asks for a structure is told then what is missing
            llm.prepare(FIRST_GRAMMAR)
        self._llm = llm

    def drain(self) -> None:
        """Take in nothing new; what goes on goes on."""
        self.is_draining = True

    def abort(self) -> None:
        """Cancel what goes on; clients are told."""
        for request in self._unmeasured:
            request.cancel()

    def close(self) -> None:
        """Give the threads back. The model belongs to whoever loaded it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def llm(self) -> LLM:
        """The model; ApiError 503 until it is loaded."""
        if self._llm is None:
            if self.failure is not None:
                raise ApiError(503, "the model could not be loaded", code="failed")
            raise ApiError(503, "the model is being loaded", code="loading", headers={"Retry-After": "2"})
        return self._llm

    def check_open(self) -> None:
        """ApiError 503 where no new work is taken."""
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", headers={"Connection": "close"})
        try:
            self.llm.engine.check_usable()
        except DashInferError:
            raise ApiError(503, "the engine has stopped", code="stopped") from None

    def check_alive(self) -> None:
        """ApiError 503 where the engine is dead, or has had work for a minute without taking a step."""
        if self._llm is None:
            if self.failure is not None:
                raise ApiError(503, "the model could not be loaded", code="failed")
            return
        try:
            self._llm.engine.check_usable()
        except DashInferError:
            raise ApiError(503, "the engine has stopped", code="stopped") from None
        engine, now = self._llm.engine.metrics(), time.monotonic()
        if engine["steps"] != self._progress[0] or not engine["running"] + engine["waiting"]:
            self._progress = (engine["steps"], now)
        elif now - self._progress[1] > STALL_S:
            raise ApiError(503, "the engine takes no steps", code="stalled")

    def check_model(self, name: str | None) -> None:
        """ApiError 404 for the name of another model."""
        if name is not None and name != self.name:
            raise ApiError(
                404, "there is no such model; GET /v1/models lists them", param="model", code="model_not_found"
            )

    # ---- work ------------------------------------------------------------------------------------------------------

    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what may take long in a thread, within the bounds of the waiting room."""
        with self.room.preparation():
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def submit(self, ids: list[int], params: SamplingParams, **options: Any) -> Request:
        """Queue a prompt; ApiError 429 where too many wait."""
        return self._enter(ids, lambda: self.llm.submit(ids, params, **options))

    def submit_embedding(self, ids: list[int], pooling: Pooling, priority: int) -> Request:
        """Queue a prompt whose vector is wanted; ApiError 429 where too many wait."""
        return self._enter(ids, lambda: self.llm.submit_embedding(ids, pooling, priority=priority))

    def _enter(self, ids: list[int], submit: Callable[[], Request]) -> Request:
        self.room.admit(len(ids))
        try:
            request = submit()
        except CapacityError:
            raise self.room.refuse() from None
        self.room.enter(request)
        self.measure()
        self._unmeasured.append(request)
        return request

    def measure(self) -> None:
        """Measure the requests that have ended since the last time."""
        for request in self._unmeasured:
            if request.is_done:
                self.metrics.observe(request)
        self._unmeasured = [request for request in self._unmeasured if not request.is_done]
