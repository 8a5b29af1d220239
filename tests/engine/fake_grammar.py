"""Grammars for the fake model: a list of texts to choose from, and some that break."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fake import EOS, VOCAB
from fake_codec import token_bytes

from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import Guided


class FakeGrammars:
    """Knows `Guided(choice=…)`; `Guided(grammar="refuse 2")` and `"crash 2"` break at the second token."""

    def matcher(self, guided: Guided) -> FakeMatcher:
        if guided.choice is not None:
            return FakeMatcher([text.encode() for text in guided.choice])
        how, count = str(guided.grammar).split()
        return BreakingMatcher(how, int(count))


class FakeMatcher:
    """The bytes so far must begin one of the texts."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self.tokens: list[int] = []

    @property
    def is_accepting(self) -> bool:
        return joined(self.tokens) in self.texts

    @property
    def is_complete(self) -> bool:
        return self.is_accepting and not allowed_tokens(self.texts, self.tokens)

    def fill_mask(self, mask: np.ndarray) -> None:
        assert mask.dtype == np.uint32 and len(mask) == VOCAB // 32 + 1
        mask[:] = 0
        for token in allowed_tokens(self.texts, self.tokens):
            mask[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> None:
        assert token in allowed_tokens(self.texts, self.tokens), "a token that the mask forbids"
        self.tokens.append(token)


class BreakingMatcher(FakeMatcher):
    """Allows everything until it breaks."""

    def __init__(self, how: str, count: int) -> None:
        super().__init__([])
        self.how, self.count = how, count

    @property
    def is_complete(self) -> bool:
        return False

    def fill_mask(self, mask: np.ndarray) -> None:
        mask[:] = 0xFFFFFFFF

    def accept(self, token: int) -> None:
        self.count -= 1
        if self.count == 0:
            raise RequestError("too complex") if self.how == "refuse" else ZeroDivisionError("oops")


def following(guided: Guided, tokens: Sequence[int]) -> tuple[set[int], bool]:
    """What the oracle asks: the tokens that may follow, and whether the text is complete."""
    texts = [text.encode() for text in guided.choice or ()]
    return allowed_tokens(texts, tokens), joined(tokens) in texts


def joined(tokens: Sequence[int]) -> bytes:
    return b"".join(map(token_bytes, tokens))


def allowed_tokens(texts: Sequence[bytes], tokens: Sequence[int]) -> set[int]:
    """The tokens, but for the end of text, with which some text still begins."""
    start = joined(tokens)
    return {
        token
        for token in range(VOCAB)
        if token != EOS and any(text.startswith(start + token_bytes(token)) for text in texts)
    }
