"""Stop strings in a stream of text (Aho & Corasick, "Efficient string matching", CACM 18/6, 1975)."""

from collections.abc import Sequence

from ..errors import RequestError


class StopStringMatcher:
    """Finds the first stop string in text that comes in pieces; no part of one is ever let through.

    "First" is the match that ends first; among those that end with the same character, the longest. The result depends
    on the text alone, not on how it was cut. Every character is looked at a constant number of times.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Take the stop strings; with `include` the one that matched is part of the text. RequestError for bad ones."""
        if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
            raise RequestError("stop strings must be given as a list of strings")
        if not all(stops):
            raise RequestError("a stop string must not be empty")
        self._include = include
        self._next, self._fail, self._match = _automaton(stops)
        # The longest prefix of a stop string at the end of the text so far: its state, and its length by state.
        self._state = 0
        self._depth = _depths(self._next)
        self._held = ""
        self._found: str | None = None

    def push(self, piece: str) -> tuple[str, str | None]:
        """Take the next text; return the text that may be sent, and the stop string once one has been found.

        Text after a match is dropped, and later calls return no text.
        """
        if self._found is not None:
            return "", self._found
        text = self._held + piece
        state = self._state
        for end, char in enumerate(piece, start=len(self._held) + 1):
            state = self._step(state, char)
            found = self._match[state]
            if found is not None:
                self._found, self._held = found, ""
                return text[: end if self._include else end - len(found)], found
        self._state = state
        safe = len(text) - self._depth[state]
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """Return the text that was held back because a stop string could still have come of it."""
        text, self._held, self._state = self._held, "", 0
        return text

    def _step(self, state: int, char: str) -> int:
        while (after := self._next[state].get(char)) is None:
            if state == 0:
                return 0
            state = self._fail[state]
        return after


def _automaton(stops: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[str | None]]:
    """Build the trie with its failure links; `match[state]` is the longest stop string that ends there."""
    following: list[dict[str, int]] = [{}]
    match: list[str | None] = [None]
    for stop in stops:
        state = 0
        for char in stop:
            if char not in following[state]:
                following[state][char] = len(following)
                following.append({})
                match.append(None)
            state = following[state][char]
        match[state] = stop
    fail = [0] * len(following)
    queue = list(following[0].values())
    for state in queue:  # grows while it is walked: breadth first
        for char, child in following[state].items():
            back = fail[state]
            while back and char not in following[back]:
                back = fail[back]
            fail[child] = following[back].get(char, 0)
            match[child] = match[child] or match[fail[child]]
            queue.append(child)
    return following, fail, match


def _depths(following: list[dict[str, int]]) -> list[int]:
    depth = [0] * len(following)
    for state, children in enumerate(following):  # a child is always numbered after its parent
        for child in children.values():
            depth[child] = depth[state] + 1
    return depth
