"""Brings tokenizers and the engine together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashinfer_lite.text import IncrementalDetokenizer, StopStringMatcher, Tokenizer

if TYPE_CHECKING:
    from dashinfer_lite.sampling_params import SamplingParams


class TextCodec:
    """A tokenizer in the shape that the engine asks for; see `engine.codec.Codec`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def token_text(self, token: int) -> str | None:
        data = self._tokenizer.token_bytes(token)
        return None if data is None else data.decode("utf-8", "replace")

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> AnswerText:
        return AnswerText(self._tokenizer, prompt, params)


class AnswerText:
    """The text of one answer: characters come whole, stop strings not at all."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt, params.skip_special_tokens)
        self._matcher = StopStringMatcher(tuple(params.stop), params.include_stop_str_in_output)

    def push(self, token: int, may_stop: bool) -> tuple[str, str | None]:
        text = self._detokenizer.push((token,))
        return self._matcher.push(text) if may_stop else (text, None)

    def flush(self) -> str:
        text, _ = self._matcher.push(self._detokenizer.flush())
        return text + self._matcher.flush()
