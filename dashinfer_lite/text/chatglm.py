"""ChatGLM 1, 2 and 3: SentencePiece models with frames around a text."""

import re
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .family import chatglm_generation
from .folder import MAX_TOKENIZER_BYTES, flag, read_bytes, read_optional_json
from .pieces import PieceTokenizer
from .streams import CutFallbackStream, FallbackEachStream, MarkupStream, TextStream

MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


class ChatGlmTokenizer(PieceTokenizer):
    """ChatGLM2 and 3: special ids follow those of the pieces, every text begins with [gMASK] sop.

    No text can spell a special token. One ends the text before it and begins another, which loses a leading space too.
    """

    def __init__(self, path: Path, model: bytes, config: dict[str, Any], end_ids: tuple[int, ...]) -> None:
        super().__init__(path, model)
        generation = chatglm_generation(path.parent, config)
        names = MASKS if generation == 2 else MASKS + ROLES
        self.kind = f"sentencepiece (ChatGLM{generation})"
        self._names = dict(enumerate(names, self._piece_count))
        self._ids = {name: i for i, name in self._names.items()}
        self.special_ids = self._controls | frozenset(self._names)
        self.vocab_size = self._piece_count + len(names)
        self.bos_token_id = _known(self._pieces.bos_id())
        own = end_ids or tuple(i for i in [self._pieces.eos_id()] if i >= 0)
        turns = [self._ids[name] for name in ("<|user|>", "<|observation|>") if name in self._ids]
        self.eos_token_ids = tuple(dict.fromkeys([*own, *turns]))
        self.prefix = (self._ids["[gMASK]"], self._ids["sop"])
        self.suffix = ()

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        shown = dict.fromkeys(self._names, "") if skip_special_tokens else self._names
        strip = self._has_prefix or self._strip_all
        return CutFallbackStream(self._token_surface, shown, strip, self._strip_all)

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        return surface.replace("\u2581", " ").encode() if isinstance(surface, str) else surface

    def id_to_token(self, token_id: int) -> str | None:
        if token_id in self._names:
            return self._names[token_id]
        return str(self._pieces.id_to_piece(token_id)) if 0 <= token_id < self._piece_count else None

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, self._piece_id(token))

    def _encode(self, text: str) -> list[int]:
        return self._encode_pieces(text)

    def _token_surface(self, token_id: int) -> bytes | str | None:
        return self._names.get(token_id) or self._piece_surface(token_id)


OLD_IMAGE_TOKENS = 20_000
"""Ids in front of the pieces in the first exports, which do not say so."""

MAX_IMAGE_TOKENS = 1 << 24

LONGEST_BLANK = 80

MASKS_1 = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


class ChatGlm1Tokenizer(PieceTokenizer):
    """ChatGLM-6B: line ends, tabs and runs of spaces are pieces of their own, every text ends with [gMASK] <sop>."""

    kind = "sentencepiece (ChatGLM1)"

    def __init__(self, folder: Path, config: dict[str, Any], end_ids: tuple[int, ...]) -> None:
        path = folder / "ice_text.model"
        super().__init__(path, read_bytes(path, MAX_TOKENIZER_BYTES))
        gmask, sop, eop = (self._required(path, name) for name in ("[gMASK]", "<sop>", "<eop>"))
        self._first = first = _image_tokens(folder, config, sop)
        masks = {i for name in MASKS_1 if (i := self._piece_id(name)) is not None}
        self.special_ids = frozenset(first + i for i in self._controls | masks)
        self.vocab_size = first + self._piece_count
        self.bos_token_id = first + sop
        self.eos_token_ids = tuple(dict.fromkeys([*end_ids, first + eop]))
        self.prefix = ()
        self.suffix = (first + gmask, first + sop)
        self._remove_space = flag(config, "remove_space", folder) is True
        self._lower = flag(config, "do_lower_case", folder) is True

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        surface = self._surface(self._token_surface, skip_special_tokens, "")
        pieces = FallbackEachStream(surface, self._has_prefix or self._strip_all, self._strip_all)
        return MarkupStream(pieces, _MARKUP, _OPEN_MARKUP, _blank, self.suffix)

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        if not isinstance(surface, str):
            return surface
        return _MARKUP.sub(_blank, surface.replace("\u2581", " ")).encode()

    def id_to_token(self, token_id: int) -> str | None:
        piece_id = token_id - self._first
        return str(self._pieces.id_to_piece(piece_id)) if 0 <= piece_id < self._piece_count else None

    def token_to_id(self, token: str) -> int | None:
        piece_id = self._piece_id(token)
        return None if piece_id is None else self._first + piece_id

    def _encode(self, text: str) -> list[int]:
        if self._remove_space:
            text = " ".join(text.split())
        if self._lower:
            text = text.lower()
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = _BLANKS.sub(lambda found: f"<|blank_{len(found.group())}|>", text)
        return [self._first + i for i in self._encode_pieces(text)]

    def _token_surface(self, token_id: int) -> bytes | str | None:
        return self._piece_surface(token_id - self._first)

    def _required(self, path: Path, name: str) -> int:
        piece_id = self._piece_id(name)
        if piece_id is None:
            raise ModelError(f"{path}: the token {name} is missing; this is no vocabulary of ChatGLM-6B")
        return piece_id


_BLANKS = re.compile(f" {{2,{LONGEST_BLANK}}}")
_MARKUP = re.compile(r"<n>|<\|tab\|>|<\|blank_([2-9]|[1-7][0-9]|80)\|>")
_OPEN_MARKUP = re.compile(r"<(?:n?|\|(?:t(?:a(?:b\|?)?)?|b(?:l(?:a(?:n(?:k(?:_(?:[0-9]{1,2}\|?)?)?)?)?)?)?)?)\Z")


def _blank(found: re.Match[str]) -> str:
    """Return the whitespace that a mark stands for."""
    return " " * int(found[1]) if found[1] else "\n" if found[0] == "<n>" else "\t"


def _image_tokens(folder: Path, config: dict[str, Any], sop: int) -> int:
    """Return how many ids lie in front of the pieces: as written, by config.json's id of <sop>, or as ever."""
    path = folder / "tokenizer_config.json"
    value = config.get("num_image_tokens")
    if value is None:
        bos = read_optional_json(folder / "config.json").get("bos_token_id")
        value = bos - sop if type(bos) is int and bos >= sop else OLD_IMAGE_TOKENS
    if type(value) is not int or not 0 <= value <= MAX_IMAGE_TOKENS:
        raise ModelError(f"{path}: num_image_tokens must be a number up to {MAX_IMAGE_TOKENS}, found {value!r:.40}")
    return value


def _known(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
