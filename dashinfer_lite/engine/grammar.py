"""What the engine asks of grammars; whoever makes an engine brings the two together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from dashinfer_lite.guided import Guided


class Matcher(Protocol):
    """Where one answer stands in its grammar. The tokens that end an answer are the engine's business."""

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether it is complete, and nothing more may come."""
        ...

    def fill_mask(self, mask: np.ndarray) -> None:
        """Write which tokens may come next: mask[i // 32] has bit i % 32; RequestError where that cannot be said."""
        ...

    def accept(self, token: int) -> None:
        """Take the next token; RequestError where it may not come."""
        ...


class Grammars(Protocol):
    """Makes matchers. Used by many threads at once, never by the one that takes the engine's turns."""

    def matcher(self, guided: Guided) -> Matcher:
        """A matcher at the start of an answer. Waits where it has to be compiled.

        RequestError for what cannot be enforced, CapacityError where too much is being compiled.
        """
        ...
