"""Many requests in one event loop.

python examples/04_async.py [model folder]
"""

from __future__ import annotations

import asyncio
import sys

from dashinfer_lite import AsyncLLM, SamplingParams


async def tell(llm: AsyncLLM, animal: str) -> str:
    """One story; `async for` gives the pieces as they come."""
    pieces = []
    async for piece in llm.stream(f"Long ago there lived a {animal}", SamplingParams(temperature=0, max_tokens=40)):
        pieces.append(piece)
    return "".join(pieces)


async def main(folder: str | None = None) -> None:
    """Three stories at once, while the loop stays free for other work; then one that takes too long."""
    async with AsyncLLM(folder) as llm:
        animals = ("fox", "bear", "rabbit")
        for animal, story in zip(
            animals, await asyncio.gather(*(tell(llm, animal) for animal in animals)), strict=True
        ):
            print(f"{animal}:{story}\n")

        # Who leaves the stream, here by a break, ends the request: nobody would read the rest.
        count = 0
        async for _piece in llm.stream(
            "Long ago there lived a fox", SamplingParams(temperature=1.0, seed=1, max_tokens=400)
        ):
            count += 1
            if count == 10:
                break
        print(f"left after {count} pieces")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
