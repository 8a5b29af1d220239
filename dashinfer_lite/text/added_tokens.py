"""Added tokens: what is cut out of a text before the vocabulary proper sees it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .folder import read_optional_json


@dataclass(frozen=True)
class AddedToken:
    """A token with a text of its own; `lstrip` and `rstrip` let it swallow the spaces beside it."""

    content: str
    token_id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class AddedTokens:
    """The added tokens of a vocabulary, by text and by id."""

    def __init__(self, tokens: Iterable[AddedToken] = ()) -> None:
        """Take the tokens; of two with the same text the later one counts."""
        self.by_text = {token.content: token for token in tokens}
        self.by_id = {token.token_id: token for token in self.by_text.values()}
        self.special_ids = frozenset(i for i, token in self.by_id.items() if token.special)
        longest_first = sorted(self.by_text, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def parts(self, text: str) -> Iterator[str | AddedToken]:
        """Cut a text at its added tokens: the leftmost first, the longest of several; no empty parts."""
        start, strip = 0, False
        for found in self._split.finditer(text) if self._split else ():
            token = self.by_text[found.group()]
            between = text[start : found.start()]
            between = between.lstrip() if strip else between
            between = between.rstrip() if token.lstrip else between
            if between:
                yield between
            yield token
            start, strip = found.end(), token.rstrip
        rest = text[start:].lstrip() if strip else text[start:]
        if rest:
            yield rest


def read_added_tokens(folder: Path, config: dict[str, Any], size: int, family: Iterable[str] = ()) -> AddedTokens:
    """Read the added tokens of tokenizer_config.json and of the older added_tokens.json.

    `size` is that of the vocabulary proper, which the `family`'s special tokens follow, where the files leave their
    names and ids free.
    """
    tokens = []
    for name, index in read_optional_json(folder / "added_tokens.json").items():
        tokens.append(_added_token(folder / "added_tokens.json", {"content": name}, index))
    entries = config.get("added_tokens_decoder") or {}
    path = folder / "tokenizer_config.json"
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: added_tokens_decoder must map ids to objects")
    for key, entry in entries.items():
        index = int(key) if key.isascii() and key.isdigit() and len(key) <= 10 else None
        tokens.append(_added_token(path, entry, index))
    named = {token.content for token in tokens} | {token.token_id for token in tokens}
    usual = [AddedToken(name, i) for i, name in enumerate(family, size)]
    largest = size + max(len({token.content for token in tokens}), len(usual))
    for token in tokens:
        if token.token_id >= largest:
            raise ModelError(f"{folder}: added token {token.content!r:.40}: id {token.token_id} is beyond {largest}")
    return AddedTokens([*tokens, *(token for token in usual if not {token.content, token.token_id} & named)])


def _added_token(path: Path, entry: Any, index: Any) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
        raise ModelError(f"{path}: an added token needs a content string, found {entry!r:.80}")
    if type(index) is not int or index < 0:
        raise ModelError(f"{path}: added token {entry['content']!r:.40} has no valid id")
    special, lstrip, rstrip = (bool(entry.get(name, False)) for name in ("special", "lstrip", "rstrip"))
    return AddedToken(entry["content"], index, special, lstrip, rstrip)
