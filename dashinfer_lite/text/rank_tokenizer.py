"""tiktoken: a rank file with the rules of Qwen (the first generation) or GLM-4."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from ..errors import ModelError
from .added_tokens import AddedToken, read_added_tokens
from .family import is_base_qwen
from .rank_bpe import RankBPE
from .rank_file import read_ranks
from .streams import ByteStream, TextStream
from .tokenizer import Tokenizer, guarded_encode


@dataclass(frozen=True)
class RankRules:
    """What a family adds to its rank file.

    digits     how many digits make a word, as a regular expression's quantifier
    nfc        whether texts are normalized to NFC first
    specials   the special tokens, whose ids follow the ranks
    prefix     those in front of a text
    ends       those that end an answer
    """

    kind: str
    digits: str
    nfc: bool
    specials: tuple[str, ...]
    prefix: tuple[str, ...]
    ends: tuple[str, ...]


QWEN = RankRules(
    kind="tiktoken (Qwen)",
    digits="",
    nfc=True,
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
    prefix=(),
    ends=("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
)

GLM4 = RankRules(
    kind="tiktoken (GLM-4)",
    digits="{1,3}",
    nfc=False,
    specials=(
        *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    prefix=("[gMASK]", "<sop>"),
    ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
)


class RankTokenizer(Tokenizer):
    """A rank file's tokens and the special tokens after them; special tokens written out in a text become their ids."""

    def __init__(
        self, path: Path, data: bytes, rules: RankRules, config: dict[str, Any], end_ids: tuple[int, ...]
    ) -> None:
        if rules is QWEN and is_base_qwen(path.parent):
            rules = replace(rules, ends=("<|endoftext|>",))
        ranks = read_ranks(path, data)
        self.kind = rules.kind
        self._nfc = rules.nfc
        self._ranks = ranks
        self._bytes = sorted(ranks, key=ranks.__getitem__)
        self._bpe = RankBPE(ranks)
        self._words = pre_tokenizers.Split(Regex(_WORDS.format(digits=rules.digits)), "isolated", invert=False)
        self._added = read_added_tokens(path.parent, config, len(ranks), rules.specials)
        for token in self._added.by_id.values():
            if token.token_id < len(ranks):
                raise ModelError(f"{path.parent}: added token {token.content!r:.40}: id {token.token_id} is a rank's")
        self.special_ids = self._added.special_ids
        self.vocab_size = max([len(ranks), *(i + 1 for i in self._added.by_id)])
        if any(i >= self.vocab_size for i in end_ids):
            raise ModelError(
                f"{path}: holds {self.vocab_size} tokens with the special ones, and eos_token_id {max(end_ids)} of the "
                "folder's configuration is beyond them; is the file cut short?"
            )
        self.bos_token_id = None
        ends = [self._added.by_text[name].token_id for name in rules.ends if name in self._added.by_text]
        self.eos_token_ids = tuple(dict.fromkeys([*end_ids, *ends]))
        self.prefix = [self._special(path.parent, name) for name in rules.prefix]
        self.suffix = ()

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        return ByteStream(self._surface(self._token_surface, skip_special_tokens, None))

    def token_bytes(self, token_id: int) -> bytes | None:
        surface = self._token_surface(token_id)
        return surface.encode() if isinstance(surface, str) else surface

    def id_to_token(self, token_id: int) -> str | None:
        surface = self._token_surface(token_id)
        return surface.decode("utf-8", "backslashreplace") if isinstance(surface, bytes) else surface

    def token_to_id(self, token: str) -> int | None:
        added = self._added.by_text.get(token)
        return added.token_id if added else self._ranks.get(token.encode())

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._added.parts(self._normalized(text)):
            if isinstance(part, AddedToken):
                ids.append(part.token_id)
            else:
                ids += self._encode_words(part)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._encode_words(self._normalized(text))

    def _encode_words(self, text: str) -> list[int]:
        encode = self._bpe.encode
        words = guarded_encode(lambda: self._words.pre_tokenize_str(text))
        return [token_id for word, _ in words for token_id in encode(word.encode())]

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        stream = self.text_stream(skip_special_tokens)
        return "".join([stream.feed(i) for i in ids]) + stream.end()

    def _token_surface(self, token_id: int) -> bytes | str | None:
        if 0 <= token_id < len(self._bytes):
            return self._bytes[token_id]
        token = self._added.by_id.get(token_id)
        return token.content if token else None

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self._nfc else text

    def _special(self, folder: Path, name: str) -> int:
        if name not in self._added.by_text:
            raise ModelError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder lacks {name}")
        return self._added.by_text[name].token_id


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
