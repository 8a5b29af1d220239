"""Text as it comes, a stop string, and cancelling.

python examples/02_stream.py [model folder]
"""

from __future__ import annotations

import sys

from dashinfer_lite import LLM, SamplingParams


def main(folder: str | None = None) -> None:
    """Stream two stories at once; one ends at a stop string, the other is cancelled half-way."""
    with LLM(folder) as llm:
        # `submit` returns at once: both requests run from here on, whoever reads them.
        first = llm.submit("Long ago there lived", SamplingParams(temperature=0, max_tokens=120, stop=[".\n", ".\n\n"]))
        second = llm.submit("Long ago there lived", SamplingParams(temperature=0.8, seed=7, max_tokens=400))

        # Pieces hold whole characters and join to the text; a stop string is never part of one, not even partly.
        for piece in first:
            print(piece, end="", flush=True)
        answer = first.result().outputs[0]
        print(f"\n[{answer.finish_reason}, stop string {answer.stop_reason!r}]\n")

        # Token ids instead of text, and an end by decision.
        for count, (_token, _logprobs) in enumerate(second.tokens(), start=1):
            if count == 20:
                second.cancel()
        print(f"{second.output().text}\n[{second.status} after {second.usage.completion_tokens} tokens]")


if __name__ == "__main__":
    main(*sys.argv[1:2])
