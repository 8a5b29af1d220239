"""Incremental detokenizing: the text of a growing list of tokens, piece by piece, never half a character."""

from collections.abc import Iterable, Sequence

from .tokenizer import Tokenizer, checked_id


class IncrementalDetokenizer:
    """Turns the tokens of one answer into pieces of text that join to the text of the whole.

    With an empty prompt the pieces join to `tokenizer.decode(ids)`. After a prompt they join to what the answer adds to
    the prompt's text: a leading space is kept, and a character that the prompt's end cut belongs to the answer.
    The cost of a token does not grow with the length of prompt or answer.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._stream = tokenizer.text_stream(skip_special_tokens)
        self._stream.prime(prompt_ids)

    def push(self, ids: Iterable[int]) -> str:
        """Take the next tokens and return the text that may be sent now."""
        feed = self._stream.feed
        return "".join([feed(checked_id(i)) for i in ids])

    def flush(self) -> str:
        """Return what was held back; unfinished characters come out as U+FFFD, as in `decode`."""
        return self._stream.end()
