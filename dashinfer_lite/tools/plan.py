"""What a request with tools needs: variables of the template, parameters of the draw, a parser of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import Guided
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.tools.calls import PlainText
from dashinfer_lite.tools.definitions import checked_choice, checked_tools
from dashinfer_lite.tools.parsed import Parsed, parse
from dashinfer_lite.tools.reasoning import CLOSE, OPEN, ReasoningParser
from dashinfer_lite.tools.rules import Rules, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.tools.deltas import OutputParser
    from dashinfer_lite.tools.dialect import Dialect


class ToolPlan:
    """How one request uses tools.

    template    what the chat template is given
    params()    sampling parameters, with the grammar that forces calls where they are required or strict
    parser()    takes the answer apart
    """

    def __init__(
        self,
        dialect: Dialect | None,
        tools: Sequence[Any] | None,
        tool_choice: object = None,
        parallel_tool_calls: bool = True,
        *,
        special: Callable[[str], int | None] = lambda _: None,
        thinks: bool = False,
        thinks_at_once: bool = False,
    ) -> None:
        """Check tools and choice in OpenAI's form; RequestError says what is wrong.

        `dialect` is None where a model has none. `special` gives the id of a special token by its name. `thinks`: the
        model may write thoughts first; `thinks_at_once`: its prompts end inside of them.
        """
        if not isinstance(parallel_tool_calls, bool):
            raise RequestError(f"parallel_tool_calls is {parallel_tool_calls!r:.80}; it must be true or false")
        self.tools = checked_tools(tools)
        self.choice = checked_choice(tool_choice, self.tools)
        self._has_tools = bool(self.tools) and self.choice.mode != "none"
        if self._has_tools and dialect is None:
            raise RequestError("this model has no format of tool calls that is supported, so it cannot be given tools")
        self.template: dict[str, Any] = {"tools": tools} if self._has_tools else {}
        self._dialect = dialect if self._has_tools else None
        self._is_parallel = parallel_tool_calls and self.choice.name is None
        self._special = special
        self._thinks = thinks or thinks_at_once
        self._thinks_at_once = thinks_at_once

    def params(self, params: SamplingParams | None = None) -> SamplingParams:
        """The parameters with what tools ask for; RequestError where calls are forced and the answer guided as well."""
        params = params or SamplingParams()
        if self._dialect is None:
            return params
        guided = self._guided(self._dialect)
        if guided is not None and params.guided is not None:
            raise RequestError("an answer cannot be guided and have its tool calls forced at the same time")
        shows = any(self._special(marker) is not None for marker in self._dialect.markers)
        return replace(
            params,
            guided=guided or params.guided,
            skip_special_tokens=params.skip_special_tokens and not shows,
        )

    def parser(self, prompt: str | None = None) -> OutputParser:
        """A parser of one answer; the prompt, if it is known, shows whether the answer begins with thoughts."""
        names = frozenset(tool.name for tool in self.tools)
        inner: OutputParser = PlainText() if self._dialect is None else self._dialect.parser(names)
        if not self._thinks:
            return inner
        is_open = self._thinks_at_once if prompt is None else prompt.rstrip().endswith(OPEN)
        return ReasoningParser(inner, is_open)

    def parse(self, text: str, prompt: str | None = None) -> Parsed:
        """Take a whole answer apart."""
        return parse(self.parser(prompt), text)

    def _guided(self, dialect: Dialect) -> Guided | None:
        """The grammar that forces calls, where the request asks for that."""
        tools = [tool for tool in self.tools if self.choice.name in (None, tool.name)]
        rules = Rules(self._special)
        if self.choice.mode == "required":
            start = f"({dialect.calls(rules, tools, self._is_parallel)})"
        elif any(tool.strict for tool in tools):
            start = f"({dialect.text_or_calls(rules, tools, self._is_parallel)})"
        else:
            return None
        if self._thinks:
            thoughts = rules.add("until_close[lazy]", f"ANYTHING {quoted(CLOSE)}")
            opening = "" if self._thinks_at_once else quoted(OPEN)
            thoughts = f"({opening} {thoughts} /\\s*/)"
            start = f"{thoughts} {start}" if self._thinks_at_once else f"{thoughts}? {start}"
        return Guided(grammar=rules.grammar(start))
