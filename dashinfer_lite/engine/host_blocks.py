"""Copies in host memory of blocks that had to leave the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dashinfer_lite.engine.prefix_cache import Entry


class Swap(NamedTuple):
    """A copy between a block of the device and a host block."""

    block: int
    host: int


class HostBlocks:
    """A bounded number of copies; the longest unused makes room for the next.

    Copies travel with steps. One on its way out can be neither found nor replaced until its step is done, and is lost
    with a step that fails. One that the step being planned reads stays until that step is submitted: from then on the
    device keeps the order.
    """

    def __init__(self, blocks: int, dropped: Callable[[Entry], None]) -> None:
        """`dropped(entry)` is called for entries that have lost their copy."""
        self.blocks = blocks
        self._dropped = dropped
        self._free = list(range(blocks - 1, -1, -1))
        self._saved: dict[int, Entry] = {}  # of each host block with a copy, the longest unused first
        self._read: set[int] = set()  # by the step that is being planned
        self._planned: list[tuple[Entry, Swap]] = []  # on their way out with the next step
        self._leaving: dict[int, list[tuple[Entry, Swap]]] = {}  # with each step in flight

    @property
    def used(self) -> int:
        """Host blocks with a copy, complete or on its way."""
        return self.blocks - len(self._free)

    def save(self, entry: Entry, block: int) -> bool:
        """Let the next step copy an entry's block out; False where every host block is needed for something else."""
        if not self._free:
            oldest = next((host for host in self._saved if host not in self._read), None)
            if oldest is None:
                return False
            self._drop(self._saved.pop(oldest))
        entry.host = self._free.pop()
        self._planned.append((entry, Swap(block, entry.host)))
        return True

    def read(self, entries: Iterable[Entry]) -> None:
        """Note that the step being planned reads these copies; the beginning of a text is the last to make room."""
        for entry in reversed(list(entries)):
            self._read.add(entry.host)
            self._saved[entry.host] = self._saved.pop(entry.host)

    def begin_step(self, number: int) -> list[Swap]:
        """The copies that a step takes along."""
        self._read.clear()
        if not self._planned:
            return []
        leaving, self._planned = self._planned, []
        self._leaving[number] = leaving
        return [swap for _, swap in leaving]

    def step_done(self, number: int) -> None:
        """What a step took along can be found from now on."""
        for entry, swap in self._leaving.pop(number, ()):
            entry.is_saved = True
            self._saved[swap.host] = entry

    def step_failed(self, number: int) -> None:
        """What a step took along is lost."""
        for entry, _ in self._leaving.pop(number, ()):
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self._free.append(entry.host)
        entry.host, entry.is_saved = -1, False
        self._dropped(entry)
