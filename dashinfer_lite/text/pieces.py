"""SentencePiece models: what their pieces are and what they show, whichever rules a family puts around them."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from ..errors import ModelError
from .tokenizer import Tokenizer, guarded_encode, guarded_load

NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a serialized ModelProto: normalizer_spec (field 3) with add_dummy_prefix (field 3) = false.

Protobuf merges a message field that comes twice, so the rest of the model stays as it is.
"""


class PieceTokenizer(Tokenizer):
    """The part that all families share: pieces, their texts, and how SentencePiece strips the start of a text."""

    def __init__(self, path: Path, model: bytes) -> None:
        self._pieces = guarded_load(path, lambda: sentencepiece.SentencePieceProcessor(model_proto=model))
        if not model or self._pieces.vocab_size() < 1:
            raise ModelError(f"{path}: the vocabulary is empty")
        self._bare = guarded_load(
            path, lambda: sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
        )
        self._piece_count: int = self._pieces.vocab_size()
        self._controls = frozenset(i for i in range(self._piece_count) if self._pieces.is_control(i))
        # A model without the dummy prefix (Gemma) spells "a" alike with and without it.
        self._has_prefix = self._pieces.encode("a") != self._bare.encode("a")
        # One that removes extra whitespace spells runs of spaces alike, and shows no space before the first character.
        self._strip_all = self._pieces.encode("a  a") == self._pieces.encode("a a")

    def _encode_pieces(self, text: str, with_prefix: bool = True) -> list[int]:
        pieces = self._pieces if with_prefix else self._bare
        return list(guarded_encode(lambda: pieces.encode(text)))

    def _piece_surface(self, piece_id: int) -> bytes | str | None:
        """Return what a piece shows, with U+2581 for the space; a control piece shows nothing."""
        if not 0 <= piece_id < self._piece_count:
            return None
        if piece_id in self._controls:
            return ""
        if self._pieces.is_unknown(piece_id):
            return " \u2047 "  # SentencePiece's surface of the unknown token
        piece = str(self._pieces.id_to_piece(piece_id))
        return bytes.fromhex(piece[3:5]) if self._pieces.is_byte(piece_id) else piece

    def _piece_id(self, piece: str) -> int | None:
        found: int = self._pieces.piece_to_id(piece)
        return found if self._pieces.id_to_piece(found) == piece else None

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        stream = self.text_stream(skip_special_tokens)
        return "".join([stream.feed(i) for i in ids]) + stream.end()
