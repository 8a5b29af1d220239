"""Text: tokenizers, incremental detokenizing, stop strings, chat templates and chat formats.

Only ints, bytes, str and JSON-able values cross the border of this room. Importing it loads no third-party module;
each tokenizer kind and the template engine are imported when a model folder asks for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .conversation import Conversations
    from .detokenize import IncrementalDetokenizer
    from .stop import StopStringMatcher
    from .tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "Conversations",
    "IncrementalDetokenizer",
    "StopStringMatcher",
    "Tokenizer",
    "load_tokenizer",
]

_HOME = {
    "ChatTemplate": ".chat",
    "Conversations": ".conversation",
    "IncrementalDetokenizer": ".detokenize",
    "StopStringMatcher": ".stop",
    "Tokenizer": ".tokenizer",
    "load_tokenizer": ".tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its file on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
