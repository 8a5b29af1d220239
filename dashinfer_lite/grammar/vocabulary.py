"""A tokenizer's vocabulary in the form that llguidance takes: the bytes of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    from dashinfer_lite.text import Tokenizer

MISSING = "guided output needs the package llguidance; install it with: pip install 'dashinfer-lite[guided]'"


def vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """An LLTokenizer of the model's `vocab_size` tokens and one more, which stands for the end.

    So the model's own end tokens stay out of the masks: the engine allows them where a text is complete. They and the
    special tokens never count as text. RequestError where llguidance is not installed, or tokens are not bytes.
    """
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise RequestError(MISSING) from error
    if not tokenizer.joins_bytes:
        raise RequestError("guided output is not supported with this tokenizer: what its tokens add to a text varies")
    wrapper: Any = _Wrapper(tokenizer, vocab_size)
    return LLTokenizer(wrapper, n_vocab=vocab_size + 1)


class _Wrapper:
    """What LLTokenizer asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        known = min(tokenizer.vocab_size, vocab_size)
        tokens = [tokenizer.token_bytes(token) or b"" for token in range(known)]
        self.tokens = [*tokens, *[b""] * (vocab_size - known), b"<end>"]
        self.eos_token_id = vocab_size
        special = {*tokenizer.special_ids, *tokenizer.eos_token_ids}
        self.special_token_ids = [*sorted(token for token in special if token < known), vocab_size]
        self._tokenizer = tokenizer
        self._ids = {data: token for token, data in reversed(list(enumerate(tokens))) if data and token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of what a grammar forces: exactly its bytes, also where the tokenizer would add a space."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        try:
            ids = self._tokenizer.encode(data.decode(), add_special_tokens=False)
            if b"".join(self.tokens[token] for token in ids) == data:
                return ids
        except (RequestError, ValueError, IndexError):  # not UTF-8, no such token, or beyond the model's vocabulary
            pass
        return self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(data):
            lengths = range(min(self._longest, len(data) - start), 0, -1)
            length = next((n for n in lengths if data[start : start + n] in self._ids), None)
            if length is None:  # no token spells this byte, so none of them is forced
                break
            ids.append(self._ids[data[start : start + length]])
            start += length
        return ids
