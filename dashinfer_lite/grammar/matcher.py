"""llguidance's matcher as the engine asks for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

_ASIDE: Final = re.compile(r"<non-verbose/>|\n *\d+ \|.*|; following special tokens.*", re.DOTALL)
"""The source once more, what the library left out, and all special tokens of the model."""


class Matcher:
    """Where one answer stands in its grammar; see `engine.grammar.Matcher`."""

    def __init__(self, ll_matcher: Any, first_mask: np.ndarray) -> None:
        """`first_mask` is that of the start, which was computed with the grammar."""
        self._matcher = ll_matcher
        self._first_mask: np.ndarray | None = first_mask

    @property
    def is_accepting(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def fill_mask(self, mask: np.ndarray) -> None:
        if self._first_mask is not None:
            mask[:] = self._first_mask
            self._first_mask = None
            return
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        check_matcher(self._matcher)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        check_matcher(self._matcher)


def check_matcher(ll_matcher: Any, what: str = "grammar") -> None:
    """RequestError where a matcher has failed: a broken grammar, a limit, or a token that may not come."""
    if ll_matcher.is_error():
        raise RequestError(f"the {what} cannot be used: {readable(ll_matcher.get_error())}")


def readable(message: str) -> str:
    """llguidance's message in one line, without what is no reason."""
    return " ".join(_ASIDE.sub("", message).split())[:300] or "no reason is given"
