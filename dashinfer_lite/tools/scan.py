"""Finding things in a text that comes in pieces: a marker, the end of a JSON value, blanks around a text.

Each piece is looked at once, by C code; what is kept is bounded.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 64
MAX_BLANKS: Final = 4096


class Marker:
    """Finds a marker that may be cut anywhere."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self._held = ""

    def find(self, text: str) -> tuple[str, str | None]:
        """What certainly stands before the marker, and what follows it; None where it has not come yet."""
        text = self._held + text
        before, found, after = text.partition(self.marker)
        if found:
            self._held = ""
            return before, after
        self._held = _beginning(text, self.marker)
        return text[: len(text) - len(self._held)], None

    def flush(self) -> str:
        """What was held back, because the marker might have followed."""
        held, self._held = self._held, ""
        return held


class Expected:
    """Takes blanks and then a word, and nothing else."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._matched = 0
        self._blanks = 0

    def feed(self, text: str) -> tuple[int, bool | None]:
        """How much of the text belongs to it, and whether the word is complete; None: not yet, False: it is another."""
        used = 0
        if not self._matched:
            used = len(text) - len(text.lstrip())
            self._blanks += used
            if self._blanks > MAX_BLANKS:
                return used, False
        count = min(len(self._word) - self._matched, len(text) - used)
        wanted = self._word[self._matched : self._matched + count]
        same = next((i for i in range(count) if text[used + i] != wanted[i]), count)
        self._matched += same
        if same < count:
            return used + same, False
        return used + same, True if self._matched == len(self._word) else None


class JsonEnd:
    """Finds the end of a JSON object or list by its brackets and strings; whether it is valid shows when it is read."""

    def __init__(self, opening: str = "{") -> None:
        """The value begins with `opening`, after blanks."""
        self._opening = opening
        self._depth = 0
        self._blanks = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> tuple[int, bool | None]:
        """How much of the text belongs to the value, and whether it is complete; None: not yet, False: it is none."""
        at = 0
        if not self._depth:
            at = len(text) - len(text.lstrip())
            self._blanks += at
            if self._blanks > MAX_BLANKS:
                return at, False
            if at == len(text):
                return at, None
            if text[at] not in self._opening:
                return at, False
        while at < len(text):
            if self._in_string:
                at = self._string_end(text, at)
                continue
            found = _STRUCTURE.search(text, at)
            if found is None:
                break
            at = found.end()
            if found[0] == '"':
                self._in_string = True
            else:
                self._depth += 1 if found[0] in "{[" else -1
                if self._depth == 0:
                    return at, True
                if self._depth > MAX_DEPTH:
                    return at, False
        return len(text), None

    def _string_end(self, text: str, at: int) -> int:
        """Where the string ends, or the text."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _STRING_STOP.search(text, at)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = False
        else:
            self._escaped = True
        return found.end()


class Blanks:
    """Holds back blanks until it is known whether more text follows them."""

    def __init__(self, drops_leading: bool = False) -> None:
        self._drops_leading = drops_leading
        self._held = ""
        self._is_text = False  # the run of blanks is too long to be held back

    def push(self, text: str) -> str:
        """Text without the blanks at its end."""
        if self._drops_leading:
            text = text.lstrip()
        if not text:
            return ""
        self._drops_leading = False
        body = text.rstrip()
        tail = text[len(body) :]
        if body:
            shown, self._held, self._is_text = self._held + body, "", False
        else:
            shown = ""
        if self._is_text:
            return shown + tail
        self._held += tail
        if len(self._held) > MAX_BLANKS:
            self._is_text = True
            return shown + self.release()
        return shown

    def release(self) -> str:
        """The blanks that were held back: they belong to the text."""
        held, self._held = self._held, ""
        return held

    def cut(self) -> None:
        """Drop the blanks that were held back, and those that follow."""
        self._held, self._is_text, self._drops_leading = "", False, True


def _beginning(text: str, marker: str) -> str:
    """The longest end of the text that begins the marker."""
    for count in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:count]):
            return marker[:count]
    return ""


_STRUCTURE: Final = re.compile(r'["{}\[\]]')
_STRING_STOP: Final = re.compile(r'["\\]')
