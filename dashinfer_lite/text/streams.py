"""Streams: token by token from ids to text that no later token can change.

A stream takes a *surface* function: token id → `bytes` (raw bytes of a text that may be cut anywhere), `str` (finished
text) or `None` (the token leaves no trace). How neighbouring surfaces join is what the classes differ in; each equals
the decoder of its tokenizer kind on every sequence of ids, valid or not, at a cost per token that does not grow.
"""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

Surface = Callable[[int], bytes | str | None]

REPLACEMENT = "\ufffd"


class TextStream(ABC):
    """One text in the making."""

    @abstractmethod
    def feed(self, token_id: int) -> str:
        """Take one token and return the text that is now certain."""

    @abstractmethod
    def end(self) -> str:
        """Return what was held back; the text ends here."""

    @abstractmethod
    def prime(self, prompt_ids: Sequence[int]) -> None:
        """Start after a prompt: its text is dropped, a character cut by its end is completed by the tokens to come."""


class ByteStream(TextStream):
    """Byte-level BPE: every token is bytes, and all of them together are UTF-8 with U+FFFD for each broken part."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        # Rust's lossy decoding and Python's "replace" cut broken UTF-8 alike: Unicode 15, §3.9, maximal subparts.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(_as_bytes(self._surface(token_id)))

    def end(self) -> str:
        return self._utf8.decode(b"", final=True)

    def prime(self, prompt_ids: Sequence[int]) -> None:
        start = len(prompt_ids)
        while start > 0:
            start -= 1
            data = _as_bytes(self._surface(prompt_ids[start]))
            if data and data[0] & 0xC0 != 0x80:  # does not continue a character, so nothing before it matters
                break
        for token_id in prompt_ids[start:]:
            self.feed(token_id)


class _FallbackStream(TextStream):
    """Text pieces with byte tokens between them; what a run of byte tokens means is left to the subclass."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._run = bytearray()

    @abstractmethod
    def _piece(self, text: str) -> str:
        """Return a text piece as it is shown."""

    @abstractmethod
    def _byte(self, data: bytes) -> str:
        """Take the next bytes of a run and return the text that is now certain."""

    @abstractmethod
    def _close(self) -> str:
        """End the run and return its remaining text."""

    @abstractmethod
    def _settle(self) -> None:
        """Forget the finished characters of an open run."""

    def feed(self, token_id: int) -> str:
        surface = self._surface(token_id)
        if surface is None:
            return ""
        if isinstance(surface, bytes):
            return self._byte(surface)
        return self._close() + self._piece(surface)

    def end(self) -> str:
        return self._close()

    def prime(self, prompt_ids: Sequence[int]) -> None:
        start = len(prompt_ids)
        while start > 0:
            start -= 1
            surface = self._surface(prompt_ids[start])
            if surface and isinstance(surface, str):  # closes every run, and the text has begun
                break
        for token_id in prompt_ids[start:]:
            self.feed(token_id)
        self._settle()


class FallbackRunStream(_FallbackStream):
    """`tokenizers`' ByteFallback: one bad byte turns its whole run into one U+FFFD a byte.

    A later byte can therefore still change the characters of an open run, so they are held back until a text piece or
    the end closes it. `strip` spaces are taken off the start of the text.
    """

    def __init__(self, surface: Surface, strip: int) -> None:
        super().__init__(surface)
        self._strip = strip

    def _piece(self, text: str) -> str:
        return self._stripped(text)

    def _byte(self, data: bytes) -> str:
        self._run += data
        return ""

    def _close(self) -> str:
        try:
            text = self._run.decode("utf-8")
        except UnicodeDecodeError:
            text = REPLACEMENT * len(self._run)
        self._run.clear()
        return self._stripped(text)

    def _settle(self) -> None:
        if not self._run:
            return
        self._strip = 0
        start = len(self._run)
        try:
            self._run.decode("utf-8")
        except UnicodeDecodeError as error:
            if _is_cut(error):
                start = error.start
        del self._run[:start]

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] == " ":
                text, self._strip = text[1:], self._strip - 1
            else:
                self._strip = 0
        return text


