"""How a family of models writes calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from dashinfer_lite.tools.calls import CallParser
    from dashinfer_lite.tools.definitions import Tool
    from dashinfer_lite.tools.rules import Rules


class Dialect(ABC):
    """Reads calls, and says which grammar they follow."""

    name: ClassVar[str]

    markers: ClassVar[tuple[str, ...]] = ()
    """What begins or ends calls; where these are special tokens, the text must show them."""

    @abstractmethod
    def parser(self, names: frozenset[str]) -> CallParser:
        """A parser of one answer."""

    @abstractmethod
    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        """Add the rules of one or several calls; returns the body of a rule."""

    @abstractmethod
    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        """The same for any text in which a call, once begun, is a proper one."""
