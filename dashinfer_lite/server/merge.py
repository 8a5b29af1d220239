"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """Items as they come, each with the number of its stream; the first error ends all.

    A stream is asked for its next item when the last one has been taken, so nothing piles up.
    """
    if len(streams) == 1:
        try:
            async for item in streams[0]:
                yield 0, item
        finally:
            await _close(streams)
        return
    asked: dict[asyncio.Future[T], int] = {_next(stream): at for at, stream in enumerate(streams)}
    try:
        while asked:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                at = asked.pop(future)
                try:
                    item = future.result()
                except StopAsyncIteration:
                    continue
                asked[_next(streams[at])] = at
                yield at, item
    finally:
        for future in asked:
            future.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await _close(streams)


def _next(stream: AsyncIterator[T]) -> asyncio.Future[T]:
    async def item() -> T:
        return await anext(stream)

    return asyncio.ensure_future(item())


async def _close(streams: Sequence[Any]) -> None:
    for stream in streams:
        await stream.aclose()
