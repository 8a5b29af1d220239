"""tokenizer.model: a SentencePiece model with the rules of Llama 1/2 and Mistral, or of Baichuan."""

from pathlib import Path
from typing import Any, ClassVar

from .added_tokens import AddedToken, read_added_tokens
from .folder import flag, framing, special_tokens
from .pieces import PieceTokenizer
from .streams import FallbackEachStream, TextStream


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model plus the tokens that the folder adds to it; BOS in front unless the folder says no."""

    kind = "sentencepiece"
    _bos_by_default: ClassVar[bool] = True

    def __init__(self, path: Path, model: bytes, config: dict[str, Any], end_ids: tuple[int, ...]) -> None:
        super().__init__(path, model)
        folder = path.parent
        self._added = read_added_tokens(folder, config, self._piece_count)
        # The unknown token stays visible, as SentencePiece itself shows it.
        self.special_ids = (self._controls | self._added.special_ids) - {self._pieces.unk_id()}
        self.vocab_size = max([self._piece_count, *(i + 1 for i in self._added.by_id)])
        names = special_tokens(config, folder)
        self.bos_token_id = self._named_id(names.get("bos_token"), self._pieces.bos_id())
        eos = self._named_id(names.get("eos_token"), self._pieces.eos_id())
        self.eos_token_ids = end_ids or (() if eos is None else (eos,))
        add_bos = flag(config, "add_bos_token", folder)
        add_bos = self._bos_by_default and self.bos_token_id is not None if add_bos is None else add_bos
        self.prefix = framing(add_bos, self.bos_token_id, "add_bos_token", folder)
        self.suffix = framing(flag(config, "add_eos_token", folder) is True, eos, "add_eos_token", folder)
        self._prefix_first = flag(config, "add_prefix_space", folder) is not False
        self._prefix_later = self._prefix_first and flag(config, "legacy", folder) is not False
        self._strip = self._prefix_first and self._has_prefix

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        surface = self._surface(self._token_surface, skip_special_tokens, "")
        return FallbackEachStream(surface, self._strip or self._strip_all, self._strip_all)

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        return surface.replace("\u2581", " ").encode() if isinstance(surface, str) else surface

    def id_to_token(self, token_id: int) -> str | None:
        if token_id in self._added.by_id:
            return self._added.by_id[token_id].content
        if not 0 <= token_id < self._piece_count:
            return None
        return str(self._pieces.id_to_piece(token_id))

    def token_to_id(self, token: str) -> int | None:
        added = self._added.by_text.get(token)
        return added.token_id if added else self._piece_id(token)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        prefix = self._prefix_first
        for part in self._added.parts(text):
            if isinstance(part, AddedToken):
                ids.append(part.token_id)
                prefix = self._prefix_later
            else:
                ids += self._encode_pieces(part, prefix)
        return ids

    def _token_surface(self, token_id: int) -> bytes | str | None:
        if token_id in self._added.by_id and token_id != self._pieces.unk_id():
            return self._added.by_id[token_id].content
        if token_id in self._controls:
            return str(self._pieces.id_to_piece(token_id))
        return self._piece_surface(token_id)

    def _named_id(self, name: str | None, fallback: int) -> int | None:
        """Return the id of a named token, or of SentencePiece's own (-1 for none) where the folder names none."""
        if name is None:
            return None if fallback < 0 else fallback
        return self.token_to_id(name)


class BaichuanTokenizer(SentencePieceTokenizer):
    """The same without BOS; <s> and </s> never show. <reserved_n> are pieces that SentencePiece finds in a text."""

    kind = "sentencepiece (Baichuan)"
    _bos_by_default = False

    def _token_surface(self, token_id: int) -> bytes | str | None:
        return "" if token_id in self._controls else super()._token_surface(token_id)