class FallbackEachStream(_FallbackStream):
    """SentencePiece: bad bytes become U+FFFD one by one, the good characters around them stay.

    Text pieces come with U+2581 for the space. Where `strip` is set the first piece loses a leading one, and where
    `strip_all` is too, so does every piece until the text has begun.
    """

    def __init__(self, surface: Surface, strip: bool, strip_all: bool = False) -> None:
        super().__init__(surface)
        self._strip = strip
        self._strip_all = strip_all

    def _piece(self, text: str) -> str:
        if self._strip and text:
            text = text.removeprefix("\u2581")
            self._strip = self._strip_all and not text
        return text.replace("\u2581", " ")

    def _byte(self, data: bytes) -> str:
        self._strip = False
        self._run += data
        return self._decode(final=False)

    def _close(self) -> str:
        return self._decode(final=True)

    def _settle(self) -> None:
        """The run holds at most one unfinished character: nothing to forget."""

    def _decode(self, final: bool) -> str:
        text = ""
        while self._run:
            try:
                text += self._run.decode("utf-8")
                self._run.clear()
            except UnicodeDecodeError as error:
                text += self._run[: error.start].decode("utf-8")
                del self._run[: error.start]
                if _is_cut(error) and not final:
                    break
                text += REPLACEMENT
                del self._run[0]
        return text


class CutFallbackStream(FallbackEachStream):
    """SentencePiece with tokens outside its model: each ends the text before it and begins a new one."""

    def __init__(self, surface: Surface, cuts: Mapping[int, str], strip: bool, strip_all: bool) -> None:
        """Take what every token outside the model shows, "" for nothing."""
        super().__init__(surface, strip, strip_all)
        self._cuts = cuts
        self._strip_first = strip

    def feed(self, token_id: int) -> str:
        shown = self._cuts.get(token_id)
        if shown is None:
            return super().feed(token_id)
        text = self._close() + shown
        self._strip = self._strip_first
        return text


class MarkupStream(TextStream):
    """Another stream's text with marks in it, each of which stands for other characters.

    Text that a mark may still come of is held back. A prompt that ends with `frame` is followed by a text of its own.
    """

    def __init__(
        self,
        stream: TextStream,
        mark: re.Pattern[str],
        open_mark: re.Pattern[str],
        meaning: Callable[[re.Match[str]], str],
        frame: Sequence[int],
    ) -> None:
        """Take the marks, the beginnings of marks at the end of a text, and what a mark stands for."""
        self._stream = stream
        self._mark = mark
        self._open_mark = open_mark
        self._meaning = meaning
        self._frame = list(frame)
        self._held = ""

    def feed(self, token_id: int) -> str:
        text = self._mark.sub(self._meaning, self._held + self._stream.feed(token_id))
        found = self._open_mark.search(text)
        self._held = found[0] if found else ""
        return text[: len(text) - len(self._held)]

    def end(self) -> str:
        text, self._held = self._held + self._stream.end(), ""
        return self._mark.sub(self._meaning, text)

    def prime(self, prompt_ids: Sequence[int]) -> None:
        if list(prompt_ids[-len(self._frame) :]) != self._frame:
            self._stream.prime(prompt_ids)


class WindowStream(TextStream):
    """Any other decoder: decodes a short window and shows what it adds to the tokens before it.

    Equal to decoding the whole wherever a token's text depends on a few neighbours only.
    """

    CONTEXT = 6  # tokens before the window
    HOLD = 8  # tokens after which a text that ends in U+FFFD is shown nevertheless

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._added()
        if text.endswith(REPLACEMENT) and len(self._pending) < self.HOLD:
            return ""
        self._shift()
        return text

    def end(self) -> str:
        text = self._added()
        self._shift()
        return text

    def prime(self, prompt_ids: Sequence[int]) -> None:
        self._context = list(prompt_ids[-self.CONTEXT :])

    def _added(self) -> str:
        return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]

    def _shift(self) -> None:
        self._context = (self._context + self._pending)[-self.CONTEXT :]
        self._pending.clear()


def _as_bytes(surface: bytes | str | None) -> bytes:
    return surface.encode() if isinstance(surface, str) else surface or b""


def _is_cut(error: UnicodeDecodeError) -> bool:
    """Tell whether the bytes are the beginning of a character, rather than no character at all."""
    return error.reason == "unexpected end of data"
