"""tokenizer.model: a SentencePiece model by itself, with the rules of Llama 1/2 and Mistral."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from ..errors import ModelError
from .folder import flag, framing, read_optional_json, special_tokens
from .streams import FallbackEachStream, TextStream
from .tokenizer import Tokenizer, guarded_load

NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a serialized ModelProto: normalizer_spec (field 3) with add_dummy_prefix (field 3) = false.

Protobuf merges a message field that comes twice, so the rest of the model stays as it is.
"""

OTHER_RULES = ("ChatGLM", "Baichuan", "QWen")
"""Beginnings of tokenizer classes whose tokenizer.model follows rules of its own."""


@dataclass(frozen=True)
class AddedPiece:
    """A token that is cut out of a text before SentencePiece sees it."""

    content: str
    token_id: int
    special: bool
    lstrip: bool
    rstrip: bool


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model plus the tokens that the folder adds to it; BOS in front unless the folder says no."""

    kind = "sentencepiece"

    def __init__(self, folder: Path, model: bytes, config: dict[str, Any], end_ids: tuple[int, ...]) -> None:
        path = folder / "tokenizer.model"
        if str(config.get("tokenizer_class")).startswith(OTHER_RULES):
            raise ModelError(f"{path}: the rules of {config['tokenizer_class']} are not supported yet")
        self._pieces = guarded_load(path, lambda: sentencepiece.SentencePieceProcessor(model_proto=model))
        if not model or self._pieces.vocab_size() < 1:
            raise ModelError(f"{path}: the vocabulary is empty")
        self._bare = guarded_load(
            path, lambda: sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
        )
        self._added = _added_pieces(folder, config, self._pieces)
        self._added_by_id = {token.token_id: token for token in self._added.values()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

        size: int = self._pieces.vocab_size()
        controls = {i for i in range(size) if self._pieces.is_control(i)}
        named = {i for i, token in self._added_by_id.items() if token.special}
        # The unknown token stays visible, as SentencePiece itself shows it.
        self.special_ids = frozenset((controls | named) - {self._pieces.unk_id()})
        self.vocab_size = max([size, *(i + 1 for i in self._added_by_id)])
        names = special_tokens(config, folder)
        self.bos_token_id = self._named_id(names.get("bos_token"), self._pieces.bos_id())
        eos = self._named_id(names.get("eos_token"), self._pieces.eos_id())
        self.eos_token_ids = end_ids or (() if eos is None else (eos,))
        add_bos = flag(config, "add_bos_token", folder)
        add_bos = self.bos_token_id is not None if add_bos is None else add_bos
        self._prefix = framing(add_bos, self.bos_token_id, "add_bos_token", folder)
        self._suffix = framing(flag(config, "add_eos_token", folder) is True, eos, "add_eos_token", folder)
        self._prefix_first = flag(config, "add_prefix_space", folder) is not False
        self._prefix_later = self._prefix_first and flag(config, "legacy", folder) is not False
        # A model without the dummy prefix (Gemma) spells "a" alike with and without it.
        self._strip = self._prefix_first and self._pieces.encode("a") != self._bare.encode("a")

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        return FallbackEachStream(self._surface(self._token_surface, skip_special_tokens, ""), self._strip)

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        return surface.replace("\u2581", " ").encode() if isinstance(surface, str) else surface

    def id_to_token(self, token_id: int) -> str | None:
        if token_id in self._added_by_id:
            return self._added_by_id[token_id].content
        if not 0 <= token_id < self._pieces.vocab_size():
            return None
        return str(self._pieces.id_to_piece(token_id))

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token].token_id
        found: int = self._pieces.piece_to_id(token)
        return found if self._pieces.id_to_piece(found) == token else None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        prefix = self._prefix_first
        for part in self._parts(text):
            if isinstance(part, AddedPiece):
                ids.append(part.token_id)
                prefix = self._prefix_later
            else:
                ids += (self._pieces if prefix else self._bare).encode(part)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        stream = self.text_stream(skip_special_tokens)
        return "".join([stream.feed(i) for i in ids]) + stream.end()

    def _token_surface(self, token_id: int) -> bytes | str | None:
        if token_id in self._added_by_id and token_id != self._pieces.unk_id():
            return self._added_by_id[token_id].content
        if not 0 <= token_id < self._pieces.vocab_size():
            return None
        if self._pieces.is_unknown(token_id):
            return " \u2047 "  # SentencePiece's surface of the unknown token
        piece = str(self._pieces.id_to_piece(token_id))
        return bytes.fromhex(piece[3:5]) if self._pieces.is_byte(token_id) else piece

    def _parts(self, text: str) -> Iterator[str | AddedPiece]:
        """Cut a text at its added tokens, which swallow the spaces that their flags name."""
        start, strip = 0, False
        for found in self._split.finditer(text) if self._split else ():
            token = self._added[found.group()]
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

    def _named_id(self, name: str | None, fallback: int) -> int | None:
        """Return the id of a named token, or of SentencePiece's own (-1 for none) where the folder names none."""
        if name is None:
            return None if fallback < 0 else fallback
        return self.token_to_id(name)


def _added_pieces(folder: Path, config: dict[str, Any], pieces: Any) -> dict[str, AddedPiece]:
    """Collect the added tokens of tokenizer_config.json and of the older added_tokens.json, by their text."""
    added = {}
    for name, index in read_optional_json(folder / "added_tokens.json").items():
        added[name] = _added_piece(folder / "added_tokens.json", {"content": name}, index)
    entries = config.get("added_tokens_decoder") or {}
    path = folder / "tokenizer_config.json"
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: added_tokens_decoder must map ids to objects")
    for key, entry in entries.items():
        index = int(key) if key.isascii() and key.isdigit() and len(key) <= 10 else None
        piece = _added_piece(path, entry, index)
        added[piece.content] = piece
    largest = pieces.vocab_size() + len(added)
    for piece in added.values():
        if piece.token_id >= largest:
            raise ModelError(f"{folder}: added token {piece.content!r:.40}: id {piece.token_id} is beyond {largest}")
    return added


def _added_piece(path: Path, entry: Any, index: Any) -> AddedPiece:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
        raise ModelError(f"{path}: an added token needs a content string, found {entry!r:.80}")
    if type(index) is not int or index < 0:
        raise ModelError(f"{path}: added token {entry['content']!r:.40} has no valid id")
    special, lstrip, rstrip = (bool(entry.get(name, False)) for name in ("special", "lstrip", "rstrip"))
    return AddedPiece(entry["content"], index, special, lstrip, rstrip)
