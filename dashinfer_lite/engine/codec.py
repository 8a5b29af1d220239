"""What the engine asks of text; whoever makes an engine brings the two together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.sampling_params import SamplingParams


class AnswerText(Protocol):
    """The text of one answer in the making."""

    def push(self, token: int, may_stop: bool) -> tuple[str, str | None]:
        """Take the next token; the text that is certain now, and the stop string that has ended the text.

        Unless it `may_stop` here, the token's text is not searched for stop strings.
        """
        ...

    def flush(self) -> str:
        """The text that was held back; the answer has ended."""
        ...


class Codec(Protocol):
    """A tokenizer as the engine needs it. Used by many threads at once."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text inside another: no special tokens are added."""
        ...

    def token_text(self, token: int) -> str | None:
        """The text that a token stands for, None for an unknown one."""
        ...

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> AnswerText:
        """A fresh answer after a prompt."""
        ...
