"""A host that owns the loop: no engine thread, every step is taken where the host wants it.

python examples/05_pump.py [model folder]
"""

from __future__ import annotations

import sys
from contextlib import closing

from dashinfer_lite import SamplingParams
from dashinfer_lite.engine import Engine, Request
from dashinfer_lite.loading import Options, load_model
from dashinfer_lite.text_codec import TextCodec


def main(folder: str | None = None) -> None:
    """A game loop in small: each frame does its own work, then lets the engine take one step."""
    # What LLM() does, without its last line, `engine.start()`: there is no thread, and whoever calls `step` computes.
    with closing(load_model(folder, Options())) as model:
        assert model.tokenizer is not None
        encode, eos = model.tokenizer.encode, model.tokenizer.eos_token_ids
        engine = Engine(model.executable, model.program, TextCodec(model.tokenizer), eos_token_ids=eos)

        def ask(animal: str, tokens: int) -> Request:
            return engine.submit(
                encode(f"Long ago there lived a {animal}"), SamplingParams(temperature=0, max_tokens=tokens)
            )

        requests = {"fox": ask("fox", 30), "bear": ask("bear", 20)}
        frame, is_busy = 0, True
        while is_busy:
            frame += 1
            is_busy = engine.step()  # False: nothing is left to do
            if frame == 5:  # requests may come at any time, also in the middle of others
                requests["rabbit"] = ask("rabbit", 10)
                is_busy = True
            if frame % 10 == 0:
                growing = [f"{name}: {request.usage.completion_tokens}" for name, request in requests.items()]
                print(f"frame {frame:>3}  {', '.join(growing)}")
        for name, request in requests.items():
            print(f"{name}:{request.text}\n  [{request.status}, {len(request.prompt_token_ids)} prompt tokens]")
        engine.stop()


if __name__ == "__main__":
    main(*sys.argv[1:2])
