"""Requests from threads and event loops, with the engine's own thread taking the turns."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fake import FakeExecutable, oracle
from fake_codec import full_text

from dashinfer_lite.devices.step import Step
from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import CapacityError, DashInferError
from dashinfer_lite.sampling_params import SamplingParams

Make = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def engine(make_engine: Make) -> Engine:
    engine = make_engine()
    engine.start()
    engine.start()
    return engine


class Gate:
    """Holds the device back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        submit = FakeExecutable.submit

        def held(fake: FakeExecutable, step: Step) -> int:
            self.reached.set()
            self.open.wait()
            return submit(fake, step)

        monkeypatch.setattr(FakeExecutable, "submit", held)


def test_many_threads(engine: Engine) -> None:
    """Streams and results are the same from whichever thread they are read."""

    def work(i: int) -> bool:
        prompt = [i % 7, i % 5, i]
        request = engine.submit(prompt, GREEDY)
        expected = oracle(prompt, GREEDY).token_ids
        with ThreadPoolExecutor(2) as readers:
            streams = [readers.submit(lambda: "".join(request)) for _ in range(2)]
            tokens = [token for token, _ in request.tokens()]
        return [stream.result() for stream in streams] == [
            full_text(expected)
        ] * 2 and tokens == expected == request.result().outputs[0].token_ids

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


def test_asyncio(engine: Engine) -> None:
    """`await` and `async for`, many at once in one loop; a loop that has gone does no harm."""

    async def work(i: int) -> None:
        request = engine.submit([i, 2], GREEDY)
        pieces = [piece async for piece in request]
        expected = oracle([i, 2], GREEDY).token_ids
        assert "".join(pieces) == full_text(expected)
        assert [token async for token, _ in request.tokens()] == expected
        assert (await request).outputs[0].token_ids == (await request).outputs[0].token_ids == expected

    async def all_of_them() -> None:
        await asyncio.gather(*(work(i) for i in range(20)))

    async def gone() -> None:
        async for _ in engine.submit([1], replace(GREEDY, max_tokens=200)):
            return

    asyncio.run(all_of_them())
    asyncio.run(gone())
    assert engine.submit([1], GREEDY).result().finished


def test_a_waiting_task_can_be_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def main() -> None:
        request = engine.submit([1], GREEDY)
        task = asyncio.create_task(request._result_async())
        await asyncio.to_thread(gate.reached.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        assert (await request).finished

    asyncio.run(main())


def test_status_on_the_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    request = engine.submit([1], GREEDY)
    gate.reached.wait()
    assert (request.status, request.text, request.is_done) == ("prefilling", "", False)
    assert request.timings.queue_s is not None and request.timings.ttft_s is None
    with pytest.raises(TimeoutError):
        request.result(timeout=0)
    assert not request.output().finished
    gate.open.set()
    assert request.result().finished
    assert request.status == "finished"


def test_full_queue(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `block` a submission waits until the engine's thread has started one of those before it."""
    engine = make_engine(max_queue=1)
    engine.start()
    gate = Gate(monkeypatch)
    first = engine.submit([1], GREEDY)
    gate.reached.wait()
    second = engine.submit([2], GREEDY)
    with pytest.raises(CapacityError):
        engine.submit([3], GREEDY)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(engine.submit, [3], GREEDY, block=True)
        gate.open.set()
        requests = [first, second, third.result()]
    assert all(request.result().finished for request in requests)


def test_stop_ends_everything(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running and queued requests end as cancelled, the thread ends, `on_stop` runs once."""
    ended: list[str] = []
    engine = make_engine(on_stop=lambda: ended.append(threading.current_thread().name))
    engine.start()
    gate = Gate(monkeypatch)
    requests = [engine.submit([i], GREEDY) for i in range(9)]
    gate.reached.wait()
    gate.open.set()
    engine.stop()
    engine.stop()
    assert ended == ["dashinfer-engine"]
    assert engine._thread is not None and not engine._thread.is_alive()
    assert {request.result().outputs[0].finish_reason for request in requests} <= {"cancelled", "length"}
    with pytest.raises(DashInferError, match="stopped"):
        engine.submit([1], GREEDY)


def test_stop_wakes_whoever_waits_for_room(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_queue=1)
    engine.start()
    gate = Gate(monkeypatch)
    engine.submit([1], GREEDY)
    gate.reached.wait()
    engine.submit([2], GREEDY)
    with ThreadPoolExecutor(3) as pool:
        blocked = [pool.submit(engine.submit, [i], GREEDY, block=True) for i in range(3)]
        engine.stop(wait=False)
        gate.open.set()
        for submission in blocked:
            with pytest.raises(DashInferError, match="stopped"):
                submission.result()


def test_step_belongs_to_one_thread(engine: Engine) -> None:
    with pytest.raises(DashInferError, match="another thread takes this engine's turns"):
        engine.step()


def test_a_bug_ends_the_engine_not_the_program(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks inside, nobody waits for ever: requests fail with the reason, and so do later submissions."""

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine._core, "turn", broken)
    request = engine.submit([1], GREEDY)
    with pytest.raises(DashInferError, match="the engine broke down: ZeroDivisionError: a bug"):
        request.result()
    with pytest.raises(DashInferError, match="broke down"):
        engine.submit([1], GREEDY)
    assert "broke down" in caplog.text


def test_nothing_is_held_once_done(engine: Engine) -> None:
    """A finished request is freed as soon as its handle is dropped, although the engine lives on."""

    class Owner:
        pass

    asleep = threading.Event()
    forget = engine._core.forget

    def forget_and_tell() -> None:
        forget()
        asleep.set()

    owner = Owner()
    request = engine.submit([1, 2, 3], GREEDY, owner=owner)
    gone, handle = weakref.ref(owner), weakref.ref(request)
    del owner
    request.result()
    assert gone() is None
    engine._core.forget = forget_and_tell  # type: ignore[method-assign]
    del request
    engine.submit([1], GREEDY).result()
    asleep.wait()
    gc.collect()
    assert handle() is None
