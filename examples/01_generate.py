"""Several prompts in one batch, with log probabilities.

python examples/01_generate.py [model folder]
"""

from __future__ import annotations

import math
import sys

from dashinfer_lite import LLM, SamplingParams


def main(folder: str | None = None) -> None:
    """Continue three prompts; greedy, so that every run and every machine gives the same text."""
    prompts: list[str | list[int]] = ["Once upon a time", "Long ago there lived a fox", [1000, 1001, 1002]]
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
    with LLM(folder) as llm:
        # All prompts share the engine's steps: together they take little longer than the longest alone.
        for output in llm.generate(prompts, params):
            answer = output.outputs[0]
            print(f"{output.prompt or output.prompt_token_ids} → {answer.text!r}")
            print(
                f"  {output.usage.prompt_tokens} + {answer.finish_reason} after {output.usage.completion_tokens} tokens"
            )
            # One dict a position: the token that was drawn, then the most likely ones.
            first = answer.logprobs[0] if answer.logprobs else {}
            for token, entry in first.items():
                print(f"  {token:>6} {entry.decoded_token!r}: {math.exp(entry.logprob):.1%}, rank {entry.rank}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
