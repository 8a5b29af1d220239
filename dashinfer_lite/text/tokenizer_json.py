"""tokenizer.json: the file is the rule, the `tokenizers` library runs it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers

from ..errors import ModelError
from .folder import MAX_TOKENIZER_BYTES, flag, framing, read_bytes, special_tokens
from .streams import ByteStream, FallbackRunStream, TextStream, WindowStream
from .tokenizer import MAX_TOKEN_ID, Tokenizer, guarded_encode, guarded_load


class JsonTokenizer(Tokenizer):
    """A tokenizer.json with the corrections that tokenizer_config.json makes, as transformers applies them."""

    kind = "tokenizer.json"

    def __init__(self, folder: Path, config: dict[str, Any], end_ids: tuple[int, ...]) -> None:
        path = folder / "tokenizer.json"
        data = read_bytes(path, MAX_TOKENIZER_BYTES)
        self._rust = rust = guarded_load(path, lambda: tokenizers.Tokenizer.from_buffer(data))
        # What the file's author left switched on for training or batching must not change a prompt.
        rust.no_truncation()
        rust.no_padding()
        if getattr(rust.model, "dropout", None) is not None:
            rust.model.dropout = None
        guarded_load(path, lambda: _add_tokens(rust, folder, config))
        if _drops_prefix(folder, config):
            _drop_prefix(rust)

        added = rust.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max([rust.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)])
        if not 0 < self.vocab_size <= MAX_TOKEN_ID:
            raise ModelError(f"{path}: a vocabulary of {self.vocab_size} tokens cannot be used")
        names = special_tokens(config, folder)
        self.bos_token_id = rust.token_to_id(names["bos_token"]) if "bos_token" in names else None
        eos = rust.token_to_id(names["eos_token"]) if "eos_token" in names else None
        self.eos_token_ids = end_ids or (() if eos is None else (eos,))
        self.prefix, self.suffix = guarded_load(path, lambda: _frame(rust))
        self._set_frame(folder, config, eos)
        self._joining = _joining(rust)
        self.joins_bytes = self._joining != "window"

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        surface = self._surface(self._token_surface, skip_special_tokens, None)
        if self._joining == "bytes":
            return ByteStream(surface)
        if isinstance(self._joining, int):
            return FallbackRunStream(surface, self._joining)
        return WindowStream(lambda ids: self._decode(ids, skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        return surface.encode() if isinstance(surface, str) else surface

    def id_to_token(self, token_id: int) -> str | None:
        return self._rust.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._rust.token_to_id(token)

    def _encode(self, text: str) -> list[int]:
        # Fails for a vocabulary without the text's tokens and without an unknown token.
        return guarded_encode(lambda: self._rust.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._rust.decode(ids, skip_special_tokens=skip_special_tokens)

    def _token_surface(self, token_id: int) -> bytes | str | None:
        token = self._rust.id_to_token(token_id)
        if token is None:
            return None
        if self._joining == "bytes":
            return _byte_level(token)
        if self._joining == "window":
            return self._rust.decode([token_id], skip_special_tokens=False)
        byte = _fallback_byte(token)
        return token.replace("\u2581", " ") if byte is None else byte

    def _set_frame(self, folder: Path, config: dict[str, Any], eos: int | None) -> None:
        """Let an explicit add_bos_token or add_eos_token decide; llama classes add BOS where nothing says otherwise."""
        add_bos = flag(config, "add_bos_token", folder)
        add_eos = flag(config, "add_eos_token", folder)
        if add_bos is None and self._rust.post_processor is None and _is_llama(config):
            add_bos = self.bos_token_id is not None
        if add_bos is not None:
            self.prefix = framing(add_bos, self.bos_token_id, "add_bos_token", folder)
        if add_eos is not None:
            self.suffix = framing(add_eos, eos, "add_eos_token", folder)


def _is_llama(config: dict[str, Any]) -> bool:
    return str(config.get("tokenizer_class")).removesuffix("Fast") in ("LlamaTokenizer", "CodeLlamaTokenizer")


def _add_tokens(rust: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Register the added tokens of tokenizer_config.json, and mark its named tokens as special."""
    path = folder / "tokenizer_config.json"
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ModelError(f"{path}: added_tokens_decoder must map ids to objects")
    tokens = []
    for key in sorted(entries, key=lambda key: _token_index(key, path)):
        entry = {name: value for name, value in entries[key].items() if name in _ADDED_TOKEN_FIELDS}
        if not isinstance(entry.get("content"), str) or not entry["content"]:
            raise ModelError(f"{path}: added_tokens_decoder[{key!r}] needs a content string")
        tokens.append(AddedToken(**entry))
    known = {str(token) for token in rust.get_added_tokens_decoder().values()}
    rust.add_tokens([token for token in tokens if str(token) not in known])
    for name in special_tokens(config, folder).values():
        if name not in known and rust.token_to_id(name) is not None:
            rust.add_special_tokens([AddedToken(name, special=True, normalized=False)])


_ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def _token_index(key: str, path: Path) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise ModelError(f"{path}: added_tokens_decoder: {key!r:.40} is not a token id")
    return int(key)


def _drops_prefix(folder: Path, config: dict[str, Any]) -> bool:
    """Tell whether the folder asks for no space in front of a text, which only llama classes heed after loading."""
    return _is_llama(config) and flag(config, "add_prefix_space", folder) is False


def _drop_prefix(rust: tokenizers.Tokenizer) -> None:
    """Take the dummy prefix out of a llama pipeline: the normalizer that adds it, the decoder that strips it."""
    steps = _state(rust.normalizer).get("normalizers", [])
    if any(step.get("type") == "Prepend" for step in steps):
        rust.normalizer = normalizers.Replace(" ", "\u2581")
    if isinstance(_joining(rust), int):
        rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])


def _frame(rust: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the file's post-processor puts before and after a text."""
    if rust.post_processor is None:
        return [], []
    core = rust.encode("a", add_special_tokens=False).ids
    framed = rust.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(core) + 1):
        if core and framed[start : start + len(core)] == core:
            return framed[:start], framed[start + len(core) :]
    return framed, []


def _joining(rust: tokenizers.Tokenizer) -> str | int:
    """Say how the file's decoder joins tokens.

    "bytes" for byte-level; for a SentencePiece-like one the number of spaces it strips; "window" for any other.
    """
    decoder = _state(rust.decoder)
    if decoder.get("type") == "ByteLevel":
        return "bytes"
    steps = decoder.get("decoders", [])
    if steps[:3] != _FALLBACK_STEPS:
        return "window"
    match steps[3:]:
        case []:
            return 0
        case [{"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
            return start
    return "window"


_FALLBACK_STEPS = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def _state(part: Any) -> dict[str, Any]:
    """Return a pipeline part as the object it is in tokenizer.json; an empty one where the file has none."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _fallback_byte(token: str) -> bytes | None:
    """Return the byte that a token like <0xE4> stands for, or None."""
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">":
        return None
    try:
        return bytes.fromhex(token[3:5])
    except ValueError:
        return None


def _byte_level(token: str) -> bytes:
    """Undo GPT-2's byte alphabet; a token with any other character (an added one) stands for itself."""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
