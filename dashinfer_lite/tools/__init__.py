"""Tool calls and reasoning: what a model is told about tools, what its answer holds, grammars that force calls.

Everything here is text in, text out. The parsers take an answer in pieces and give the same result however it is cut.
"""

from dashinfer_lite.tools.deltas import Delta, OutputParser, ReasoningDelta, TextDelta, ToolCallDelta
from dashinfer_lite.tools.parsed import Parsed, ToolCall, parse
from dashinfer_lite.tools.plan import ToolPlan

__all__ = [
    "Delta",
    "OutputParser",
    "Parsed",
    "ReasoningDelta",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "ToolPlan",
    "parse",
]
