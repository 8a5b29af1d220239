"""Engines on the fake device."""

from __future__ import annotations

from typing import Any

from fake import EOS, FakeExecutable, fake_program
from fake_codec import FakeCodec
from fake_grammar import FakeGrammars
from late import LateExecutable

from dashinfer_lite.engine import Engine


def build_engine(
    delay: int = 0, failing: tuple[int, ...] = (), program: dict[str, Any] | None = None, **options: Any
) -> Engine:
    """An engine whose device is `delay` steps late; `engine.fake` is the device."""
    lowered = fake_program(**(program or {}))
    fake = FakeExecutable(lowered, failing)
    executable = LateExecutable(fake, delay, lowered.kv.block_tokens, lowered.vocab_size) if delay else fake
    engine = Engine(executable, lowered, FakeCodec(), FakeGrammars(), eos_token_ids=[EOS], **options)
    engine.fake = fake  # type: ignore[attr-defined]
    return engine
