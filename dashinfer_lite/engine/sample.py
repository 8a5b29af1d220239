"""One answer as it grows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from dashinfer_lite.outputs import CompletionOutput, FinishReason, Logprob, Logprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.engine.codec import AnswerText, Codec
    from dashinfer_lite.sampling_params import SamplingParams


class RawLogprobs(NamedTuple):
    """A position's log probabilities as the device gave them."""

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]

    def readable(self, codec: Codec | None) -> Logprobs:
        """The token that is there, then the most likely ones, with their texts."""
        entries = {self.token: Logprob(self.logprob, self.rank, _text(codec, self.token))}
        for rank, (token, logprob) in enumerate(zip(self.top_ids, self.top_logprobs, strict=True), start=1):
            if token not in entries:
                entries[token] = Logprob(logprob, rank, _text(codec, token))
        return entries


class Sample:
    """The engine's owner appends tokens; whoever reads turns them into text.

    Only where a stop string may end the answer does the engine itself decode. `visible` is raised after a token has
    been appended, and `finish_reason` is set last of all: readers look in the opposite order and need no lock for it.
    """

    def __init__(self, index: int, params: SamplingParams, codec: Codec | None, prompt: Sequence[int]) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.raw_logprobs: list[RawLogprobs] = []
        self.visible = 0  # the first so many tokens are part of the text
        self.pieces: list[str] = []
        self.found_stop: str | None = None
        self.stop_reason: int | str | None = None
        self.finish_reason: FinishReason | None = None
        self._params = params
        self._codec = codec
        self._prompt: Sequence[int] = prompt
        self._decoding = threading.Lock()
        self._decoded = 0  # tokens whose text is in the pieces
        self._text: AnswerText | None = None
        self._text_is_complete = codec is None

    def decode(self) -> None:
        """Turn new tokens into pieces of text; `found_stop` is set where a stop string has ended the text."""
        is_finished = self.finish_reason is not None
        visible = self.visible
        if self._text_is_complete or (self._decoded == visible and not is_finished):
            return
        with self._decoding:
            self._decode_to(visible, is_finished)

    def pieces_from(self, start: int) -> list[str]:
        """The pieces of text from the start-th on, as far as they are certain."""
        self.decode()
        return self.pieces[start:]

    def tokens_from(self, start: int) -> list[tuple[int, Logprobs | None]]:
        """The tokens from the start-th on, with their log probabilities where they were asked for."""
        ids = self.token_ids[start:]
        if self._params.logprobs is None:
            return [(token, None) for token in ids]
        raw = self.raw_logprobs[start : start + len(ids)]
        return [(entry.token, entry.readable(self._codec)) for entry in raw]

    def output(self) -> CompletionOutput:
        """The answer as it stands."""
        finish_reason = self.finish_reason
        logprobs = cumulative = None
        if self._params.logprobs is not None:
            raw = list(self.raw_logprobs)
            logprobs = [entry.readable(self._codec) for entry in raw]
            cumulative = sum(entry.logprob for entry in raw)
        return CompletionOutput(
            index=self.index,
            text="".join(self.pieces_from(0)),
            token_ids=list(self.token_ids),
            cumulative_logprob=cumulative,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=self.stop_reason,
        )

    def _decode_to(self, visible: int, is_finished: bool) -> None:
        if self._text_is_complete:
            return
        text = self._text or self._open_text()
        while self._decoded < visible and self.found_stop is None:
            may_stop = self._decoded >= self._params.min_tokens
            piece, self.found_stop = text.push(self.token_ids[self._decoded], may_stop)
            self._append(piece)
            self._decoded += 1
        if is_finished and self.found_stop is None:
            self._append(text.flush())
        if is_finished or self.found_stop is not None:
            self._text_is_complete = True
            self._text, self._prompt = None, ()

    def _open_text(self) -> AnswerText:
        assert self._codec is not None
        self._text = self._codec.answer(self._prompt, self._params)
        return self._text

    def _append(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)


def _text(codec: Codec | None, token: int) -> str | None:
    return None if codec is None else codec.token_text(token)
