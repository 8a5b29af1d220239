"""A tokenizer for the fake model: most tokens are a letter and a space, some are half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fake import EOS, VOCAB

from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.text.stop import StopStringMatcher

HALVES = {60: b"\xc3", 61: b"\xa9", 62: b"\xe2\x82"}


def token_bytes(token: int) -> bytes:
    if token == EOS:
        return b"<eos>"
    return HALVES.get(token, chr(97 + token % 26).encode() + b" " * (token % 3 == 0))


class FakeCodec:
    """Letters are their first token."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) - 97 for char in text if char != " "]

    def token_text(self, token: int) -> str | None:
        return token_bytes(token).decode("utf-8", "replace") if token < VOCAB else None

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> FakeAnswer:
        return FakeAnswer(params)


class FakeAnswer:
    def __init__(self, params: SamplingParams) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopStringMatcher(list(params.stop), params.include_stop_str_in_output)
        self._skip = params.skip_special_tokens

    def push(self, token: int, may_stop: bool) -> tuple[str, str | None]:
        text = "" if token == EOS and self._skip else self._utf8.decode(token_bytes(token))
        return self._matcher.push(text) if may_stop else (text, None)

    def flush(self) -> str:
        text, _ = self._matcher.push(self._utf8.decode(b"", final=True))
        return text + self._matcher.flush()


def full_text(tokens: Sequence[int]) -> str:
    """The text of a whole answer without its end token."""
    return b"".join(token_bytes(token) for token in tokens if token != EOS).decode("utf-8", "replace")
