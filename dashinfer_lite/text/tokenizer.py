"""What a tokenizer is, and how one is picked from the files of a model folder."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from ..errors import ModelError, RequestError
from .folder import MAX_TOKENIZER_BYTES, end_token_ids, read_bytes, read_tokenizer_config
from .streams import Surface, TextStream

T = TypeVar("T")

MAX_TOKEN_ID = (1 << 31) - 1
"""Token ids are int32 from here to the kernels."""


class Tokenizer(ABC):
    """Text to token ids and back. One object may be used by many threads; it never changes after loading.

    An id that no token has (a model's vocabulary is often padded) decodes to nothing.
    """

    kind: ClassVar[str]
    """Short name of the kind, for `info` and messages."""

    vocab_size: int
    """1 + the largest token id."""

    bos_token_id: int | None
    """The token that begins a text, or None."""

    eos_token_ids: tuple[int, ...]
    """The tokens that end a text: generation_config.json's, else config.json's, else the tokenizer's own."""

    joins_bytes: bool = True
    """Whether a text is its tokens' `token_bytes`, one after the other, wherever they stand in it."""

    special_ids: frozenset[int]
    """The tokens that `skip_special_tokens` leaves out."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, by default with what the model expects around it (usually BOS in front).

        Special tokens written out in the text become their ids. RequestError for anything but valid Unicode.
        """
        if not isinstance(text, str):
            raise RequestError(f"a text must be a str, found {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is not valid Unicode: a lone surrogate at position {error.start}") from error
        return self._encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of a list of ids; broken UTF-8 becomes U+FFFD. RequestError for what is no token id."""
        return self._decode([checked_id(i) for i in ids], skip_special_tokens)

    @abstractmethod
    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Return a fresh stream whose pieces join to what `decode` gives."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes a token adds inside a text (a special token's are its name), or None for an unknown id."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """Return the token as the vocabulary spells it, or None for an id without one."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it, or None."""

    @abstractmethod
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...

    def _surface(self, surface: Surface, skip_special_tokens: bool, skipped: str | None) -> Surface:
        """Return `surface` with the special tokens replaced by `skipped` where they are to be left out."""
        if not skip_special_tokens or not self.special_ids:
            return surface
        hidden = self.special_ids
        return lambda token_id: skipped if token_id in hidden else surface(token_id)


def checked_id(token_id: int) -> int:
    """Return a token id as an int; RequestError for what cannot be one."""
    try:
        value = operator.index(token_id)
    except TypeError:
        raise RequestError(f"a token id must be an integer, found {type(token_id).__name__}") from None
    if not 0 <= value <= MAX_TOKEN_ID:
        raise RequestError(f"token id {value} is out of range (0 … {MAX_TOKEN_ID})")
    return value


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a model folder; ModelError where its files are missing, broken or of an unknown kind.

    tokenizer.json comes first, as in transformers; then tokenizer.model, a SentencePiece model or a tiktoken rank file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{path}: not a folder; a model is a folder in the Hugging Face format")
    config = read_tokenizer_config(path)
    ends = end_token_ids(path)
    if (path / "tokenizer.json").exists():
        from .tokenizer_json import JsonTokenizer

        return JsonTokenizer(path, config, ends)
    if (path / "tokenizer.model").exists():
        data = read_bytes(path / "tokenizer.model", MAX_TOKENIZER_BYTES)
        if _is_rank_file(data):
            raise ModelError(f"{path / 'tokenizer.model'}: {_NO_RANK_FILES}")
        from .sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(path, data, config, ends)
    for rank_file in sorted(path.glob("*.tiktoken")):
        raise ModelError(f"{rank_file}: {_NO_RANK_FILES}")
    raise ModelError(f"{path}: no tokenizer found; tokenizer.json or tokenizer.model is needed")


_NO_RANK_FILES = "tiktoken rank files are not supported yet; a tokenizer.json of the same model works"

_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def _is_rank_file(data: bytes) -> bool:
    """Tell a tiktoken rank file (lines of "base64 rank") from a SentencePiece protobuf, which begins with 0x0A."""
    token, space, rank = data[:1024].partition(b"\n")[0].rstrip(b"\r").partition(b" ")
    return bool(token) and bool(space) and _BASE64.issuperset(token) and rank.isdigit()


def guarded_load(path: Path, load: Callable[[], T]) -> T:
    """Run a tokenizer library's loader and turn whatever it raises into a ModelError that names the file.

    A Rust panic arrives as a BaseException of its own that no `except Exception` would see.
    """
    try:
        return load()
    except (KeyboardInterrupt, SystemExit, ModelError):
        raise
    except BaseException as error:
        raise ModelError(f"{path}: broken or not supported tokenizer file: {error!s:.300}") from error
